"""How an experiment becomes its objects: task, recipe, supernet, costs, search; a command makes each once and hands it
down.

And what a differentiable search found, as the first candidate of a search over children.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nas.config import plugins
from nas.config.experiment import Experiment
from nas.config.section import RecipeOptions
from nas.recipes.differentiable import architecture
from nas.recipes.recipe import Recipe
from nas.results.choose import constraints_of
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import RunDir
from nas.search.constraints import check_attainable
from nas.search.core import Better, Objective, Search, resume
from nas.search.journal import Candidate, Journal
from nas.search.rungs import Rung
from nas.space import Arch, Measure
from nas.supernet import Cost, CostModel, Supernet
from nas.tasks.index import Index
from nas.tasks.task import Task


def load_task(experiment: Experiment, index: Index | None = None) -> Task:
    """The task that the experiment's data set poses, its examples at hand.

    Args:
        index: what the run knows of its data.

    Raises:
        FileNotFoundError: the data set is not on this machine; the message says how to get it.
        ValueError: it is there, but cannot be used.
    """
    name = experiment.data.name
    with plugins.telling(name, "reading the data"), (index or Index()).used():
        return plugins.find("task", name)(experiment.data, experiment.seed)


def load_recipe(task: Task, options: RecipeOptions) -> Recipe:
    """The recipe that an experiment's section names."""
    with plugins.telling(options.name, "making the recipe"):
        return plugins.find("recipe", options.name)(task, options)


def check_trainable(recipe: Recipe, net: Supernet) -> None:
    """Refuse a network that a recipe cannot train.

    Raises:
        ValueError: the recipe refuses it; or it quantizes, and the recipe has no word on that.
    """
    check_quantizers(recipe, net)
    recipe.optimizer(net)


def check_quantizers(recipe: Recipe, net: Supernet) -> None:
    """Refuse a network that quantizes to a recipe that has no word on that.

    Raises:
        ValueError: it is so.
    """
    if net.quantizes and type(recipe).quant is Recipe.quant:
        raise ValueError(
            f"recipe {recipe.options.name}: it trains without quantizers, and children of this space are scored with "
            "theirs; use single_path, which trains under noise in their place (recipe.quant), or differentiable. A "
            "recipe of your own says by its property `quant` how it runs them"
        )


def make_supernet(experiment: Experiment, task: Task) -> Supernet:
    """The experiment's network with its first weights: a function of the seed, or those of the checkpoint that a child
    inherits.

    Raises:
        ValueError: the space has no such child, or its options say of the data what is not so.
        Damaged: the checkpoint that it shall inherit from is not whole.
    """
    space = experiment.space
    for key in space.options.keys() & task.network.keys():
        if space.options[key] != task.network[key]:
            raise ValueError(
                f"space.options.{key} is {space.options[key]!r}, and {experiment.data.name} has {task.network[key]!r}: "
                "leave it out, it is taken from the data"
            )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(experiment.seed)
        net = load_supernet(space.name, space.size, **{**task.network, **space.options})
        if space.child is None:
            return net
        if space.inherit:
            net.load_state_dict(Checkpoint.open(Path(space.inherit)).child_weights())
        return net.fix(net.space.arch(space.child), fresh=not space.inherit)


def find_space(name: str) -> Any:
    """The module of a built-in space (``"bignas"``), or a user's own factory (``"my_module:my_space"``).

    Raises:
        ValueError: there is no such space.
    """
    plugins.check_space(name)
    return plugins.load(name) if ":" in name else importlib.import_module(f"{plugins.SPACES}.{name}")


def space_of(name: str, size: str) -> Any:
    """What `find_space` finds, which may have that size: a user's own factory says itself what it makes.

    Raises:
        ValueError: there is no such space, no such size, or it is no factory.
    """
    found = find_space(name)
    if hasattr(found, "SIZES"):
        if size not in found.SIZES:
            near = difflib.get_close_matches(size, found.SIZES, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"space {name!r} has no size {size!r}; {hint}it has: {', '.join(found.SIZES)}")
    elif not callable(found):
        kind = type(found).__name__
        raise ValueError(f"{name!r} is of type {kind}; allowed: a function of size and options that makes a Supernet")
    return found


def load_supernet(space: str, size: str = "", **options: Any) -> Supernet:
    """A supernet with fresh weights, for example ``load_supernet("bignas", "attentivenas")``.

    Args:
        space: a built-in space or ``my_module:my_space``, a callable that takes the size and the options.
        size: one of the space's sizes; a built-in space lists them in ``SIZES``.
        options: what the family takes, such as ``classes``, ``channels``, ``mean``, ``std``.

    Raises:
        ValueError: no such space or size, or one that does not take these options.
    """
    found = space_of(space, size)
    if not hasattr(found, "SIZES"):
        return _of_ones_own(space, found, size, options)
    try:
        return found.supernet(size, **options)
    except TypeError as error:  # an option that the family does not take, told by Python with the name of its class
        if "unexpected keyword" not in str(error):
            raise
        what = str(error).rpartition("got an ")[2]
        raise ValueError(f"space {space!r} does not go with these data or space.options: {what}") from error


def _of_ones_own(space: str, factory: Any, size: str, options: Mapping[str, Any]) -> Supernet:
    """What a user's own factory makes.

    Raises:
        ValueError: it does not make this, or makes something else.
    """
    given = f" and the options {', '.join(options)}" if options else ""
    with plugins.telling(space, f"making the space with the size {size!r}{given}"):
        first = next(iter(inspect.signature(factory).parameters.values()), None)
        own = (
            not size and first is not None and first.default is not inspect.Parameter.empty
        )  # it has a size of its own
        net = factory(**options) if own else factory(size, **options)
    if not isinstance(net, Supernet):
        raise ValueError(f"{space!r} made a {type(net).__name__}; allowed: a Supernet, as nas/supernet.py describes it")
    return net


def found_by(trained: Checkpoint, net: Supernet) -> Arch:
    """The architecture of each slot's largest logit in a checkpoint of the recipe differentiable; `net` is the network
    of that run.

    Raises:
        ValueError: the logits have not learnt anything yet.
    """
    alpha = trained.recipe()["alpha"]
    if not alpha.any():
        raise ValueError(
            "training ended within recipe.alpha_warmup, before the logits learn: train on before you search"
        )
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
    other, newest = at.load(), Checkpoint.newest(at.checkpoints)
    if other.recipe.name != "differentiable":
        raise ValueError(
            f"search.propose_from names {run}, whose recipe is {other.recipe.name}; only differentiable finds an "
            "architecture by itself"
        )
    if newest is None or not newest.finished(newest.state.total, other.train.max_minutes):
        raise ValueError(f"search.propose_from names {run}, which is not trained to its end: nas train {at.experiment}")
    its_own = make_supernet(other, load_task(other))  # what the logits stand for depends on its data too
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
    own: list[Cost] = []
    for options in experiment.search.costs:
        with plugins.telling(options.name, "making the cost"):
            own.append(plugins.find("cost", options.name)(options))
    return CostModel(net, own)


def objective_of(experiment: Experiment, task: Task, net: Supernet) -> Objective:
    """What the search wants: a metric of the task, its own one where none is named, against a cost; or all that the
    experiment names.

    Raises:
        ValueError: the task does not give that metric, or no cost has that name.
    """
    settings, costs = experiment.search, costs_of(experiment, net).measures
    if both := costs.keys() & task.metrics.keys():
        raise ValueError(f"search.costs: {', '.join(both)} is a metric of the data too: give the cost another name")
    if settings.objectives:
        return _objectives(settings.objectives, task, costs)
    metric = settings.metric or task.metric
    if metric not in task.metrics:
        known = ", ".join(task.metrics)
        raise ValueError(
            f"search.metric {metric!r} is not a metric of data.name {experiment.data.name!r}; it has: {known}"
        )
    cost = settings.cost or ("bitops" if net.quantizes else "macs")
    if cost not in costs:
        raise ValueError(f"search.cost {cost!r} is not a cost of this network; it has: {', '.join(costs)}")
    return Objective(metric, cost, task.metrics[metric])


def _objectives(names: tuple[str, ...], task: Task, costs: Mapping[str, Measure]) -> Objective:
    """Two objectives or more: the first metric and the first cost are those that tables and pictures show."""
    if strange := [name for name in names if name not in task.metrics and name not in costs]:
        raise ValueError(
            f"search.objectives names {', '.join(strange)}; allowed: the metrics {', '.join(task.metrics)}, the costs "
            f"{', '.join(costs)}"
        )
    metrics, prices = ([name for name in names if name in known] for known in (task.metrics, costs))
    if not metrics or not prices:
        raise ValueError(
            f"search.objectives are {', '.join(names)}; one metric and one cost at least must be among them"
        )
    ways: dict[str, Better] = {**task.metrics, **dict.fromkeys(costs, "lower")}
    further = tuple((name, ways[name]) for name in names if name not in (metrics[0], prices[0]))
    return Objective(metrics[0], prices[0], task.metrics[metrics[0]], further)


def check_constraints(experiment: Experiment, net: Supernet, objective: Objective) -> None:
    """Refuse constraints that no child meets, by how much, and those on what is neither a cost nor an objective."""
    costs = costs_of(experiment, net)
    metrics = set(objective.names) - costs.measures.keys()
    check_attainable(net.space, costs, constraints_of(experiment), metrics)


def open_search(experiment: Experiment, net: Supernet, task: Task, trained: Checkpoint | None = None) -> Search:
    """The search that an experiment describes, over the children of `net`, with nothing asked yet.

    Args:
        trained: the supernet's checkpoint. What the recipe differentiable found there is the first candidate.

    Raises:
        ValueError: the space cannot meet the constraints; says by how much.
    """
    settings = experiment.search
    if settings.early_stop == "exact" and type(task).best is Task.best:
        raise ValueError(
            f"search.early_stop exact: nothing bounds what {experiment.data.name} may still come to; take likely"
        )
    algorithm: type[Search] = plugins.find("search", settings.algorithm)
    costs, objective = costs_of(experiment, net), objective_of(experiment, task, net)
    with plugins.telling(settings.algorithm, "making the search"):
        search = algorithm(
            net.space,
            costs,
            objective,
            constraints_of(experiment),
            settings.options,
            seed=experiment.seed,
            window=settings.window,
            rungs=[Rung(*rung) for rung in settings.rungs],
        )
    own = [found_by(trained, net)] if trained and experiment.recipe.name == "differentiable" else []
    search.begin_with([*own, *(proposed(Path(run), net) for run in settings.propose_from)])
    return search


def open_journal(
    experiment: Experiment, run: RunDir, supernet: str, search: Search, net: Supernet
) -> tuple[Journal, list[Candidate]]:
    """The journal with the search brought to where it stands, and the candidates that were in flight when its writer
    died.

    Constraints other than the last ones hold from the next candidate on.
    """
    space = f"{experiment.space.name} {experiment.space.size}".strip()
    own = costs_of(experiment, net).identity
    header = {"supernet": supernet, **search.identity, "space": space, **({"costs": own} if own else {})}
    if experiment.search.recipe:
        header["recipe"] = experiment.search.recipe.model_dump(mode="json")
    if experiment.search.early_stop != "never":
        header["early_stop"] = experiment.search.early_stop
    journal = Journal(run.begin_search(supernet), header)
    if not journal.constraints:
        journal.append_constraints(0, search.constraints(0))
    missing = resume(search, journal)
    wanted = constraints_of(experiment)
    if search.constraints(search.next_k) != wanted:
        journal.append_constraints(search.extend(wanted), wanted)
    return journal, missing
