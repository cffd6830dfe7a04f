"""The recipes of QuantNAS: random paths under noise, and the differentiable search with its logits beside the
engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor

from nas.build import load_recipe, load_supernet
from nas.recipes.differentiable import Differentiable, architecture, entropy, entropy_weight, mixture
from nas.recipes.differentiable import DifferentiableOptions as Settings
from nas.recipes.recipe import Step
from nas.recipes.single_path import SinglePathOptions as SinglePathSettings
from nas.recipes.single_path import opening_archs
from nas.space import Choice, Space
from nas.supernet import Pass, Supernet
from nas.testing.space import ready
from tests.recipes.toys import Enlarging


def network(size: str = "basic-c12") -> Supernet:
    torch.manual_seed(0)
    return ready(load_supernet("quantnas", size))


def batches(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    return {
        name: (torch.rand(2, 3, 16, 16, generator=random), torch.rand(2, 3, 32, 32, generator=random))
        for name in ("weights", "alpha", "train")
    }


def step_of(index: int = 0, total: int = 100, mean: Any = lambda value: value) -> Step:
    return Step(
        index, total, index / total, 0, np.random.default_rng(index), torch.Generator().manual_seed(index), mean, 0
    )


def recipe_of(**options: Any) -> Differentiable:
    settings = Settings(
        name="differentiable", epochs=1.0, batch=2, **{"alpha_warmup": 0.0, "alpha_lr": 0.05, **options}
    )
    recipe = load_recipe(Enlarging(), settings)
    assert isinstance(recipe, Differentiable)
    return recipe


def run(recipe: Differentiable, net: Supernet, steps: range, total: int = 100) -> list[float]:
    """Steps of the logits and of the weights, as the loop takes them."""
    optimizer, losses = recipe.optimizer(net), []
    for index in steps:
        optimizer.zero_grad()
        for loss in recipe.losses(net, net, batches(index), step_of(index, total)):
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
    return losses


# --- schedules


@pytest.mark.parametrize(
    ("warmup", "first", "published"),
    [
        (0, 5, [0.066, 0.125, 0.184, 0.244, 0.306, 0.369, 0.434, 0.501, 0.568, 0.637, 0.708, 0.779, 0.852, 0.925, 1.0]),
        (9, 11, [0.060, 0.143, 0.241, 0.350, 0.467, 0.592, 0.723, 0.859, 1.0]),
    ],
)
def test_the_entropys_weight_is_the_published_one(warmup: int, first: int, published: list[float]) -> None:
    """20 epochs, without and with 9 of warm-up: the tables of the two versions of the authors' code."""
    weights = [entropy_weight(epoch, 20, warmup) for epoch in range(20)]
    assert weights[:first] == [0.0] * first
    assert weights[first:] == pytest.approx(published, abs=0.0006)
    assert entropy_weight(19, 20, 19) == 0.0, "one epoch of learning is none of it to ramp"


def test_entropy_is_summed_over_slots_and_finite_where_probabilities_vanish() -> None:
    net = network()
    sizes = [8] * 4 + [6] + [8] + [10] * 2
    assert entropy(net, torch.zeros(sum(sizes))).item() == pytest.approx(sum(np.log(sizes)), rel=1e-6)
    alpha = torch.zeros(sum(sizes), requires_grad=True)
    with torch.no_grad():
        alpha[::2] = 300.0
    value = entropy(net, alpha)
    value.backward()
    assert value.isfinite() and alpha.grad is not None and alpha.grad.isfinite().all()


def test_bitops_are_over_those_of_the_uniform_mixture() -> None:
    net, recipe = network(), recipe_of(bitops=0.5, entropy=0.0)
    recipe.load({"alpha": torch.zeros(66)})
    assert recipe.penalty(net, 0.9).item() == pytest.approx(0.5)
    assert recipe.alpha is not None
    (gradient,) = torch.autograd.grad(recipe.penalty(net, 0.9), recipe.alpha)
    slot = gradient[:8].view(4, 2)
    assert (slot[:, 1] > slot[:, 0]).all() and slot[3, 1] == slot.max(), "dearer choices must be pushed down more"
    assert gradient.isfinite().all() and gradient.any()


# --- what a step does


def test_the_logits_learn_from_their_half_and_the_weights_from_theirs() -> None:
    """Against both gradients written out; neither pass leaves anything in the other's."""
    net, recipe, feeds = network(), recipe_of(entropy=0.0, quant="off", alpha_lr=0.1), batches()
    total = sum(np.prod([len(net.space.choices[c].values) for c in choices]) for choices in net.slots.values())
    alpha = torch.zeros(int(total), requires_grad=True)
    (gradient,) = torch.autograd.grad(F.l1_loss(net(feeds["alpha"][0], mixture(net, alpha)), feeds["alpha"][1]), alpha)
    (loss,) = recipe.losses(net, net, feeds, step_of())
    assert all(p.grad is None for p in net.parameters()), "the logits' pass left a gradient on the weights"
    assert recipe.alpha is not None
    moved = gradient.abs() > 1e-6  # Adam's first step is the rate times the sign
    assert moved.any() and torch.allclose(recipe.alpha[moved], -0.1 * gradient[moved].sign(), atol=2e-3)
    wanted = F.l1_loss(net(feeds["weights"][0], mixture(net, recipe.alpha.detach())), feeds["weights"][1])
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    before = recipe.alpha.detach().clone()
    loss.backward()
    assert recipe.alpha.grad is None and torch.equal(recipe.alpha, before)
    assert not any(p is recipe.alpha for group in recipe.optimizer(net).param_groups for p in group["params"])


def test_the_gradient_of_the_logits_is_the_mean_over_the_ranks() -> None:
    """What the other ranks found counts: here the opposite."""
    net = network()
    alone, turned = recipe_of(entropy=0.0), recipe_of(entropy=0.0)
    list(alone.losses(net, net, batches(), step_of()))
    list(turned.losses(net, net, batches(), step_of(mean=lambda value: -value)))
    assert alone.alpha is not None and turned.alpha is not None
    assert alone.alpha.any() and torch.allclose(alone.alpha, -turned.alpha)


def test_the_logits_wait_for_the_end_of_their_warm_up() -> None:
    net, recipe = network(), recipe_of(alpha_warmup=0.45)
    run(recipe, net, range(8, 9), total=20)
    assert recipe.alpha is not None and not recipe.alpha.any()
    run(recipe, net, range(9, 10), total=20)
    assert recipe.alpha.any()


def test_entropy_decides_and_bitops_choose_the_cheapest() -> None:
    net = network()
    torch.manual_seed(1)
    start = {"alpha": 0.1 * torch.randn(66)}
    found = {}
    for name, options in {"entropy": {"entropy": 1.0}, "bitops": {"entropy": 0.0, "bitops": 50.0}}.items():
        recipe = recipe_of(alpha_lr=0.1, **options)
        recipe.load(start)
        before = entropy(net, start["alpha"]).item()
        run(recipe, net, range(60, 100))
        assert recipe.alpha is not None
        assert entropy(net, recipe.alpha).item() < 0.5 * before
        found[name] = architecture(net, recipe.alpha)
    assert net.cost(found["bitops"])["bitops"] < 1.3 * net.cost(net.space.smallest())["bitops"]
    assert net.cost(found["entropy"])["bitops"] > 2 * net.cost(net.space.smallest())["bitops"]


def test_a_resumed_search_is_an_undisturbed_one() -> None:
    """Logits and their Adam go through a checkpoint's tensors and JSON and come out the same to the last bit."""
    whole, halves = recipe_of(), recipe_of()
    nets = network(), network()
    for recipe, net in zip((whole, halves), nets, strict=True):
        run(recipe, net, range(50, 54))
    kept = halves.state()
    tensors = load(save({name: value.contiguous() for name, value in kept.items() if isinstance(value, Tensor)}))
    resumed = recipe_of()
    resumed.load({**{name: value for name, value in kept.items() if not isinstance(value, Tensor)}, **tensors})
    for recipe, net in zip((whole, resumed), nets, strict=True):
        run(recipe, net, range(54, 57))
    assert whole.alpha is not None and resumed.alpha is not None
    assert torch.equal(whole.alpha, resumed.alpha)
    for name, value in whole.state().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(resumed.state()[name])), name
    assert recipe_of().state() == {}, "before the first step there is nothing to keep"


# --- what is found


def test_the_architecture_is_each_slots_largest_logit_even_below_zero() -> None:
    """The authors' parser fell back to the first choice where all logits were negative; ties go to the first."""
    net = network()
    alpha = torch.full((66,), -5.0)
    alpha[5] = -1.0  # head1: the third operation at 8 bits
    arch = architecture(net, alpha)
    assert arch["head1.op"] == net.space.choices["head1.op"].values[2] and arch["head1.bits"] == 8
    assert {name: value for name, value in arch.items() if "head1" not in name} == {
        n: v for n, v in net.space.smallest().items() if "head1" not in n
    }


def test_a_family_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="slots"):
        recipe_of().optimizer(load_supernet("bignas", "d8"))


# --- random paths


@pytest.mark.parametrize("paths", [1, 3])
def test_random_paths_are_trained_under_noise(paths: int) -> None:
    """The same paths and noise for the same step, whatever the rank has drawn before; the gradient of those paths
    alone."""
    net, feeds = network(), batches()
    recipe = load_recipe(Enlarging(), SinglePathSettings(name="single_path", epochs=1.0, batch=2, paths=paths))
    losses = list(recipe.losses(net, net, feeds, step_of(3)))
    archs = opening_archs(net.space, paths, 0.0, np.random.default_rng(3), 0.0)
    x, target = feeds["train"]
    noise = torch.Generator().manual_seed(3)
    wanted = [F.l1_loss(net(x, arch, Pass(quant="noise", generator=noise)), target).item() / paths for arch in archs]
    plain = [F.l1_loss(net(x, arch), target).item() / paths for arch in archs]
    assert [loss.item() for loss in losses] == pytest.approx(wanted, rel=1e-6) and len(recipe.names) == len(
        losses
    ) == len(set(archs)) == paths
    assert all(loss.item() != pytest.approx(other, rel=1e-6) for loss, other in zip(losses, plain, strict=True))
    sum(losses[1:], losses[0]).backward()
    lent = net.windows(net.space.largest())
    held = {name for arch in archs for name, _ in net.extract(arch).named_parameters()}
    owned = {name.rsplit(".", 3)[0] + ".whole" if name in lent else name for name in held}
    trained = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {name for name in owned if "_step" not in name}


def test_paths_open_from_the_largest_network_to_all() -> None:
    """The largest alone until half of `opening`; a quarter of it later every second choice is free; then all of
    them, as if drawn by the space."""
    space, rng = network().space, np.random.default_rng(0)
    largest = space.largest()
    assert all(opening_archs(space, 3, progress, rng, 0.4) == [largest] * 3 for progress in (0.0, 0.1, 0.2))
    for progress, opening, share in ((0.3, 0.4, 0.5), (0.4, 0.4, 1.0), (0.9, 0.4, 1.0), (0.0, 0.0, 1.0)):
        drawn = [arch for _ in range(500) for arch in opening_archs(space, 4, progress, rng, opening)]
        for name, choice in space.choices.items():
            others = 1 - 1 / len(choice.values)
            assert np.mean([arch[name] != largest[name] for arch in drawn]) == pytest.approx(share * others, abs=0.1), (
                progress,
                name,
            )


def test_paths_of_a_step_have_every_value_as_often() -> None:
    """Two paths have both bit-widths everywhere, four every one of four operations, in independent orders."""
    space = network().space
    for _ in range(5):
        archs = opening_archs(space, 4, 1.0, np.random.default_rng(0), 0.5)
        for name, choice in space.choices.items():
            counts = [sum(arch[name] == value for arch in archs) for value in choice.values]
            assert max(counts) - min(counts) <= 1 and sum(counts) == 4, name
    assert len({tuple(arch[name] for arch in archs) for name in space.choices if name.endswith("bits")}) > 1


def test_a_choice_that_the_largest_network_has_not_is_drawn_where_it_counts() -> None:
    space = Space([Choice("depth", (1, 2)), Choice("only.shallow", (3, 5), active_if=("depth", (1,)))])
    rng = np.random.default_rng(0)
    assert opening_archs(space, 2, 0.1, rng, 0.5) == [space.largest()] * 2
    drawn = [arch for _ in range(50) for arch in opening_archs(space, 2, 1.0, rng, 0.5)]
    assert {arch.get("only.shallow") for arch in drawn if arch["depth"] == 1} == {3, 5}
