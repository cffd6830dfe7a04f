"""Whether scores are to be trusted: networks whose truth is known, scored well, badly, and not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nas.children.evaluate import Judged
from nas.config import trust
from nas.config.experiment import ExperimentError, load_experiment
from nas.results.fidelity import Fidelity, Trials, read_fidelity
from nas.results.plots import fidelity_picture
from nas.rundir.directory import RunDir
from nas.search.constraints import Constraints, evenly
from nas.search.core import Objective
from nas.space import Arch, Choice, Space
from tests.synthetic import SPACE, cost

SUPERNET, EXAMPLES = "5a" * 32, {"validation": 1000, "test": 4000}
SETTINGS = ["search.rungs=[[1, 0], [0.5, 100]]", "search.recipe={name: single, epochs: 1, batch: 8}"]


def measured(run: RunDir, networks: float, seeds_apart: float, noise: float, count: int = 40) -> Trials:
    """Networks of rising cost that differ by `networks` at equal cost, scored with `noise`."""
    rng = np.random.default_rng(0)
    costs = {Arch({"width": width}): 1000.0 * 1.1**width for width in range(count)}
    run.path.mkdir(exist_ok=True)
    trials = Trials.open(run, load_experiment("bignas-digits", SETTINGS), SUPERNET, Objective(), EXAMPLES, costs)
    truth = 80 + 3 * np.log(list(costs.values())) + rng.normal(0, networks, count)
    known = {arch.id: value for arch, value in zip(costs, truth, strict=True)}
    for arch, steps in trials.open_scores():
        score = known[arch.id] + rng.normal(0, 0.1 if steps else noise)
        trials.add_score(arch.id, steps, {"accuracy": score})
    for arch, seed in trials.open_jobs(3):
        value, half = known[arch.id] + rng.normal(0, seeds_apart), 30 + arch["width"] % 2
        trials.add_alone(arch.id, seed, Judged({"accuracy": value}, [{"accuracy": value + d} for d in (-half, half)]))
    return trials


def found(tmp_path: Path, networks: float, seeds_apart: float, noise: float) -> Fidelity:
    fidelity = measured(RunDir(tmp_path), networks, seeds_apart, noise).fidelity(200)
    assert fidelity
    return fidelity


def test_a_good_score_after_some_steps_and_a_bad_one_before(tmp_path: Path) -> None:
    fidelity = found(tmp_path, networks=1.0, seeds_apart=0.2, noise=20.0)
    assert fidelity.taus[100].value > 0.85 > 0.5 > abs(fidelity.taus[0].value)
    assert fidelity.another.value > 0.8 and fidelity.floor.value > 0.5
    assert fidelity.at_equal_cost[100].low > 0.8 > fidelity.at_equal_cost[0].value
    assert fidelity.spread.networks == pytest.approx(1.0, rel=0.3)
    assert fidelity.spread.trainings == pytest.approx(0.2, rel=0.3)
    assert 1.5 < fidelity.gain < 4.0 and f"{fidelity.gain:.3g} in accuracy" in fidelity.verdict
    # of 780 pairs 400 differ by 1 more on one part and 1 less on the other, a standard error of 1; the rest by the same
    # on both; a quarter of the variance on four times the examples
    trainings = np.sqrt(2) * fidelity.spread.trainings
    assert fidelity.shown_by_test == pytest.approx(2.8 * np.hypot(0.5 * 400 / 780, trainings), rel=0.01)
    (path,) = (tmp_path / "fidelity").glob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    older = [{**line, "parts": [], "error": 3.0} if "parts" in line else line for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in older))
    again = read_fidelity(RunDir(tmp_path), SUPERNET, 200)
    assert again and again.shown_by_test == pytest.approx(2.8 * np.hypot(np.sqrt(2) * 3 / 2, trainings), rel=0.01)


def test_a_score_as_noisy_as_a_training_is_told_to_be_as_good_as_another(tmp_path: Path) -> None:
    """Held against the mean of three trainings it would look better than a training does."""
    fidelity = measured(RunDir(tmp_path), networks=1.0, seeds_apart=5.0, noise=5.0, count=100).fidelity(200)
    assert fidelity and fidelity.taus[0].value == pytest.approx(fidelity.another.value, abs=0.04)


def test_networks_that_differ_by_nothing_but_cost(tmp_path: Path) -> None:
    fidelity = found(tmp_path, networks=0.0, seeds_apart=1.0, noise=0.1)
    assert fidelity.spread.networks < 0.5
    assert "nothing to find" in fidelity.verdict or "not shown" in fidelity.verdict


def test_a_metric_that_falls(tmp_path: Path) -> None:
    """Lower is better: agreement is agreement, and a cost that helps is a positive floor."""
    trials = measured(RunDir(tmp_path), 1.0, 0.2, 0.2)
    one = trials.fidelity(200)
    trials.head = trials.head.model_copy(update={"better": "lower"})
    other = trials.fidelity(200)
    assert one and other and other.taus[0].value == one.taus[0].value and other.floor.value == -one.floor.value


def test_trials_go_on_where_they_ended_also_after_a_torn_line(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    trials = measured(run, 1.0, 0.2, 0.2, count=4)
    lines = trials.path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 4 * 2 + 4 * 3
    trials.path.write_bytes(b"".join(lines[:-1]) + lines[-1][:10])
    again = Trials.current(run)
    assert again and len(again.open_jobs(3)) == 1 and not again.open_scores()
    ((arch, seed),) = again.open_jobs(3)
    again.add_alone(arch.id, seed, Judged({"accuracy": 1.0}, []))
    whole = Trials.current(run)
    assert whole and not whole.open_jobs(3) and whole.alone[arch.id, seed].metrics == {"accuracy": 1.0}
    assert len(whole.open_jobs(4)) == 4, "another seed adds to what is there"
    assert read_fidelity(run, SUPERNET, 10) and read_fidelity(run, "5b" * 32, 10) is None


@pytest.mark.parametrize("failed", ["training", "score"])
def test_a_network_that_failed_is_left_out(failed: str, tmp_path: Path) -> None:
    """Its weights are NaN: the accuracy is a number, the loss is none."""
    run = RunDir(tmp_path)
    trials = measured(run, 1.0, 0.2, 0.2, count=6)
    arch = trials.archs[2]
    figures = {"accuracy": float("nan"), "cross_entropy": float("inf")}
    if failed == "training":
        trials.add_alone(arch.id, 1, Judged(figures, [figures, figures]))
    else:
        trials.add_score(arch.id, 100, figures)
    again = Trials.current(run)
    assert again and not again.open_jobs(3) and not again.open_scores(), "it is not done anew"
    fidelity = again.fidelity(200)
    assert fidelity and len(fidelity.archs) == 5 and arch not in fidelity.archs
    assert np.isfinite(fidelity.alone).all() and fidelity.alone.dtype == float


@pytest.mark.parametrize("of", ["first", "training", "score", "current"])
def test_a_damaged_file_is_told_and_a_report_goes_without(of: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    path = measured(run, 1.0, 0.2, 0.2, count=4).path
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if of == "first":
        del lines[0]["archs"]
    elif of == "training":
        next(line for line in lines if "seed" in line)["metrics"] = {"accuracy": "many"}
    elif of == "score":
        del next(line for line in lines[1:] if "seed" not in line)["id"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if of == "current":
        (run.fidelity / "current").write_text("../journal.jsonl")
        assert Trials.current(run) is None
    else:
        with pytest.raises(ValueError, match="is damaged"):
            Trials.current(run)
    assert read_fidelity(run, SUPERNET, 10) is None


def test_networks_that_cost_nothing(tmp_path: Path) -> None:
    """A cost of one's own may be 0."""
    trials = measured(RunDir(tmp_path), 1.0, 0.2, 0.2, count=8)
    trials.head = trials.head.model_copy(update={"costs": [0.0, *trials.head.costs[1:]]})
    fidelity = trials.fidelity(200)
    assert fidelity and fidelity.verdict and "<svg" in fidelity_picture(fidelity)


def test_nothing_is_said_of_less_than_four_networks(tmp_path: Path) -> None:
    assert measured(RunDir(tmp_path), 1.0, 0.2, 0.2, count=3).fidelity(200) is None
    assert Trials.current(RunDir(tmp_path / "nowhere")) is None


def test_networks_are_spread_over_the_cost_and_kept_within_bounds() -> None:
    archs = evenly(SPACE, cost, "work", Constraints(), 12)
    costs = np.log([cost(arch)["work"] for arch in archs])
    steps = np.diff(costs)
    assert len(set(archs)) == 12 and steps.max() < 2 * steps.mean()
    low, high = (np.exp(costs[-1]) * share for share in (0.5, 0.505))
    within = Constraints({"work": (low, high)})
    narrow = evenly(SPACE, cost, "work", within, 12)
    assert len(set(narrow)) == 12 and not any(within.violation(cost(arch)) for arch in narrow)
    with pytest.raises(ValueError, match="13 different networks are asked for; the space has 12"):
        evenly(Space([Choice("work", tuple(range(1, 13)))]), lambda arch: arch, "work", Constraints(), 13)
    with pytest.raises(ValueError, match="12 are asked for"):
        evenly(SPACE, cost, "work", Constraints({"work": (None, cost(SPACE.smallest())["work"])}), 12)


def test_how_networks_learn_alone_may_name_modules_that_are_trusted_first() -> None:
    tree = {"fidelity": {"recipe": {"name": "elsewhere:Recipe"}}}
    assert trust.modules_of(tree) == {"elsewhere"}
    with pytest.raises(ExperimentError, match="fidelity.recipe.name"):
        load_experiment("bignas-digits", ["fidelity.recipe={name: sandwich}"])
