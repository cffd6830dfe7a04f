"""The mirror of a run in an object store that breaks off, cuts, and is late: what is restored is always what the run
once was."""

from __future__ import annotations

import io
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest

from nas.config.experiment import load_experiment
from nas.pipeline import Pipeline
from nas.rundir import atomic, mirror
from nas.rundir.atomic import Damaged
from nas.rundir.checkpoint import retain
from nas.rundir.fence import Fenced
from nas.rundir.mirror import Mirror, Store, whole_files

Contents = dict[str, bytes]


class Flaky(Store):
    """A store that fails when `fails` says so, leaving half an object behind, as S3 may where a writer dies; and
    lists what is new late."""

    def __init__(self, uri: str, fails: Callable[[str], bool] = lambda key: False) -> None:
        super().__init__(uri)
        self.fails, self.late, self.puts = fails, False, list[str]()
        self.hidden: set[str] = set()

    def put(self, key: str, content: IO[bytes]) -> None:
        self.puts.append(key)
        if self.late:
            self.hidden.add(key.rpartition("/")[2])
        if self.fails(key):
            text = content.read()
            super().put(key, io.BytesIO(text[: len(text) // 2]))
            raise OSError("the connection broke")
        super().put(key, content)

    def names(self, key: str = "") -> list[str]:
        return [name for name in super().names(key) if name not in self.hidden]


class Run:
    """A run directory that grows as the pipeline makes one grow."""

    def __init__(self, path: Path) -> None:
        self.path, self.step = path, 0
        (path / "train").mkdir(parents=True)
        (path / "search").mkdir()
        (path / "experiment.yaml").write_text("name: digits\n")
        (path / "run.json").write_text('{"id": "1"}')

    def line(self, name: str = "train/metrics.jsonl") -> None:
        with (self.path / name).open("a") as file:
            file.write(json.dumps({"step": self.step, "noise": random.random()}) + "\n")

    def checkpoint(self) -> None:
        self.step += 1
        target = self.path / "supernet" / f"step-{self.step:08d}"
        atomic.write_directory(
            target, lambda folder: (folder / "weights.safetensors").write_bytes(random.randbytes(3000)) and None, {}
        )
        retain(self.path / "supernet", 2)

    def child(self) -> None:
        target = self.path / "children" / f"{random.getrandbits(32):08x}"
        atomic.write_directory(target, lambda folder: (folder / "model.py").write_text("x = 1\n") and None, {})

    def rollback(self) -> None:
        atomic.write_atomic(self.path / "train" / "rollbacks.json", json.dumps([random.random()]))


def contents(run: Path) -> Contents:
    """What a run is, where no line is torn."""
    return {name: path.read_bytes() for name, path in whole_files(run)}


def opened(uri: str, run: Path, store: Store | None = None) -> Mirror:
    """A mirror that was taken over, with nobody pushing but the test."""
    held = Mirror(uri, run, lambda text: None)
    held.store = store or held.store
    held.bring()
    held.claim()
    return held


def restored(uri: str, into: Path, store: Store | None = None) -> Contents:
    """What a machine that has nothing gets."""
    fresh = Mirror(uri, into, lambda text: None)
    fresh.store = store or fresh.store
    fresh.restore()
    return contents(into)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store/digits"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    random.seed(0)
    return Run(tmp_path / "runs" / "digits")


def test_a_run_comes_back_byte_for_byte(uri: str, run: Run, tmp_path: Path) -> None:
    for change in (run.line, run.checkpoint, run.checkpoint, run.checkpoint, run.child, run.rollback):
        change()
    (run.path / ".lock").touch()
    (run.path / ".ray").mkdir()
    (run.path / ".ray" / "session").write_text("not of the run")
    held = opened(uri, run.path)
    assert held.push() and not held.push()
    got = restored(uri, tmp_path / "fresh")
    assert got == contents(run.path)
    assert {"supernet/step-00000003/weights.safetensors", "train/rollbacks.json", "run.json"} < got.keys()
    assert not any("step-00000002" in name or ".ray" in name for name in got)
    atomic.verify(tmp_path / "fresh" / "supernet" / "step-00000003")


def test_lines_are_added_as_segments_and_a_torn_one_waits(uri: str, run: Run, tmp_path: Path) -> None:
    run.checkpoint()
    for _ in range(100):
        run.line("search/journal-1.jsonl")
    store = Flaky(uri)
    held = opened(uri, run.path, store)
    held.push()
    size = (run.path / "search/journal-1.jsonl").stat().st_size
    store.puts.clear()
    run.line("search/journal-1.jsonl")
    whole = contents(run.path)
    with (run.path / "search/journal-1.jsonl").open("a") as file:
        file.write('{"torn')
    assert held.push()
    segments = [key for key in store.puts if "/files/" in key]
    assert len(segments) == 1 and f"journal-1.jsonl/{size:012d}-" in segments[0]
    assert restored(uri, tmp_path / "fresh") == whole


def test_what_is_no_longer_named_is_dropped(
    uri: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "SEGMENTS", 5)
    held = opened(uri, run.path)
    for _ in range(12):
        run.checkpoint()
        run.line()
        held.push()
    objects = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    weights = [path for path in objects if "weights.safetensors" in str(path)]
    assert len(weights) == mirror.KEEP and sum("commits" in str(path) for path in objects) == mirror.KEEP
    assert sum("metrics.jsonl" in str(path) for path in objects) <= 2 * 5
    assert restored(uri, tmp_path / "fresh") == contents(run.path)


@pytest.mark.parametrize("seed", range(20))
def test_whenever_the_store_breaks_an_earlier_moment_is_whole(uri: str, run: Run, tmp_path: Path, seed: int) -> None:
    """Uploads break off at random, at any object; what is restored is what the last push that went well saw, or a
    later one."""
    dice = random.Random(seed)
    store = Flaky(uri)
    run.checkpoint()
    held = opened(uri, run.path, store)
    held.push()
    last, store.fails = contents(run.path), lambda key: dice.random() < 0.12
    good = 0
    for turn in range(12):
        for change in dice.sample([run.line, run.checkpoint, run.child, run.rollback], 2):
            change()
        try:
            held.push()
        except OSError:
            pass
        else:
            last, good = contents(run.path), good + 1
        assert restored(uri, tmp_path / f"fresh-{turn}", Store(uri)) in (last, contents(run.path))
    store.fails = lambda key: False
    held.push()
    assert restored(uri, tmp_path / "end") == contents(run.path) and good


def test_an_object_that_is_cut_sends_back_to_the_commit_before(uri: str, run: Run, tmp_path: Path) -> None:
    run.checkpoint()
    held = opened(uri, run.path)
    held.push()
    before = contents(run.path)
    run.checkpoint()
    held.push()
    [cut] = (tmp_path / "store").rglob("step-00000002/weights.safetensors/*")
    cut.write_bytes(cut.read_bytes()[:-1])
    said: list[str] = []
    Mirror(uri, tmp_path / "fresh", said.append).bring()
    assert contents(tmp_path / "fresh") == before
    assert "step-00000002/weights" in said[0] and "commit 1" in said[1]
    for path in (tmp_path / "store").rglob("commits/*"):
        path.write_text(path.read_text()[:-2])
    with pytest.raises(Damaged, match="nothing is whole"):
        Mirror(uri, tmp_path / "other", said.append).bring()
    assert not (tmp_path / "other").exists() and not list(tmp_path.glob(".*.tmp"))


def test_a_commit_that_is_not_listed_yet_costs_what_it_added(uri: str, run: Run, tmp_path: Path) -> None:
    run.checkpoint()
    store = Flaky(uri)
    held = opened(uri, run.path, store)
    held.push()
    before, store.late = contents(run.path), True
    run.checkpoint()
    held.push()
    assert restored(uri, tmp_path / "early", store) == before
    store.hidden.clear()
    assert restored(uri, tmp_path / "later", store) == contents(run.path)


def test_an_attempt_that_is_over_changes_nothing(uri: str, run: Run, tmp_path: Path) -> None:
    """The old driver wakes up after another machine has restored the run: neither a push nor a commit that was on
    its way counts."""
    run.checkpoint()
    old = opened(uri, run.path)
    old.push()
    there = tmp_path / "there"
    new = opened(uri, there)
    with pytest.raises(Fenced):
        run.line()
        old.push()
    new.push()
    run.checkpoint()
    old._attempts = list  # type: ignore[method-assign]  # it had looked just before the new one came
    old.push()
    with (there / "history.jsonl").open("a") as file:
        file.write("{}\n")
    new.push()
    assert restored(uri, tmp_path / "third") == contents(there)


def test_a_directory_that_others_have_gone_on_from_is_refused(uri: str, run: Run, tmp_path: Path) -> None:
    run.checkpoint()
    opened(uri, run.path).push()
    opened(uri, run.path).push()  # the same machine goes on
    there = tmp_path / "there"
    opened(uri, there)
    opened(uri, run.path).push()  # nothing was done there: only a claim
    opened(uri, tmp_path / "elsewhere").push()
    with pytest.raises(ValueError, match="is behind its mirror"):
        opened(uri, run.path)


def test_names_in_a_commit_cannot_leave_the_directory(uri: str, run: Run, tmp_path: Path) -> None:
    opened(uri, run.path).push()
    [commit] = (tmp_path / "store").rglob("commits/*.json")
    text = json.loads(commit.read_text())
    commit.write_text(json.dumps({**text, "files": {"../escaped": text["files"]["run.json"]}}))
    with pytest.raises(Damaged, match="no name of a run's file"):
        restored(uri, tmp_path / "deep" / "fresh")
    assert not (tmp_path / "deep" / "escaped").exists()


def test_the_end_is_brought_although_the_store_was_away(
    uri: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "PAUSE_S", 0.01)
    said: list[str] = []
    run.checkpoint()
    held = Mirror(uri, run.path, said.append, every_s=0.01)
    held.bring()
    away = iter([True] * 3)
    held.store = Flaky(uri, lambda key: "claim" not in key and next(away, False))
    with held:
        run.line()
    assert restored(uri, tmp_path / "fresh") == contents(run.path)
    monkeypatch.setattr(mirror, "END_S", 0.1)
    again = Mirror(uri, run.path, said.append)
    again.bring()
    again.store = Flaky(uri, lambda key: "claim" not in key)
    with again:
        pass
    assert "lacks the end" in said[-1]


def test_a_run_that_was_taken_over_is_told_to_end(uri: str, run: Run, tmp_path: Path) -> None:
    told: list[bool] = []
    run.checkpoint()
    held = Mirror(uri, run.path, lambda text: None, every_s=0.01)
    held.bring()
    held.lost = lambda: told.append(True)
    with pytest.raises(Fenced, match="taken over"), held:
        until = time.monotonic() + 30
        while not any(commit.whole for commit in held._commits) and time.monotonic() < until:
            time.sleep(0.01)
        opened(uri, tmp_path / "there")
        run.line()
        held._thread.join(30)
        assert told


def test_a_finetune_hears_of_it_too() -> None:
    told: list[str] = []
    inner = SimpleNamespace(stopper=SimpleNamespace(ask=lambda why: told.append(f"inner: {why}")))
    outer = SimpleNamespace(inner=inner, stopper=SimpleNamespace(ask=lambda why: told.append(f"outer: {why}")))
    Pipeline.ask(outer, "taken over")  # type: ignore[arg-type]
    assert told == ["inner: taken over", "outer: taken over"]


def test_a_forged_manifest_brings_nothing_from_outside(uri: str, run: Run, tmp_path: Path) -> None:
    """Such a child is left out, and the rest of the run is kept and comes back."""
    (tmp_path / "secret").write_text("mine")
    run.checkpoint()
    for name, text in {
        "up": json.dumps({"files": {"../../../secret": {}}}),
        "torn": "{",
        "list": "[]",
        "link": json.dumps({"files": {"weights": {}}}),
    }.items():
        child = run.path / "children" / name
        child.mkdir(parents=True)
        (child / atomic.MANIFEST).write_text(text)
    (run.path / "children" / "link" / "weights").symlink_to(tmp_path / "secret")
    run.child()
    assert opened(uri, run.path).push()
    back = restored(uri, tmp_path / "fresh")
    assert back == contents(run.path) and len([name for name in back if name.startswith("children/")]) == 2
    assert b"mine" not in back.values()


def test_a_store_that_refuses_is_told(uri: str, run: Run, tmp_path: Path) -> None:
    assert opened(uri, run.path).push()

    class Refusing(Store):
        def names(self, key: str = "") -> list[str]:
            raise OSError("AccessDenied")

    with pytest.raises(ValueError, match="cannot be read and written: AccessDenied"):
        restored(uri, tmp_path / "fresh", Refusing(uri))


@pytest.mark.parametrize("given", ["nowhere", "s4://bucket/x"])
def test_an_address_that_is_none_is_told(given: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="s3://BUCKET"):
        Mirror(given, tmp_path / "run", lambda text: None)


class Listener:
    """A watcher that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, stage: str, note: str) -> None: ...

    def advance(self, done: float, total: float, note: str, unit: str, seconds: float | None = None) -> None: ...

    def say(self, text: str) -> None:
        self.said.append(text)

    def end(self, note: str) -> None: ...


def test_the_pipeline_keeps_and_restores_and_gives_way(uri: str, tmp_path: Path) -> None:
    experiment, run, heard = load_experiment("bignas-digits", []), tmp_path / "runs" / "digits", Listener()
    with Pipeline.open(experiment, run, heard, uri) as pipeline:
        (run / "train").mkdir()
        (run / "train" / "metrics.jsonl").write_text('{"step": 1}\n')
    before = contents(run)
    shutil.rmtree(run)
    with Pipeline.open(experiment, run, heard, uri) as pipeline:
        assert (run / "run.json").read_bytes() == before["run.json"] and (run / "train" / "metrics.jsonl").exists()
        assert pipeline.fence.attempt == 2, "it goes on counting"
    assert any("restored from" in text for text in heard.said)
    with pytest.raises(Fenced, match="taken over"), Pipeline.open(experiment, run, heard, uri) as pipeline:
        opened(uri, tmp_path / "elsewhere")
        (run / "train" / "metrics.jsonl").write_text('{"step": 2}\n')
    assert pipeline.fence.stopping()
