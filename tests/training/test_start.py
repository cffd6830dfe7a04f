"""What a supernet begins with: what is taken of another network, what is not, and what is refused."""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor

from nas.build import load_supernet
from nas.config.experiment import ExperimentError, dump, load_experiment
from nas.rundir.atomic import Damaged
from nas.rundir.directory import RunDir
from nas.training.start import start_from
from tests.training.tiny import Tiny, events, experiment, loop_in, train

EXAMPLES = Path(__file__).parents[2] / "examples"


def saved(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    return path


def whole(net: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.named_parameters()}


# --- somebody else's network as the largest


@pytest.fixture
def resnet18(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The space of `examples/pretrained_space.py`."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import pretrained_space

    return pretrained_space.resnet18


def test_torchvisions_network_is_the_largest_and_the_most_important_channels_come_first(
    resnet18: Any, tmp_path: Path
) -> None:
    """Its weights are random, all of them: scales and shifts too, so that none may be forgotten."""
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18(num_classes=7)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.05 if parameter.dim() > 1 else 1.0)
    save_model(theirs, str(tmp_path / "theirs.safetensors"))
    ours = resnet18("resnet18", classes=7)
    told = start_from(ours, tmp_path / "theirs.safetensors")
    assert "of 62 tensors 62 are taken whole; 60 not used of the file" in told  # statistics of 20 batch norms
    x = torch.rand(4, 3, 64, 64)
    expected, found = theirs.train()(x), ours(x, ours.space.largest())
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    taken = ours.stages[1][0].conv2.weight.abs().sum((0, 2, 3))
    assert (taken.diff() <= 0).all() and taken[0] > taken[-1]


def test_a_classifier_of_other_classes_begins_fresh(resnet18: Any, tmp_path: Path) -> None:
    save_model(torchvision.models.resnet18(num_classes=7), str(tmp_path / "theirs.safetensors"))
    ours = resnet18("resnet18", classes=5)
    before = ours.classifier.weight.detach().clone()
    told = start_from(ours, tmp_path / "theirs.safetensors")
    assert "60 are taken whole; 2 fresh (classifier.weight, classifier.bias)" in told
    assert torch.equal(ours.classifier.weight, before)


def test_blocks_of_bignas_are_sorted_and_compute_the_same() -> None:
    torch.manual_seed(0)
    net = load_supernet("bignas", "m28")
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, largest = torch.rand(3, *net.input_shape), net.space.largest()
    before, small = net(x, largest), net(x, net.space.smallest())
    net.sort_channels()
    assert (net(x, largest) - before).abs().max() < 1e-3 * before.abs().max()
    assert (net(x, net.space.smallest()) - small).abs().max() > 1e-2  # which has other channels now
    widths = [block.project.conv.weight.abs().sum((0, 2, 3)) for stage in net.stages for block in stage if block.expand]
    assert widths and all((width.diff() <= 0).all() for width in widths)


def test_kernels_that_are_learnt_from_larger_ones_stay_so_when_channels_are_sorted() -> None:
    """Their matrices are shared by all channels: with a kernel of 3 everywhere the network computes the same."""
    torch.manual_seed(0)
    net = load_supernet("bignas", "ofa", image=32, classes=5)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    small = {name: 3 for name in net.space.largest() if name.endswith("kernel")}
    x, arch = torch.rand(2, 3, 32, 32), net.space.arch({**net.space.largest(), "resolution": 128, **small})
    matrices = {name: value.clone() for name, value in net.named_parameters() if ".transform" in name}
    with torch.no_grad():
        before = net(x, arch)
        net.sort_channels()
        assert (net(x, arch) - before).abs().max() < 1e-3 * before.abs().max()
    assert matrices and all(torch.equal(net.get_parameter(name), value) for name, value in matrices.items())
    gates = [
        block.se.expand.weight.abs().sum(0) for stage in net.stages for block in stage if block.expand and block.se
    ]
    assert gates and all((gate.diff() <= 1e-4 * gate[0]).all() for gate in gates)


# --- our own


def test_a_child_lies_in_the_first_channels_and_the_rest_stays(tmp_path: Path) -> None:
    small, large = Tiny((4, 8)), Tiny((16,))
    fresh = whole(large)
    start_from(large, saved(tmp_path / "small.safetensors", whole(small)))
    assert torch.equal(large.first.weight[:8], small.first.weight) and torch.equal(large.last.bias, small.last.bias)
    assert torch.equal(large.first.weight[8:], fresh["first.weight"][8:])
    assert torch.equal(large.last.weight[:, 8:], fresh["last.weight"][:, 8:])


def test_a_larger_network_gives_its_first_channels(tmp_path: Path) -> None:
    small, large = Tiny((4, 8)), Tiny((16,))
    told = start_from(small, saved(tmp_path / "large.safetensors", whole(large)))
    assert torch.equal(small.first.weight, large.first.weight[:8])
    assert "1 are taken whole; 3 in part" in told


def test_statistics_of_the_data_are_not_weights(tmp_path: Path) -> None:
    """A network that is given other data keeps its own mean and deviation of them."""
    torch.manual_seed(0)
    theirs, ours = (load_supernet("bignas", "d8", mean=(mean,), std=(0.5,)) for mean in (0.1, 0.4))
    start_from(ours, saved(tmp_path / "theirs.safetensors", theirs.state_dict()))
    assert ours.pixels.mean.item() == pytest.approx(0.4)
    assert torch.equal(ours.stem.conv.weight, theirs.stem.conv.weight)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_a_run_begins_with_another_runs_weights_and_says_so(tmp_path: Path) -> None:
    last = train(tmp_path / "first")
    RunDir(tmp_path / "first").experiment.write_text(dump(experiment()))  # by which a directory is a run
    taught = load_file(last / "weights.safetensors")
    for number, place in enumerate((last, tmp_path / "first")):
        run = tmp_path / f"second{number}"
        after = load_file(train(run, f"train.init_from={place}", "recipe.lr=1e-12") / "weights.safetensors")
        assert all(torch.allclose(after[name], taught[name], atol=1e-8) for name in taught)
        (said,) = events(run, "start")
        assert f"{place}: of 4 tensors 4 are taken whole" in said


@pytest.mark.usefixtures("one_rank")
def test_a_run_that_has_begun_goes_on_though_what_it_began_with_is_gone(tmp_path: Path) -> None:
    source = saved(tmp_path / "source.safetensors", whole(Tiny()))
    train(tmp_path / "run", f"train.init_from={source}", "recipe.epochs=1")
    source.unlink()
    loop_in(tmp_path / "run", f"train.init_from={source}").train()
    assert len(events(tmp_path / "run", "start")) == 1


@pytest.mark.usefixtures("one_rank")
def test_an_attempt_that_died_before_its_first_checkpoint_begins_with_the_same(tmp_path: Path) -> None:
    """Though what it began with has changed meanwhile."""
    source = saved(tmp_path / "source.safetensors", whole(Tiny()))
    settings = (f"train.init_from={source}", "recipe.lr=1e-12")
    first = load_file(train(tmp_path / "run", *settings) / "weights.safetensors")
    shutil.rmtree(RunDir(tmp_path / "run").checkpoints)
    saved(source, {name: value + 1 for name, value in whole(Tiny()).items()})
    again = load_file(train(tmp_path / "run", *settings) / "weights.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_its_path_counts_from_the_experiments_file(tmp_path: Path) -> None:
    text = dump(load_experiment("bignas-digits", ["train.init_from=weights.safetensors"]))
    file = tmp_path / "mine.yaml"
    relative = re.sub(r"init_from: .*", "init_from: weights.safetensors", text)
    file.write_text(relative)
    assert load_experiment(file).train.init_from == str(tmp_path / "weights.safetensors")


# --- refused


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "run",)

    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"may hold code.*weights_only=True.*weights\.safetensors"):
        start_from(Tiny(), tmp_path / "weights.pth")
    assert not (tmp_path / "run").exists()


def test_what_does_not_go_into_the_network_is_refused_with_both_names(tmp_path: Path) -> None:
    other = saved(tmp_path / "other.safetensors", {"layer1.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"it has first\.weight.*the file layer1\.weight"):
        start_from(Tiny(), other)


def test_places_where_nothing_whole_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing is at"):
        start_from(Tiny(), tmp_path / "nosuch")
    (tmp_path / "half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(Damaged, match="holds no tensors"):
        start_from(Tiny(), tmp_path / "half.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Damaged):
        start_from(Tiny(), tmp_path / "empty")


def test_two_beginnings_are_refused() -> None:
    child = "space={name: bignas, size: d8, child: {}, inherit: somewhere}"
    with pytest.raises(ExperimentError, match=r"space\.inherit and train\.init_from both"):
        load_experiment("bignas-digits", [child, "train.init_from=elsewhere"])
