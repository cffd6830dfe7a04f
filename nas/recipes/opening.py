"""Choices that open over the first part of a training, value by value, from one end of the space to the other."""

from __future__ import annotations

from dataclasses import replace

from nas.space import Choice, Space


def opened(entries: int, progress: float, opening: float) -> int:
    """How many entries of a list are open: one at first, all of them from `opening` on (ViT-ResNAS, section 3.2:
    progressive shrinking)."""
    if progress >= opening:
        return entries
    return min(entries, 1 + int(progress / opening * (entries - 1) + 1e-9))


def opened_space(space: Space, progress: float, opening: float, first: str) -> Space:
    """The part of a space that is open: of every choice the values at one end, whatever depends on others left out.

    Args:
        progress: how much of the training is done, in [0, 1].
        opening: over which share of it the values open.
        first: ``"largest"`` opens from the largest network's values on (progressive shrinking, Cai et al.,
            arXiv:1908.09791; the largest is trained before others shrink out of it, DepS, arXiv:2407.06167),
            ``"smallest"`` from the smallest's (a network that grows, GrowTAS, arXiv:2512.12296).
    """
    if progress >= opening:
        return space
    kept: dict[str, Choice] = {}
    for name, choice in space.choices.items():
        count, needs = opened(len(choice.values), progress, opening), choice.active_if
        if needs is not None:
            values = kept[needs[0]].values if needs[0] in kept else ()
            needs = needs[0], tuple(value for value in needs[1] if value in values)
            if not needs[1]:
                continue
        kept[name] = replace(
            choice,
            values=choice.values[-count:] if first == "largest" else choice.values[:count],
            active_if=needs,
        )
    return Space(list(kept.values()))
