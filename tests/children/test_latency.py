"""Latency: a table that is measured once, and a cost that reads it. No test asserts how fast anything is."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import make_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from nas.build import costs_of, load_supernet
from nas.children.formats import write_fixed_onnx
from nas.children.latency import Setup, fit, measure, measured_table, spread
from nas.cli.check import find, run
from nas.cli.commands import app
from nas.config.experiment import ExperimentError, difference, load_experiment
from nas.costs.latencies import PartTime, Table, kind_of
from nas.costs.latency import Latency
from nas.costs.options import LatencyOptions
from nas.rundir.atomic import Damaged
from nas.rundir.forms import read
from nas.space import Arch
from nas.supernet import Supernet
from nas.testing.toy import Toy
from tests.search.test_costs import Opened

FEW = {"threads": 1, "batch": 1, "machine": "a machine", "runtime": "torch 0", "children": 3}
UNSEEN = {"median_error": 0, "worst_error": 0, "rank_correlation": 1, "repeat_error": 0, "children": []}


def quiet(stage: str, done: int, total: int) -> None:
    """Nobody is told."""


@pytest.fixture(scope="module")
def net() -> Supernet:
    return load_supernet("bignas", "d8")


@pytest.fixture(scope="module")
def table(net: Supernet) -> Table:
    """Measured, of few children."""
    return measured_table(net, "bignas d8", 16, Setup("torch"), quiet, unseen=5, rounds=2)


@pytest.fixture
def written(table: Table, tmp_path: Path) -> Path:
    path = tmp_path / "latency.json"
    path.write_text(table.model_dump_json(indent=1))
    return path


def cost(path: Path | str) -> Latency:
    return Latency(LatencyOptions(name="latency", table=str(path)))


def searched(table: Path, *more: str) -> Opened:
    costs = f"search.costs=[{{name: latency, table: '{table}'}}]"
    return Opened(load_experiment("bignas-digits", [costs, "search.window=4", "search.trials=1", *more]))


# --- the table


def test_a_table_comes_back_as_it_was_written(table: Table, written: Path, net: Supernet) -> None:
    assert read(written, Table) == table
    assert (table.children, len(table.unseen.children), table.space) == (16, 5, "bignas d8")
    assert (table.runtime, table.threads, table.batch) == (f"torch {torch.__version__.partition('+')[0]}", 1, 1)
    for seen in table.unseen.children:
        assert cost(written)(net, net.space.arch(seen.arch)) == seen.predicted, "to the bit"


def test_what_is_predicted_is_the_sum_over_parts(tmp_path: Path) -> None:
    toy = Toy()
    arch = toy.space.largest()
    ((first, second),) = toy.parts(arch)
    part = PartTime(ms=0.5, per_mac=1e-4, per_param=1e-5, per_size=[0.25], of_value=[{repr(second): 0.125}])
    choices = {name: list(choice.values) for name, choice in toy.space.choices.items()}
    parts = {json.dumps([first]): part}
    made = Table(space="toy", choices=choices, input=(3, 4, 4), base=2.0, parts=parts, unseen=UNSEEN, **FEW)
    path = tmp_path / "toy.json"
    path.write_text(made.model_dump_json())
    counted = toy.cost(arch)
    by_hand = 2 + 0.5 + 1e-4 * counted["macs"] + 1e-5 * counted["params"] + 0.25 * second + 0.125
    assert cost(path)(toy, arch) == pytest.approx(by_hand, rel=1e-12)
    for other, said in (
        (toy.space.smallest(), r"lacks what this network has: it has no part \[\d+\]. It was made from 3 children"),
        (Arch({**arch, "second.width": toy.space.smallest()["second.width"]}), r"whose size 0 is \d+, only \d+"),
    ):
        with pytest.raises(ValueError, match=said):
            cost(path)(toy, other)


def test_kinds_of_parts_are_text() -> None:
    assert kind_of((2, 28, (16, 24))) == ("[2]", (28, 16, 24))
    assert kind_of(("cell.0", 3, 8)) == ('["cell.0"]', (3, 8))
    assert kind_of((1, "conv", 3)) == ('[1, "conv"]', (3,))
    assert kind_of(None) == ("[null]", ())
    assert kind_of(make_dataclass("Part", ["first", "second"], frozen=True)(4, 5)) == ("[4]", (5,))


@pytest.mark.parametrize(
    "true",
    [
        lambda macs, arch: 0.1 + 1e-6 * macs,
        lambda macs, arch: 0.1 + 1e-6 * macs + 0.05 * arch["stage2.depth"] + 0.02 * (arch["head"] == 64),
    ],
)
def test_times_that_are_a_sum_over_parts_are_found(net: Supernet, true: Callable[[float, Arch], float]) -> None:
    archs = spread(net.space, 60)
    ms = np.array([true(net.cost(arch)["macs"], arch) for arch in archs])
    base, parts = fit(net, archs[:40], ms[:40])
    predicted = [base + sum(_of(parts, net, part) for part in net.parts(arch)) for arch in archs[40:]]
    assert predicted == pytest.approx(ms[40:], rel=0.02)


def _of(parts: dict[str, PartTime], net: Supernet, part: Any) -> float:
    return Table.model_construct(parts=parts).part(net, part)


def test_children_are_spread_over_the_range(net: Supernet) -> None:
    archs = spread(net.space, 50)
    assert len(set(archs)) == 50 and archs == spread(net.space, 50)
    assert archs[:2] == [net.space.smallest(), net.space.largest()]
    assert len(spread(Toy().space, 1000)) == Toy().space.cardinality


# --- what is refused


def test_a_table_of_another_network_is_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of bignas d8 with inputs of 1x8x8, and this network takes 1x28x28"):
        cost(written)(other := load_supernet("bignas", "m28"), other.space.smallest())
    with pytest.raises(
        ValueError, match=r"does not fit: it is of bignas d8, and this network has other choices: stage1"
    ):
        cost(written)(other := load_supernet("vit_resnas", "d8"), other.space.smallest())
    one = load_supernet("bignas", "d8")
    fixed = one.fix(one.space.largest())
    assert cost(written)(fixed, fixed.space.largest()) == cost(written)(one, one.space.largest())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: tree.pop("parts"), "parts: Field required"),
        (lambda tree: tree.update(format=2), "format: Input should be 1"),
        (lambda tree: tree.update(base="nan"), "base: Input should be a finite number"),
        (lambda tree: tree["parts"].update(x={"ms": "slow"}), "parts.x.ms: Input should be a valid number"),
    ],
)
def test_what_is_no_table_is_refused_by_its_key(
    written: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    tree = json.loads(written.read_text())
    change(tree)
    written.write_text(json.dumps(tree))
    with pytest.raises(Damaged, match=f"latency.json is not what it should be: {said}"):
        cost(written)
    written.write_text("{")
    with pytest.raises(Damaged, match="latency.json is not what it should be"):
        cost(written)


def test_a_space_of_few_networks_is_refused(net: Supernet) -> None:
    with pytest.raises(ValueError, match="the space has 1 networks, too few"):
        measured_table(net.fix(net.space.smallest()), "one", 16, Setup("torch"), quiet)


def test_a_table_that_is_not_there_is_asked_for_where_it_may_be(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"'gone.json' \(search.costs\) is not there.*nas latency EXPERIMENT"):
        cost("gone.json")
    monkeypatch.setenv("RAYNAS_DATA", str(tmp_path))
    assert cost("latency.json").path == written
    with pytest.raises(ExperimentError, match="unknown key tables; options of latency: name, table"):
        load_experiment("bignas-digits", ["search.costs=[{name: latency, tables: x}]"])


# --- the search


def test_a_search_takes_latency_from_the_table_alone(written: Path, table: Table, tmp_path: Path) -> None:
    opened = searched(written, "search.cost=latency", "search.constraints={latency: {max: 1000}}")
    journal = opened.drive(tmp_path / "run", 8)
    predict = costs_of(opened.experiment, opened.net)
    assert all(record.cost["latency"] == predict(record.arch)["latency"] for record in journal.records)
    header = json.loads(journal.path.read_text().splitlines()[0])
    contents = hashlib.sha256(written.read_bytes()).hexdigest()
    assert header["costs"] == {"latency": {"name": "latency", "label": "latency", "unit": "ms", "sha256": contents}}

    elsewhere = tmp_path / "elsewhere.json"
    written.rename(elsewhere)
    moved = searched(elsewhere, "search.cost=latency", "search.constraints={latency: {max: 1000}}")
    moved.drive(tmp_path / "run", 9)
    (row,) = difference(opened.experiment, moved.experiment)
    assert (row.key, str(row.kind)) == ("search.costs.0.table", "free")

    elsewhere.write_text(table.model_copy(update={"base": table.base + 1}).model_dump_json())
    with pytest.raises(ValueError, match="belongs to another search .*sha256"):
        searched(elsewhere, "search.cost=latency").drive(tmp_path / "run", 10)


def test_the_path_of_a_table_counts_from_the_file_that_names_it(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.yaml"
    base = (Path(__file__).parents[2] / "searchspaces" / "presets" / "bignas-digits.yaml").read_text()
    file.write_text(base.replace("search: {", "search: {costs: [{name: latency, table: latency.json}], "))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (options,) = load_experiment(file).search.costs
    assert options.locate() == written
    override = ["search.costs=[{name: latency, table: ../latency.json}]"]
    assert load_experiment("bignas-digits", override).search.costs[0].locate() == written


def test_the_cost_keeps_its_contract(written: Path) -> None:
    plugin = find("latency", "", [f"search.costs=[{{name: latency, table: '{written}'}}]"])
    assert not [outcome for outcome in run(plugin) if not outcome.ok and outcome.name != "architectures"]


# --- measuring


def test_onnx_runtime_runs_children_too(net: Supernet) -> None:
    stages: list[str] = []
    times = measure(
        net, spread(net.space, 2), Setup("onnxruntime", threads=1, batch=2), lambda what, *_: stages.append(what), 2
    )
    assert times.shape == (2, 2) and (times > 0).all()
    assert stages == ["export"] * 2 + ["time"] * 4


def test_what_is_timed_is_what_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with quantizers computes with integers."""
    net = load_supernet("quantnas", "basic-c12", scale=2)
    written: list[Counter[str]] = []

    def counted(child: nn.Module, x: torch.Tensor, path: Path) -> None:
        write_fixed_onnx(child, x, path)
        written.append(Counter(node.op_type for node in onnx.load(path).graph.node))

    monkeypatch.setattr("nas.children.latency.write_fixed_onnx", counted)
    measure(net, [net.space.smallest()], Setup("onnxruntime", threads=1, batch=1), quiet, 2)
    assert written[0]["QuantizeLinear"] > 3 and written[0]["DequantizeLinear"] > 3


def test_what_onnx_does_not_take_is_named(net: Supernet, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise torch.onnx.OnnxExporterError("no such operation")

    monkeypatch.setattr("nas.children.latency.write_fixed_onnx", fails)
    with pytest.raises(ValueError, match="ONNX does not take the child .*; measure with --runtime torch: no such"):
        measure(net, spread(net.space, 2), Setup(), quiet, 2)


def test_the_command_ends_with_a_table_and_what_to_do_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nas.children.latency.measured_table", partial(measured_table, unseen=4, rounds=2))
    ended = CliRunner().invoke(app, ["latency", "bignas-digits", "--runtime", "torch", "--children", "12"])
    assert ended.exit_code == 0, ended.output
    made = read(tmp_path / "latency.json", Table)
    assert (made.children, len(made.unseen.children)) == (12, 4)
    assert f"error {made.unseen.median_error:.1%} in the median" in ended.output
    assert "next: nas run bignas-digits --run-dir runs/bignas-digits-latency --set 'search.costs=" in ended.output
    assert [path.name for path in tmp_path.iterdir()] == ["latency.json"]


@pytest.mark.parametrize("option", ["--threads", "--batch", "--children"])
def test_numbers_that_mean_nothing_are_refused(option: str) -> None:
    ended = CliRunner().invoke(app, ["latency", "bignas-digits", option, "0"])
    assert ended.exit_code == 2 and f"Invalid value for '{option}'" in ended.output
