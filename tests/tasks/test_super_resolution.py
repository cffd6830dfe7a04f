"""Super-resolution: figures against published ones and other code, the three parts, augmentation."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from nas.children.evaluate import Batches, score
from nas.tasks import quality
from nas.tasks.pairs import Crops, Photo, cells, enlarge
from nas.tasks.places import TRAIN_PHOTOS
from nas.tasks.super_resolution import SuperResolution
from searchspaces import quantnas_child
from tests.tasks.photographs import noise, settings

# images.
PUBLISHED = {"Set5": (33.66, 30.39, 28.42), "Set14": (30.24, 27.55, 26.00), "BSD100": (29.56, 27.21, 25.96)}


SET5_X2 = {"baby": 37.07, "bird": 36.81, "butterfly": 27.43, "head": 34.86, "woman": 32.14}


def benchmark(name: str) -> Path:
    """The folder that holds a published test set; without it the test is skipped."""
    for root in os.environ.get("RAYNAS_DATA", "").split(os.pathsep):
        for base in (Path(root), Path(root) / "sr"):
            if root and (base / name).is_dir():
                return base
    pytest.skip(f"no {name} under RAYNAS_DATA")


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_is_as_good_as_published(name: str, scale: int) -> None:
    """The whole chain of file, low-resolution image, luma, border and mean. Grey `bridge` alone moves Set14 by 0.09
    dB."""
    train = "Set14" if name == "Set5" else "Set5"
    given = {"name": "sr-folder", "path": str(benchmark(name)), "train": train, "test": name}
    task = SuperResolution(settings(**given, scale=scale, patch=8, validation=4), 0)
    found = score(task.baselines()["bicubic"], Batches(task.test, 1000, 1000, torch.device("cpu")), task)
    assert found["psnr"] == pytest.approx(PUBLISHED[name][scale - 2], abs=0.021)


def test_bicubic_of_each_image_of_set5() -> None:
    task = SuperResolution(
        settings(name="sr-folder", path=str(benchmark("Set5")), train="Set14", test="Set5", patch=8, validation=4), 0
    )
    for row, name in enumerate(task.titles):
        x, y = task.test.batch(np.array([row]))
        psnr = task.scores(enlarge(x, 2), y)["psnr"]
        assert psnr == pytest.approx(next(value for key, value in SET5_X2.items() if key in name), abs=0.03), name


def test_figures_against_scikit_image(photos: SuperResolution) -> None:
    """PSNR and SSIM of another hand on luma of another hand, on a real photograph."""
    x, y = photos.test.batch(np.array([1]))
    up = enlarge(x, 2)
    a, b = (
        16 + np.round(t[0].numpy() * 255).transpose(1, 2, 0).astype(float) @ [65.481, 128.553, 24.966] / 255
        for t in (up, y)
    )
    for border, whole in ((2, False), (4, True)):
        cut = [luma[border:-border, border:-border] for luma in ((np.round(a), np.round(b)) if whole else (a, b))]
        options = settings(border=None if border == 2 else border, round_luma=whole)
        task = SimpleNamespace(scale=2, options=options, metrics=photos.metrics)
        task._lumas = lambda *pair, task=task: SuperResolution._lumas(task, *pair)  # type: ignore[arg-type]
        found = SuperResolution.summarise(task, SuperResolution.scores(task, up, y))  # type: ignore[arg-type]
        assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(*cut, data_range=255), abs=1e-4)
        alike = structural_similarity(
            *cut, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert found["ssim"] == pytest.approx(alike, abs=1e-5)


def test_ssim_does_not_hang_on_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """What float32 products lose is nothing here, and what TF32 ones would (10 bits of the mantissa, on a GPU)."""

    def tf32(x: torch.Tensor) -> torch.Tensor:
        return (x.view(torch.int32) & ~0x1FFF).view(torch.float32) if x.dtype == torch.float32 else x

    rng = np.random.default_rng(0)
    a = torch.from_numpy(240 + 4 * rng.standard_normal((1, 1, 40, 40))).clamp(0, 255).float()
    b = (a + torch.from_numpy(2 * rng.standard_normal(a.shape))).clamp(0, 255).float()
    how = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    wanted = structural_similarity(a[0, 0].double().numpy(), b[0, 0].double().numpy(), **how)
    plain = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda x, y: plain(tf32(x), tf32(y)))
    assert float(quality.ssim(a, b)) == pytest.approx(wanted, abs=1e-6)


def test_figures_are_of_the_image_as_stored_and_finite(photos: SuperResolution) -> None:
    _, y = photos.validation.batch(np.arange(4))
    same = photos.summarise(photos.scores(y, y))
    assert same == {"psnr": quality.HIGHEST, "ssim": pytest.approx(1)}
    assert photos.summarise(photos.scores(y + 0.4 / 255, y)) == same  # a rounding away
    assert photos.scores(y * 3 - 1, y) == photos.scores((y * 3 - 1).clamp(0, 1), y)
    black, white = torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)
    assert photos.scores(black, white)["psnr"] == pytest.approx(20 * np.log10(255 / 219), abs=1e-4)
    assert photos.scores(black, white[:, :1])["psnr"] == pytest.approx(0, abs=1e-4)  # one channel: in full range


def test_scores_add_up(photos: SuperResolution) -> None:
    x, y = photos.validation.batch(np.arange(7))
    up = enlarge(x, 2)
    parts = [photos.scores(up[a:b], y[a:b]) for a, b in ((0, 4), (4, 7))]
    whole = photos.summarise({name: parts[0][name] + parts[1][name] for name in parts[0]})
    assert whole == pytest.approx(photos.summarise(photos.scores(up, y)), rel=1e-6)
    assert set(whole) == set(photos.metrics)


def test_losses_against_their_formulas(photos: SuperResolution) -> None:
    torch.manual_seed(0)
    output, target = torch.randn(2, 3, 8, 8, requires_grad=True), torch.rand(2, 3, 8, 8)
    assert torch.allclose(photos.loss(output, target, 0.1), (output - target).abs().mean())
    signal = photos.signal(output)
    assert not signal.requires_grad and photos.distill(output, signal).item() == 0
    gap = torch.tensor([0.001, 0.01, 0.2, -0.2])
    child = (signal.flatten()[:4] + gap).view(1, 1, 2, 2).requires_grad_()
    photos.distill(child, signal.flatten()[:4].view(1, 1, 2, 2)).backward()
    assert child.grad is not None and torch.allclose(
        4 * child.grad.flatten(), torch.tensor([0.02, 0.2, 1, -1]), atol=1e-4
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert photos.loss(output.bfloat16(), target).dtype == torch.float32
        assert photos.distill(output.bfloat16(), signal).dtype == torch.float32


def test_the_three_parts_share_no_image(photos: SuperResolution) -> None:
    used = [{part.photos[row].name for row in part.cells[:, 0]} for part in (photos.train, photos.validation)]  # type: ignore[attr-defined]
    assert (
        used[0] | used[1] == {name.partition(".")[0] for name in TRAIN_PHOTOS}
        and not used[0] & used[1]
        and len(used[1]) == 2
    )
    assert not set(photos.titles) & (used[0] | used[1]) and len(photos.test) == 3
    assert len(photos.validation) == 8
    assert [SuperResolution(settings(), seed).validation.cells.tolist() for seed in (0, 0)] == [
        photos.validation.cells.tolist()
    ] * 2  # type: ignore[attr-defined]
    assert any(
        SuperResolution(settings(), seed).validation.cells.tolist() != photos.validation.cells.tolist()
        for seed in (1, 2)
    )  # type: ignore[attr-defined]


def test_examples_share_no_pixel_and_leave_none_out() -> None:
    """So a recipe that divides the training examples in two has two disjoint sets of pixels."""
    photos = [Photo("a", noise(100, 70)), Photo("b", noise(31, 97))]
    seen = [np.zeros(photo.pixels.shape[:2], int) for photo in photos]
    for image, top, left, bottom, right in cells(photos, np.array([0, 1]), 32):
        seen[image][top:bottom, left:right] += 1
        assert right - left >= 32 and (bottom - top >= 32 or image == 1)
    assert all((count == 1).all() for count in seen)


def test_a_low_resolution_image_is_pillows_bicubic(photos: SuperResolution) -> None:
    x, y = photos.train.batch(np.arange(0, 200, 20), 3)
    assert x.shape == (10, 3, 24, 24) and y.shape == (10, 3, 48, 48) and x.dtype == y.dtype == torch.float32
    for low, high in zip(x, y, strict=True):
        made = Image.fromarray((high * 255).round().byte().permute(1, 2, 0).numpy()).resize(
            (24, 24), Image.Resampling.BICUBIC
        )
        assert np.array_equal(np.asarray(made), (low * 255).round().byte().permute(1, 2, 0).numpy())


def test_sides_that_the_scale_does_not_divide(nowhere: Path) -> None:
    for folder, seeds in (("train", range(3, 6)), ("test", range(3))):
        (nowhere / "mine" / folder).mkdir(parents=True)
        for i in seeds:
            Image.fromarray(noise(101 + i, 97, i)).save(nowhere / "mine" / folder / f"{i}.png")
    task = SuperResolution(settings(name="sr-folder", path="mine", scale=3, patch=8, validation=2), 0)
    x, y = task.test.batch(np.array([1]))
    assert x.shape == (1, 3, 34, 32) and y.shape == (1, 3, 102, 96)
    assert torch.equal(y[0] * 255, torch.from_numpy(noise(102, 97, 1)).permute(2, 0, 1)[:, :102, :96].float())
    low = np.asarray(Image.fromarray(noise(102, 97, 1)[:102, :96]).resize((32, 34), Image.Resampling.BICUBIC))
    assert torch.equal((x[0] * 255).round(), torch.from_numpy(low.copy()).permute(2, 0, 1).float())


def test_augmentation_depends_on_seed_epoch_and_index_alone(photos: SuperResolution) -> None:
    few = np.arange(40)
    whole = photos.train.batch(few, 3)
    mixed = np.array([17, 4, 4, 39, 0])
    torch.manual_seed(123)
    for part, all_ in zip(photos.train.batch(mixed, 3), whole, strict=True):
        assert torch.equal(part, all_[mixed])
    assert torch.equal(torch.cat([photos.train.batch(few[i : i + 1], 3)[0] for i in few]), whole[0])
    assert torch.equal(SuperResolution(settings(rotate=True), 0).train.batch(few, 3)[1], whole[1])
    assert not torch.equal(photos.train.batch(few, 4)[1], whole[1])
    assert torch.equal(photos.validation.batch(few[:8])[1], photos.validation.batch(few[:8])[1])


def test_crops_mirrors_and_turns_are_all_and_only_the_possible_ones() -> None:
    """Against a loop: each crop is one of the 3 x 3 windows of its cell in one of 8 orientations, and all of them
    occur."""
    photos = [Photo(str(i), noise(18, 18, i)) for i in range(4)]
    for flags, count in (
        ({"flip": True, "rotate": True}, 72),
        ({"flip": False, "rotate": True}, 36),
        ({"flip": True}, 18),
        ({"flip": False}, 9),
    ):
        crops = Crops(photos, cells(photos, np.arange(4), 18), 8, settings(**{"rotate": False} | flags), 0)
        seen = set()
        for epoch in range(150):
            _, y = crops.batch(np.arange(4), epoch)
            for i in range(4):
                got = (y[i] * 255).round().byte().permute(1, 2, 0).numpy()
                windows = {(t, s): photos[i].pixels[t : t + 16, s : s + 16] for t in range(3) for s in range(3)}
                hits = [
                    (*place, m, k)
                    for place, window in windows.items()
                    for m in (False, True)
                    for k in range(4)
                    if np.array_equal(got, np.rot90(window[:, ::-1] if m else window, k))
                ]
                assert len(hits) == 1
                seen.add(hits[0])
        assert len(seen) == count


def test_a_validation_crop_is_the_middle_of_its_cell_and_four_times_as_large(photos: SuperResolution) -> None:
    x, y = photos.validation.batch(np.array([0, 7]))
    assert x.shape[-2:] == (96, 96) and y.shape[-2:] == (192, 192)
    image, top, left, bottom, right = photos.validation.cells[7]  # type: ignore[attr-defined]
    pixels = photos.validation.photos[image].pixels  # type: ignore[attr-defined]
    t, s = top + (bottom - top - 192) // 2, left + (right - left - 192) // 2
    assert torch.equal((y[1] * 255).round().byte().permute(1, 2, 0), torch.from_numpy(pixels[t : t + 192, s : s + 192]))


def test_the_network_and_the_platform_are_told_the_task(photos: SuperResolution) -> None:
    assert (
        photos.network["scale"] == 2
        and photos.network["channels"] == 3
        and photos.input_shape == (3, photos.network["image"], photos.network["image"])
    )
    rows = np.unique(photos.train.cells[:, 0])  # type: ignore[attr-defined]
    pixels = np.concatenate([photos.train.photos[row].pixels.reshape(-1, 3) for row in rows])  # type: ignore[attr-defined]
    assert photos.network["mean"] == pytest.approx(pixels.mean(0) / 255) and all(
        type(v) is float for v in photos.network["mean"]
    )
    x, y = photos.validation.batch(np.arange(8))
    dead = quantnas_child.enlarge(lambda _: torch.zeros(()), x, torch.zeros(3, 1, 1), 2, real=False)
    both = [photos.summarise(photos.scores(image, y))["psnr"] for image in (enlarge(x, 2), dead)]
    assert photos.chance == pytest.approx(max(both), abs=1e-3) and photos.learnt > photos.chance
    assert both[1] > both[0] + 0.1, "a network that adds nothing would pass for one that beats bicubic"
