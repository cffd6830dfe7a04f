"""Plug-ins by name, and the sections of an experiment that are theirs. Imports pydantic alone, and plug-ins as they are
named.

A space, recipe, search algorithm, task or cost is named ``my_module:thing`` in an experiment. Those that come with
raynas are found the same way, and have a short name besides: ``sandwich`` is ``nas.recipes.sandwich:Sandwich``. What
there is of them is read from the sources, and options stand apart from what imports torch, so that a mistake in an
experiment is told before that takes its time.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.resources
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, core_schema

from nas.config import own
from nas.config.section import Section

SPACES = "searchspaces"  # the package of the built-in ones
PACKAGES = {"recipe": "nas.recipes", "search": "nas.search", "task": "nas.tasks", "cost": "nas.costs"}
CONTRACTS = {
    "recipe": "Recipe",
    "search": "Search",
    "task": "Task",
    "cost": "Cost",
}  # what a plug-in of the kind subclasses
POSED_BY = {  # the data sets that come with raynas, and the task that each poses
    "digits": "classification",
    "textures": "classification",
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
        found = options(self.kind, name)
        if not issubclass(found, self.base):
            raise ValueError(f"given {name!r}; allowed: {self._allowed()}, whose Options are {self.base.__name__}")
        return found

    def of(self, value: object) -> type[Section]:
        """The section that plain values stand for, or what any is where they name none."""
        try:
            return self.section(value.get("name") if isinstance(value, dict) else None)
        except ValueError:
            return self.base

    def _allowed(self) -> str:
        names = [name for name in built_in(self.kind) if issubclass(options(self.kind, name), self.base)]
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
        kind: ``"recipe"``, ``"search"``, ``"cost"`` or ``"task"``, whose name is that of its data.
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
    if name not in built_in(kind):
        raise _unknown(name, built_in(kind), OWN)
    short = _short(kind, name)
    return getattr(importlib.import_module(f"{PACKAGES[kind]}.{short}"), _camel(short))


def options(kind: str, name: str) -> type[Section]:
    """The section of a plug-in's options.

    That of what comes with raynas stands in ``options.py`` of its package where there is such a file, and torch is not
    imported; that of any other in its own file.

    Raises:
        ValueError: there is no such plug-in, or its options are no section.
    """
    if name in built_in(kind) and _source(PACKAGES[kind], "options"):
        home = importlib.import_module(f"{PACKAGES[kind]}.options")
        if (section := getattr(home, f"{_camel(_short(kind, name))}Options", None)) is not None:
            return section
    section = find(kind, name).Options
    if not (isinstance(section, type) and issubclass(section, Section)):
        raise ValueError(f"given {name!r}, whose Options are {section!r}; allowed: a subclass of nas.config.section's")
    return section


def built_in(kind: str) -> list[str]:
    """The short names of what comes with raynas; none of it is imported."""
    if kind == "task":
        return list(POSED_BY)
    return _modules(PACKAGES[kind], lambda name: rf"^class {_camel(name)}\(")


def built_in_spaces() -> list[str]:
    """Names of the spaces that come with raynas: the modules that define sizes; none of them is imported."""
    return _modules(SPACES, lambda _: r"^SIZES\b")


def check_space(name: str) -> str:
    """The name of a space itself, built in or ``my_module:my_space``; nothing is imported.

    Raises:
        ValueError: no space is called that; says which there are.
    """
    if ":" in name:
        _split(name)
    elif name not in (known := built_in_spaces()):
        raise _unknown(name, known, "or your own as my_module:my_space")
    return name


def _unknown(name: str, known: list[str], own: str) -> ValueError:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return ValueError(f"given {name!r}; {hint}allowed: {', '.join(known)}; {own}")


def _split(name: str) -> tuple[str, str]:
    """The module and what is named in it.

    Raises:
        ValueError: that is no such name.
    """
    module, _, attribute = name.partition(":")
    if not (attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise ValueError(f"given {name!r}; allowed: my_module:thing, of a file my_module.py in the current directory")
    return module, attribute


def kind_of(thing: object) -> str | None:
    """Which kind of plug-in a class is: that of the contract that it subclasses; None: of none."""
    return next((kind for kind in CONTRACTS if _is_a(thing, kind)), None)


def load(name: str) -> Any:
    """What ``my_module:thing`` names; such a module is found in the current directory after all other places.

    Raises:
        ValueError: that is no such name, there is no such module or nothing of that name in it, or it raises an error
            when it is imported.
    """
    module, attribute = _split(name)
    own.allow(module, Path.cwd())
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if not (isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")):
            raise _failed(name, f"importing {module}", error) from error  # it is there, and misses another, say
        raise ValueError(
            f"{name!r}: there is no module {module!r}; it must lie in the current directory, or be installed"
        ) from error
    if not hasattr(found, attribute):
        there = [key for key, value in vars(found).items() if getattr(value, "__module__", None) == found.__name__]
        raise ValueError(
            f"{name!r}: the module {module!r} has no {attribute!r}; it has: {', '.join(there) or 'nothing'}"
        )
    return getattr(found, attribute)


@contextmanager
def telling(name: str, doing: str) -> Iterator[None]:
    """Around a call of a plug-in: an error of one's own code becomes one that tells on a screen what was done, what it
    raised, and where; those of what comes with raynas stay as they are.

    Args:
        name: of the plug-in.
        doing: what is done, for people: ``"making it with the size 'd8'"``.
    """
    try:
        yield
    except OSError:  # names its file
        raise
    except (Exception, SystemExit) as error:
        ours = isinstance(error, ValueError) and not own.place(error, name.partition(":")[0])
        if ":" not in name or ours:
            raise
        raise _failed(name, doing, error) from error


def _failed(name: str, doing: str, error: BaseException) -> ValueError:
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    said, place = "\n".join(str(error).strip().splitlines()[:10]), own.place(error, name.partition(":")[0])
    return ValueError(f"{name!r}: {doing} failed: {kind}{said}{place and f' ({place})'}")


def _modules(package: str, pattern: Callable[[str], str]) -> list[str]:
    """The modules of a package whose source has a line that begins as `pattern` says of the module's name."""
    names = (file.name.removesuffix(".py") for file in importlib.resources.files(package).iterdir())
    return sorted(name for name in names if re.search(pattern(name), _source(package, name), re.MULTILINE))


@cache
def _source(package: str, module: str) -> str:
    """Empty where there is no such file."""
    file = importlib.resources.files(package) / f"{module}.py"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _short(kind: str, name: str) -> str:
    """The module of what comes with raynas."""
    return POSED_BY[name] if kind == "task" else name


def _camel(name: str) -> str:
    """``single_path`` -> ``SinglePath``."""
    return "".join(part.capitalize() for part in name.split("_"))


def _is_a(thing: object, kind: str) -> bool:
    """Whether it is a class that keeps the contract of the kind, and not the contract itself."""
    return isinstance(thing, type) and CONTRACTS[kind] in {base.__name__ for base in thing.__mro__[1:]}
