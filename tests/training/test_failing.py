"""A training whose disk is full or whose directory is gone: said at once, nothing made worse, and it goes on."""

from __future__ import annotations

import errno
import io
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from nas.rundir.checkpoint import Checkpoint, State
from nas.rundir.directory import RunDir
from nas.rundir.fence import Fence, Gone
from nas.rundir.log import Line
from nas.training.loop import Loop
from tests.training.tiny import experiment, loop_in, newest, train


@pytest.mark.parametrize("target", ["metrics.jsonl", "step-00000008", "rust"])
def test_a_full_disk_names_the_file_and_the_same_command_goes_on(
    tmp_path: Path, one_rank: None, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """In the log, in a checkpoint's own files, and in those that safetensors writes; what was whole stays so."""
    import safetensors.torch

    train(tmp_path / "whole")
    run = tmp_path / "run"
    run.mkdir()
    loop, full = loop_in(run), OSError(errno.ENOSPC, "No space left on device")
    save, note = safetensors.torch.save_file, loop.note

    def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if target in ("rust", path.parent.name[1:14]) and "step-00000008" in str(path):
            raise SafetensorError("I/O error: No space left on device (os error 28)") if target == "rust" else full
        save(tensors, path)

    def write(line: Line) -> None:
        if target == "metrics.jsonl" and getattr(line, "step", 0) >= 8:
            assert loop.log is not None
            monkeypatch.setattr(loop.log, "file", FullFile())
        note(line)

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)
    monkeypatch.setattr(loop, "note", write)
    with pytest.raises(OSError) as failure:
        loop.train()
    assert failure.value.errno == errno.ENOSPC
    named = RunDir(run).training_log if target == "metrics.jsonl" else RunDir(run).checkpoints / "step-00000008"
    assert failure.value.filename == str(named)
    assert [path.name for path in RunDir(run).checkpoints.iterdir()] == [newest(run).name] == ["step-00000004"]
    monkeypatch.undo()
    assert contents(train(run)) == contents(newest(tmp_path / "whole"))


class FullFile(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def contents(checkpoint: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}


@pytest.mark.parametrize("writing", [False, True])
def test_a_run_that_is_deleted_in_training_is_not_made_again(
    tmp_path: Path, one_rank: None, monkeypatch: pytest.MonkeyPatch, writing: bool
) -> None:
    """Neither by the loop at work, nor by its thread in a checkpoint, nor by another worker that starts."""
    import safetensors.torch

    run = tmp_path / "run"
    run.mkdir()
    loop, other, steps = loop_in(run), RunDir(run), 0
    fence, gone, save = Fence(run, loop.fence.attempt), threading.Event(), safetensors.torch.save_file

    def save_file(*words: Any) -> None:
        assert gone.wait(60)
        save(*words)

    if writing:
        monkeypatch.setattr(safetensors.torch, "save_file", save_file)

    def stopping() -> bool:
        nonlocal steps
        steps += 1
        if steps == 6:
            shutil.rmtree(run.rename(tmp_path / "moved"))  # at once: the checkpoint's thread may be writing into it
            gone.set()
        return fence.stopping()

    loop.fence.stopping = stopping  # type: ignore[method-assign]
    with pytest.raises(Gone, match="deleted, moved or unmounted"):
        loop.train()
    assert steps == 6
    with pytest.raises(Gone):
        Loop(experiment(), other, fence, 0, 1, torch.device("cpu"))
    with pytest.raises(OSError):
        Checkpoint.write(other.checkpoints, State(1, 2), {}, {}, {}, lambda: None)
    assert not run.exists()
