"""How a supernet learns."""

from typing import Any

from nas.recipes.differentiable import Differentiable
from nas.recipes.multi_arch import MultiArch
from nas.recipes.recipe import Recipe as Recipe
from nas.recipes.recipe import Step as Step
from nas.recipes.sandwich import Sandwich
from nas.recipes.single import AVERAGE as AVERAGE
from nas.recipes.single import Single
from nas.recipes.single_path import SinglePath

RECIPES = {"sandwich": Sandwich, "multi_arch": MultiArch, "single_path": SinglePath, "differentiable": Differentiable, "single": Single}


def load_recipe(task: Any, options: Any) -> Recipe:
    """The recipe that an experiment's section names."""
    return RECIPES[options.name](task, options)
