"""Costs by name: what an experiment may aim at and be bound by, a user's own among them, and files from before there
were names.

tests/golden/experiments has ``dump`` of every preset, tests/golden/searches two journals and the experiments that they
are of, all written by commit 0db256e: bignas-digits under bounds of three costs, vit-resnas-digits with the algorithm
fittest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.build import (
    check_constraints,
    constraints_of,
    costs_of,
    load_task,
    make_supernet,
    objective_of,
    open_journal,
    open_search,
)
from nas.children.card import card
from nas.config.experiment import Experiment, ExperimentError, difference, dump, load_experiment
from nas.results.history import History, front_table, shown_costs
from nas.results.outbox import view
from nas.results.report import write_report
from nas.rundir.directory import RunDir
from nas.search.core import Objective
from nas.search.journal import Journal, Record
from nas.search.pareto import front
from nas.space import COSTS, Arch
from nas.supernet import Supernet
from nas.tasks.task import Task

GOLDEN = Path(__file__).parent.parent / "golden"
SUPERNET = "5a" * 32
LATENCY = """
import csv
from pathlib import Path
from nas.config.section import CostOptions
from nas.supernet import Cost

class LatencyOptions(CostOptions):
    table: str
    slack: float = 0.0

class Latency(Cost):
    name, label, unit = "latency", "latency", "ms"
    Options = LatencyOptions

    def __init__(self, options):
        super().__init__(options)
        self.ms = {(int(stem), int(head)): float(ms) for stem, head, ms in csv.reader(open(options.table))}

    @property
    def tables(self):
        return [Path(self.options.table)]

    def __call__(self, net, arch):
        return self.ms[arch["stem"], arch["head"]] + self.options.slack

class Taken(Latency):
    name = "macs"

class Accuracy(Latency):
    name = "accuracy"

class Nothing(Latency):
    def __call__(self, net, arch):
        return float("nan")
"""


class Opened:
    """An experiment as objects, with a search that is driven by figures of its own making."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment: Experiment = experiment
        self.task: Task = load_task(experiment)
        self.net: Supernet = make_supernet(experiment, self.task)

    def drive(self, run: Path, total: int) -> Journal:
        """`total` candidates, told in order."""
        run.mkdir(exist_ok=True)
        search = open_search(self.experiment, self.net, self.task)
        journal, missing = open_journal(self.experiment, RunDir(run), SUPERNET, search, self.net)
        assert not missing
        with journal:
            while len(journal.records) < total:
                candidate = search.ask()
                assert candidate is not None
                record = Record(
                    candidate.k, candidate.arch, self.figures(candidate.arch), search.cost(candidate.arch), 0.0, None
                )
                search.tell(record)
                journal.append(record)
        return journal

    def figures(self, arch: Arch) -> dict[str, float]:
        figure = int(arch.id, 16) % 1000 / 10
        settings = self.experiment.search
        names = self.task.metrics if settings.objectives else [settings.metric or self.task.metric]
        return dict.fromkeys(names, figure)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module ``my_costs`` that can be imported, and the table that its costs read: neither end is the quickest."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_costs", raising=False)
    (tmp_path / "my_costs.py").write_text(LATENCY)
    path = tmp_path / "table.csv"
    path.write_text("8,48,3.7\n8,64,2.7\n16,48,3.2\n16,64,4.2\n")
    return path


def own(table: Path, *more: str, cost: str = "Latency") -> Experiment:
    costs = f"search.costs=[{{name: 'my_costs:{cost}', table: '{table}'}}]"
    return load_experiment("bignas-digits", [costs, "search.window=4", "search.trials=1", *more])


# --- what was there before


@pytest.mark.parametrize("name", sorted(path.stem for path in (GOLDEN / "experiments").glob("*.yaml")))
def test_an_experiment_from_before_is_the_same_one(name: str) -> None:
    old = load_experiment(GOLDEN / "experiments" / f"{name}.yaml")
    since = [f"search.{key}={getattr(old.search, key)}" for key in ("algorithm", "window")]  # presets have others now
    new = load_experiment(name, since)
    searches = [row for row in difference(old, new) if row.key.startswith("search.")]
    assert not searches and old.search == new.search
    assert constraints_of(old) == constraints_of(new)


@pytest.mark.parametrize("name", ["evolution", "fittest"])
def test_a_search_from_before_is_replayed_continued_and_made_again_to_the_byte(name: str, tmp_path: Path) -> None:
    old = (GOLDEN / "searches" / f"{name}.jsonl").read_bytes()
    opened = Opened(load_experiment(GOLDEN / "searches" / f"{name}.yaml"))
    again = opened.drive(tmp_path / "again", 10)
    assert again.path.read_bytes() == old

    path = tmp_path / "goes-on" / again.path.relative_to(tmp_path / "again")
    path.parent.mkdir(parents=True)
    path.write_bytes(old)
    opened.drive(tmp_path / "goes-on", 10)
    assert path.read_bytes() == old, "another header, or constraints that were there already"
    opened.drive(tmp_path / "goes-on", 12)
    assert path.read_bytes().startswith(old) and path.read_bytes().count(b"\n") == old.count(b"\n") + 2


def test_old_keys_of_constraints_mean_the_new_ones() -> None:
    def bounds(*overrides: str) -> dict[str, Any]:
        return dict(constraints_of(load_experiment("bignas-digits", overrides)).bounds)

    new = "search.constraints={bitops: {max: 2G}, params: {max: 90k}, macs: {min: 1, max: 150k}}"
    old = "search.constraints={max_macs: 150k, min_macs: 1, max_params: 90k, max_bitops: 2G}"
    assert bounds(new) == bounds(old) == {"macs": (1, 150_000), "params": (None, 90_000), "bitops": (None, 2 * 10**9)}
    assert list(bounds(new)) == ["macs", "params", "bitops"], "as journals have them"
    assert bounds("search.constraints={macs: {min: 9}, max_macs: 10}") == {"macs": (9, 10)}
    assert bounds(new, "search.constraints.max_macs=300k")["macs"] == (1, 300_000), "an override goes before the file"
    assert bounds(new, "search.constraints.max_macs=null")["macs"] == (1, None)
    assert bounds("search.constraints={max_macs: 10, macs: {max: 10}, max_bitops: null}") == {"macs": (None, 10)}
    assert bounds("search.constraints={latency: {max: 3.7}}") == {"latency": (None, 3.7)}
    with pytest.raises(ExperimentError, match=r"max_macs 9 and macs.max 10 are the same bound"):
        bounds("search.constraints={max_macs: 9, macs: {max: 10}}")
    with pytest.raises(ExperimentError, match=r"min 2,000,000 is above max 1,000,000"):
        bounds("search.constraints={macs: {min: 2M, max: 1M}}")


def test_the_old_key_initial_is_an_option_of_fittest_alone() -> None:
    def options(*overrides: str) -> dict[str, Any]:
        return load_experiment("vit-resnas-digits", overrides).search.options.model_dump()

    assert options() == {"initial": 100} and options("search.initial=7") == options("search.options.initial=7") == {
        "initial": 7
    }
    assert options("search.options.initial=7", "search.initial=8") == {"initial": 8}, "an override goes before the file"
    assert options("search.algorithm=random", "search.initial=7") == {}
    assert options("search.algorithm=evolution", "search.options.parents=5")["parents"] == 5
    for wrong, said in (
        ("rate=2", "less than or equal to 1"),
        ("initial=3", "unknown key initial; options of evolution: parents"),
    ):
        with pytest.raises(ExperimentError, match=said):
            options("search.algorithm=evolution", f"search.options.{wrong}")


# --- costs of one's own


def test_a_cost_of_ones_own_steers_a_search_under_a_constraint_on_it(table: Path, tmp_path: Path) -> None:
    opened = Opened(own(table, "search.cost=latency", "search.constraints={latency: {max: 3.3}, macs: {max: 400k}}"))
    assert load_experiment(_dumped(opened.experiment, tmp_path)) == opened.experiment
    journal = opened.drive(tmp_path, 12)
    costs = [record.cost for record in journal.records]
    assert {cost["latency"] for cost in costs} <= {3.2, 2.7} and all(cost["macs"] <= 400_000 for cost in costs)
    history = History(journal.path)
    history.update()
    points = [
        (cost["latency"], -record.metrics["accuracy"])
        for cost, record in zip(costs, journal.records, strict=True)
        if record.metrics
    ]
    assert {record.k for record in history.front()} == set(front(points).tolist()), "the front is that of latency"
    assert list(shown_costs(history)) == ["latency", "macs", "params"]
    assert '"key": "latency"' in view(history)


def _dumped(experiment: Experiment, folder: Path) -> Path:
    (folder / "experiment.yaml").write_text(dump(experiment))
    return folder / "experiment.yaml"


def test_people_read_of_it_what_it_says_of_itself(table: Path, tmp_path: Path) -> None:
    opened = Opened(own(table, "search.cost=latency"))
    _dumped(opened.experiment, tmp_path)
    opened.drive(tmp_path, 6)
    page = write_report(RunDir(tmp_path)).read_text()
    assert "latency, ms</th>" in page and " ms latency</title>" in page
    assert {"macs", "params", "bitops", "bytes", "latency"} <= front_table(RunDir(tmp_path))[0].keys()
    costs = costs_of(opened.experiment, opened.net)
    figures = {
        **costs(opened.net.space.smallest()),
        "id": "x",
        "validation": {},
        "test": {},
        "baselines": {},
        "parity": {},
    }
    about = {
        "space": "bignas",
        "size": "d8",
        "data": "digits",
        "supernet": SUPERNET,
        "input": {"shape": [1, 8, 8], "any_size": False},
        "child": "searchspaces.bignas_child:BigNASChild",
    }
    task = load_task(opened.experiment)
    assert "parameters and 3.7 ms latency for one input" in card(figures, about, task, costs.measures)
    assert "MACs and " in card(figures, about, task)


def test_a_changed_table_or_option_is_another_search(table: Path, tmp_path: Path) -> None:
    import hashlib

    journal = Opened(own(table)).drive(tmp_path, 5)
    header = json.loads(journal.path.read_text().splitlines()[0])
    told = {"name": "my_costs:Latency", "table": str(table), "slack": 0.0, "label": "latency", "unit": "ms"}
    assert header["costs"] == {
        "latency": told | {"sha256": {str(table): hashlib.sha256(table.read_bytes()).hexdigest()}}
    }
    Opened(own(table)).drive(tmp_path, 6)
    table.write_text(table.read_text().replace("3.7", "3.8"))
    with pytest.raises(ValueError, match="belongs to another search .*sha256"):
        Opened(own(table)).drive(tmp_path, 7)
    other = load_experiment(
        "bignas-digits", [f"search.costs=[{{name: 'my_costs:Latency', table: '{table}', slack: 1.0}}]"]
    )
    rows = difference(own(table), other)
    assert ("search.costs.0.slack", 0.0, 1.0) in [(row.key, row.old, row.new) for row in rows]


def test_a_cost_that_cannot_be_is_refused(table: Path) -> None:
    for cost, said in (
        ("Taken", "named 'macs', which stands for something else"),
        ("Accuracy", "a metric of the data too"),
    ):
        with pytest.raises(ValueError, match=said):
            opened = Opened(own(table, cost=cost))
            objective_of(opened.experiment, opened.task, opened.net)
    opened = Opened(own(table, cost="Nothing"))
    with pytest.raises(ValueError, match="is nan; allowed: finite numbers"):
        check_constraints(opened.experiment, opened.net, Objective())
    for given, said in (
        ("{name: 'my_costs:Latency'}", "search.costs.0.table: missing"),
        (
            f"{{name: 'my_costs:Latency', table: '{table}', tables: 3}}",
            "unknown key tables; options of my_costs:Latency",
        ),
        ("{name: 'my_costs:LatencyOptions'}", "which is no cost; allowed: a class that subclasses raynas's Cost"),
        ("{name: 'my_costs:Late'}", "the module 'my_costs' has no 'Late'"),
        ("{name: watts}", "given 'watts'.*allowed: latency; or your own as my_module:MyClass"),
        ("{name: latency}", "search.costs.0.table: missing"),
    ):
        with pytest.raises(ExperimentError, match=said):
            load_experiment("bignas-digits", [f"search.costs=[{given}]"])


def test_names_that_no_cost_has_are_refused_with_those_that_there_are(table: Path) -> None:
    opened = Opened(own(table))
    for override in ("search.cost=watts", "search.cost=accuracy"):
        with pytest.raises(ValueError, match="search.cost '.*' is not a cost .*: macs, params, bitops, bytes, latency"):
            objective_of(own(table, override), opened.task, opened.net)
    with pytest.raises(
        ValueError, match="name the cost 'watts'; this network has macs, params, bitops, bytes, latency"
    ):
        check_constraints(own(table, "search.constraints={watts: {max: 3}}"), opened.net, Objective())
    assert objective_of(own(table, "search.cost=bytes"), opened.task, opened.net).cost == "bytes"
    assert objective_of(own(table), opened.task, opened.net).cost == "macs"


def test_bounds_are_met_where_the_smallest_network_is_not_the_cheapest(table: Path) -> None:
    """Of a user's own cost either end may be dear."""
    opened = Opened(own(table, "search.constraints={latency: {min: 3.0, max: 3.4}}"))
    check_constraints(opened.experiment, opened.net, Objective())
    with pytest.raises(ValueError, match=r"max_latency 0.4 is below the smallest network's 3.7 latency \(by 3.3"):
        check_constraints(own(table, "search.constraints={latency: {max: 0.4}}"), opened.net, Objective())


# --- more than two objectives


def test_three_objectives_and_a_bound_on_a_metric(tmp_path: Path) -> None:
    """The front is what no other beats in all three and reaches the least accuracy; the report and MLflow's page show
    the first two."""
    names, bound = ("accuracy", "macs", "params"), "search.constraints={accuracy: {min: 30}, macs: {max: 600k}}"
    opened = Opened(load_experiment("bignas-digits", [f"search.objectives=[{', '.join(names)}]", bound]))
    search = open_search(opened.experiment, opened.net, opened.task)
    assert search.objective == Objective("accuracy", "macs", "higher", (("params", "lower"),))
    journal = opened.drive(tmp_path, 60)
    assert all(record.cost["macs"] <= 600_000 for record in journal.records)
    history = History(journal.path, constraints_of(opened.experiment))
    history.update()
    assert history.objective == search.objective
    able = [record for record in journal.records if record.metrics["accuracy"] >= 30]
    assert len(able) < 60
    points = [(-r.metrics["accuracy"], r.cost["macs"], r.cost["params"]) for r in able]
    assert {record.k for record in history.front()} == {able[i].k for i in front(points)}
    volumes = [point.hypervolume for point in history.progress]
    assert volumes == sorted(volumes) and volumes[-1] > volumes[0]
    assert list(shown_costs(history))[:2] == ["macs", "params"]


def test_a_guided_search_of_three_objectives_is_replayed(tmp_path: Path) -> None:
    settings = ["search.objectives=[macs, cross_entropy, accuracy, params]", "search.algorithm=guided"]
    settings += ["search.constraints={accuracy: {min: 99.99}}"]  # out of reach, so there is no front to begin with
    opened = Opened(load_experiment("bignas-digits", [*settings, "search.options.initial=20", "search.window=4"]))
    whole = opened.drive(tmp_path / "whole", 40)
    opened.drive(tmp_path / "again", 31)
    again = opened.drive(tmp_path / "again", 40)
    assert again.path.read_bytes() == whole.path.read_bytes()
    search = open_search(opened.experiment, opened.net, opened.task)
    assert search.objective.names == ("cross_entropy", "macs", "accuracy", "params")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("search.objectives=[accuracy, watts]", "names watts; allowed: the metrics accuracy, cross_entropy, the costs"),
        ("search.objectives=[accuracy, cross_entropy]", "one metric and one cost at least must be among them"),
        ("search.objectives=[macs]", "one metric and one cost at least must be among them"),
        ("search.constraints={cross_entropy: {max: 1}}", "name the cost 'cross_entropy'; this network has"),
        ("search.objectives=[accuracy, macs, macs]", "macs stands there twice"),
    ],
)
def test_objectives_that_cannot_be_are_refused(given: str, said: str) -> None:
    opened = Opened(load_experiment("bignas-digits"))
    with pytest.raises(ValueError, match=said):
        experiment = load_experiment("bignas-digits", [given])
        check_constraints(experiment, opened.net, objective_of(experiment, opened.task, opened.net))
    with pytest.raises(ExperimentError, match="stand in place of metric: give one or the other"):
        load_experiment("bignas-digits", ["search.objectives=[accuracy, macs]", "search.metric=accuracy"])


# --- algorithms of one's own


LOCAL = """
from nas.config.section import Section
from nas.search.core import Search

class LocalOptions(Section):
    start: int = 3

class Local(Search):
    name, tag, Options = "local", 9001, LocalOptions

    def draws(self, k, archs, points, violations, rng):
        while True:
            yield self.space.sample(rng) if k < self.options.start else self.space.mutate(archs[-1], rng, 0.1)
"""


def test_an_algorithm_of_ones_own_is_a_class_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_local.py").write_text(LOCAL)
    given = ["search.algorithm=my_local:Local", "search.window=2", "search.trials=1"]
    journal = Opened(load_experiment("bignas-digits", [*given, "search.options.start=5"])).drive(tmp_path, 8)
    header = json.loads(journal.path.read_text().splitlines()[0])
    assert (header["algorithm"], header["options"]) == ("local", {"start": 5})
    with pytest.raises(ValueError, match="belongs to another search .*options"):
        Opened(load_experiment("bignas-digits", given)).drive(tmp_path, 9)
    for override, said in (
        ("search.options.stop=5", "unknown key stop; options of my_local:Local: start"),
        ("search.algorithm=my_local:LocalOptions", "which is no search"),
    ):
        with pytest.raises(ExperimentError, match=said):
            load_experiment("bignas-digits", [*given, override])


# --- figures


def test_figures_are_whole_where_they_are_whole(tmp_path: Path) -> None:
    arch = Arch({"width": 2})
    record = Record(0, arch, {"accuracy": 1.0}, {"macs": np.int64(200), "latency": 3.7, "watts": 3.0}, 0.0, None)
    text = json.dumps(record.to_json())
    assert '"cost": {"macs": 200, "latency": 3.7, "watts": 3}' in text
    assert Record.from_json(json.loads(text)).cost == {"macs": 200, "latency": 3.7, "watts": 3}


def test_every_network_counts_what_is_declared() -> None:
    net = make_supernet(load_experiment("bignas-digits"), load_task(load_experiment("bignas-digits")))
    assert list(net.cost(net.space.largest())) == list(COSTS)
    assert all(isinstance(figure, int) for figure in net.cost(net.space.largest()).values())


def test_a_fraction_of_a_unit_has_its_decades(tmp_path: Path) -> None:
    """Costs below one count in the hypervolume: half the latency is better."""
    volumes = []
    for least in (0.4, 0.2):
        path = tmp_path / f"journal-{least}.jsonl"
        objective = {"metric": "accuracy", "cost": "latency", "better": "higher"}
        with Journal(path, {"supernet": SUPERNET, "objective": objective}) as journal:
            for k, latency in enumerate((0.8, least)):
                journal.append(Record(k, Arch({"width": k}), {"accuracy": 50.0}, {"latency": latency}, 0.0, None))
        history = History(path)
        history.update()
        volumes.append(history.progress[-1].hypervolume)
    assert volumes[1] - volumes[0] == pytest.approx(50 * np.log10(2))
