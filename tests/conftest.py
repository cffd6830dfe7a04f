"""What all tests share: one thread a process, DeepSpeed's operator built once a session, a process group of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

# Read when torch and DeepSpeed are first imported, here and in every process that a test starts.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "DS_ACCELERATOR": "cpu"}
os.environ.pop("MLFLOW_TRACKING_URI", None)  # tests track beside their own runs
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()  # what is remembered of them is forgotten


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything that tests need is said to be there (RAYNAS_NO_SKIP), a skip is a failure."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("RAYNAS_NO_SKIP"):
        report.outcome, report.longrepr = "failed", f"skipped, and nothing may be: {report.longrepr}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of whole runs take minutes each: they begin, or at the end one worker would be alone with the last."""
    items.sort(key=lambda item: not hasattr(getattr(item, "module", None), "PATIENCE"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same first weights wherever a test stands: of others one in a while lies between two levels of a grid."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def extension() -> None:
    """DeepSpeed's CPU operator stands ready, so that no test measures or races for its compilation."""
    from nas.training.engine import prebuild

    prebuild()


@pytest.fixture(scope="session")
def alone(extension: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A gloo group of this process alone, one for all modules: DeepSpeed keeps the first that it sees."""
    import torch.distributed as dist

    store: Path = tmp_path_factory.mktemp("gloo") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def one_rank(alone: None) -> Iterator[None]:
    """What the engine and the loop need, without a worker: a process group, and what Ray Train would have set."""
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    before = {name: os.environ.get(name) for name in place}
    os.environ |= place
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
