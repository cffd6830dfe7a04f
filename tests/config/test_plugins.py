"""Plug-ins of one's own, by import string: their options are sections like any other, and what fails in them is told
with its place."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nas.build import costs_of, find_space, load_recipe, load_supernet, load_task, open_search
from nas.config import own as owning
from nas.config.experiment import Experiment, ExperimentError, difference, dump, load_experiment, parse
from nas.config.plugins import CONTRACTS, POSED_BY, built_in, find, load, options
from nas.config.section import Kind
from nas.recipes.recipe import Step
from nas.tasks.options import ClassificationOptions, SuperResolutionOptions
from nas.testing.space import ready

OWN = '''
from typing import Annotated

import torch
from pydantic import Field

from nas.config.section import Kind, Share
from nas.draws import uniform
from nas.recipes.recipe import Recipe, RecipeOptions
from nas.tasks.task import DataOptions, Task


class HalvesOptions(RecipeOptions):
    """Two children a step."""

    rate: float = Field(description="learning rate")
    share: Share = Field(default=0.5, description="of the loss that is the first one's")
    looks: Annotated[int, Kind.FREE] = Field(default=1, description="how often it looks")

    def too_few(self, examples):
        return "share needs 4 examples" if examples < 4 else ""


class Halves(Recipe):
    Options = HalvesOptions
    names = ("first", "second")

    def losses(self, run, net, batches, step):
        x, y = batches["train"]
        for _ in self.names:
            yield self.options.share * self.task.loss(run(x, net.space.sample(step.rng)), y)

    def optimizer(self, net):
        return torch.optim.SGD(net.parameters(), lr=self.options.rate)

    def lr(self, step):
        return self.options.rate * float(uniform(step.seed, "rate", step.index)[0])


class StripesOptions(DataOptions):
    """Stripes, made up."""

    width: int = Field(description="of a stripe, pixels")


class Stripes(Task):
    Options = StripesOptions
    metric, metrics, input_shape, least_side = "error", {"error": "lower"}, (1, 8, 8), 8


class Neither:
    Options = HalvesOptions
'''

RECIPE = "recipe={name: 'own_plugins:Halves', epochs: 2, batch: 8, rate: 0.25}"
DATA = "data={name: 'own_plugins:Stripes', validation: 300, width: 2}"


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module `own_plugins` in the current directory, which is not on the path, as when ``nas`` is called."""
    (tmp_path / "own_plugins.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield
    for name in ("own_plugins", "mine"):
        sys.modules.pop(name, None)


def told(*overrides: str) -> str:
    with pytest.raises(ExperimentError) as error:
        load_experiment("bignas-digits", overrides)
    return str(error.value)


@pytest.fixture
def mine() -> Experiment:
    return load_experiment("bignas-digits", [RECIPE, DATA])


def test_own_sections_survive_a_round_trip(mine: Experiment, tmp_path: Path) -> None:
    (tmp_path / "again.yaml").write_text(dump(mine))
    assert load_experiment("again.yaml") == mine == parse(mine.model_dump(mode="json"))
    assert type(mine.recipe).__name__ == "HalvesOptions" and type(mine.data).__name__ == "StripesOptions"
    assert mine.model_dump()["data"] == {"name": "own_plugins:Stripes", "validation": 300, "width": 2}
    assert str(tmp_path) not in sys.path, "the current directory would be searched for all that is imported"


def test_mistakes_in_own_sections_are_told_as_in_any() -> None:
    text = told(RECIPE, DATA, "recipe.sare=0.1", "data.width=wide", "recipe.share=2.0")
    assert "3 mistakes" in text
    assert (
        "recipe.sare: unknown key; did you mean recipe.share? keys of recipe: name, epochs, batch, clip_norm, rate, "
        "share, looks" in text
    )
    assert 'data.width: given "wide"; allowed: a whole number (of a stripe, pixels)' in text
    assert "recipe.share: given 2.0; allowed: less than 1" in text
    assert "recipe.rate: missing (learning rate)" in told(RECIPE.replace(", rate: 0.25", ""))
    assert "did you mean recipe.looks?" in told(RECIPE, "looks=3")
    assert "recipe.share needs 4 examples" in told(RECIPE, "train.micro_batch=1")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("recipe.name='own_plugins:Halve'", "the module 'own_plugins' has no 'Halve'; it has: "),
        (
            "recipe.name='not_there:Halves'",
            "recipe.name: 'not_there:Halves': there is no module 'not_there'; it must lie in the current",
        ),
        ("recipe.name='own_plugins:Neither'", "which is no recipe; allowed: a class that subclasses raynas's Recipe"),
        ("data.name='own_plugins:Halves'", "which is no task; allowed: a class that subclasses raynas's Task"),
        ("finetune.recipe.name='own_plugins:Halves'", "whose Options are ChildOptions"),
        ("data.name=own_plugins", "or your own as my_module:MyClass"),
    ],
)
def test_what_is_no_plug_in_is_refused(override: str, part: str) -> None:
    assert part in told(override)


def test_a_change_of_own_options_means_another_run_unless_they_say_otherwise(mine: Experiment) -> None:
    changes = ["recipe.share=0.25", "recipe.looks=3", "recipe.epochs=3", "data.width=3"]
    other = load_experiment("bignas-digits", [RECIPE, DATA, *changes])
    kinds = {found.key: found.kind for found in difference(mine, other)}
    assert kinds == {
        "data.width": Kind.IDENTITY,
        "recipe.epochs": Kind.EXTEND,
        "recipe.share": Kind.IDENTITY,
        "recipe.looks": Kind.FREE,
    }
    built_ins = difference(load_experiment("bignas-digits"), mine)
    assert ("recipe.rate", None, 0.25, Kind.IDENTITY) in built_ins and (
        "recipe.lr",
        0.2,
        None,
        Kind.IDENTITY,
    ) in built_ins


def test_own_classes_are_what_is_made(mine: Experiment) -> None:
    task, digits = load_task(mine), load_task(load_experiment("bignas-digits"))
    assert type(task).__name__ == "Stripes" and task.options is mine.data and task.seed == mine.seed
    recipe, net = load_recipe(digits, mine.recipe), ready(load_supernet("bignas", "d8"))
    step = Step(0, 10, 0.0, 0, np.random.default_rng(0), torch.Generator(), lambda value: value, seed=7)
    first, second = recipe.losses(net, net, {"train": digits.train.batch(np.arange(4))}, step)
    assert first.requires_grad and first.item() != second.item() and 0 < recipe.lr(step) < 0.25
    assert recipe.taught_by is None and recipe.quant == "off" and isinstance(recipe.optimizer(net), torch.optim.SGD)


def test_an_own_space_is_found_in_the_current_directory() -> None:
    assert find_space("own_plugins:Neither").__name__ == "Neither"
    with pytest.raises(ValueError, match="no module 'nowhere'"):
        find_space("nowhere:space")


def test_the_folder_is_searched_for_what_is_named_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module, what it imports from its own folder, and what that imports; nothing else, and nothing before others."""
    (tmp_path / "mine_a.py").write_text("import json\nimport mine_b\nfrom mine_c.inner import here\nthing = here")
    (tmp_path / "mine_b.py").write_text("")
    (tmp_path / "mine_c").mkdir()
    (tmp_path / "mine_c" / "__init__.py").write_text("def f():\n    import mine_d")
    (tmp_path / "mine_c" / "inner.py").write_text("here = 3")
    for name in ("mine_d", "mine_e", "json"):
        (tmp_path / f"{name}.py").write_text("wrong = True")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(owning.FINDER, "folders", {})
    path, before = list(sys.path), set(sys.modules)
    try:
        assert load("mine_a:thing") == 3
        assert importlib.import_module("mine_d").wrong and not hasattr(importlib.import_module("json"), "wrong")
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("mine_e")
        assert sys.path == path, "the folder stands on no path"
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


def test_built_in_names_find_what_keeps_the_contract() -> None:
    names = {kind: built_in(kind) for kind in CONTRACTS}
    assert names["recipe"] == ["differentiable", "multi_arch", "sandwich", "single", "single_path"]
    for kind, each in names.items():
        assert all(CONTRACTS[kind] in {base.__name__ for base in find(kind, name).__mro__} for name in each)
    posed = [
        options.model_fields["name"].annotation.__args__ for options in (ClassificationOptions, SuperResolutionOptions)
    ]  # type: ignore[union-attr]
    assert tuple(POSED_BY) == posed[0] + posed[1], "a data set that no task knows, or the other way round"


# --- code of one's own that fails: one message, with its place

BROKEN = {  # a module, and what is told of importing it
    "import json\nimport nothing_like_this\n": (
        "importing mine failed: ModuleNotFoundError: No module named 'nothing_like_this'",
        2,
    ),
    "\n\nrate = 1 / 0\n": ("importing mine failed: ZeroDivisionError: division by zero", 3),
    "def f(:\n    pass\n": ("importing mine failed: SyntaxError: invalid syntax", 1),
    "import sys\nsys.exit('no GPU here')\n": ("importing mine failed: SystemExit: no GPU here", 2),
    "import torch\n\nlayer = torch.zeros(2) @ torch.zeros(3)\n": ("importing mine failed: RuntimeError: ", 3),
}


@pytest.mark.parametrize("source", BROKEN)
@pytest.mark.parametrize("key", ["recipe.name", "data.name", "search.algorithm", "search.costs"])
def test_a_module_that_fails_when_it_is_imported_is_told_with_its_place(key: str, source: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(source)
    said, line = BROKEN[source]
    text = told(f"{key}=" + ("[{name: 'mine:Thing'}]" if key == "search.costs" else "'mine:Thing'"))
    assert f"{key}" in text and f"'mine:Thing': {said}" in text and f"({tmp_path}/mine.py:{line})" in text


SPACES = """
from nas.supernet import Supernet

SIZES = {"tiny": 1}


def sizes_alone(size, **options):
    return SIZES[size]


def refuses(size, **options):
    raise ValueError(f"no size {size!r}; it has: tiny")


def takes_nothing():
    return None


number = 3
"""


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "mine:number",
            ["'mine:number' is of type int", "allowed: a function of size and options that makes a Supernet"],
        ),
        (
            "mine:refuses",
            ["'mine:refuses': making the space with the size 'big'", "no size 'big'; it has: tiny", ":12"],
        ),
        ("mine:sizes_alone", ["the size 'big'", "KeyError: 'big'", "mine.py:8)"]),
        ("mine:takes_nothing", ["the options classes failed: TypeError: takes_nothing() "]),
        ("mine:nothing", ["the module 'mine' has no 'nothing'; it has: sizes_alone, refuses, takes_nothing"]),
        ("mine:", ["given 'mine:'; allowed: my_module:thing"]),
        ("./mine.py:refuses", ["allowed: my_module:thing, of a file my_module.py in the current directory"]),
        ("", ["given ''; allowed: bignas"]),
    ],
)
def test_a_space_of_ones_own_that_cannot_be_is_told(name: str, parts: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SPACES)
    with pytest.raises(ValueError) as error:
        load_supernet(name, "big", classes=3)
    assert all(part in str(error.value) for part in parts), error.value
    with pytest.raises(ValueError, match="'mine:sizes_alone' made a int; allowed: a Supernet"):
        load_supernet("mine:sizes_alone", "tiny")


FAILING = """
from nas.recipes.recipe import Recipe
from nas.search.random import Random
from nas.supernet import Cost
from nas.tasks.task import Task


class Learns(Recipe):
    def __init__(self, task, options):
        raise KeyError("rate")


class Looks(Random):
    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        self.table = [][0]


class Counts(Cost):
    name = label = "joules"

    def __init__(self, options):
        open(options.missing)


class Sees(Task):
    def __init__(self, options):
        pass


class NoOptions(Recipe):
    Options = dict
"""


def test_what_fails_when_it_is_made_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FAILING)
    changes = ["recipe={name: 'mine:Learns', epochs: 1, batch: 8}", "search.algorithm='mine:Looks'"]
    digits, net = load_experiment("bignas-digits", changes), load_supernet("bignas", "d8")
    with pytest.raises(ValueError, match=r"'mine:Learns': making the recipe failed: KeyError: 'rate' \(.*mine.py:10\)"):
        load_recipe(load_task(digits), digits.recipe)
    with pytest.raises(ValueError, match=r"'mine:Looks': making the search failed: IndexError: .*mine.py:16\)"):
        open_search(digits, net, load_task(digits))
    costs = load_experiment("bignas-digits", ["search.costs=[{name: 'mine:Counts'}]"])
    with pytest.raises(ValueError, match=r"'mine:Counts': making the cost failed: AttributeError: .*mine.py:23\)"):
        costs_of(costs, net)
    sees = load_experiment("bignas-digits", ["data={name: 'mine:Sees', validation: 8}"])
    with pytest.raises(ValueError, match=r"'mine:Sees': reading the data failed: TypeError: .*__init__\(\) takes 2"):
        load_task(sees)
    assert "whose Options are <class 'dict'>; allowed" in told("recipe={name: 'mine:NoOptions', epochs: 1, batch: 8}")


def test_options_are_those_of_the_class_and_are_found_without_it() -> None:
    for kind in ("recipe", "search", "task", "cost"):
        for name in built_in(kind):
            assert options(kind, name) is find(kind, name).Options


def test_a_space_may_have_a_size_of_its_own_choice(tmp_path: Path) -> None:
    """Where no size is asked for, that of the factory's signature holds; a space without one is asked for ``""``."""
    (tmp_path / "mine.py").write_text(
        "from nas.testing.toy import Toy\n\n\ndef own(size='small', **options):\n    assert size == 'small'\n"
        "    return Toy(**options)\n\n\ndef none(size, **options):\n    assert size == ''\n    return Toy(**options)\n"
    )
    for name in ("own", "none"):
        assert load_supernet(f"mine:{name}").space.cardinality > 1
