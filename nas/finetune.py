"""The run that trains one child by itself: an experiment made of the one that the child was found in."""

from __future__ import annotations

import os
from pathlib import Path

from nas.config import trust
from nas.config.experiment import Experiment, difference, parse
from nas.config.section import Kind
from nas.results.tracking import default_uri
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import Occupied, RunDir
from nas.search.journal import Record


def finetune_experiment(
    experiment: Experiment, run: RunDir, record: Record, trained: Checkpoint, teacher: Path | None
) -> Experiment:
    """The experiment that trains one child by itself: the space fixed to it, everything else as in the run that it
    comes from."""
    settings = experiment.finetune
    assert settings is not None
    space = experiment.space.model_copy(
        update={"child": dict(record.arch), "inherit": None if settings.fresh else str(trained.directory)}
    )
    recipe = settings.recipe.model_copy(update={"teacher": str(teacher) if teacher else settings.recipe.teacher})
    given = experiment.tracking.uri or os.environ.get(
        "MLFLOW_TRACKING_URI"
    )  # the latter may hold a password: it stays where it is
    tracked = {
        "uri": experiment.tracking.uri if given else default_uri(run),
        "experiment": experiment.tracking.experiment or experiment.name,
    }
    tracking = experiment.tracking.model_copy(update=tracked)
    search = experiment.search.model_copy(
        update={"constraints": {}, "propose_from": (), "rungs": ((1.0, 0),), "recipe": None}
    )
    train, name = experiment.train.model_copy(update={"init_from": None}), f"{experiment.name}-{record.id}"
    changed = {"name": name, "space": space, "recipe": recipe, "train": train, "search": search, "finetune": None}
    changed["tracking"] = tracking
    return parse(experiment.model_copy(update=changed).model_dump(mode="json"), "the section finetune")


def check_alike(derived: Experiment, run: RunDir, child: Path) -> None:
    """Refuse to go on with a child that was trained on by itself in another way: under one id there is one.

    Args:
        run: of that training, if there is one.
        child: that it ends with.

    Raises:
        Occupied: it began with other weights or has another teacher, whose paths are no identity since a run may be
            moved; or anything else that makes it another run.
    """
    if not run.is_run():
        return
    before = run.load(trusted=trust.modules_of(derived.model_dump()))
    rows = [(row.key, row.old, row.new) for row in difference(before, derived) if row.kind is Kind.IDENTITY]
    rows.append(("finetune.fresh", before.space.inherit is None, derived.space.inherit is None))
    rows.append(("finetune.teacher", _teacher(before), _teacher(derived)))
    if told := [f"  {key}: {old!r} then, {new!r} now" for key, old, new in rows if old != new]:
        raise Occupied(
            f"{child.name} was trained on by itself already, in another way:\n"
            + "\n".join(told)
            + f"\ngo back to the old values; or, to train it anew, move {run.path} and {child} away"
        )


def _teacher(derived: Experiment) -> str | None:
    path = getattr(derived.recipe, "teacher", None)
    return path and Path(path).name
