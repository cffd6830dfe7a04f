"""Children of a supernet that were all judged once, as a file: a search over them costs nothing, and anybody can do it.

nas run bignas-digits --set search.algorithm=random --set search.candidates=1024 --run-dir runs/all
python -m tests.benchmarks.tables runs/all tests/golden/tables/bignas-d8.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nas.build import load_supernet
from nas.rundir.directory import RunDir
from nas.search.core import Objective
from nas.search.journal import Candidate, Record
from nas.search.pareto import front
from nas.space import Arch, Space


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

    @classmethod
    def read(cls, path: Path) -> Table:
        """A table that `write` wrote."""
        form = json.loads(path.read_text())
        names = form["choices"]
        figures = {
            Arch({name: value for name, value in zip(names, row[:-2], strict=True) if value is not None}): row[-2:]
            for row in form["children"]
        }
        return cls(form["about"], {arch: (float(pair[0]), float(pair[1])) for arch, pair in figures.items()})

    @cached_property
    def space(self) -> Space:
        """The network's."""
        return load_supernet(self.about["space"], self.about["size"], **self.about["options"]).space

    @property
    def objective(self) -> Objective:
        """What its searches want."""
        return Objective(self.about["metric"], self.about["cost"], self.about["better"])

    def cost(self, arch: Arch) -> dict[str, float]:
        """As the network counted it."""
        return {self.about["cost"]: self.figures[arch][1]}

    def evaluate(self, candidate: Candidate) -> Record:
        """The record that its child has."""
        metric, _ = self.figures[candidate.arch]
        return Record(candidate.k, candidate.arch, {self.about["metric"]: metric}, self.cost(candidate.arch), 0.0, None)

    def scaled(self, archs: list[Arch]) -> np.ndarray:
        """(metric, logarithm of cost), to be minimised, each between 0 and 1 over the table: shape ``(archs, 2)``."""
        every = np.array(list(self.figures.values()))
        points = np.array([self.figures[arch] for arch in archs])
        both = []
        for table in (every, points):
            metric = -table[:, 0] if self.about["better"] == "higher" else table[:, 0]
            both.append(np.stack((metric, np.log10(table[:, 1])), axis=1))
        low, high = both[0].min(axis=0), both[0].max(axis=0)
        return (both[1] - low) / (high - low)

    @cached_property
    def front(self) -> set[Arch]:
        """The true one, ties included."""
        archs = list(self.figures)
        return {archs[i] for i in front(self.scaled(archs))}


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
        [*(record.arch.get(name) for name in choices), record.metrics[goal["metric"]], record.cost[goal["cost"]]]
        for record in records
        if record.metrics is not None
    ]
    text = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    head = json.dumps({"about": about, "choices": choices})
    path.write_text(f'{head[:-1]}, "children": [\n{text}\n]}}\n')


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
    write(RunDir(args.run.absolute()), args.file)
    print(
        f"{args.file}: {len(Table.read(args.file).figures):,} children, {len(Table.read(args.file).front)} on the front"
    )


if __name__ == "__main__":
    main()
