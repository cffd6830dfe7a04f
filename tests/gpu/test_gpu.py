"""The checks of GPUs: on a GPU by `make gpu`, and in the suite on the CPU, small, so that the first run there does not
fail on a slip."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.gpu import __main__ as command
from tests.gpu import networks
from tests.gpu.checks import CHECKS, ROOT, Check, Done, run

LONG = {"loaders", "zero", "resume", "trials"}
PACKAGES = ("ray", "rich", "psutil", "pyarrow", "skimage", "pandas", "jsonschema", "hypothesis")  # and what checks name
CPU = torch.device("cpu")


def wrong(device: torch.device, small: bool) -> str:
    raise AssertionError(f"on the {device.type} it is | wrong")


def slow(device: torch.device, small: bool) -> str:
    time.sleep(60)
    return "too late"


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_gpu(name: str) -> None:
    done = run(name, CHECKS[name], "cuda")
    assert done.how == "run", done.told


@pytest.mark.parametrize("name", [name for name, check in CHECKS.items() if check.home == "networks"])
def test_a_check_of_networks_runs_on_the_cpu(name: str) -> None:
    assert getattr(networks, name)(CPU, True)


def test_scoring_runs_on_the_cpu() -> None:
    from tests.gpu.platform import scoring

    assert "0 otherwise in fp32, 0 as scored" in scoring(CPU, True)


@pytest.mark.soak
@pytest.mark.parametrize("name", LONG)
def test_a_long_check_runs_on_the_cpu(name: str, extension: None) -> None:
    done = run(name, CHECKS[name], "cpu", small=True)
    assert done.how == "run", done.told


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a kernel that is slightly off on the device."""
    learnt = networks.learnt

    def off(net: object, x: torch.Tensor, *given: object) -> object:
        losses, gradients = learnt(net, x, *given)  # type: ignore[arg-type]
        scale = 1.01 if x.dtype == torch.float32 else 1.0
        return losses, {name: scale * value for name, value in gradients.items()}

    monkeypatch.setattr(networks, "learnt", off)
    with pytest.raises(AssertionError, match="gradients are 0.01 of the largest apart"):
        networks.step(CPU, True)


@pytest.mark.parametrize("name", ["children", "scoring"])
def test_a_check_needs_no_more_than_it_says(name: str) -> None:
    """A lent machine may have no more than torch and numpy; what is missing is named before, and not met on the way."""
    check = CHECKS[name]
    hidden = sorted({*PACKAGES, *CHECKS["trials"].needs} - set(check.needs))
    code = (
        f"import sys, torch\nfor name in {hidden}: sys.modules[name] = None\n"
        f"from tests.gpu.{check.home} import {name}\nprint({name}(torch.device('cpu'), True))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert not told.returncode, told.stderr[-2000:]


def test_the_table_tells_what_failed_and_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = {
        "wrong": Check("test_gpu"),
        "slow": Check("test_gpu", limit=1),
        "absent": Check("test_gpu", ("torch", "no_such_package")),
    }
    for name, value in (("CHECKS", checks), ("ROOT", tmp_path)):
        monkeypatch.setattr(command, name, value)
    monkeypatch.setattr("sys.argv", ["gpu", "--device", "cpu"])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 1
    written = (tmp_path / "build" / "gpu.md").read_text()
    assert written in capsys.readouterr().out
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in written.splitlines()[4:]]
    assert [cell[:2] for cell in cells] == [["wrong", "failed"], ["slow", "failed"], ["absent", "missing"]]
    assert cells[0][3] == "AssertionError: on the cpu it is / wrong"
    assert cells[1][3] == "took more than 1 s" and float(cells[1][2].split()[0]) < 30
    assert cells[2][3] == "install no_such_package"


def test_what_ran_alone_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "run", lambda name, *_, **__: Done(name, "missing", "install this"))
    monkeypatch.setattr("sys.argv", ["gpu", "step", "--device", "cpu"])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert not end.value.code


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu"])
    with pytest.raises(SystemExit, match="sees no GPU; to rehearse without one: python -m tests.gpu --device cpu"):
        command.main()


def test_a_small_card_is_measured_at_a_smaller_batch() -> None:
    def work(batch: int) -> str:
        if batch > 16:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return f"batch {batch}"

    assert networks.fitting(work, [64, 32, 16, 8]) == "batch 16"
    with pytest.raises(torch.OutOfMemoryError):
        networks.fitting(work, [64, 32])
