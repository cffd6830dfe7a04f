"""Images that are too large for one pass, in tiles that overlap. This file imports torch alone: it is copied beside an
exported child that is judged so."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def in_tiles(network: Callable[[Tensor], Tensor], x: Tensor, scale: int, side: int, overlap: int) -> Tensor:
    """``(n, C, h, w)`` -> ``(n, C', h * scale, w * scale)``, in tiles of about `side` low-resolution pixels square, at
    most.

    Each tile is seen with `overlap` pixels around it, as far as there are any, and its own part is kept. Where no
    output pixel depends on input further than `overlap` away, the result is what the whole image would give; a network
    that looks at the whole image (a mean over it, batch statistics, attention) gives another.
    """
    height, width = x.shape[-2:]
    if height <= side and width <= side:
        return network(x)
    out: Tensor | None = None
    for top, bottom in _spans(height, side):
        for left, right in _spans(width, side):
            above, before = max(0, top - overlap), max(0, left - overlap)
            part = network(x[..., above : bottom + overlap, before : right + overlap])
            if out is None:
                out = part.new_empty((*part.shape[:-2], height * scale, width * scale))
            rows, columns = (
                slice((top - above) * scale, (bottom - above) * scale),
                slice((left - before) * scale, (right - before) * scale),
            )
            out[..., top * scale : bottom * scale, left * scale : right * scale] = part[..., rows, columns]
    assert out is not None
    return out


def _spans(length: int, most: int) -> list[tuple[int, int]]:
    """``0 .. length`` in equal spans, of `most` at most."""
    count = -(-length // most)
    edges = [round(length * i / count) for i in range(count + 1)]
    return list(zip(edges, edges[1:], strict=False))
