"""``nas check``: what a plug-in is, the suite of its kind run on it, and what to look at where it fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.progress import plain
from nas.config import plugins
from nas.config.experiment import Experiment, load_experiment, presets

if TYPE_CHECKING:
    from nas.testing.suite import Outcome

console = plain()
PRESET = "bignas-digits"  # what a plug-in stands in where it can: the quickest, of no data that must be there
EXPLAINED = 4  # failures, so that they fit a screen
LONGEST = 400  # characters of what was found
NOTHING: list[str] = []


@dataclass(frozen=True)
class Plugin:
    """A plug-in, and the experiment that it is checked in.

    Attributes:
        name: a short name, or ``my_module:thing``.
        kind: ``"space"``, ``"recipe"``, ``"task"``, ``"search"`` or ``"cost"``.
        preset: the experiment that comes with raynas, and what makes it one of this plug-in.
        overrides: as ``--set`` takes them.
    """

    name: str
    kind: str
    preset: str
    overrides: tuple[str, ...]

    @property
    def experiment(self) -> Experiment:
        return load_experiment(self.preset, self.overrides)


def check(
    thing: Annotated[str, typer.Argument(metavar="THING", help="my_module:thing, or a short name such as sandwich.")],
    size: Annotated[str, typer.Option("--size", help="Of the space; its first or only one by default.")] = "",
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="As in nas run: its options, the space; repeatable.")
    ] = NOTHING,
) -> None:
    """Hold a space, recipe, task, search algorithm or cost to its contract: yours, or one that comes with raynas.

    Example: nas check my_module:MyRecipe --set recipe.lr=0.1
    """
    plugin = find(thing, size, set_)
    say(f"{thing} is a {plugin.kind}; checked as in {plugin.preset}")
    failed: list[Outcome] = []
    for outcome in run(plugin):
        say(f"  {'ok    ' if outcome.ok else 'FAILED'} {outcome.name:16} {outcome.seconds:6.2f} s")
        failed += [] if outcome.ok else [outcome]
    if failed:
        explain(failed)
        raise typer.Exit(1)
    words = " ".join(f"--set '{override}'" for override in plugin.overrides)
    say(f"next: nas run {plugin.preset} {words}".rstrip())


def say(text: str) -> None:
    console.print(text)


def explain(failed: list[Outcome]) -> None:
    """What was found, and where to look."""
    for outcome in failed[:EXPLAINED]:
        why = outcome.why or ""
        say(f"\n{outcome.name}: {outcome.contract}")
        say(f"  found: {why if len(why) <= LONGEST else why[:LONGEST] + ' ...'}")
        say(f"  {outcome.look}")
    more = len(failed) - EXPLAINED
    say(f"\n{len(failed)} failed" + (f"; {more} more are told when these are mended" if more > 0 else ""))


def find(name: str, size: str = "", overrides: list[str] = NOTHING) -> Plugin:
    """What a name stands for.

    Raises:
        ValueError: nothing, or something that is no plug-in.
    """
    kind = kind_of(name)
    having = (each for each in (PRESET, *presets()) if name in named(load_experiment(each), kind))
    preset = next(having, PRESET)
    given = {
        "space": f'space={{name: "{name}", size: "{size}"}}',
        "recipe": f'recipe={{name: "{name}", epochs: 8, batch: 64}}',
        "task": f'data={{name: "{name}", validation: 64}}',
        "search": f'search.algorithm="{name}"',
        "cost": f'search.costs=[{{name: "{name}"}}]',
    }[kind]
    stands = name in named(load_experiment(preset), kind) and not (kind == "space" and size)
    sized = [f"space.size={size}"] if size and kind != "space" else []
    return Plugin(name, kind, preset, (*([] if stands else [given]), *sized, *overrides))


def named(experiment: Experiment, kind: str) -> tuple[str, ...]:
    """The plug-ins of that kind in an experiment."""
    search = experiment.search
    return {
        "space": (experiment.space.name,),
        "recipe": (experiment.recipe.name,),
        "task": (experiment.data.name,),
        "search": (search.algorithm,),
        "cost": tuple(cost.name for cost in search.costs),
    }[kind]


def kind_of(name: str) -> str:
    """``"space"``, ``"recipe"``, ``"task"``, ``"search"`` or ``"cost"``."""

    known = {"space": plugins.built_in_spaces(), **{kind: plugins.built_in(kind) for kind in plugins.CONTRACTS}}
    if ":" not in name:
        for kind, names in known.items():
            if name in names:
                return kind
        told = "\n".join(f"  {kind}: {', '.join(names)}" for kind, names in known.items() if names)
        raise ValueError(f"nothing is called {name!r}; give my_module:thing, or one of\n{told}")
    thing = plugins.load(name)
    if (contract := plugins.kind_of(thing)) is not None:
        return contract
    if callable(thing):
        return "space"
    contracts = ", ".join(plugins.CONTRACTS.values())
    raise ValueError(
        f"{name} is a {type(thing).__name__}; allowed: a subclass of {contracts}, or what makes a Supernet"
    )


def run(plugin: Plugin) -> Iterator[Outcome]:
    """The checks of its kind on it, one by one."""
    from functools import partial

    from nas.build import load_recipe, load_supernet
    from nas.supernet import Supernet
    from nas.tasks.task import Task
    from nas.testing import cost, recipe, search, space, task
    from nas.testing.suite import outcomes

    experiment = plugin.experiment

    def network(**data: object) -> Supernet:
        wanted = experiment.space
        net = load_supernet(wanted.name, wanted.size or first_size(wanted.name), **{**data, **wanted.options})
        if not isinstance(net, Supernet):
            raise ValueError(f"{wanted.name} gives a {type(net).__name__}; allowed: a Supernet")
        return net

    match plugin.kind:
        case "space":
            net = space.ready(network())
            return outcomes(space.CHECKS, net, space.images(net))
        case "recipe":
            return outcomes(recipe.CHECKS, lambda task: load_recipe(task, experiment.recipe))
        case "task":
            poses: type[Task] = plugins.find("task", experiment.data.name)
            subject = task.Subject(partial(poses, experiment.data), lambda posed: network(**posed.network))
            return outcomes(task.CHECKS, subject)
        case "search":
            algorithm = plugins.find("search", experiment.search.algorithm)
            return outcomes(search.CHECKS, partial(algorithm, options=experiment.search.options))
        case _:
            (options,) = (each for each in experiment.search.costs if each.name == plugin.name)
            return outcomes(cost.CHECKS, plugins.find("cost", plugin.name)(options), network())


def first_size(space: str) -> str:
    """The first of a built-in space's sizes; nothing for one's own, which knows what it does without."""
    from nas.build import find_space

    return "" if ":" in space else next(iter(find_space(space).SIZES))
