"""Quantizers against LSQ's formulas and the noise against rounding, on plain tensors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nas.quantization.learned import QuantConv2d, fake_quantize_lsq, fit, fit_log_step, noisy, noisy_as_published


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def conv(bits: tuple[int, ...] = (4, 8), **rest: object) -> QuantConv2d:
    torch.manual_seed(0)
    return QuantConv2d(4, 6, (3, 3), bits, **rest)  # type: ignore[arg-type]


def spread(x: Tensor) -> Tensor:
    return x.amax() - x.amin()


@pytest.mark.parametrize(
    ("bits", "signed", "low", "high"),
    [(2, True, -2, 1), (4, True, -8, 7), (8, True, -128, 127), (4, False, 0, 15), (8, False, 0, 255)],
)
def test_values_lie_on_the_grid_and_reach_both_of_its_ends(bits: int, signed: bool, low: int, high: int) -> None:
    x = torch.linspace(-300, 300, 100_001)
    integers = fake_quantize_lsq(x, torch.tensor([0.5]).log(), bits, signed, 1) / 0.5
    assert torch.allclose(integers, integers.round(), atol=1e-4)
    assert (round(integers.min().item()), round(integers.max().item())) == (low, high)
    assert len(integers.round().unique()) == 2**bits
    assert (integers * 0.5 - x)[(x > 0.5 * low) & (x < 0.5 * high)].abs().max() <= 0.25 + 1e-4, (
        "not the nearest point of the grid"
    )


def test_gradients_are_those_of_lsq() -> None:
    """To x: 1 within the grid, 0 beyond. To the step s: round(x / s) - x / s within, the grid's end beyond.

    The latter times g, and times s for its logarithm.
    """
    step, x = 0.3, torch.tensor([-9.0, -1.03, 0.1, 0.7, 5.0], requires_grad=True)
    log_step = torch.tensor([math.log(step)], requires_grad=True)
    fake_quantize_lsq(x, log_step, 4, True, elements=50).sum().backward()
    assert x.grad is not None and log_step.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    inside = [round(v / step) - v / step for v in (-1.03, 0.1, 0.7)]
    assert log_step.grad.item() == pytest.approx((-8 + sum(inside) + 7) * step / math.sqrt(7 * 50), rel=1e-4)


@pytest.mark.parametrize(("bits", "fitted", "lsq"), [(4, 0.115, 0.165), (8, 0.008, 0.035)])
def test_fitted_steps_err_as_published_and_less_than_the_start_of_lsq(bits: int, fitted: float, lsq: float) -> None:
    """Gaussian weights, per channel: 11 and 0.7 % against 17-20 and 4 % (relative root mean square)."""
    weights = torch.randn(32, 576, generator=generator())

    def error(log_step: Tensor) -> float:
        found = fake_quantize_lsq(weights, log_step.unsqueeze(1), bits, True, 1)
        return ((found - weights).square().mean() / weights.square().mean()).sqrt().item()

    start = (2 * weights.abs().mean(1) / math.sqrt(2 ** (bits - 1) - 1)).log()
    best = error(fit_log_step(weights, bits, True))
    assert best < fitted and error(start) > lsq


def test_a_step_is_fitted_for_each_channel() -> None:
    rows = torch.randn(1, 500, generator=generator()) * torch.tensor([[1.0], [10.0], [0.01], [0.0]])
    steps = fit_log_step(rows, 4, True)
    assert torch.allclose(steps[1] - steps[0], torch.tensor(10.0).log(), atol=1e-4) and torch.allclose(
        steps[2] - steps[0], torch.tensor(0.01).log(), atol=1e-4
    )
    assert steps.isfinite().all()


@pytest.mark.parametrize(
    ("power", "bits", "signed"), [(1, 4, True), (1, 2, True), (3, 4, True), (1, 4, False), (3, 8, False), (3, 2, False)]
)
def test_the_fitted_step_errs_no_more_than_the_best_of_a_fine_search(power: int, bits: int, signed: bool) -> None:
    """Also where the largest values are far from the rest (Gaussian to the third power)."""
    x = torch.randn(1, 4000, generator=generator()) ** power
    x = x if signed else x.relu()

    def error(log_step: Tensor) -> float:
        return (fake_quantize_lsq(x, log_step, bits, signed, 1) - x).square().mean().item()

    fine = min(
        error(torch.tensor([v]).log())
        for v in torch.linspace(0.002, 1.5, 3000) * x.abs().max() / (2 ** (bits - signed) - 1)
    )
    assert error(fit_log_step(x, bits, signed)) <= 1.02 * fine


@pytest.mark.parametrize("bits", [4, 8])
def test_noise_is_as_strong_as_rounding_and_the_authors_1_73_times(bits: int) -> None:
    weights = torch.rand(200_000, generator=generator(), dtype=torch.float64) * 2 - 1
    step = spread(weights) / (2**bits - 1)
    rounding = ((weights / step).round() * step - weights).std()
    uniform = noisy(weights, spread(weights), [(bits, 1.0)], generator(1)) - weights
    assert (uniform.std() / rounding).item() == pytest.approx(1.0, abs=0.02)
    assert uniform.abs().max() <= step / 2 * (1 + 1e-9)
    phi, q = 1 / 3, 1 / (1 + 1 / 3)
    published = (noisy_as_published(weights, [(bits, 1.0)], 2, generator(1)) - (phi + q) * weights) / q
    assert (published.std() / rounding).item() == pytest.approx(1.73, abs=0.03)


def test_noise_of_a_mixture_has_the_mean_strength_and_its_gradient_is_exact() -> None:
    """Against a difference quotient with the same draw; the gradient to the tensor is one."""
    x = torch.randn(50, generator=generator(), dtype=torch.float64, requires_grad=True)
    p = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)
    direction = torch.randn(50, generator=generator(2), dtype=torch.float64)

    def out(shares: Tensor) -> Tensor:
        return (noisy(x, spread(x.detach()), [(4, shares[0]), (8, shares[1])], generator(3)) * direction).sum()

    to_x, to_p = torch.autograd.grad(out(p), (x, p))
    assert torch.allclose(to_x, direction)
    for i in range(2):
        nudge = torch.zeros(2, dtype=torch.float64)
        nudge[i] = 1e-6
        quotient = (out(p.detach() + nudge) - out(p.detach() - nudge)) / 2e-6
        assert to_p[i].item() == pytest.approx(quotient.item(), rel=1e-6)
    assert to_p.abs().min() > 0


def test_no_bits_below_32_is_no_noise_and_no_draw() -> None:
    x, random = torch.randn(9), generator(4)
    assert noisy(x, spread(x), [(32, 1.0)], random) is x
    assert torch.equal(random.get_state(), generator(4).get_state())


@pytest.mark.parametrize(("mass", "total"), [(0.25, 0.76), (1.0, 1.08)])
def test_the_published_mix_is_the_authors_to_the_letter(mass: float, total: float) -> None:
    """Its coefficients sum to phi + S / (S + phi), and only the clean third carries a gradient to the tensor."""
    x, p = torch.ones(100_000, requires_grad=True), torch.tensor([mass / 2, mass / 2], requires_grad=True)
    wide = x + torch.cat((torch.zeros(99_999), torch.ones(1)))
    out = noisy_as_published(wide, [(4, p[0]), (8, p[1])], 2, generator())
    assert out[:-1].mean().item() == pytest.approx(total, abs=0.005)
    to_x, to_p = torch.autograd.grad(out.sum(), (x, p))
    assert torch.allclose(to_x, torch.tensor(1 / 3))
    assert to_p.abs().min() > 0


def test_noise_leaves_zeros_after_relu_alone_and_each_example_has_its_range() -> None:
    layer, x = conv((4,)), torch.randn(2, 4, 12, 12, generator=generator())
    x[1] *= 100
    found = layer.input_noise(x.relu(), [(4, 1.0)], generator(1))
    assert found is not None
    assert (found[x <= 0] == 0).all() and (found[x > 0] != 0).all()
    for image, noise in zip(x.relu(), found, strict=True):
        assert 0.95 * image.max() / 2 < noise.abs().max() <= image.max() / 2
    signed = conv((4,), relu=False).input_noise(x, [(4, 1.0)], generator(1))
    assert (
        signed is not None
        and 0.95 * (x[1].max() - x[1].min()) / 2 < signed[1].abs().max() <= (x[1].max() - x[1].min()) / 2
    )


def test_a_convolution_without_rounding_is_a_convolution() -> None:
    layer, x = conv((32,)), torch.randn(2, 4, 8, 8, generator=generator())
    wanted = torch.nn.functional.conv2d(x.relu(), layer.weight, padding=1)
    for quant in ("off", "noise", "real"):
        assert torch.equal(layer(x, quant=quant), wanted)
    plain, noise = (
        torch.autograd.grad(layer(x, quant=quant).square().sum(), layer.weight)[0] for quant in ("off", "noise")
    )
    assert torch.equal(plain, noise)


def test_real_quantizers_mix_tensors_before_the_convolution() -> None:
    """One convolution of the mean weights and the mean input (EdMIPS), not the mean of convolutions."""
    layer, x = conv(), torch.randn(2, 4, 8, 8, generator=generator())
    parts = {
        b: (layer._quantized_weight(layer.weight, [(b, 1.0)]), layer._quantized_input(x.relu(), [(b, 1.0)]))
        for b in (4, 8)
    }
    weight, inputs = (0.2 * parts[4][i] + 0.8 * parts[8][i] for i in (0, 1))
    wanted = torch.nn.functional.conv2d(inputs, weight, padding=1)
    assert torch.allclose(layer(x, [(4, 0.1), (8, 0.4)], "real"), wanted, atol=1e-6)


@pytest.mark.parametrize("relu", [True, False])
def test_the_grid_of_an_input_follows_what_stands_before(relu: bool) -> None:
    """After ReLU all levels are positive; a signed input keeps its sign."""
    layer, x = conv((4,), relu=relu), torch.randn(8, 4, 32, 32, generator=generator())
    inputs = layer._quantized_input(x.relu() if relu else x, [(4, 1.0)])
    assert len(inputs.unique()) == 16
    assert (inputs.min().item() < 0) is not relu


def test_fit_goes_through_a_network_in_order_once() -> None:
    """Each layer is fitted to what the fitted layers before it give; a second call leaves trained steps alone."""
    first, second = conv((4,)), QuantConv2d(6, 4, (3, 3), (4,))
    net, x = torch.nn.Sequential(first, second), 50 * torch.randn(2, 4, 16, 16, generator=generator())
    before = [step.clone() for step in net.parameters()]
    fit(net, [(x, None)])
    assert all(
        not torch.equal(a, b)
        for a, b in zip(before[1:3] + before[4:], list(net.parameters())[1:3] + list(net.parameters())[4:], strict=True)
    )
    expected = fit_log_step(first(x).relu().flatten().unsqueeze(0)[:, :16384], 4, False)
    assert torch.allclose(second.input_step["4"], expected, atol=0.15)
    with torch.no_grad():
        first.input_step["4"].fill_(0.123)
    fit(net, [(x * 0.001, None)])
    assert first.input_step["4"].item() == pytest.approx(0.123)


def test_fitted_steps_err_less_than_fresh_ones() -> None:
    layer, x = conv((4,)), 3 * torch.randn(4, 4, 32, 32, generator=generator())
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator(1)))
        wanted = layer(x, quant="off")
        fresh = (layer(x) - wanted).square().mean()
        fit(layer, [(x, None)])
        assert (layer(x) - wanted).square().mean() < 0.2 * fresh
