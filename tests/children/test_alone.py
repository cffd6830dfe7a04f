"""Children trained by themselves for a few steps: the same to the bit again, in all families."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from nas.build import load_task, make_supernet
from nas.children.alone import Alone, make_alone
from nas.children.evaluate import PARTS, Evaluator, judge
from nas.config.experiment import Experiment, load_experiment
from nas.recipes.recipe import Recipe

CPU = torch.device("cpu")
FEW = ["search.calibration=64", "search.calibration_batch=32", "search.rungs=[[1, 0], [0.5, 8]]"]


def few(preset: str, *changes: str) -> Experiment:
    """A preset whose children are trained for some steps as its section finetune says."""
    finetune = load_experiment(preset).finetune
    assert finetune
    return load_experiment(preset, [*FEW, f"search.recipe={finetune.recipe.model_dump_json()}", *changes])


def evaluator(experiment: Experiment) -> Evaluator:
    task = load_task(experiment)
    net = make_supernet(experiment, task)
    return Evaluator(net, task, experiment.search, CPU, alone=make_alone(experiment, task, net, CPU))


@pytest.mark.parametrize("preset", ["bignas-digits", "vit-resnas-digits", "quantnas-photos"])
def test_steps_alone_are_repeated_to_the_bit_and_leave_the_supernet_as_it_is(preset: str) -> None:
    at = evaluator(few(preset))
    before = copy.deepcopy(at.net.state_dict())
    arch = at.net.space.sample(np.random.default_rng(0))
    plain = at.judge(arch)
    first, again = at.judge(arch, 8), at.judge(arch, 8)
    assert first == again and first.metrics != plain.metrics
    other = evaluator(few(preset)).judge(arch, 8)
    assert other == first, "whoever does it"
    assert all(torch.equal(value, before[name]) for name, value in at.net.state_dict().items())
    assert at.judge(arch) == plain


def test_a_child_learns_by_itself() -> None:
    """And what the steps give is a network of the child's own."""
    at = evaluator(few("bignas-digits"))
    arch = at.net.space.smallest()
    net, child = at.cut(arch, 60)
    assert net is not at.net and net.space.cardinality == 1
    loss = [at.judge(arch).metrics["cross_entropy"], judge(child, at.validation, at.task).metrics["cross_entropy"]]
    assert loss[1] < 0.9 * loss[0]


def test_the_moving_average_is_what_is_judged() -> None:
    experiment = few("vit-resnas-digits")
    task = load_task(experiment)
    net = make_supernet(experiment, task)
    recipe = experiment.finetune and experiment.finetune.recipe
    assert recipe
    weights = {}
    for average in (0.0, 0.5):
        options = recipe.model_copy(update={"average": average})
        alone = Alone(experiment, task, net, options, CPU, 0)
        one = alone.fresh(net, net.space.smallest())
        alone.train(one, 6, [])
        weights[average] = one.state_dict()
    apart = [not torch.equal(weights[0.0][name], value) for name, value in weights[0.5].items() if value.ndim > 1]
    assert any(apart)


def test_fresh_weights_are_a_function_of_the_seed() -> None:
    experiment = few("bignas-digits")
    task = load_task(experiment)
    net = make_supernet(experiment, task)
    assert experiment.finetune
    made = [
        Alone(experiment, task, net, experiment.finetune.recipe, CPU, seed).fresh(net, net.space.largest()).state_dict()
        for seed in (0, 0, 1)
    ]
    name = next(name for name, value in made[0].items() if value.ndim == 4)
    assert torch.equal(made[0][name], made[1][name]) and not torch.equal(made[0][name], made[2][name])


def test_the_parts_of_a_score_add_up_to_it() -> None:
    at = evaluator(few("bignas-digits", "search.score_batch=50", "search.validation=160"))
    judged = at.judge(at.net.space.smallest())
    assert len(judged.parts) == PARTS
    for name, value in judged.metrics.items():
        assert np.mean([part[name] for part in judged.parts]) == pytest.approx(value, rel=1e-5)


def test_a_batch_that_is_more_than_all_examples_is_refused() -> None:
    experiment = few("bignas-digits", "search.recipe.batch=1300")
    with pytest.raises(ValueError, match="batches of 1300; there are 1200"):
        evaluator(experiment)


def test_a_recipe_without_a_word_on_quantizers_trains_no_child_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Recipe):
        """One of a user's own that forgot them."""

    monkeypatch.setattr("nas.children.alone.load_recipe", lambda task, options: Silent(task, options))
    with pytest.raises(ValueError, match="it trains without quantizers"):
        evaluator(few("quantnas-photos"))
    evaluator(few("bignas-digits"))
