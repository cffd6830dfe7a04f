"""PSNR and SSIM as the super-resolution literature takes them: on luma, without the border.

The common protocol cuts off as many pixels as the scale and keeps luma as a fraction; some papers cut off a fixed
number of pixels, or round luma to whole numbers, which moves PSNR in the second decimal.
"""

from __future__ import annotations

import torch
from torch import Tensor

HIGHEST = 100.0  # dB; what equal images are given, so that means stay finite
WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian, pixels
K1, K2 = 0.01, 0.03
PEAK = 255.0


def luma(rgb: Tensor, border: int, whole: bool = False, full: bool = False) -> Tensor:
    """Y of ITU-R BT.601 in [16, 235]: ``(n, 3, H, W)`` in [0, 1] -> ``(n, 1, H - 2 border, W - 2 border)``, float32.

    The image is rounded to 8 bits first, as it would be stored.

    Args:
        border: pixels cut off from every side.
        whole: round Y to whole numbers too.
        full: stretch it to [0, 255], which gives a grey pixel its own value.
    """
    rgb = (rgb.float().clamp(0, 1) * PEAK).round() / PEAK
    weights = rgb.new_tensor((65.481, 128.553, 24.966)).view(1, 3, 1, 1)
    y = (rgb * weights).sum(1, keepdim=True)  # in [0, 219]; a product of matrices would be TF32 on a GPU
    y = y * (PEAK / 219) if full else y + 16
    y = y[..., border : y.shape[-2] - border, border : y.shape[-1] - border]
    return y.round() if whole else y


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of ``(n, 1, H, W)`` in [0, 255]: ``(n,)``, dB, at most `HIGHEST`."""
    error = (a - b).square().mean((1, 2, 3))
    return (10 * torch.log10(PEAK**2 / error)).clamp_max(HIGHEST)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, with their Gaussian window, where it lies wholly inside): ``(n, 1, H,
    W)`` in [0, 255] -> ``(n,)``.

    In float64: variances are small differences of large squares, of which TF32 would leave nothing.
    """
    a, b = a.double(), b.double()
    one, two = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    maps = _blur(a.shape[-2], a) @ torch.cat((a, b, a * a, b * b, a * b)) @ _blur(a.shape[-1], a).T
    mean_a, mean_b, aa, bb, ab = maps.chunk(5)
    var_a, var_b, cov = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    alike = (2 * mean_a * mean_b + one) * (2 * cov + two) / ((mean_a**2 + mean_b**2 + one) * (var_a + var_b + two))
    return alike.mean((1, 2, 3)).float()


def _blur(size: int, like: Tensor) -> Tensor:
    """The Gaussian window at each place of an axis: ``(size - 10, size)``. On a CPU a product with it is quicker
    than a convolution."""
    at = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    window = torch.exp(-at.square() / (2 * SIGMA**2))
    places = size - WINDOW + 1
    rows = torch.zeros(places, size, dtype=torch.float64)
    for offset, weight in enumerate(window / window.sum()):
        rows.diagonal(offset).fill_(weight)
    return rows.to(like)
