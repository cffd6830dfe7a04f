"""raynas from Python, in a notebook say: run an experiment, look at a run.

run = nas.run("bignas-digits", ["search.candidates=40"])
run.front                               # a pandas frame, cheapest first
run.plot_front()                        # a figure of matplotlib
best = run.pick(max={"macs": "100k"})   # the best candidate under a budget
net = run.child(run.front.index[0])     # an exported child, in evaluation mode
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.children.export import child_packages, load_child
from nas.cli.progress import Screen, plain
from nas.config.experiment import Experiment, load_experiment
from nas.pipeline import Pipeline
from nas.results.choose import budget, pick_of
from nas.results.history import exported_from, front_table, read_history
from nas.rundir.directory import RunDir
from nas.search.journal import Record
from nas.statistics import half_width

if TYPE_CHECKING:
    from pandas import DataFrame, Series
    from torch import nn

    from nas.results.plots import Picture


class Run:
    """A run that is there.

    Args:
        directory: of the run.
        trust: modules that its experiment may name, where somebody else has made it.

    Raises:
        ValueError: it holds no run.
    """

    def __init__(self, directory: Path | str, trust: Collection[str] = ()) -> None:
        self.directory = RunDir(Path(directory))
        if not self.directory.is_run():
            raise ValueError(f"{directory} holds no run; give the directory of one, for example runs/bignas-digits")
        self.trust = tuple(trust)

    @property
    def experiment(self) -> Experiment:
        """What was run.

        Raises:
            Untrusted: it names modules that are not trusted.
        """
        return self.directory.load(trusted=self.trust)

    @property
    def candidates(self) -> DataFrame:
        """Every candidate of the newest search by its number ``k``: ``id``, its metrics on validation, its costs,
        its choices, ``interval`` (of the search's metric: what other examples would change), ``rung``, ``seen`` (the
        examples that its metrics are of, where scoring ended early), ``error``."""
        from pandas import DataFrame

        history = read_history(self.directory)
        records = [history.records[k] for k in sorted(history.records)] if history else []
        rows = [_row(record) for record in records]
        return DataFrame(rows, columns=None if rows else ["k", "id", "error"]).set_index("k")

    @property
    def front(self) -> DataFrame:
        """The front and the exported children by id, cheapest first; the columns are those of
        `nas.results.history.front_table`."""
        from pandas import DataFrame

        rows = front_table(self.directory)
        return DataFrame(rows, columns=None if rows else ["id"]).set_index("id")

    def pick(
        self,
        max: Mapping[str, float | str] | None = None,
        min: Mapping[str, float | str] | None = None,
        knee: bool = False,
    ) -> Series:
        """The best candidate of the newest search under a budget; of equally good ones the cheapest. Nothing is
        trained, scored or exported for it.

        Args:
            max: the most that it may have, by cost or metric: ``{"macs": "100k"}``. The constraints of the run's
                experiment do not count.
            min: the least, likewise.
            knee: rather the one at which the front under that budget bends.

        Returns:
            Its row of `candidates`; its id is ``["id"]``.

        Raises:
            ValueError: nothing fits (says what comes nearest), or a name that the search has no figure of.
        """
        from pandas import Series

        record = pick_of(self.directory, budget(max or {}, min or {}), knee)
        row = _row(record)
        return Series(row, name=row.pop("k"))

    def plot_front(self) -> Picture:
        """The metric against the cost: candidates, the front, constraints, exported children. A figure of matplotlib:
        a notebook shows it, ``savefig`` writes it.

        Raises:
            ValueError: no candidate was judged yet.
        """
        from nas.results.plots import search_figure

        if (history := read_history(self.directory)) is None:
            raise ValueError(f"{self.directory.path} has not been searched yet: nas search {self.directory.path}")
        return search_figure(history, exported_from(self.directory, history))

    def child(self, name: str) -> nn.Module:
        """An exported child, in evaluation mode.

        Raises:
            ValueError: there is no such child; says which are, and how to export another.
            Damaged: it is not whole.
        """
        return load_child(self.directory.exported_child(name).path, child_packages(self.experiment.space.name))

    def __repr__(self) -> str:
        return f"Run({str(self.directory.path)!r})"


def _row(record: Record) -> dict[str, Any]:
    """A candidate as a row of a frame."""
    return {
        "k": record.k,
        "id": record.id,
        **(record.metrics or {}),
        **record.cost,
        **record.arch,
        "interval": half_width(record.parts),
        "rung": len(record.lower),
        "seen": record.seen,
        "error": record.error,
    }


def run(experiment: str | Path | Experiment, overrides: Sequence[str] = (), run_dir: Path | str | None = None) -> Run:
    """Train, search, export, finetune where the experiment says so, report: what the command ``nas run`` does. Called
    again it continues.

    Args:
        experiment: a preset's name, a file, or an experiment.
        overrides: such as ``"recipe.lr=0.1"``; not with an experiment that is loaded already.
        run_dir: where the run lives; ``runs/<name>`` by default.

    Raises:
        ValueError: a mistake in the experiment, or a directory that is another run's.
    """
    if isinstance(experiment, Experiment) and overrides:
        raise ValueError("overrides are for a preset or a file; change the experiment that you give with model_copy")
    told = experiment if isinstance(experiment, Experiment) else load_experiment(experiment, overrides)
    directory = Path(run_dir) if run_dir else Path("runs") / told.name
    screen = Screen(plain())
    try:
        with Pipeline.open(told, directory, screen) as pipeline:
            pipeline.all()
            pipeline.report()
    finally:
        screen.stop()
    return Run(directory)
