"""What is wrong with a command is said before what takes seconds to import is imported: looked at in the modules that a
command has when it says so, never by a clock."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.driving import environment

OLD_RUN = Path(__file__).parent.parent / "golden" / "old-run"
SLOW = ("torch", "ray", "deepspeed", "mlflow", "torchvision", "pandas", "onnx", "onnxruntime", "matplotlib", "sklearn")
# a command, and at its end the modules that it has
SPY = """
import atexit, sys
atexit.register(lambda: print("modules:", *sys.modules))
from nas.cli.main import main
sys.argv[0] = "nas"
main()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, one that is not trained, and a folder of somebody else."""
    home = tmp_path_factory.mktemp("soon")
    shutil.copytree(OLD_RUN, home / "runs" / "done")
    (home / "runs" / "begun").mkdir()
    shutil.copy(OLD_RUN / "experiment.yaml", home / "runs" / "begun")
    (home / "taken").mkdir()
    (home / "taken" / "letter.txt").touch()
    (home / "broken.yaml").write_text("name: [\n")
    return home


def said(home: Path, *words: str, **env: str) -> tuple[str, set[str]]:
    """What a command said, and which of the slow modules it had by then."""
    told = subprocess.run(
        [sys.executable, "-c", SPY, *words], capture_output=True, text=True, cwd=home, env=environment(**env)
    )
    text, _, modules = told.stdout.rpartition("modules:")
    assert text and "Traceback" not in told.stderr, told.stdout + told.stderr
    return text + told.stderr, set(SLOW) & set(modules.split())


FOLDER = "data={name: folder, path: /nowhere, size: 32, validation: 10}"
PHOTOS = "data={name: sr-folder, path: /nowhere, scale: 2, patch: 24, validation: 8}"
TABLE = "search.costs=[{name: latency, table: nowhere.json}]"
AT_ONCE = {  # by the files of the command alone
    "--help": "nas run bignas-digits",
    "run --help": "Example: nas run",
    "run typo.yaml": "no preset and no file 'typo.yaml'",
    "run broken.yaml": "broken.yaml, line 2",
    "run bignas-digits --set search.typo=1": "search.typo: unknown key",
    "run bignas-digits --set recipe.typo=1": "recipe.typo: unknown key",
    "run quantnas-photos --set data.patch=4": "data.patch: given 4",
    "run bignas-digits --set recipe.name=sandwhich": "did you mean sandwich",
    "run bignas-digits --set finetune.recipe.name=sandwich": "single; or your own",
    "run bignas-digits --set data.name=digit": "did you mean digits",
    "run bignas-digits --set search.algorithm=evolve": "allowed: alphanet",
    "run bignas-digits --set space.name=bigna": "did you mean bignas",
    "run bignas-digits --set space.name=my/space.py:mine": "allowed: my_module:thing",
    "run bignas-digits --set train.workers=7": "does not divide among train.workers 7",
    f"run bignas-digits --set {FOLDER}": "The image folder '/nowhere' (data.path) was not found",
    f"run quantnas-photos --set {PHOTOS}": "The image folder '/nowhere' (data.path) was not found",
    "run bignas-digits --run-dir taken": "is not empty and holds no run",
    "run bignas-digits --run-dir runs/done --set seed=3": "seed: 0 in done, 3 now",
    "train runs/nowhere": "no preset and no file 'runs/nowhere'",
    "search runs/begun": "has no trained supernet yet",
    "export runs/begun": "has no trained supernet yet",
    "export runs/done --child nobody": "no candidate 'nobody'",
    "finetune runs/done nobody": "no candidate 'nobody'",
    "quantize runs/done nobody": "no exported child 'nobody'",
    "quantize runs/done nobody --bits 99": "bits: given 99",
    "register runs/done nobody digits": "no exported child 'nobody'",
    "report runs/nowhere": "runs/nowhere holds no run",
    "ui runs/nowhere": "runs/nowhere holds no run",
    "latency runs/nowhere": "no preset and no file 'runs/nowhere'",
    "latency bignas-digits --out nowhere/latency.json": "give a file in a folder that is there",
    f"run bignas-digits --set {TABLE}": "the table of latencies 'nowhere.json' (search.costs) is not there",
    "spaces bigna": "did you mean bignas",
    "doctor typo.yaml": "no preset and no file 'typo.yaml'",
    "check nowhere:thing": "there is no module 'nowhere'",
    "check sandwhich": "nothing is called 'sandwhich'",
}
BY_THE_NETWORK = {  # by sizes of the space, of the network, of the data
    "run bignas-digits --set space.size=d9": "space 'bignas' has no size 'd9'",
    "run quantnas-photos --set search.constraints.macs.max=10": "max_macs 10 is below the smallest network's",
    "spaces bignas d9": "space 'bignas' has no size 'd9'",
}


def words(command: str) -> list[str]:
    """``--set`` takes all that follows."""
    first, _, setting = command.partition(" --set ")
    return [*first.split(), *(["--set", setting] if setting else [])]


@pytest.mark.parametrize("command", AT_ONCE)
def test_what_needs_no_network_is_said_before_torch_is_imported(home: Path, command: str) -> None:
    text, slow = said(home, *words(command))
    assert AT_ONCE[command] in text and not slow


@pytest.mark.parametrize("command", BY_THE_NETWORK)
def test_what_needs_the_network_is_said_with_torch_alone(home: Path, command: str) -> None:
    text, slow = said(home, *words(command))
    assert BY_THE_NETWORK[command] in text and slow <= {"torch"}


def test_what_was_refused_has_left_nothing(home: Path) -> None:
    assert sorted(path.name for path in (home / "runs").iterdir()) == ["begun", "done"]
    assert [path.name for path in (home / "runs" / "begun").iterdir()] == ["experiment.yaml"]


@pytest.mark.parametrize("command", ["search runs/done", "export runs/done --child 3"])
def test_only_what_trains_and_searches_needs_ray(tmp_path: Path, command: str) -> None:
    """A finished search begins none, and an export is the work of one process."""
    shutil.copytree(OLD_RUN, tmp_path / "runs" / "done")
    nobody = "http://127.0.0.1:9"  # MLflow would take its time for a database
    text, slow = said(tmp_path, *command.split(), MLFLOW_TRACKING_URI=nobody)
    assert "search: done before" in text or "export: 1 children" in text, text
    assert not slow & {"ray", "deepspeed", "torchvision", "onnx"}, "the experiment wants no ONNX files"
