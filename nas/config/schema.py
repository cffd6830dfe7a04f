"""The experiment file as a JSON schema, by which an editor completes and checks keys. Made from the sections, and from
the options of the plug-ins that come with raynas, which are alternatives by their name.

Of a plug-in of one's own an editor knows what the platform reads of any; its other keys are let through, and checked
when the experiment is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic.json_schema import models_json_schema

from nas.config import plugins
from nas.config.experiment import Experiment
from nas.config.plugins import OptionsOf
from nas.config.section import ChildOptions, CostOptions, DataOptions, RecipeOptions, Section
from nas.config.sections import SearchSettings, SpaceSettings

Json = dict[str, Any]
DRAFT = "http://json-schema.org/draft-07/schema#"  # the newest that all editors know
OPEN = (RecipeOptions, ChildOptions, DataOptions, CostOptions)  # what is known of a plug-in of one's own
OWN: Json = {"type": "string", "pattern": r"^[\w.]+:\w+$", "description": "your own, as my_module:thing"}


def json_schema(spaces: Mapping[str, Sequence[str]]) -> Json:
    """The schema of an experiment file.

    Args:
        spaces: the sizes of each built-in search space, by its name.
    """
    known: list[type[Section]] = list(dict.fromkeys([*sections(Experiment), *OPEN]))
    _, found = models_json_schema([(section, "validation") for section in known])
    parts: dict[str, Json] = found["$defs"]
    for section in known:
        properties = parts[section.__name__]["properties"] if section.model_fields else {}
        for name, field in section.model_fields.items():
            if mark := next((each for each in field.metadata if isinstance(each, OptionsOf)), None):
                of_plug_in = _by_name(named(mark.kind, mark.base), _ref(mark.base), properties[name])
                if type(None) in get_args(field.annotation):
                    told = of_plug_in.pop("description", "")
                    of_plug_in = {"description": told, "anyOf": [of_plug_in, {"type": "null"}]}
                properties[name] = of_plug_in
    for section in OPEN:
        del parts[section.__name__]["additionalProperties"]
    parts[CostOptions.__name__]["properties"]["name"] |= OWN
    _sized(parts[SpaceSettings.__name__], spaces)
    search = parts[SearchSettings.__name__]
    _of_the_algorithm(search)
    costs = search["properties"]["costs"]
    costs["items"] = _by_name(named("cost", CostOptions), _ref(CostOptions), {})
    for part in parts.values():
        _tidy(part)
    return {"$schema": DRAFT, "title": "raynas experiment", **parts.pop(Experiment.__name__), "$defs": parts}


def sections(section: type[Section]) -> Iterator[type[Section]]:
    """A section and all within it, those of the plug-ins that come with raynas too."""
    yield section
    for field in section.model_fields.values():
        mark = next((each for each in field.metadata if isinstance(each, OptionsOf)), None)
        inner = named(mark.kind, mark.base) if mark else within(field.annotation)
        for each in inner:
            yield from sections(each)
    if section is SearchSettings:
        yield from (*named("search", Section), *named("cost", CostOptions))


def named(kind: str, base: type[Section]) -> dict[type[Section], list[str]]:
    """The sections of options of what comes with raynas, and the names that each is for."""
    found: dict[type[Section], list[str]] = {}
    for name in plugins.built_in(kind):
        if issubclass(options := plugins.options(kind, name), base):
            found.setdefault(options, []).append(name)
    return found


def within(annotation: object) -> list[type[Section]]:
    """The sections that a field's type names."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation] if annotation is not Section and annotation not in OPEN else []
    return [section for each in get_args(annotation) for section in within(each)]


def _ref(section: type[Section]) -> Json:
    return {"$ref": f"#/$defs/{section.__name__}"}


def _by_name(known: Mapping[type[Section], Sequence[str]], own: Json, told: Json) -> Json:
    """A section that is one of several by its key ``name``; `told` is what is known of it besides.

    Conditions say more than alternatives: what is wrong is then told of the one that is meant.
    """
    names = [name for each in known.values() for name in each]
    cases = [_case("name", {"enum": each}, _ref(section)) for section, each in known.items()]
    return {
        **{key: value for key, value in told.items() if key == "description"},
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"anyOf": [{"enum": names}, OWN]}},
        "allOf": [*cases, _case("name", OWN, own)],
    }


def _case(key: str, value: Json, then: Json, absent: bool = False) -> Json:
    """What holds where a key has a value, or where it is absent."""
    needed = {} if absent else {"required": [key]}
    return {"if": {"properties": {key: value}, **needed}, "then": then}


def _sized(space: Json, spaces: Mapping[str, Sequence[str]]) -> None:
    """Give the section of the space its names and their sizes."""
    space["properties"]["name"] |= {"anyOf": [{"enum": list(spaces)}, OWN]}
    space["allOf"] = [
        _case("name", {"const": name}, {"properties": {"size": {"enum": list(sizes)}}, "required": ["size"]})
        for name, sizes in spaces.items()
    ]


def _of_the_algorithm(search: Json) -> None:
    """Give the section of the search the algorithms and their options."""
    known, default = named("search", Section), SearchSettings.model_fields["algorithm"].default
    search["properties"]["algorithm"] |= {"anyOf": [{"enum": plugins.built_in("search")}, OWN]}
    search["properties"]["options"] = {"type": "object", "description": search["properties"]["options"]["description"]}
    search["allOf"] = [
        _case("algorithm", {"enum": names}, {"properties": {"options": _ref(section)}}, default in names)
        for section, names in known.items()
    ]


def _tidy(part: Json) -> None:
    """Without titles, which repeat the keys, and without defaults of whole sections, whose keys have their own; of
    docstrings the first paragraph."""
    part.pop("title", None)
    if "description" in part:
        part["description"] = " ".join(part["description"].partition("\n\n")[0].split())
    for field in part.get("properties", {}).values():
        field.pop("title", None)
        if "$ref" in field or isinstance(field.get("default"), dict):
            field.pop("default", None)
