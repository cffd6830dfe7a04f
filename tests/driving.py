"""The command as a person gives it, and what it leaves behind: for tests that drive whole runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from nas.rundir import atomic
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import RunDir

NAS = Path(sys.executable).with_name("nas")
# seconds for a command that trains or searches; some 40 on a quiet machine, and many times that on a busy one
PATIENCE = 400.0
PARITY = 1e-4


@dataclass(frozen=True)
class Ended:
    """What a command left behind: its exit code, what it printed, how long it took."""

    code: int
    text: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


def environment(**more: str) -> dict[str, str]:
    """This process's environment, without what would send a run elsewhere."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RAYNAS_DEBUG")}
    return {**kept, "COLUMNS": "160", "OMP_NUM_THREADS": "1", **more}


def start(*words: str | Path, cwd: Path, log: Path, **env: str) -> subprocess.Popen[bytes]:
    """A `nas` command in the background, in a process group of its own as in a terminal; it writes to `log`."""
    with log.open("wb") as out:
        return subprocess.Popen(
            [NAS, *words], cwd=cwd, env=environment(**env), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )


def command(*words: str | Path, cwd: Path, patience: float = 120, **env: str) -> Ended:
    """A `nas` command, to its end."""
    log, began = cwd / f".said-{time.monotonic_ns()}", time.monotonic()
    process = start(*words, cwd=cwd, log=log, **env)
    try:
        code = process.wait(patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        pytest.fail(
            f"nas {' '.join(map(str, words))} took more than {patience:g} s and said:\n{log.read_text()}", pytrace=False
        )
    text = log.read_text()
    log.unlink()
    return Ended(code, text, time.monotonic() - began)


def sets(settings: list[str]) -> list[str]:
    """``["a=1"]`` as ``["--set", "a=1"]``."""
    return [word for setting in settings for word in ("--set", setting)]


def journal(run: Path, which: int = -1) -> list[dict[str, Any]]:
    """The lines of a run's journal, the newest one by default, without its header."""
    lines = [json.loads(line) for line in RunDir(run).journals()[which].read_text().splitlines()]
    assert "raynas_journal" in lines[0]
    return lines[1:]


def records(run: Path, which: int = -1) -> dict[int, dict[str, Any]]:
    """The records of a journal by k; each k stands there once."""
    found = [line for line in journal(run, which) if "k" in line]
    assert not [k for k, times in Counter(line["k"] for line in found).items() if times > 1]
    return {line["k"]: line for line in found}


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of training."""
    return [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]


def supernet(run: Path) -> str:
    """The sha256 of the newest supernet's weights, which are as the manifest says."""
    newest = Checkpoint.newest(run / "supernet")
    assert newest is not None
    return newest.sha


def tracked(run: Path) -> dict[str, list[Any]]:
    """MLflow's runs of a run directory by raynas.kind."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    about = json.loads((run / "run.json").read_text())
    experiment = client.get_experiment_by_name(about["name"])
    found: dict[str, list[Any]] = {"train": [], "search": [], "candidate": []}
    token = None
    while experiment is not None:
        page = client.search_runs(
            [experiment.experiment_id], f"tags.`raynas.run` = '{about['id']}'", max_results=1000, page_token=token
        )
        for each in page:
            found[each.data.tags["raynas.kind"]].append(each)
        token = page.token
        if not token:
            break
    return found


def check_tracked(run: Path, candidates: int) -> dict[int, Any]:
    """MLflow's runs of the candidates of one search, each there once, finished, beneath the search's run."""
    found = tracked(run)
    assert len(found["search"]) == 1
    ks = Counter(int(each.data.tags["raynas.candidate"]) for each in found["candidate"])
    assert ks == Counter(range(candidates)), "a candidate is missing from MLflow, or stands there twice"
    assert {each.data.tags["mlflow.parentRunId"] for each in found["candidate"]} == {found["search"][0].info.run_id}
    assert {each.info.status for each in found["candidate"] + found["search"]} == {"FINISHED"}
    return {int(each.data.tags["raynas.candidate"]): each for each in found["candidate"]}


def contents(folder: Path) -> dict[str, str]:
    """Relative path to sha256 of every file below a folder."""
    return {str(path.relative_to(folder)): atomic.sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def flip_byte(path: Path) -> None:
    """Change one byte in the middle of a file, whose size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# what a stranger runs in an exported child's directory, without raynas
STRANGER = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("nas", "searchspaces", "cluster"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, "")
for name in ("nas", "searchspaces"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} could be imported")
"""


# The blocks of a child's card as they stand: the first makes the model, the second takes a picture. Where there is a
# third, it makes that picture of a test image, and takes the place of the second's first line.
CARD = """
import json, re, sys
import torch
sys.modules["nas"] = sys.modules["searchspaces"] = None
sys.path.insert(0, ".")
load, use, *make = re.findall(r"```python\\n(.*?)```", open("README.md").read(), re.DOTALL)
space, outputs = {}, []
exec(load, space)
lines = make[0] + use.partition("\\n")[2] if make else use
for path in json.load(open(sys.argv[1])):
    exec(lines.replace("picture.png", path), space)
    outputs.append(space["levels" if make else "output"])
torch.save(outputs, sys.argv[2])
"""


def outputs_of(child: Path, pictures: list[Path], folder: Path) -> list[torch.Tensor]:
    """What the lines of a child's card give for each picture, where raynas cannot be imported."""
    (folder / "pictures.json").write_text(json.dumps([str(path) for path in pictures]))
    (folder / "driver.py").write_text(CARD)
    told = [sys.executable, *(str(folder / name) for name in ("driver.py", "pictures.json", "outputs.pt"))]
    done = subprocess.run(told, cwd=child, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "outputs.pt", weights_only=True)
