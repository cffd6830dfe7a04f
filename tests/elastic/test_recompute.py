"""Blocks that are computed again in the backward pass: the same to the bit, with less kept in between."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from nas.build import load_supernet
from nas.elastic import recomputed
from nas.supernet import Pass
from nas.testing.space import ready


class Went(NamedTuple):
    """A forward and a backward pass: what came out, what was kept between them, draws that followed each."""

    output: Tensor
    gradients: dict[str, Tensor]
    kept: int
    draws: tuple[Tensor, Tensor]


def went(recompute: bool, own: bool, autocast: bool = False) -> Went:
    """The largest network of p64 under dropout and drop-path; `own` generator or torch's."""
    torch.manual_seed(0)
    net = ready(load_supernet("bignas", "p64", recompute=recompute))
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(3) if own else None
    how = Pass(dropout=0.2, drop_path=0.6, generator=generator)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:  # noqa: SIM117
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = net(x, net.space.largest(), how)
    kept = sum(event.self_cpu_memory_usage for event in seen.key_averages())
    after = torch.rand(3, generator=generator)
    output.float().square().sum().backward()
    draws = (after, torch.rand(3, generator=generator))
    return Went(output.detach(), {n: p.grad for n, p in net.named_parameters() if p.grad is not None}, kept, draws)


@pytest.mark.parametrize(("own", "autocast"), [(True, False), (False, False), (True, True)])
def test_gradients_and_draws_are_the_same_to_the_bit(own: bool, autocast: bool) -> None:
    """Though drop-path draws in the blocks, and dropout has drawn since when they are computed again."""
    plain, again = went(False, own, autocast), went(True, own, autocast)
    assert torch.equal(plain.output, again.output)
    assert plain.gradients.keys() == again.gradients.keys()
    assert [name for name, value in plain.gradients.items() if not torch.equal(value, again.gradients[name])] == []
    assert all(map(torch.equal, plain.draws, again.draws)), "the generator stands elsewhere than without"


def test_a_fifth_is_kept_at_most() -> None:
    """Inputs of blocks and what stands outside of them: 2.9 of 36 MB here."""
    plain, again = went(False, True), went(True, True)
    assert again.kept < plain.kept / 5
    assert plain.kept > 10e6, "bytes are counted"


def test_nothing_is_computed_twice_without_gradients() -> None:
    net, calls = load_supernet("bignas", "d8", recompute=True), []
    net.get_submodule("stages.1.0").register_forward_pre_hook(lambda *_: calls.append(1))
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        net(x, net.space.largest())
    assert len(calls) == 1
    net(x, net.space.largest()).sum().backward()
    assert len(calls) == 2 + 1


def test_the_fixed_network_of_a_child_does_so_too() -> None:
    net = load_supernet("bignas", "d8", recompute=True)
    assert net.fix(net.space.smallest()).recompute is True


def test_a_generator_stands_where_it_stood_after_an_error_too() -> None:
    """Torch leaves a block by an exception once it has what it needs; another leaves it in the same way."""
    generator, fails = torch.Generator().manual_seed(0), [False]

    def block(x: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.rand(2, generator=generator)
        if fails[0]:
            raise RuntimeError("full")
        return (x * noise).exp()

    x = nn.Parameter(torch.zeros(2))
    out = recomputed(block, x, generator=generator)
    torch.rand(5, generator=generator)
    stands, fails[0] = generator.get_state(), True
    with pytest.raises(RuntimeError, match="full"):
        out.sum().backward()
    assert torch.equal(generator.get_state(), stands)
