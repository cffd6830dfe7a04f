"""Elastic layers against torch's own layers with the sliced weights. (The grouped and masked ones:
tests/test_vit_resnas.py.)"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from nas.elastic import ElasticBatchNorm2d, ElasticConv2d, ElasticLinear, ElasticSqueezeExcite
from nas.elastic.grouped import _heads_first, _of_one
from nas.static import SqueezeExcite

Window = dict[str, Callable[[Tensor], Tensor]]  # for each parameter, the view of it that the smaller layer uses


def randomised(layer: nn.Module, seed: int = 0) -> Any:
    """A layer whose parameters, biases and norms included, are random."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    return layer


def images(channels: int, side: int, rows: int = 3) -> Tensor:
    return torch.randn(rows, channels, side, side, generator=torch.Generator().manual_seed(1))


def assert_same(found: Tensor, wanted: Tensor) -> None:
    """But for the order in which doubles are added."""
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


def assert_is_window(
    elastic: nn.Module, run: Callable[[Tensor], Tensor], plain: nn.Module, window: Window, x: Tensor
) -> None:
    """`run` gives what `plain` gives with the windows copied in, and so do all gradients, which are zero outside. In
    double precision."""
    elastic.double(), plain.double()
    x = x.double()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(window[name](elastic.get_parameter(name)))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, wanted = run(ours), plain(theirs)
    assert_same(out, wanted)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (out * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert_same(ours.grad, theirs.grad)
    for name, parameter in elastic.named_parameters():
        assert parameter.grad is not None
        inside = window[name](parameter.grad)
        assert_same(inside, plain.get_parameter(name).grad)  # type: ignore[arg-type]
        inside.zero_()
        assert not parameter.grad.any(), f"{name} has a gradient outside of its window"


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("side", [8, 7, 1])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("c_in", "c_out", "kernel"), [(12, 20, 7), (12, 20, 3), (5, 20, 5), (12, 9, 7), (3, 8, 1)])
def test_convolution(c_in: int, c_out: int, kernel: int, stride: int, side: int, memory: torch.memory_format) -> None:
    elastic = randomised(ElasticConv2d(12, 20, 7, stride, bias=True))
    edge = (7 - kernel) // 2
    inner = slice(edge, 7 - edge)
    window: Window = {"weight": lambda w: w[:c_out, :c_in, inner, inner], "bias": lambda b: b[:c_out]}
    plain = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2)
    x = images(c_in, side).contiguous(memory_format=memory)
    assert_is_window(elastic, lambda t: elastic(t, c_out, kernel), plain, window, x)
    assert elastic(x.double(), c_out, kernel).shape == (3, c_out, -(-side // stride), -(-side // stride))


def test_a_small_kernel_is_the_centre_of_the_large_one() -> None:
    """Indices K//2 - k//2 .. K//2 + k//2, written out."""
    elastic = ElasticConv2d(1, 1, 5)
    with torch.no_grad():
        elastic.weight.copy_(torch.arange(25.0).view(1, 1, 5, 5))
    impulse = torch.zeros(1, 1, 5, 5)
    impulse[0, 0, 2, 2] = 1  # a correlation shows its kernel mirrored around an impulse
    shown = elastic(impulse, kernel=3)[0, 0].flip(0, 1)
    assert shown[1:4, 1:4].tolist() == [[6, 7, 8], [11, 12, 13], [16, 17, 18]]
    assert elastic(impulse, kernel=1)[0, 0, 2, 2] == 12
    assert shown.sum() == 6 + 7 + 8 + 11 + 12 + 13 + 16 + 17 + 18


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("sides", [(8, 8), (7, 7), (4, 4), (3, 3), (2, 2), (1, 1), (2, 5), (6, 1)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "kernel"), [(8, 7), (8, 5), (8, 3), (3, 7), (3, 5), (1, 3), (8, 1), (1, 1)])
def test_depthwise_convolution(
    channels: int, kernel: int, stride: int, sides: tuple[int, int], memory: torch.memory_format
) -> None:
    elastic = randomised(ElasticConv2d(8, 8, 7, stride, group_width=1))
    edge = (7 - kernel) // 2
    plain = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
    window: Window = {"weight": lambda w: w[:channels, :, edge : 7 - edge, edge : 7 - edge]}
    x = images(channels, 8)[:, :, : sides[0], : sides[1]].contiguous(memory_format=memory)
    assert_is_window(elastic, lambda t: elastic(t, kernel=kernel), plain, window, x)


@pytest.mark.parametrize("side", [9, 4, 2, 1])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("depthwise", "kernel"), [(True, 3), (True, 5), (True, 7), (False, 1), (False, 3)])
def test_single_precision_loses_no_more_than_in_torch(depthwise: bool, kernel: int, stride: int, side: int) -> None:
    """Output and gradients in fp32 against those in fp64. (Longer sums: oneDNN's own 3x3 passes 4e-7 too.)"""
    elastic = randomised(ElasticConv2d(48, 48, 7, stride, group_width=1 if depthwise else None))
    edge, x = (7 - kernel) // 2, images(40, side, rows=4).contiguous(memory_format=torch.channels_last)

    def plain(t: Tensor, weight: Tensor) -> Tensor:
        used = weight[:40, : 1 if depthwise else 40, edge : 7 - edge, edge : 7 - edge]
        return nn.functional.conv2d(t, used, None, stride, kernel // 2, 1, 40 if depthwise else 1)

    def results(run: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> list[Tensor]:
        t, weight = x.to(dtype, copy=True).requires_grad_(), elastic.weight.detach().to(dtype).requires_grad_()
        out = run(t, weight)
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype))
        assert t.grad is not None and weight.grad is not None
        return [out.detach(), t.grad, weight.grad]

    def ours(t: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(elastic, {"weight": weight}, (t, 40, kernel))

    exact = results(plain, torch.float64)
    for found, torchs, wanted in zip(results(ours, torch.float32), results(plain, torch.float32), exact, strict=True):
        error, allowed = ((value - wanted).norm() / wanted.norm() for value in (found, torchs))
        assert error <= max(4e-7, 1.5 * allowed.item())


@pytest.mark.parametrize("depthwise", [False, True])
def test_gradients_of_gradients_are_refused(depthwise: bool) -> None:
    """They would be wrong: the gradients are not made of functions that autograd sees."""
    elastic = ElasticConv2d(4, 4, 5, group_width=1 if depthwise else None)
    x = images(4, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    (slope,) = torch.autograd.grad(elastic(x, 4, 5 if depthwise else 1).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.square().sum().backward()


@pytest.mark.parametrize("kernel", [1, 5])
def test_autocast_is_heeded(kernel: int) -> None:
    elastic = randomised(ElasticConv2d(8, 8, 5))
    x = images(8, 6).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        out = elastic(x, 8, kernel)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert elastic.weight.grad is not None and elastic.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_grouped_convolution(groups: int) -> None:
    """Groups of 4 input channels, each with 6 output channels: the first ones are used whole."""
    elastic = randomised(ElasticConv2d(12, 18, 3, bias=True, group_width=4))
    plain = nn.Conv2d(4 * groups, 6 * groups, 3, padding=1, groups=groups)
    window: Window = {"weight": lambda w: w[: 6 * groups], "bias": lambda b: b[: 6 * groups]}
    assert_is_window(elastic, elastic, plain, window, images(4 * groups, 5))


def test_layers_are_whole_unless_told() -> None:
    for elastic, plain, x in (
        (ElasticConv2d(4, 6, 3, 2), nn.Conv2d(4, 6, 3, 2, 1, bias=False), images(4, 9)),
        (ElasticLinear(4, 6), nn.Linear(4, 6), torch.randn(5, 4)),
    ):
        plain.load_state_dict(elastic.state_dict())  # the same names and shapes as torch's
        assert torch.equal(elastic(x), plain(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("i", "o"), [(10, 7), (4, 7), (10, 2), (1, 1)])
def test_linear(i: int, o: int, bias: bool) -> None:
    elastic = randomised(ElasticLinear(10, 7, bias=bias))
    window: Window = {"weight": lambda w: w[:o, :i], "bias": lambda b: b[:o]}
    assert_is_window(elastic, lambda t: elastic(t, o), nn.Linear(i, o, bias), window, torch.randn(3, 2, i))


@pytest.mark.parametrize(("channels", "side"), [(6, 5), (2, 4), (1, 1)])
def test_batch_norm(channels: int, side: int) -> None:
    elastic = randomised(ElasticBatchNorm2d(6))
    window: Window = {"weight": lambda w: w[:channels], "bias": lambda b: b[:channels]}
    assert_is_window(elastic, elastic, nn.BatchNorm2d(channels), window, images(channels, side))


def test_batch_norm_keeps_no_statistics() -> None:
    """Training changes no buffer, because there is none; evaluation normalises by the batch as well."""
    norm, x = randomised(ElasticBatchNorm2d(4)), images(4, 3)
    out = norm(100 + x)
    assert list(norm.buffers()) == []
    assert torch.equal(norm.eval()(100 + x), out)
    torch.testing.assert_close(norm(x), out, atol=1e-4, rtol=1e-4)  # the mean of the batch is gone


@pytest.mark.parametrize(("channels", "squeezed"), [(16, 8), (12, 8), (16, 3), (5, 2)])
def test_squeeze_excite(channels: int, squeezed: int) -> None:
    elastic = randomised(ElasticSqueezeExcite(16, 8))
    window: Window = {
        "reduce.weight": lambda w: w[:squeezed, :channels],
        "reduce.bias": lambda b: b[:squeezed],
        "expand.weight": lambda w: w[:channels, :squeezed],
        "expand.bias": lambda b: b[:channels],
    }
    x = images(channels, 5)
    assert_is_window(elastic, lambda t: elastic(t, squeezed), SqueezeExcite(channels, squeezed), window, x)
    gate = elastic(x.double(), squeezed) / x.double()
    assert gate.min() > -1e-9 and gate.max() < 1 + 1e-9
    torch.testing.assert_close(gate, gate[:, :, :1, :1].expand_as(gate))  # one gate a channel and example


def test_a_step_of_a_small_child_moves_its_prefix_alone() -> None:
    elastic = ElasticConv2d(6, 6, 5)
    before = elastic.weight.detach().clone()
    optimizer = torch.optim.SGD(elastic.parameters(), lr=1.0)
    elastic(images(4, 6), 2, 3).square().sum().backward()
    optimizer.step()
    moved = elastic.weight.detach() != before
    assert moved[:2, :4, 1:4, 1:4].all()
    assert moved.sum() == 2 * 4 * 3 * 3


# --- wrong arguments


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((4, 4, 4), {}, "max_kernel .=4. must be odd"),
        ((10, 10, 3), {"group_width": 4}, "max_in .=10.* whole groups of group_width .=4"),
        ((8, 9, 3), {"group_width": 4}, "max_out .=9.* whole groups"),
    ],
)
def test_layers_that_cannot_be(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ElasticConv2d(*arguments, **options)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ElasticConv2d(4, 4, 3)(images(5, 4)),
        lambda: ElasticConv2d(4, 8, 1)(images(5, 4), 2),
        lambda: ElasticConv2d(4, 8, 1)(images(5, 4).contiguous(memory_format=torch.channels_last), 2),
        lambda: ElasticConv2d(8, 8, 3, group_width=4)(images(6, 4)),
        lambda: ElasticConv2d(8, 8, 3, group_width=4)(images(12, 4)),
        lambda: ElasticLinear(4, 4)(torch.randn(2, 5)),
        lambda: ElasticBatchNorm2d(4)(images(5, 4)),
        lambda: ElasticBatchNorm2d(4)(images(4, 1, rows=1)),  # one value has no variance
    ],
)
def test_inputs_that_do_not_fit(call: Callable[[], Tensor]) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: ElasticConv2d(4, 4, 3)(images(4, 4), 5),
        lambda: ElasticConv2d(4, 4, 3)(images(4, 8), 4, 5),
        lambda: ElasticConv2d(4, 4, 5)(images(4, 8), 4, 4),
        lambda: ElasticLinear(4, 4)(torch.randn(2, 4), 5),
    ],
)
def test_sizes_that_the_layer_has_not(call: Callable[[], Tensor]) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        call()


# --- over ranks

ROWS, CHANNELS = 4, 5
SHIFTED = "large mean, small spread"


def _batch(case: str) -> tuple[Tensor, Tensor, Tensor]:
    """The joint batch of two ranks, and what its output and the scale are multiplied by."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2 * ROWS, 3, 5, 3, generator=generator)
    if case == SHIFTED:
        x = 300 + 0.1 * x
    x[:ROWS] += 0.5 * x.std()  # ranks whose statistics differ
    return x, torch.randn(x.shape, generator=generator), torch.rand(CHANNELS, generator=generator)


def _rank(rank: int, store: str, folder: str) -> None:
    """One of two processes: synchronised batch norm of its half; what came out goes into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    for case in ("plain", SHIFTED):
        x, weights, scale = _batch(case)
        mine = slice(rank * ROWS, (rank + 1) * ROWS)
        norm = ElasticBatchNorm2d(CHANNELS, sync=True)
        with torch.no_grad():
            norm.weight.copy_(scale)
        part = x[mine].clone().requires_grad_()
        with torch.profiler.profile() as seen:
            out = norm(part)
            (out * weights[mine]).sum().backward()
        collectives = [event.name for event in seen.events() if event.name.startswith("gloo:")]
        assert len(collectives) == 2, f"one on the way there and one on the way back: {collectives}"
        assert part.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
        found[case] = [out.detach().tolist(), part.grad.tolist(), norm.weight.grad.tolist(), norm.bias.grad.tolist()]
        local = ElasticBatchNorm2d(CHANNELS)(x[mine])
        assert (local - out).abs().max() > 0.01 or case != "plain", (
            "the ranks' statistics do not differ: the test shows nothing"
        )
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_synchronised_batch_norm_is_that_of_the_joint_batch(tmp_path: Path) -> None:
    """Values and gradients of two ranks equal one process's on both batches together, computed by torch in double
    precision."""
    torch.multiprocessing.spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for case, tolerance in (("plain", 1e-5), (SHIFTED, 2e-3)):
        x, weights, scale = (t.double() for t in _batch(case))
        x.requires_grad_()
        norm = nn.BatchNorm2d(3).double()
        with torch.no_grad():
            norm.weight.copy_(scale[:3])
        out = norm(x)
        (out * weights).sum().backward()
        found = [[torch.tensor(value, dtype=torch.float64) for value in rank[case]] for rank in ranks]
        torch.testing.assert_close(torch.cat([rank[0] for rank in found]), out.detach(), atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(torch.cat([rank[1] for rank in found]), x.grad, atol=tolerance, rtol=tolerance)
        for index, gradient in ((2, norm.weight.grad), (3, norm.bias.grad)):
            total = found[0][index] + found[1][index]
            assert gradient is not None
            torch.testing.assert_close(total[:3], gradient, atol=10 * tolerance, rtol=10 * tolerance)
            assert not total[3:].any()


@pytest.mark.parametrize("again", [False, True])
def test_attention_finds_heads_and_brings_them_back(again: bool) -> None:
    """Groups of other numbers of examples and of heads; a table that is kept is as good as a fresh one."""
    counts, heads, tokens, width = (2, 3, 2), (2, 1, 4), 3, 5
    if not again:
        _of_one.cache_clear()
    order, back = _heads_first(counts, tokens, heads, torch.device("cpu"))
    parts = [torch.rand(n, tokens, h, width) for n, h in zip(counts, heads, strict=True)]
    flat = torch.cat([part.reshape(-1, width) for part in parts])
    wanted = torch.cat([part.transpose(1, 2).reshape(-1, width) for part in parts])
    assert torch.equal(flat[order], wanted) and torch.equal(wanted[back], flat)
