"""A super-resolution network is trained, judged, exported and shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nas.training.loop
from nas.build import load_task, make_supernet
from nas.children.evaluate import Batches, Evaluator
from nas.children.export import export_child, load_child
from nas.results.report import write_report
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import RunDir
from nas.rundir.fence import Fence
from nas.space import Arch, Choice, Space
from nas.supernet import CostModel, PartCost, Pass, Supernet, fp32
from nas.training.loop import Diverged, Loop
from tests.tasks.photographs import experiment
from tests.tasks.tiny_sr_child import TinyChild


class Tiny(Supernet):
    """Widths of one hidden layer."""

    child = TinyChild
    sources = (Path(__file__).parent / "tiny_sr_child.py",)
    mixes_examples = False

    def __init__(self, scale: int, channels: int, image: int, mean: tuple[float, ...]) -> None:
        super().__init__()
        assert channels == len(mean) == 3
        self.space, self.input_shape, self.scale = Space([Choice("width", (4, 12))]), (3, image, image), scale
        whole = TinyChild(scale, 12)
        self.first, self.last = whole.first, whole.last

    def forward_one(self, x: Tensor, arch: Arch, how: Pass) -> Tensor:
        width = int(arch["width"])
        up = F.interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False)
        hidden = F.relu(F.conv2d(x, self.first.weight[:width], self.first.bias[:width], padding=1))
        return up + F.pixel_shuffle(
            F.conv2d(hidden, self.last.weight[:, :width], self.last.bias, padding=1), self.scale
        )

    def child_config(self, arch: Arch) -> dict[str, Any]:
        return {"scale": self.scale, "width": int(arch["width"])}

    def parts(self, arch: Arch) -> Iterator[int]:
        yield int(arch["width"])

    def part_cost(self, part: int) -> PartCost:
        weights = 9 * part * (3 + 3 * self.scale**2)
        return fp32(weights * self.input_shape[1] ** 2, weights + part + 3 * self.scale**2)


def tiny(size: str, **options: Any) -> Tiny:
    return Tiny(**options)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_it_trains_is_judged_exported_and_shown(tmp_path: Path) -> None:
    """The platform's own loop, evaluator, export and report on this task: no room of it may ask what it serves."""
    told = experiment("recipe.epochs=8", "recipe.optimizer=adamw", "recipe.lr=2e-3", "data.tile=96")
    run = tmp_path / "run"
    run.mkdir()
    loop = Loop(told, RunDir(run), Fence.take(run), 0, 1, torch.device("cpu"))
    loop.train()
    task, net = load_task(told), make_supernet(told, load_task(told))
    newest = Checkpoint.newest(RunDir(run).checkpoints)
    assert newest is not None
    net.load_state_dict(newest.weights())
    evaluator = Evaluator(net, task, told.search, torch.device("cpu"))
    largest = net.space.largest()
    learnt = evaluator(largest)
    assert learnt["psnr"] > task.chance + 0.2, "it beats what it adds to, on images that it was not trained on"
    test = Batches(task.test, len(task.test), told.search.score_batch, torch.device("cpu"))
    about = {"space": "tiny", "size": "", "supernet": "5a" * 32, "data": told.data.name, **task.about}
    (run / "children").mkdir()
    target = run / "children" / largest.id
    figures = export_child(target, largest, CostModel(net), evaluator, test, about, True, Fence.take(run))
    assert all(figures["test"]["psnr"] > baseline["psnr"] + 0.1 for baseline in figures["baselines"].values())
    assert (
        figures["parity"]["supernet"] < 1e-5 and figures["parity"]["onnx"] < 1e-5 and figures["parity"]["reloaded"] == 0
    )
    assert json.loads((target / "arch.json").read_text())["scale"] == 2
    assert "(batch, 3, height, width)" in (target / "README.md").read_text()

    session = onnxruntime.InferenceSession(target / "model.onnx", providers=["CPUExecutionProvider"])
    x, y = task.test.batch(np.array([1]))
    given = torch.from_numpy(session.run(None, {"pixels": x.numpy()})[0])
    child = load_child(target, modules=("tests",))
    assert given.shape == y.shape and torch.allclose(given, child(x).detach(), atol=1e-5), "an image of any size"

    page = write_report(RunDir(run)).read_text()
    assert (
        "test psnr" in page
        and f"{figures['baselines']['bicubic']['psnr']:.2f}" in page
        and f"{figures['test']['psnr']:.2f}" in page
    )
    assert page.count("data:image/png;base64,") == 3 * 4 and "astronaut" in page and "in one piece" in page
    shown = task.scores(child(x).detach(), y)["psnr"]
    assert re.search(rf"<b>child</b> {shown:.2f} dB", page)
    assert not re.findall(r"src=\"(?!data:)", page)
    (tmp_path / "secret.png").write_bytes(b"mine")
    index = target / "pictures.json"
    for file in ("../../../secret.png", "pictures/none.png"):
        pictures = json.loads(index.read_text())
        pictures[0]["panels"][0]["file"] = file
        index.write_text(json.dumps(pictures))
        assert "data:image/png" not in write_report(RunDir(run)).read_text(), (
            "only files of the child's own directory, and what is there"
        )


@pytest.mark.usefixtures("one_rank")
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("gains", "falls"),
    [((2.0, 0.05, 2.0), True), ((2.0, 1.0, 2.0), False), ((0.1, 0.0, 0.1), False), ((-20.0, 1.0, 0.0), True)],
)
def test_a_network_that_has_fallen_back_to_bicubic_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gains: tuple[float, ...], falls: bool
) -> None:
    """PSNR is far from 0 where nothing is learnt; what is lost is told from bicubic on."""
    told = experiment("train.checkpoint_every=3", "train.max_rollbacks=1", "recipe.lr=1e-6")
    chance, calls = load_task(told).chance, iter(range(10**6))
    monkeypatch.setattr(
        nas.training.loop,
        "Evaluator",
        lambda *_: lambda arch: {"psnr": chance + gains[min(next(calls) // 6, 2)], "ssim": 0.9},
    )
    monkeypatch.setattr(nas.training.loop, "total_steps", lambda *_: 9)
    run = tmp_path / "run"
    run.mkdir()
    loop = Loop(told, RunDir(run), Fence.take(run), 0, 1, torch.device("cpu"))
    if gains[-1] == 0.0:
        with pytest.raises(Diverged, match="the largest child's psnr fell from .*: chance"):
            loop.train()
    else:
        loop.train()
    assert bool(nas.training.loop.read_rollbacks(RunDir(run))) == falls
