"""Killed, interrupted, damaged: the same command continues, and what comes out is what an undisturbed run gives, bit
for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._common.utils import get_default_ray_temp_dir

from nas.rundir import atomic
from nas.rundir.checkpoint import directories
from nas.rundir.directory import RunDir
from tests.driving import (
    PATIENCE,
    check_tracked,
    command,
    environment,
    flip_byte,
    metrics,
    records,
    sets,
    start,
    supernet,
)

SETTINGS = [
    "recipe.epochs=6",
    "recipe.warmup_epochs=1",
    "train.checkpoint_every=10",
    "search.candidates=40",
    "search.window=8",
]
WORDS: list[str | Path] = ["run", "bignas-digits", *sets([*SETTINGS, "export.children=3", "export.onnx=false"])]
STEPS, CANDIDATES = 108, 40
TRANSFORMER = [
    "recipe.epochs=4",
    "recipe.warmup_epochs=1",
    "train.checkpoint_every=10",
    "search.candidates=24",
    "search.window=8",
]
QUANTIZED = [
    "recipe.epochs=4",
    "recipe.warmup_epochs=1",
    "recipe.alpha_warmup=0.25",
    "train.checkpoint_every=5",
    "search.candidates=24",
    "search.window=8",
]
TUNED = ["finetune.recipe.epochs=3", "finetune.recipe.warmup_epochs=1", "export.children=2", "export.onnx=false"]
ORPHANS = 30.0  # seconds in which the processes of a killed driver must be gone; some 4 on a quiet machine
AGENTS = (
    "ray::RuntimeEnvAgent",
    "ray::DashboardAgent",
)  # Ray's own, idle; they look for their dead head for a minute before they end
INTERRUPT = 60.0  # seconds in which an interrupted command must have ended

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3 * PATIENCE)]


@dataclass(frozen=True)
class Outcome:
    """What must not depend on what happened on the way."""

    supernet: str
    journal: list[dict[str, Any]]
    children: dict[str, str]


def outcome(run: Path) -> Outcome:
    """The weights by their sha256 and the journal by k, without times."""
    lines = [
        {name: value for name, value in record.items() if name != "seconds"}
        for _, record in sorted(records(run).items())
    ]
    children = {
        path.name: atomic.verify(path)["files"]["model.safetensors"]["sha256"] for path in (run / "children").iterdir()
    }
    return Outcome(supernet(run), lines, children)


class Command:
    """A `nas run` in the background, and every process that it has started."""

    def __init__(self, home: Path, name: str, words: list[str | Path]) -> None:
        self.home, self.run, self.log = home, home / "runs" / words[1], home / f"{name}.txt"
        self.process = start(*words, cwd=home, log=self.log)
        self.driver = psutil.Process(self.process.pid)
        self.family: set[psutil.Process] = {self.driver}

    @property
    def said(self) -> str:
        return self.log.read_text()

    def until(self, what: str, reached: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Wait for something while the command works."""
        deadline = time.monotonic() + patience
        while not reached():
            assert self.process.poll() is None, f"ended with {self.process.returncode} before {what}:\n{self.said}"
            assert time.monotonic() < deadline, f"no {what} in {patience:g} s:\n{self.said}"
            time.sleep(0.02)

    def until_step(self, step: int) -> None:
        """Wait for a checkpoint of this step or a later one, written by this command or before it."""
        self.until(
            f"checkpoint {step}", lambda: any(int(path.name[5:]) >= step for path in directories(self.run / "supernet"))
        )

    def until_records(self, count: int) -> None:
        """Wait for so many lines of a journal."""
        files = self.run / "search"
        self.until(
            f"{count} records",
            lambda: any(path.read_bytes().count(b'{"k":') >= count for path in files.glob("journal-*.jsonl")),
        )

    def look_around(self) -> set[psutil.Process]:
        """All processes below the driver that live now."""
        self.family |= set(self.driver.children(recursive=True))
        return self.family - {self.driver}

    def workers(self, *titles: str) -> list[psutil.Process]:
        """Living Ray workers by the titles that Ray gives them: idle by one name, at work by another."""
        return [process for process in self.look_around() if any(title in _title(process) for title in titles)]

    def kill(self) -> float:
        """Kill the driver as the out-of-memory killer would; returns the seconds in which all that it had started
        was gone too."""
        self.look_around()
        self.process.kill()
        self.process.wait()
        began = time.monotonic()
        workers = [process for process in self.family if not _title(process).startswith(AGENTS)]
        _, alive = psutil.wait_procs(workers, timeout=ORPHANS)
        left = [_title(process) for process in alive]
        self.clean_up()
        assert not left, f"still there {ORPHANS:g} s after their driver was killed: {left}"
        return time.monotonic() - began

    def interrupt(self) -> int:
        """Ctrl-C, which a terminal sends to the whole process group; returns the exit code."""
        self.look_around()
        os.killpg(self.process.pid, signal.SIGINT)
        try:
            return self.process.wait(INTERRUPT)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still there {INTERRUPT:g} s after Ctrl-C:\n{self.said}")

    def finish(self) -> str:
        """Wait for the end; returns what it said."""
        assert self.process.wait(PATIENCE) == 0, self.said
        return self.said

    def clean_up(self) -> None:
        """End what is left, each by its own id."""
        for process in self.family:
            if process.is_running():
                process.kill()
        self.process.wait()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:80]
    except psutil.Error:
        return ""


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts the command in this test's directory; whatever is left of it is ended with the test."""
    begun: list[Command] = []

    def make(words: list[str | Path] = WORDS) -> Command:
        begun.append(Command(tmp_path, f"said-{len(begun)}", words))
        return begun[-1]

    yield make
    for each in begun:
        each.look_around() if each.process.poll() is None else None
        each.clean_up()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to. Read it, and leave it as it is."""
    home = tmp_path_factory.mktemp("undisturbed")
    ended = command(*WORDS, cwd=home, patience=PATIENCE)
    assert ended.code == 0, ended.text
    return home / "runs" / "bignas-digits"


@pytest.fixture
def trained(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed run as it stood when its search began."""
    run = tmp_path / "runs" / undisturbed.name
    shutil.copytree(undisturbed, run)
    for name in ("search", "children"):
        shutil.rmtree(run / name)
    for name in ("report.html", "tracking.jsonl"):
        (run / name).unlink()
    return run


def test_killed_and_interrupted_and_damaged_in_training(undisturbed: Path, begin: Callable[..., Command]) -> None:
    """kill -9, then Ctrl-C, then a changed byte in the newest checkpoint: each time the same command goes on."""
    first = begin()
    first.until_step(20)
    print(f"gone after {first.kill():.1f} s")
    assert len(directories(first.run / "supernet")) <= 3 and not (first.run / "search").exists()

    second = begin()
    second.until_step(60)
    assert second.interrupt() == 130, second.said
    assert "the same command continues" in second.said
    assert "Traceback" not in second.said and len(second.said.splitlines()) < 30, second.said
    news = [line["step"] for line in metrics(first.run) if "step" in line]
    assert max(news) < STEPS, "or this test shows nothing"
    _, alive = psutil.wait_procs(second.family, timeout=ORPHANS)
    assert not alive

    before, newest = directories(first.run / "supernet")[-2:]
    flip_byte(newest / "weights.safetensors")
    said = begin().finish()
    assert str(newest / "weights.safetensors") in said or f"{newest.name}/weights.safetensors" in said, said
    again = [line for line in metrics(first.run) if "loss" in line]
    assert any(int(before.name[5:]) < line["step"] <= int(newest.name[5:]) for line in again[len(news) // 2 :]), (
        "went on from the one before"
    )
    assert outcome(first.run) == outcome(undisturbed)
    check_tracked(first.run, CANDIDATES)
    assert not (first.run / ".ray").exists()


def test_killed_and_interrupted_in_search(undisturbed: Path, trained: Path, begin: Callable[..., Command]) -> None:
    first = begin()
    first.until_records(8)
    print(f"gone after {first.kill():.1f} s")
    assert 8 <= len(records(trained)) < CANDIDATES

    second = begin()
    second.until_records(len(records(trained)) + 4)
    assert second.interrupt() == 130, second.said
    assert "the same command continues" in second.said and "Traceback" not in second.said, second.said
    assert len(records(trained)) < CANDIDATES, "or this test shows nothing"
    assert not (trained / "children").exists(), "an interrupted search is not the end of a search"

    begin().finish()
    assert outcome(trained) == outcome(undisturbed)
    check_tracked(trained, CANDIDATES)


def test_a_worker_and_a_trial_die_and_a_second_command_is_refused(
    undisturbed: Path, begin: Callable[..., Command]
) -> None:
    """What Ray can mend is mended within the run; nobody else may write into it meanwhile."""
    first = begin()
    first.until_step(30)
    workers = first.workers("RayTrainWorker")
    assert len(workers) == 2, [_title(process) for process in first.look_around()]
    workers[1].kill()
    first.until("another two workers", lambda: len(set(first.workers("RayTrainWorker")) - set(workers)) == 2)
    ended = command(*WORDS, cwd=first.home)
    assert ended.code == 1 and "another process works in" in ended.text and str(first.run) in ended.text, ended.text
    assert "Traceback" not in ended.text

    first.until_records(6)
    trials = first.workers("Scored", "ResourceTrainable")
    assert trials, [_title(process) for process in first.look_around()]
    trials[0].kill()
    killed_at = len(records(first.run))
    said = first.finish()
    assert killed_at < CANDIDATES
    assert "Traceback" not in said
    assert outcome(first.run) == outcome(undisturbed)
    check_tracked(first.run, CANDIDATES)
    attempts = (first.run / "history.jsonl").read_text().splitlines()
    assert len(attempts) == 1, "the refused command is none"


def sessions(process: int) -> list[Path]:
    """Ray's directories of the sessions that a process has started."""
    return list(Path(get_default_ray_temp_dir()).glob(f"session_*_{process}"))


def ended_in_order(command: Command, seconds: float) -> str:
    """What a command said that must have ended by itself, with one message and nothing left of it."""
    code = command.process.wait(seconds)
    _, alive = psutil.wait_procs(command.family, timeout=10)
    assert not alive, [_title(process) for process in alive]
    assert not sessions(command.process.pid)
    said = command.said
    assert code and "Traceback" not in said and "state-dump" not in said and len(said.splitlines()) < 12, said
    return said.splitlines()[-1]


@pytest.mark.parametrize("title", ["gcs_server", "raylet"])
def test_ray_dies_in_training_and_in_search(undisturbed: Path, begin: Callable[..., Command], title: str) -> None:
    """One message that says what died, within 20 s; Ray's dump is in the logs that it names."""
    first = begin()
    first.until_step(20)
    (process,) = [each for each in first.look_around() if each.name() == title]
    process.kill()
    said = ended_in_order(first, 20)
    assert title in said and "has died (SIGKILL); the same command continues" in said
    logs = RunDir(first.run).ray_logs
    assert str(logs) in said and (logs / f"{title}.out").is_file()

    second = begin()
    second.until_records(8)
    (process,) = [each for each in second.look_around() if each.name() == title]
    process.kill()
    assert title in ended_in_order(second, 20)
    begin().finish()
    assert outcome(first.run) == outcome(undisturbed)
    check_tracked(first.run, CANDIDATES)


def test_the_directory_goes_in_training_and_in_search(begin: Callable[..., Command], trained: Path) -> None:
    """Said so at once, and nobody makes it again."""
    away = trained.with_name("away")
    shutil.copytree(trained, away)
    first = begin()
    first.until_records(8)
    first.look_around()
    shutil.rmtree(first.run)
    assert "is gone: it was deleted, moved or unmounted" in ended_in_order(first, 20)
    assert not first.run.exists()
    second = begin()
    second.until_step(10)
    second.look_around()
    second.run.rename(away / "moved")
    assert "is gone: it was deleted, moved or unmounted" in ended_in_order(second, 20)
    assert not second.run.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ray_starts(begin: Callable[..., Command], number: signal.Signals) -> None:
    first = begin()
    first.until("a raylet", lambda: any(each.name() == "raylet" for each in first.look_around()))
    first.process.send_signal(number)
    assert ended_in_order(first, 40) == "stopped; the same command continues"


@pytest.mark.parametrize(
    ("preset", "settings", "step"),
    [("vit-resnas-digits", TRANSFORMER, 20), ("quantnas-photos-differentiable", QUANTIZED, 10)],
)
def test_a_run_is_killed_in_training_in_search_and_in_finetune(
    preset: str, settings: list[str], step: int, tmp_path: Path, begin: Callable[..., Command]
) -> None:
    """AdamW's moments, several sub-networks a step, the averaged weights of a child that is trained on; logits,
    their Adam, learned steps."""
    words: list[str | Path] = ["run", preset, *sets([*settings, *TUNED])]
    home = tmp_path / "undisturbed"
    home.mkdir()
    ended = command(*words, cwd=home, patience=PATIENCE)
    assert ended.code == 0 and "-finetuned" in ended.text, ended.text
    wanted = outcome(home / "runs" / preset)
    assert sum(name.endswith("-finetuned") for name in wanted.children) == 1 and len(wanted.children) >= 2

    first = begin(words)
    first.until_step(step)
    first.kill()
    second = begin(words)
    second.until_records(6)
    second.kill()
    third = begin(words)
    third.until("a checkpoint of the finetune", lambda: any(third.run.glob("finetune/*/supernet/step-*")))
    third.kill()
    begin(words).finish()
    assert outcome(third.run) == wanted
    check_tracked(third.run, 24)


def test_a_killed_start_is_no_foreign_directory(tmp_path: Path) -> None:
    """A process killed between its first files leaves a directory that is no run yet; the same command begins it."""
    from nas.config.experiment import load_experiment
    from nas.rundir.directory import open_run

    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").touch()
    (run / "run.json").write_text('{"id": "0", "name": "bignas-digits"}')
    (run / ".experiment.yaml.0123abcd.tmp").write_text("name: big")
    with open_run(load_experiment("bignas-digits"), RunDir(run)) as fence:
        assert fence.attempt == 1
    assert (run / "experiment.yaml").is_file()


BUILT = """
import sys
from nas.training import engine
engine.prebuild()
exec(engine.PREBUILD)
print("opened")
"""


@pytest.mark.parametrize("built", [True, False], ids=["built", "half built"])
def test_a_lock_that_a_killed_process_left_does_not_hang(tmp_path: Path, built: bool) -> None:
    """torch guards its cache of built operators by a lock file, on which every later process would wait for ever."""
    from nas.training import engine

    engine.prebuild()
    cache = shutil.copytree(os.environ["TORCH_EXTENSIONS_DIR"], tmp_path / "cache")
    (operator,) = (path for path in cache.iterdir() if path.is_dir())
    for stale in cache.glob("**/lock"):
        stale.unlink()
    (operator / "lock").touch()
    if not built:
        (cache / "built").unlink()
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    env = environment(TORCH_EXTENSIONS_DIR=str(cache), DS_ACCELERATOR="cpu", **ranks)
    done = subprocess.run([sys.executable, "-c", BUILT], env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0 and "opened" in done.stdout, done.stderr
