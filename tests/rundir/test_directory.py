"""A run directory that something happened to: what is read is decided by content, rubbish goes, damage is named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from nas.config.experiment import load_experiment
from nas.results.history import read_history
from nas.rundir.atomic import Damaged
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import RunDir, open_run
from nas.rundir.fence import Fence, Gone
from nas.search.journal import Journal
from nas.training.loop import read_rollbacks

OLD = Path(__file__).parent.parent / "golden" / "old-run"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(shutil.copytree(OLD, tmp_path / "run"))


def begin(run: RunDir, supernet: str, k: int) -> Path:
    path = run.begin_search(supernet)
    Journal(path, {"supernet": supernet, "seed": k}).close()
    return path


# --- journals


def test_the_current_journal_is_the_one_last_searched_in_whatever_the_times_say(run: RunDir) -> None:
    """A journal of an earlier training that is touched, copied or restored does not become what the report shows."""
    old = run.journals()[0]
    begin(run, "ff" * 32, 1)
    newest = begin(run, "00" * 32, 2)
    for times, path in enumerate((newest, run.journal("ff" * 32), old)):
        os.utime(path, (1e9 + times, 1e9 + times))
    assert run.journals()[-1] == newest and len(run.journals()) == 3
    history = read_history(run)
    assert history is not None and history.supernet == "00" * 32
    assert run.begin_search("ff" * 32) == run.journals()[-1], "an older supernet, searched on"


@pytest.mark.parametrize("text", [None, b"", b"\xff\xfe", b"journal-deadbeef.jsonl", b"../run.json"])
def test_where_it_is_not_written_down_the_newest_supernet_decides(run: RunDir, text: bytes | None) -> None:
    """Runs of before have no such file."""
    (its,) = run.journals()
    for supernet in ("00" * 32, "ff" * 32):
        begin(run, supernet, 0)
    run.current.unlink()
    if text is not None:
        run.current.write_bytes(text)
    newest = Checkpoint.newest(run.checkpoints)
    assert newest is not None and run.journals()[-1] == its == run.journal(newest.sha)


# --- rubbish


def test_what_killed_writers_left_goes_at_the_next_start(run: RunDir) -> None:
    """Half directories and files; not those of others, nor the only copy of something."""
    (child,) = run.children.glob("*-w4a4")
    for folder in (run.path, run.children, run.checkpoints, run.search, run.training_log.parent):
        (folder / ".x.0123abcd.tmp").mkdir()
        (folder / ".x.0123abcd.tmp" / "weights").touch()
        (folder / ".note.json.0123abcd.tmp").touch()
        (folder / ".mine.tmp").touch()
    shutil.copytree(child, run.children / f".{child.name}.0123abcd.old")
    (checkpoint,) = run.checkpoints.glob("step-*")
    checkpoint.rename(run.checkpoints / f".{checkpoint.name}.89abcdef.old")  # killed before the new one took its place
    with open_run(load_experiment(run.experiment), run):
        left = [path.name for path in run.path.rglob(".*") if path != run.lock]
    assert set(left) == {".mine.tmp"}
    assert Checkpoint.open(checkpoint) and (child / "metrics.json").is_file()


def test_a_second_command_removes_nothing_of_the_first(run: RunDir) -> None:
    with open_run(load_experiment(run.experiment), run):
        (run.children / ".x.0123abcd.tmp").mkdir()
        with (
            pytest.raises(ValueError, match="another process works in"),
            open_run(load_experiment(run.experiment), RunDir(run.path)),
        ):
            pass
        assert (run.children / ".x.0123abcd.tmp").is_dir()


# --- small files


@pytest.mark.parametrize("text", [b"", b" \n", b"\0\0\0", b"one", b"\xff\xfe"])
def test_a_damaged_attempt_says_how_to_mend_the_run(run: RunDir, text: bytes) -> None:
    attempt = run.path / "attempt"
    attempt.write_bytes(text)
    with pytest.raises(Damaged) as refusal, open_run(load_experiment(run.experiment), run):
        pass
    assert str(attempt) in str(refusal.value) and "last line of history.jsonl" in str(refusal.value)
    attempt.write_text(str(json.loads(run.history.read_text().splitlines()[-1])["attempt"]))
    with open_run(load_experiment(run.experiment), run) as fence:
        fence.check()
        attempt.write_bytes(text)
        for ask in (fence.check, fence.stopping, fence.ask_to_stop):
            with pytest.raises(Damaged, match="attempt is damaged"):
                ask()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"id": ""}', b'{"id": 3}', b"\xff"])
def test_a_damaged_run_json_says_how_to_mend_the_run(run: RunDir, text: bytes) -> None:
    before = json.loads(run.about.read_text())["id"]
    run.about.write_bytes(text)
    with pytest.raises(Damaged) as refusal, open_run(load_experiment(run.experiment), run):
        pass
    assert str(run.about) in str(refusal.value) and "raynas.run" in str(refusal.value)
    run.about.unlink()
    with open_run(load_experiment(run.experiment), run):
        assert json.loads(run.about.read_text())["id"] not in ("", before)


@pytest.mark.parametrize("text", ["", "{}", "[", "3"])
def test_damaged_rollbacks_are_named(run: RunDir, text: str) -> None:
    run.rollbacks.write_text(text)
    with pytest.raises(Damaged, match="rollbacks.json is damaged"):
        read_rollbacks(run)


def test_an_attempt_whose_directory_is_gone_says_so(run: RunDir) -> None:
    """Neither as one that a newer attempt has shut out, nor as one that nobody has asked to stop."""
    fence = Fence.take(run.path)
    run.path.rename(run.path.with_name("elsewhere"))
    for ask in (fence.check, fence.stopping, fence.ask_to_stop):
        with pytest.raises(Gone, match="deleted, moved or unmounted"):
            ask()
    assert not run.path.exists()


def test_only_what_ray_made_of_a_deleted_run_is_cleared_away(run: RunDir) -> None:
    run.clear_away()
    assert run.is_run()
    shutil.rmtree(run.path)
    (run.ray / "search-1").mkdir(parents=True)
    (run.path / "mine").touch()
    run.clear_away()
    assert [path.name for path in run.path.iterdir()] == ["mine"]
    (run.path / "mine").unlink()
    run.clear_away()
    assert not run.path.exists()
