"""Mixed images and labels for networks with a head on patches, and the losses of both heads.

Liao, Karaman, Sze, "Searching for Efficient Multi-Stage Vision Transformers" (2021), section 3.3: patch-wise CutMix on
one half of the batch, Mixup (arXiv:1710.09412) on the other.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nas.supernet import Output, Target

MIXUP_BETA = 0.8  # both parameters of the Beta distribution that Mixup's share comes from


def mix(x: Tensor, y: Tensor, classes: int, grid: int, generator: torch.Generator) -> tuple[Tensor, Target]:
    """Patch-wise CutMix of the first half of a batch, Mixup of the second; Mixup alone where the grid has less than 2 x
    2 cells.

    Args:
        x: ``(n, C, H, W)``.
        y: int64 ``(n,)``.
        grid: side of the grid that the auxiliary head predicts for; 0 for none.
    """
    seed = int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
    rng, half, labels = np.random.default_rng(seed), len(x) // 2, F.one_hot(y, classes).to(x.dtype)
    if grid < 2:
        return mixup(x, labels, grid, rng)
    cut, cut_target = patch_cutmix(x[:half], labels[:half], grid, rng)
    mixed, mixed_target = mixup(x[half:], labels[half:], grid, rng)
    return torch.cat((cut, mixed)), Target(*(torch.cat(pair) for pair in zip(cut_target, mixed_target, strict=True)))


def patch_cutmix(x: Tensor, labels: Tensor, grid: int, rng: np.random.Generator) -> tuple[Tensor, Target]:
    """CutMix (arXiv:1905.04899) of whole cells: one rectangle a batch, at the same place in every image and its
    partner.

    A cell's label is that of the image that it comes from, an image's label the mean of its cells'.
    """
    partner = _partner(x, rng)
    top, bottom, left, right = rectangle(grid, rng)
    owner = x.new_zeros(grid, grid)
    owner[top:bottom, left:right] = 1
    edges = [round(x.shape[-1] * cell / grid) for cell in range(grid + 1)]
    rows, columns = slice(edges[top], edges[bottom]), slice(edges[left], edges[right])
    mixed = x.clone()
    mixed[:, :, rows, columns] = x[partner][:, :, rows, columns]
    cells = torch.lerp(labels[:, None], labels[partner][:, None], owner.view(1, -1, 1))
    return mixed, Target(cells.mean(1), cells)


def rectangle(grid: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a rectangle of whole cells: its area is uniform but for rounding, every place
    as likely as another."""
    area = rng.random() * grid * grid
    height = int(rng.integers(max(1, int(np.ceil(area / grid))), grid + 1))
    width = min(grid, max(1, round(area / height)))
    top, left = int(rng.integers(grid - height + 1)), int(rng.integers(grid - width + 1))
    return top, top + height, left, left + width


def mixup(x: Tensor, labels: Tensor, grid: int, rng: np.random.Generator) -> tuple[Tensor, Target]:
    """Mixup with one share for the batch; every cell has its image's label."""
    partner, share = _partner(x, rng), rng.beta(MIXUP_BETA, MIXUP_BETA)
    main = torch.lerp(labels, labels[partner], share)
    return torch.lerp(x, x[partner], share), Target(main, main[:, None].expand(-1, grid * grid, -1))


def _partner(x: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.permutation(len(x))).to(x.device)


def loss(output: Tensor | Output, target: Tensor | Target, label_smoothing: float) -> Tensor:
    """Cross-entropy of the image's label plus that of the cells' labels, nats, each a mean over its predictions.

    Args:
        output: logits ``(n, classes)``, and where there is an auxiliary head ``(n, cells, classes)``.
        target: int64 ``(n,)``, which is every cell's label too; or mixed labels.
    """
    if not isinstance(output, Output):
        return _cross_entropy(output, target.main if isinstance(target, Target) else target, label_smoothing)
    if not isinstance(target, Target):
        target = Target(target, target[:, None].expand(-1, output.aux.shape[1]))
    main, aux = (_cross_entropy(o, t, label_smoothing) for o, t in zip(output, target, strict=True))
    return main + aux


def signal(output: Tensor | Output) -> Tensor | Output:
    """What a teacher tells: the probabilities of its heads, without gradient."""
    if isinstance(output, Output):
        return Output(*(head.detach().float().softmax(-1) for head in output))
    return output.detach().float().softmax(-1)


def distill(output: Tensor | Output, taught: Tensor | Output) -> Tensor:
    """Cross-entropy of each head against the teacher's probabilities, nats."""
    if isinstance(output, Output):
        return loss(output, Target(*taught), 0.0)
    assert isinstance(taught, Tensor)
    return _cross_entropy(output, taught, 0.0)


def _cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    """Over the last axis of the logits; the target holds classes or probabilities."""
    classes = logits.shape[-1]
    target = target.reshape(-1, classes) if target.is_floating_point() else target.reshape(-1)
    return F.cross_entropy(logits.reshape(-1, classes).float(), target, label_smoothing=label_smoothing)
