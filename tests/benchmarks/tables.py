"""Children of a supernet that were judged once, as a file: a search over them costs nothing, and anybody can do it.

nas run bignas-digits --set search.algorithm=random --set search.candidates=1024 --run-dir runs/all
python -m tests.benchmarks.tables runs/all tests/golden/tables/bignas-d8.json

Of a space that is larger than its table, the table is what a surrogate is fitted on, as NAS-Bench-301 does (Zela et
al., ICLR 2022): boosted trees for the metric, and for what they miss noise that is the same for a child each time;
costs are the network's own. `Table.tau` says how well the trees rank children that they were not fitted on.

What stands in tests/golden/tables: bignas-m28 as follows; vit-m28 likewise of vit-resnas-fashion-mnist, ended after
1,513 candidates, without its budget (search.constraints.macs.min=null, .max=null); quantnas-c12 of quantnas-photos as
it is trained (search.calibration=16, search.validation=4, search.constraints.bitops.max=null):

nas train bignas-fashion-mnist --set recipe.epochs=1 --set recipe.warmup_epochs=0.1 --set train.workers=1
nas search runs/bignas-fashion-mnist --run-dir runs/all --set search.algorithm=random --set search.candidates=4096
    --set search.metric=cross_entropy --set search.calibration=128 --set search.calibration_batch=128
    --set search.validation=500
"""

from __future__ import annotations

import argparse
import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import cross_val_predict

from nas.build import load_supernet
from nas.rundir.directory import RunDir
from nas.search.core import Objective
from nas.search.journal import Candidate, Record
from nas.search.pareto import front
from nas.search.predictor import Predictor
from nas.space import Arch, Space
from nas.supernet import Supernet

ROUNDED = 5  # decimals of a metric in a file


@dataclass(frozen=True)
class Table:
    """What a table says of its network, and the figures of each child.

    Attributes:
        about: ``space``, ``size``, ``options`` of the network; ``supernet``, the sha256 of its weights; ``metric``,
            ``better``, ``cost``; ``commit`` and what was run.
        figures: (metric, cost) by architecture.
    """

    about: Mapping[str, Any]
    figures: Mapping[Arch, tuple[float, float]]
    _guessed: dict[Arch, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Table:
        """A table that `write` wrote."""
        form = json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_text())
        names = form["choices"]
        figures = {
            Arch({name: value for name, value in zip(names, row[:-2], strict=True) if value is not None}): row[-2:]
            for row in form["children"]
        }
        return cls(form["about"], {arch: (float(pair[0]), float(pair[1])) for arch, pair in figures.items()})

    @cached_property
    def net(self) -> Supernet:
        """The network, untrained."""
        return load_supernet(self.about["space"], self.about["size"], **self.about["options"])

    @property
    def space(self) -> Space:
        """The network's."""
        return self.net.space

    @cached_property
    def complete(self) -> bool:
        """Whether every child of the space is in it."""
        return len(self.figures) == self.space.cardinality

    @property
    def objective(self) -> Objective:
        """What its searches want."""
        return Objective(self.about["metric"], self.about["cost"], self.about["better"])

    def cost(self, arch: Arch) -> dict[str, float]:
        """As the network counts it."""
        name = self.about["cost"]
        return {name: self.figures[arch][1] if arch in self.figures else self.net.cost(arch)[name]}

    def metric(self, arch: Arch) -> float:
        """What was found of a child; of a table that is not complete, what its surrogate says."""
        if self.complete:
            return self.figures[arch][0]
        if arch not in self._guessed:
            rng = np.random.default_rng(zlib.crc32(arch.id.encode()))
            model, missed = self.surrogate
            self._guessed[arch] = float(model.predict(self._rows([arch]))[0] + missed * rng.standard_normal())
        return self._guessed[arch]

    @cached_property
    def surrogate(self) -> tuple[HistGradientBoostingRegressor, float]:
        """The trees, and the standard deviation of what they miss of children that they were not fitted on."""
        values, missed = self._held_out
        return trees().fit(self._rows(list(self.figures)), values), float(np.std(values - missed))

    @property
    def tau(self) -> float:
        """Kendall's tau between the metric of children and what trees say that were not fitted on them."""
        return float(kendalltau(*self._held_out).statistic)

    @cached_property
    def _held_out(self) -> tuple[np.ndarray, np.ndarray]:
        values = np.array([metric for metric, _ in self.figures.values()])
        return values, cross_val_predict(trees(), self._rows(list(self.figures)), values, cv=5)

    def _rows(self, archs: Sequence[Arch]) -> np.ndarray:
        return Predictor(self.space).rows(archs)

    def evaluate(self, candidate: Candidate) -> Record:
        """The record that its child has."""
        metrics = {self.about["metric"]: self.metric(candidate.arch)}
        return Record(candidate.k, candidate.arch, metrics, self.cost(candidate.arch), 0.0, None)

    def scaled(self, archs: Sequence[Arch]) -> np.ndarray:
        """(metric, logarithm of cost), to be minimised, each between 0 and 1 over the table: shape ``(archs, 2)``."""
        points = np.array([(self.metric(arch), self.cost(arch)[self.about["cost"]]) for arch in archs])
        every = self._minimised(np.array(list(self.figures.values())))
        return (self._minimised(points) - every.min(axis=0)) / np.ptp(every, axis=0)

    def _minimised(self, points: np.ndarray) -> np.ndarray:
        metric = -points[:, 0] if self.about["better"] == "higher" else points[:, 0]
        return np.stack((metric, np.log10(points[:, 1])), axis=1)

    @cached_property
    def front(self) -> set[Arch]:
        """The true one, ties included."""
        archs = list(self.figures)
        return {archs[i] for i in front(self.scaled(archs))}


def trees() -> HistGradientBoostingRegressor:
    """Boosted ones, for some thousand rows of some dozen columns."""
    return HistGradientBoostingRegressor(
        max_iter=400, learning_rate=0.05, max_leaf_nodes=8, min_samples_leaf=20, random_state=0
    )


def write(run: RunDir, path: Path) -> None:
    """The newest search of a run as a table: its children in the order of k."""
    experiment, lines = run.load(), run.journals()[-1].read_text().splitlines()
    header, *rest = map(json.loads, lines)
    records = sorted((Record.from_json(line) for line in rest if "k" in line), key=lambda record: record.k)
    goal = header["objective"]
    choices = list(dict.fromkeys(name for record in records for name in record.arch))
    about = {
        "space": experiment.space.name,
        "size": experiment.space.size,
        "options": header_options(experiment),
        "supernet": header["supernet"],
        **goal,
        "experiment": experiment.name,
    }
    rows = [
        [
            *(record.arch.get(name) for name in choices),
            round(record.metrics[goal["metric"]], ROUNDED),
            record.cost[goal["cost"]],
        ]
        for record in records
        if record.metrics is not None
    ]
    text = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    head = json.dumps({"about": about, "choices": choices})
    whole = f'{head[:-1]}, "children": [\n{text}\n]}}\n'.encode()
    path.write_bytes(gzip.compress(whole, mtime=0) if path.suffix == ".gz" else whole)


def header_options(experiment: Any) -> dict[str, Any]:
    """What the network takes of the data, as far as its space needs it."""
    from nas.build import load_task

    given = {**load_task(experiment).network, **experiment.space.options}
    return {name: value for name, value in given.items() if isinstance(value, int | str)}


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(description="A search as a table of all that it judged.")
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    if not RunDir(args.run.absolute()).journals():
        parser.error(f"no search in {args.run}: give the directory of a run that has searched")
    write(RunDir(args.run.absolute()), args.file)
    table = Table.read(args.file)
    rest = "" if table.complete else f"; tau of its surrogate with children held out {table.tau:.3f}"
    print(f"{args.file}: {len(table.figures):,} children, {len(table.front)} on the front{rest}")


if __name__ == "__main__":
    main()
