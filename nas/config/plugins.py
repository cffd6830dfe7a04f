"""Plug-ins by name, and the sections of an experiment that are theirs. Imports pydantic alone, and plug-ins as they are
named.

A space, recipe, search algorithm, task or cost is named ``my_module:thing`` in an experiment. Those that come with
raynas are found the same way, and have a short name besides: ``sandwich`` is ``nas.recipes.sandwich:Sandwich``.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, core_schema

from nas.config import own
from nas.config.section import Section

PACKAGES = {"recipe": "nas.recipes", "search": "nas.search", "task": "nas.tasks"}
CONTRACTS = {
    "recipe": "Recipe",
    "search": "Search",
    "task": "Task",
    "cost": "Cost",
}  # what a plug-in of the kind subclasses
POSED_BY = {  # the data sets that come with raynas, and the task that each poses
    "digits": "classification",
    "fashion-mnist": "classification",
    "cifar10": "classification",
    "folder": "classification",
    "photos": "super_resolution",
    "sr-folder": "super_resolution",
}
OWN = "or your own as my_module:MyClass"


@dataclass(frozen=True)
class OptionsOf:
    """Marks a field whose section is ``Options`` of the plug-in that the section's key ``name`` names.

    As in ``Annotated[SerializeAsAny[RecipeOptions], OptionsOf("recipe", RecipeOptions)]``.

    Attributes:
        kind: ``"recipe"``, ``"search"`` or ``"task"``.
        base: what the section must be.
        what: which plug-ins that are, for people; empty where all of the kind are.
    """

    kind: str
    base: type[Section]
    what: str = ""

    def section(self, name: object) -> type[Section]:
        """The section of the plug-in of that name.

        Raises:
            ValueError: there is no such plug-in, or it is another one than is asked for; says what there is.
        """
        if not isinstance(name, str):
            raise ValueError(f"{'missing' if name is None else f'given {name!r}'}; allowed: {self._allowed()}")
        options: type[Section] = find(self.kind, name).Options
        if not issubclass(options, self.base):
            raise ValueError(f"given {name!r}; allowed: {self._allowed()}, whose Options are {self.base.__name__}")
        return options

    def of(self, value: object) -> type[Section]:
        """The section that plain values stand for, or what any is where they name none."""
        try:
            return self.section(value.get("name") if isinstance(value, dict) else None)
        except ValueError:
            return self.base

    def _allowed(self) -> str:
        names = [name for name in built_in(self.kind) if issubclass(find(self.kind, name).Options, self.base)]
        return f"{self.what and self.what + ': '}{', '.join(names)}; {OWN}"

    def _read(self, value: object) -> object:
        """Plain values as the plug-in's section; whatever else as it is."""
        if not isinstance(value, dict):
            return value
        try:
            section = self.section(value.get("name"))
        except ValueError as error:
            told = InitErrorDetails(type="value_error", loc=("name",), input=value.get("name"), ctx={"error": error})
            raise ValidationError.from_exception_data(self.kind, [told]) from error
        return section.model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._read, handler(source))


def find(kind: str, name: str) -> Any:
    """The class of a plug-in.

    Args:
        kind: ``"recipe"``, ``"search"``, ``"cost"`` (all of which are a user's own) or ``"task"``, whose name is that
            of its data.
        name: a short name, or ``my_module:thing``.

    Raises:
        ValueError: there is no such plug-in; says what there is.
    """
    if ":" in name:
        thing = load(name)
        if not _is_a(thing, kind):
            contract = CONTRACTS[kind]
            raise ValueError(
                f"given {name!r}, which is no {kind}; allowed: a class that subclasses raynas's {contract}"
            )
        return thing
    short = POSED_BY.get(name, "") if kind == "task" else name
    if short and short.isidentifier() and short in _modules(kind):
        module = importlib.import_module(f"{PACKAGES[kind]}.{short}")
        if (thing := getattr(module, _camel(short), None)) is not None and _is_a(thing, kind):
            return thing
    known = built_in(kind)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"given {name!r}; {hint}allowed: {', '.join(known)}; {OWN}")


def built_in(kind: str) -> list[str]:
    """The short names of what comes with raynas."""
    if kind == "task":
        return list(POSED_BY)
    found = ((name, importlib.import_module(f"{PACKAGES[kind]}.{name}")) for name in _modules(kind))
    return [name for name, module in found if _is_a(getattr(module, _camel(name), None), kind)]


def kind_of(thing: object) -> str | None:
    """Which kind of plug-in a class is: that of the contract that it subclasses; None: of none."""
    return next((kind for kind in CONTRACTS if _is_a(thing, kind)), None)


def load(name: str) -> Any:
    """What ``my_module:thing`` names; such a module is found in the current directory after all other places.

    Raises:
        ValueError: there is no such module or nothing of that name in it; an error within the module is raised as it
            is.
    """
    module, _, attribute = name.partition(":")
    own.allow(module, Path.cwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module and not module.startswith(f"{error.name}."):
            raise  # the module is there, and misses another
        raise ValueError(
            f"{name!r}: there is no module {module!r}; it must lie in the current directory, or be installed"
        ) from error
    if not hasattr(found, attribute):
        there = [key for key, value in vars(found).items() if getattr(value, "__module__", None) == found.__name__]
        raise ValueError(
            f"{name!r}: the module {module!r} has no {attribute!r}; it has: {', '.join(there) or 'nothing'}"
        )
    return getattr(found, attribute)


def _modules(kind: str) -> list[str]:
    if kind not in PACKAGES:
        return []
    package = importlib.import_module(PACKAGES[kind])
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def _camel(name: str) -> str:
    """``single_path`` -> ``SinglePath``."""
    return "".join(part.capitalize() for part in name.split("_"))


def _is_a(thing: object, kind: str) -> bool:
    """Whether it is a class that keeps the contract of the kind, and not the contract itself."""
    return isinstance(thing, type) and CONTRACTS[kind] in {base.__name__ for base in thing.__mro__[1:]}
