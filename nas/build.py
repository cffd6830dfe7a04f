"""What a differentiable search found, as the first candidate of a search over children."""

from __future__ import annotations

from pathlib import Path

from nas.config.experiment import load_experiment
from nas.recipes.differentiable import architecture
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import RunDir
from nas.space import Arch
from nas.supernet import Supernet
from nas.tasks import load_task
from nas.training.loop import build
from nas.workers.train import finished


def found_by(trained: Checkpoint, net: Supernet) -> Arch:
    """The architecture of each slot's largest logit in a checkpoint of the recipe differentiable; `net` is the network of that run.

    Raises:
        ValueError: the logits have not learnt anything yet.
    """
    alpha = trained.recipe()["alpha"]
    if not alpha.any():
        raise ValueError("training ended within recipe.alpha_warmup, before the logits learn: train on before you search")
    return architecture(net, alpha)


def proposed(run: Path, net: Supernet) -> Arch:
    """The architecture of each slot's largest logit at the end of another run.

    Args:
        run: its directory.
        net: the network of this search, whose space must have that architecture.

    Raises:
        ValueError: it is no finished run of the recipe differentiable, or its architecture is not in this space.
    """
    at = RunDir(run)
    if not at.is_run():
        raise ValueError(f"search.propose_from names {run}, which is no run directory")
    other, newest = load_experiment(at.experiment), Checkpoint.newest(at.checkpoints)
    if other.recipe.name != "differentiable":
        raise ValueError(f"search.propose_from names {run}, whose recipe is {other.recipe.name}; only differentiable finds an architecture by itself")
    if newest is None or not finished(newest, other, newest.state.total):
        raise ValueError(f"search.propose_from names {run}, which is not trained to its end: nas train {at.experiment}")
    its_own = build(other, load_task(other))  # what the logits stand for depends on its data too
    found = found_by(newest, its_own)
    try:
        return net.space.arch(found)
    except ValueError as error:
        raise ValueError(f"search.propose_from: what {run} found is not in this space: {error}") from None
