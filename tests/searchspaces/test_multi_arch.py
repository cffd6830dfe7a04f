"""How ViT-ResNAS draws sub-networks and mixes labels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nas.build import load_supernet
from nas.recipes.multi_arch import MultiArch, stratified, stratified_archs
from nas.recipes.opening import opened
from nas.recipes.recipe import Step
from nas.space import Arch
from nas.supernet import Output, main_head
from nas.tasks import mixing


def test_choices_open_from_the_largest_on() -> None:
    """Warm-up of 30 of 120 epochs: five widths one after another, existence [1, 1, 0, 0] from epoch 20 on."""
    at = [opened(5, epoch / 120, 0.25) for epoch in range(40)]
    assert at == [1] * 8 + [2] * 7 + [3] * 8 + [4] * 7 + [5] * 10
    assert [opened(4, epoch / 120, 0.25) for epoch in (0, 9, 10, 19, 20, 29, 30, 119)] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert opened(5, 0.0, 0.0) == 5


def test_draws_are_stratified() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 4, 7, 16):
        for _ in range(20):
            drawn = stratified((3, 4, 5, 6, 7), count, rng)
            times = [drawn.count(value) for value in (3, 4, 5, 6, 7)]
            assert sum(times) == len(drawn) == count
            assert max(times) - min(times) <= 1


def test_architectures_follow_the_training() -> None:
    space = load_supernet("vit_resnas", "d8").space

    def archs(progress: float, seed: int = 0) -> list[Arch]:
        return stratified_archs(space, 16, progress, np.random.default_rng(seed), 0.25, (1, 1, 0, 0))

    assert set(archs(0.0)) == {space.largest()}
    assert all(arch["stage1.width"] >= 28 and arch["stage1.block2.exists"] for arch in archs(0.09))
    late = archs(0.5)
    assert sorted(arch["stage2.block2.exists"] for arch in late) == [0] * 8 + [1] * 8
    assert sorted({arch["stage3.width"] for arch in late}) == [80, 88, 96, 112, 128]
    assert late == archs(0.5)
    assert late != archs(0.5, seed=1)


def options(**changes: Any) -> SimpleNamespace:
    given: dict[str, Any] = dict(  # noqa: C408
        archs=4,
        epochs=120,
        warmup_epochs=6,
        lr=1e-3,
        first_lr=1e-6,
        final_lr=1e-5,
        weight_decay=0.05,
        label_smoothing=0.1,
        dropout=0.0,
        drop_path=0.1,
    )
    return SimpleNamespace(**{**given, "opening": 0.25, "existence": (1, 1, 0, 0), **changes})


class Task:
    """The part of a task that the recipe needs."""

    def mix(self, x: Tensor, y: Tensor, grid: int, generator: torch.Generator) -> tuple[Tensor, mixing.Target]:
        return mixing.mix(x, y, 10, grid, generator)

    def loss(self, output: Any, target: Any, label_smoothing: float) -> Tensor:
        return mixing.loss(output, target, label_smoothing)


def facts(progress: float, seed: int = 0) -> Step:
    return Step(
        index=0,
        total=100,
        progress=progress,
        row=0,
        rng=np.random.default_rng(seed),
        generator=torch.Generator().manual_seed(seed),
        mean=lambda t: t,
        seed=0,
    )


def test_the_recipe_learns() -> None:
    torch.manual_seed(0)
    net = load_supernet("vit_resnas", "d8-smoke", mean=(0.3,), std=(0.3,))
    recipe = MultiArch(Task(), options(archs=4, drop_path=0.0, label_smoothing=0.0, opening=0.0))
    optimizer = recipe.optimizer(net)
    y = torch.arange(40) % 10
    x = torch.rand(10, 1, 8, 8)[y]
    seen = []
    for step in range(60):
        optimizer.zero_grad()
        (loss,) = recipe.losses(net, net, {"train": (x, y)}, facts(0.5, step))
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    with torch.no_grad():
        for arch in (net.space.smallest(), net.space.largest()):
            assert (main_head(net(x, arch)).argmax(1) == y).float().mean() > 0.9
    assert np.mean(seen[-10:]) < 0.8 * np.mean(seen[:5])


def test_the_schedule_and_what_is_decayed() -> None:
    net = load_supernet("vit_resnas", "d8")
    recipe = MultiArch(Task(), options())
    at = [recipe.lr(facts(progress)) for progress in (0, 0.025, 0.05, 1.0)]
    assert at == pytest.approx([1e-6, (1e-3 + 1e-6) / 2, 1e-3, 1e-5])
    decayed, spared = (group["params"] for group in recipe.optimizer(net).param_groups)
    names = {id(p): name for name, p in net.named_parameters()}
    assert {names[id(p)] for p in decayed} == {
        n for n in names.values() if n.endswith(("weight", "position")) and "norm" not in n
    }
    assert "token" in {names[id(p)] for p in spared}


def test_families_whose_examples_mix_are_refused() -> None:
    bignas = load_supernet("bignas", "d8")
    with pytest.raises(ValueError, match="batch norm"):
        MultiArch(Task(), options()).optimizer(bignas)
    MultiArch(Task(), options(archs=1)).optimizer(bignas)
    archs = [bignas.space.smallest(), bignas.space.largest()]
    x = torch.rand(6, 1, 8, 8)
    torch.testing.assert_close(main_head(bignas(x, archs))[1::2], main_head(bignas(x[1::2], archs[1])))


def test_cutmix_labels_say_where_the_pixels_come_from() -> None:
    y = torch.arange(8)
    x = (y + 1.0).view(8, 1, 1, 1).expand(8, 1, 8, 8).contiguous()
    for seed in range(20):
        mixed, target = mixing.patch_cutmix(x, F.one_hot(y, 10).float(), 4, np.random.default_rng(seed))
        owners = F.max_pool2d(mixed, 2).flatten(1).long() - 1
        assert torch.equal(F.max_pool2d(mixed, 2), -F.max_pool2d(-mixed, 2))  # whole cells only
        assert torch.equal(target.aux, F.one_hot(owners, 10).float())
        torch.testing.assert_close(target.main, target.aux.mean(1))


def test_rectangles_are_of_every_size_at_every_place() -> None:
    rng = np.random.default_rng(0)
    seen = {mixing.rectangle(2, rng) for _ in range(500)}
    assert len(seen) == 9  # all rectangles of a 2 x 2 grid
    shares = [(b - t) * (r - left) / 16 for t, b, left, r in (mixing.rectangle(4, rng) for _ in range(4000))]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("grid", [0, 1, 2])
def test_halves_of_a_batch_are_mixed_differently(grid: int) -> None:
    y = torch.arange(8)
    x = (y + 1.0).view(8, 1, 1, 1).expand(8, 1, 8, 8).contiguous()
    mixed, target = mixing.mix(x, y, 10, grid, torch.Generator().manual_seed(2))
    assert target.main.shape == (8, 10)
    assert target.aux.shape == (8, grid * grid, 10)
    torch.testing.assert_close(target.main.sum(1), torch.ones(8))
    first = mixed[:4] if grid == 2 else mixed[:0]
    assert torch.equal(first, first.round())  # pasted, not blended
    torch.testing.assert_close(mixed[4:].mean((1, 2, 3)), (target.main[4:] * torch.arange(1, 11)).sum(1))
    again = mixing.mix(x, y, 10, grid, torch.Generator().manual_seed(2))
    assert torch.equal(again[0], mixed)


def test_losses_of_both_heads() -> None:
    torch.manual_seed(0)
    main, aux, y = torch.randn(4, 10), torch.randn(4, 9, 10), torch.arange(4)
    expected = F.cross_entropy(main, y, label_smoothing=0.1)
    patches = F.cross_entropy(aux.flatten(0, 1), y.repeat_interleave(9), label_smoothing=0.1)
    mixed = mixing.Target(F.one_hot(y, 10).float(), F.one_hot(y, 10).float()[:, None].expand(-1, 9, -1))
    for target in (y, mixed):
        torch.testing.assert_close(mixing.loss(Output(main, aux), target, 0.1), expected + patches)
        torch.testing.assert_close(mixing.loss(main, target, 0.1), expected)
    taught = mixing.signal(Output(main, aux))
    assert isinstance(taught, Output)
    torch.testing.assert_close(mixing.distill(main, taught.main), F.cross_entropy(main, taught.main))
    entropy = mixing.distill(Output(main, aux), taught)
    assert entropy < mixing.distill(Output(main + torch.randn(4, 10), aux), taught)
