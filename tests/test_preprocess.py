"""From a picture to a network's input: against Pillow, in every form that a picture comes in, and to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from skimage import data

from nas.children.formats import write_picture_onnx
from nas.preprocess import Preprocess, resampled, weights
from nas.pretrained import Model

SIZES = ((300, 451), (64, 64), (73, 500), (8, 8), (9, 200), (513, 40), (1000, 31))


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_it_resizes_as_pillow_does(size: tuple[int, int]) -> None:
    """Whose weights have another precision: a level here and there."""
    image = Image.fromarray(noise(*size))
    found = Preprocess(3, 56, 64).levels(image)[0].permute(1, 2, 0).numpy().astype(int)
    width, height = (int(64 * n / min(image.size) + 0.5) for n in image.size)
    left, top = (width - 56) // 2, (height - 56) // 2
    wanted = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 56, top + 56))
    apart = np.abs(found - np.asarray(wanted))
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01


def test_a_size_that_is_right_already_is_left_alone() -> None:
    picture = noise(64, 64)
    assert np.array_equal(Preprocess(3, 64).levels(picture)[0].permute(1, 2, 0).numpy(), picture)
    assert np.array_equal(Preprocess(3).levels(picture[:41])[0].permute(1, 2, 0).numpy(), picture[:41])


@pytest.mark.parametrize(("length", "wanted"), [(500, 64), (64, 500), (4000, 256), (7, 7), (3, 1)])
def test_weights_add_up_to_one_and_sums_are_exact(length: int, wanted: int) -> None:
    """So the order of adding changes nothing: the same in float32, in any order, and in whole numbers."""
    rows = weights(length, wanted, 0, wanted)
    assert torch.equal(rows.double().sum(1), torch.ones(wanted, dtype=torch.float64)) and rows.min() >= 0
    assert torch.equal(rows.flip(1).cumsum(1)[:, -1], torch.ones(wanted))
    x = torch.from_numpy(noise(length, 5, 1)[None, :, :, 0])
    whole = (rows.double() * 2**15).long()
    assert torch.equal(rows.double(), whole / 2**15)
    exact = (whole @ x[0].long()) / 2**15
    order = torch.randperm(length)
    assert torch.equal((rows[:, order] @ x[0, order].float()).double(), exact)
    assert torch.equal(resampled(x, -2, wanted, 0, wanted)[0].double(), (exact + 0.5).floor())


def test_a_flat_picture_stays_flat() -> None:
    for level in (0, 1, 128, 254, 255):
        assert (Preprocess(1, 17).levels(np.full((401, 300), level, np.uint8)) == level).all()


def test_every_form_of_a_picture_gives_the_same() -> None:
    picture, take = data.astronaut(), Preprocess(3, 32, 37)
    wanted = take(picture)
    assert wanted.shape == (1, 3, 32, 32) and wanted.dtype == torch.float32 and 0 <= wanted.min() < wanted.max() <= 1
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    opaque = np.dstack((picture, np.full(picture.shape[:2], 255, np.uint8)))
    forms = (Image.fromarray(picture), tensor, opaque, Image.fromarray(opaque))
    assert all(torch.equal(take(form), wanted) for form in forms)
    assert torch.equal(take(torch.stack((tensor, tensor))), wanted.expand(2, -1, -1, -1))


def test_colours_become_grey_as_pillow_makes_them_and_grey_colours() -> None:
    picture = data.chelsea()
    grey = Image.fromarray(picture).convert("L")
    assert np.array_equal(Preprocess(1).levels(picture)[0, 0].numpy(), np.asarray(grey))
    coloured = Preprocess(3, 20).levels(grey)
    assert torch.equal(coloured[:, 0], coloured[:, 2]) and torch.equal(coloured[:, :1], Preprocess(1, 20).levels(grey))
    for mode in ("P", "1", "LA", "CMYK"):
        assert Preprocess(3, 20).levels(grey.convert(mode)).shape == (1, 3, 20, 20)


def test_deep_grey_keeps_its_range() -> None:
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    assert np.array_equal(Preprocess(1).levels(Image.fromarray(deep))[0, 0].numpy(), deep >> 8)


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    picture, exif = Image.fromarray(noise(30, 50)), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    found = Preprocess(3).levels(Image.open(tmp_path / "turned.png"))
    assert found.shape == (1, 3, 50, 30)
    assert np.array_equal(found[0].permute(1, 2, 0).numpy(), np.rot90(np.asarray(picture), -1))


def test_pictures_and_networks_may_lie_anywhere() -> None:
    """On the device that has no memory: whatever stays on the CPU meets an error there."""
    there, conv = torch.device("meta"), torch.nn.Conv2d(3, 4, 3, device="meta")
    assert Preprocess(3, 8, 9)(torch.zeros(3, 20, 30, dtype=torch.uint8, device=there)).device == there
    assert Model(conv, Preprocess(3, 8))(noise(20, 30)).shape == (1, 4, 6, 6)


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (np.zeros((8, 8, 3)), "float64, whose range is not known; give uint8"),
        (np.zeros((8, 8, 5), np.uint8), r"this one has the shape \(1, 5, 8, 8\)"),
        (np.zeros(8, np.uint8), r"\(H, W\)"),
        (Image.fromarray(np.zeros((8, 8), np.float32)), "mode F have no range"),
    ],
)
def test_what_is_no_picture_is_told(picture: object, says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        Preprocess(3, 8)(picture)


def test_two_channels_are_no_picture() -> None:
    with pytest.raises(ValueError, match="1 channel or 3, not 2"):
        Preprocess(2)


@pytest.mark.parametrize("config", [(3, 56, 64), (1, 28, 28), (3, None, None)])
def test_onnx_runtime_gives_the_same_to_the_bit(config: tuple[int, int | None, int | None], tmp_path: Path) -> None:
    """With a network behind it that passes pixels on."""
    from onnx import TensorProto, helper, save

    side = config[1]
    sizes = ["n", config[0], side or "h", side or "w"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["pixels"], ["output"])],
        "same",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, sizes)],
    )
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "network.onnx"
    )
    take = Preprocess(*config)
    write_picture_onnx(take, tmp_path / "network.onnx", tmp_path / "picture.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "picture.onnx", providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["picture"]
    for size in SIZES:
        found = session.run(None, {"picture": noise(*size)})[0]
        assert np.array_equal(found, take(noise(*size)).numpy())
