"""Every built-in space and size against the contract of a supernet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nas.build import find_space, load_supernet
from nas.config import plugins
from nas.supernet import Supernet
from nas.testing.space import CHECKS, Check, check_extracted, check_norms, images, ready

SIZES = [(space, size) for space in plugins.built_in_spaces() for size in find_space(space).SIZES]


@pytest.fixture(scope="module", params=SIZES, ids=lambda named: "-".join(named))
def net(request: pytest.FixtureRequest) -> Iterator[Supernet]:
    """A supernet with pixel statistics of its own and no parameter at its initial value."""
    space, size = request.param
    with torch.device("meta"):
        channels = load_supernet(space, size).input_shape[0]
    pixels = {"mean": [0.2, 0.4, 0.6][:channels], "std": [0.5, 0.3, 0.4][:channels]}
    if space == "quantnas":
        del pixels["std"]
    torch.manual_seed(0)
    yield ready(load_supernet(space, size, **pixels))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_contract(net: Supernet, check: Check) -> None:
    check(net, images(net))


def test_all_families_are_held_to_it() -> None:
    """The list above is found, not written: it must not come out empty."""
    assert {("quantnas", size) for size in ("basic", "rfdn", "basic-c12", "rfdn-c12", "basic-wide")} <= set(SIZES)
    assert {("bignas", size) for size in ("d8", "m28", "c32-lite", "attentivenas", "bignas", "ofa")} <= set(SIZES)


def test_a_space_of_bits_alone_is_right() -> None:
    """Its networks are alike with quantizers off."""
    torch.manual_seed(0)
    settled = dict.fromkeys(("head*.op", "body*.op", "skip.op", "upsample.op", "tail*.op"), 1)
    net = ready(load_supernet("quantnas", "basic-c12", settled=settled))
    assert all(name.endswith("bits") or len(choice.values) == 1 for name, choice in net.space.choices.items())
    check_extracted(net, images(net))


def test_norms_that_are_not_alike_are_told() -> None:
    net = ready(load_supernet("bignas", "d8"))
    net.norms_alike = True
    with pytest.raises(AssertionError, match="norms_alike is true"):
        check_norms(net, images(net))
