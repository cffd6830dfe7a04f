"""A run that begins with the supernet of another run: another search, over the same network."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from nas.config import trust
from nas.config.experiment import Difference, Experiment, difference
from nas.config.section import Kind
from nas.results.choose import check_trained
from nas.results.history import History
from nas.rundir.atomic import Damaged, write_atomic
from nas.rundir.checkpoint import Checkpoint, newest_sha
from nas.rundir.directory import RunDir
from nas.search.journal import Record

JUDGING = ("calibration", "calibration_batch", "validation", "metric", "objectives", "rungs", "recipe", "early_stop")


def take_supernet(experiment: Experiment, run: RunDir, source: RunDir, say: Callable[[str], None]) -> None:
    """Give a run that has trained nothing yet the newest supernet of `source`, and what was found of its children, so
    that none is judged twice. Nothing is taken where `source` was trained otherwise. Whatever interrupts it, the next
    call takes the same.

    Args:
        say: told what was taken, or why nothing was.
    """
    if newest_sha(run.checkpoints) is not None or (newest := Checkpoint.newest(source.checkpoints)) is None:
        return
    if other := trained_otherwise(experiment, source):
        say(f"{source.path} was trained otherwise ({_keys(other)}): this run trains its own supernet")
        return
    known = _known_of(experiment, source, newest.sha)
    if known:
        run.search.mkdir(exist_ok=True)
        lines = (json.dumps(record.to_json()) for record in known.values())
        write_atomic(run.known(newest.sha), "\n".join(lines) + "\n")
    run.training_log.parent.mkdir(exist_ok=True)
    for file, target in ((source.training_log, run.training_log), (source.rollbacks, run.rollbacks)):
        if file.exists():
            shutil.copyfile(file, target)
    _copy(newest.directory, run.checkpoints / newest.directory.name)  # last: from here on the run has a supernet
    judged = f"; {len(known)} children that were judged there are not judged again" if known else ""
    say(f"the supernet of {source.path}, step {newest.state.step:,}{judged}")


def check_supernet(experiment: Experiment, run: RunDir) -> None:
    """Refuse to search the supernet of a run that has none, or that was trained otherwise than the experiment says.

    Raises:
        ValueError: says what differs, and what to do.
    """
    if run.is_run() and (other := trained_otherwise(experiment, run)):
        raise ValueError(
            f"{run.path} was trained otherwise ({_keys(other)}), so this would be a search over another supernet: nas "
            "run trains it"
        )
    check_trained(experiment, run)


def trained_otherwise(experiment: Experiment, source: RunDir) -> list[Difference]:
    """What makes the supernet of `source` another one than the experiment's."""
    rows = difference(_of(source, experiment), experiment)
    return [row for row in rows if row.kind is Kind.IDENTITY and not row.key.startswith("search.")]


def _keys(rows: list[Difference]) -> str:
    return ", ".join(row.key for row in rows[:4])


def _of(source: RunDir, experiment: Experiment) -> Experiment:
    """What `source` has run; modules that this experiment names too are trusted."""
    return source.load(trusted=trust.modules_of(experiment.model_dump()))


def _known_of(experiment: Experiment, source: RunDir, supernet: str) -> dict[str, Record]:
    """By id, the children of a supernet that `source` has judged as this experiment would, to the end."""
    before, now = _of(source, experiment).search, experiment.search
    if any(getattr(before, key) != getattr(now, key) for key in JUDGING) or len(now.rungs) > 1:
        return {}
    history = History(source.journal(supernet))
    history.update()
    whole = {r.id: r for r in history.records.values() if r.metrics is not None and history.final(r)}
    return read_known(source, supernet) | whole


def read_known(run: RunDir, supernet: str) -> dict[str, Record]:
    """By id, what was known of children of a supernet before the run's own search.

    Raises:
        Damaged: the file has another form.
    """
    file = run.known(supernet)
    if not file.exists():
        return {}
    try:
        records = [Record.from_json(json.loads(line)) for line in file.read_text().splitlines()]
    except (ValueError, TypeError, AttributeError) as error:
        raise Damaged(f"{file} is damaged ({error}); delete it, and the children are judged again") from error
    return {record.id: record for record in records}


def _copy(source: Path, target: Path) -> None:
    """A checkpoint, whole or not at all. Its files never change, so they are linked where the file system can."""
    target.parent.mkdir(exist_ok=True)
    beside = target.with_name(f".{target.name}.taken.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside, copy_function=_link_or_copy)
    beside.rename(target)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
