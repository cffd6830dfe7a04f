"""An experiment as objects: its costs, its search, and what that begins with."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from nas.config import plugins
from nas.config.experiment import Experiment, load_experiment
from nas.recipes.differentiable import architecture
from nas.rundir import atomic
from nas.search.constraints import Constraints, check_attainable
from nas.search.core import Objective, Search, resume
from nas.search.journal import Candidate, Journal
from nas.space import COSTS, Arch
from nas.supernet import CostModel, Supernet
from nas.tasks import load_task
from nas.tasks.task import Task
from nas.training.loop import build, checkpoints
from nas.workers.train import finished, state_of


def found_by(trained: Path, net: Supernet) -> Arch:
    """The architecture of each slot's largest logit in a checkpoint of the recipe differentiable; `net` is the network of that run.

    Raises:
        ValueError: the logits have not learnt anything yet.
    """
    alpha = load_file(trained / "recipe.safetensors")["alpha"]
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
    if not (run / "experiment.yaml").is_file():
        raise ValueError(f"search.propose_from names {run}, which is no run directory")
    other, state = load_experiment(run / "experiment.yaml"), state_of(run)
    newest = atomic.newest_valid(checkpoints(run), lambda why: None)
    if other.recipe.name != "differentiable":
        raise ValueError(f"search.propose_from names {run}, whose recipe is {other.recipe.name}; only differentiable finds an architecture by itself")
    if newest is None or state is None or not finished(run, other, state.total):
        raise ValueError(f"search.propose_from names {run}, which is not trained to its end: nas train {run / 'experiment.yaml'}")
    its_own = build(other, load_task(other))  # what the logits stand for depends on its data too
    found = found_by(newest, its_own)
    try:
        return net.space.arch(found)
    except ValueError as error:
        raise ValueError(f"search.propose_from: what {run} found is not in this space: {error}") from None


def costs_of(experiment: Experiment, net: Supernet) -> CostModel:
    """What children of `net` cost: what every network counts, and the costs of the user's own that an experiment names.

    Raises:
        ValueError: one of these has a name that it cannot have.
    """
    return CostModel(net, [plugins.find("cost", options.name)(options) for options in experiment.search.costs])


def objective_of(experiment: Experiment, task: Task, net: Supernet) -> Objective:
    """What the search wants: a metric of the task, its own one where none is named, against a cost.

    Raises:
        ValueError: the task does not give that metric, or no cost has that name.
    """
    metric = experiment.search.metric or task.metric
    if metric not in task.metrics:
        known = ", ".join(task.metrics)
        raise ValueError(f"search.metric {metric!r} is not a metric of data.name {experiment.data.name!r}; it has: {known}")
    cost = experiment.search.cost or ("bitops" if net.quantizes else "macs")
    costs = costs_of(experiment, net).measures
    if cost not in costs:
        raise ValueError(f"search.cost {cost!r} is not a cost of this network; it has: {', '.join(costs)}")
    if both := costs.keys() & task.metrics.keys():
        raise ValueError(f"search.costs: {', '.join(both)} is a metric of the data too: give the cost another name")
    return Objective(metric, cost, task.metrics[metric])


def constraints_of(experiment: Experiment) -> Constraints:
    """What a child may cost; those costs first that every network has, in their order."""
    given = experiment.search.constraints
    names = [*(name for name in COSTS if name in given), *(name for name in given if name not in COSTS)]
    return Constraints({name: (given[name].min, given[name].max) for name in names})


def check_constraints(experiment: Experiment, net: Supernet) -> None:
    """Refuse constraints that no child meets, by how much, and those on a cost that is not there."""
    check_attainable(net.space, costs_of(experiment, net), constraints_of(experiment))


def open_search(experiment: Experiment, net: Supernet, task: Task, trained: Path | None = None) -> Search:
    """The search that an experiment describes, over the children of `net`, with nothing asked yet.

    Args:
        trained: the supernet's checkpoint. What the recipe differentiable found there is the first candidate.

    Raises:
        ValueError: the space cannot meet the constraints; says by how much.
    """
    settings = experiment.search
    algorithm: type[Search] = plugins.find("search", settings.algorithm)
    search = algorithm(
        net.space,
        costs_of(experiment, net),
        objective_of(experiment, task, net),
        constraints_of(experiment),
        settings.options,
        seed=experiment.seed,
        window=settings.window,
    )
    own = [found_by(trained, net)] if trained and experiment.recipe.name == "differentiable" else []
    search.begin_with([*own, *(proposed(Path(run), net) for run in settings.propose_from)])
    return search


def journal_path(run: Path, supernet: str) -> Path:
    """The journal of the search over one supernet, named by its weights."""
    return run / "search" / f"journal-{supernet[:8]}.jsonl"


def open_journal(
    experiment: Experiment, run: Path, supernet: str, search: Search, net: Supernet
) -> tuple[Journal, list[Candidate]]:
    """The journal with the search brought to where it stands, and the candidates that were in flight when its writer died.

    Constraints other than the last ones hold from the next candidate on.
    """
    path = journal_path(run, supernet)
    path.parent.mkdir(parents=True, exist_ok=True)
    space = f"{experiment.space.name} {experiment.space.size}".strip()
    own = costs_of(experiment, net).identity
    header = {"supernet": supernet, **search.identity, "space": space, **({"costs": own} if own else {})}
    journal = Journal(path, header)
    if not journal.constraints:
        journal.append_constraints(0, search.constraints(0))
    missing = resume(search, journal)
    wanted = constraints_of(experiment)
    if search.constraints(search.next_k) != wanted:
        journal.append_constraints(search.extend(wanted), wanted)
    return journal, missing
