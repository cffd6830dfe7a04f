"""The experiment file: what a run is; presets, overrides, and what a change to a run means.

Imports pydantic and PyYAML alone, and the plug-ins that a file names as it is read.
"""

from __future__ import annotations

import difflib
import importlib.resources
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import yaml
from pydantic import AfterValidator, Field, NonNegativeInt, SerializeAsAny, ValidationError, model_validator
from pydantic.fields import FieldInfo

from nas.config import own, trust
from nas.config.addresses import masked, no_password
from nas.config.plugins import OptionsOf
from nas.config.section import ChildOptions, DataOptions, Kind, RecipeOptions, Section
from nas.config.sections import (
    ClusterSettings,
    ExportSettings,
    FidelitySettings,
    FinetuneSettings,
    SearchSettings,
    SpaceSettings,
    TrackingSettings,
    TrainSettings,
    by_cost,
    safe_name,
)


class ExperimentError(ValueError):
    """A mistake in an experiment file or an override, told so that its writer can mend it."""


class Experiment(Section):
    """A whole run.

    Made by `load_experiment` or `parse`, which tell mistakes as `ExperimentError`.
    """

    name: Annotated[str, AfterValidator(safe_name), Kind.FREE] = Field(description="letters, digits, '.', '_', '-'")
    seed: Annotated[NonNegativeInt, Kind.IDENTITY] = Field(default=0, description="of every draw")
    space: Annotated[SpaceSettings, Kind.IDENTITY] = Field(description="which supernet")
    data: Annotated[SerializeAsAny[DataOptions], OptionsOf("task", DataOptions), Kind.IDENTITY] = Field(
        description="which images"
    )
    recipe: Annotated[SerializeAsAny[RecipeOptions], OptionsOf("recipe", RecipeOptions), Kind.IDENTITY] = Field(
        description="how the supernet learns"
    )
    train: Annotated[TrainSettings, Kind.FREE] = Field(default=TrainSettings(), description="where training runs")
    search: SearchSettings = Field(description="how children are found")
    export: Annotated[ExportSettings, Kind.FREE] = Field(default=ExportSettings(), description="what is handed over")
    finetune: Annotated[FinetuneSettings | None, Kind.FREE] = Field(
        default=None, description="how children are trained on; null: not at all"
    )
    fidelity: Annotated[FidelitySettings, Kind.FREE] = Field(
        default=FidelitySettings(), description="what nas fidelity trains alone"
    )
    tracking: Annotated[TrackingSettings, Kind.FREE] = Field(
        default=TrackingSettings(), description="where MLflow writes"
    )
    cluster: Annotated[ClusterSettings, Kind.FREE] = Field(
        default=ClusterSettings(), description="where nas submit sends it"
    )

    @property
    def alone(self) -> ChildOptions | None:
        """How networks learn that are trained alone beside the supernet; None where nothing says so."""
        return self.fidelity.recipe or (self.finetune.recipe if self.finetune else None)

    @model_validator(mode="after")
    def _across(self) -> Experiment:
        wrong = _shares(self.recipe, self.train, "recipe")
        if self.finetune and self.finetune.children:  # else it may still be mended before nas finetune
            wrong += _shares(self.finetune.recipe, self.train, "finetune.recipe")
        if (self.search.validation or 0) > self.data.validation:
            wrong.append(
                f"search.validation {self.search.validation} is more than the {self.data.validation} examples of "
                "data.validation"
            )
        if self.space.inherit and self.train.init_from:
            wrong.append("space.inherit and train.init_from both say what training begins with: leave one out")
        for key, value, _ in _leaves(self):
            try:
                no_password(str(value))
            except ValueError as error:
                wrong.append(f"{key}: {error}")
        if wrong:
            raise ValueError("\n  ".join(wrong))
        return self


def _shares(recipe: RecipeOptions, train: TrainSettings, key: str) -> list[str]:
    """What is wrong with how a recipe's batch is shared among the workers and their passes; `key` is where the
    recipe stands."""
    batch, workers, micro = recipe.batch, train.workers, train.micro_batch
    share, wrong = batch // workers, []
    if batch % workers:
        near = _near(workers, [n for n in range(1, batch + 1) if batch % n == 0])
        below = batch - batch % workers
        batches = f"{below} or {below + workers}" if below else str(workers)
        wrong.append(
            f"{key}.batch {batch} does not divide among train.workers {workers}: try workers {near}, or batch {batches}"
        )
    elif micro and share % micro:
        near = _near(micro, [n for n in range(1, share + 1) if share % n == 0])
        wrong.append(
            f"train.micro_batch {micro} does not divide the {batch} / {workers} = {share} examples of a worker: try "
            f"{near}"
        )
    elif told := recipe.too_few(micro or share):
        wrong.append(f"{key}.{told}")
    return wrong


def _near(value: int, allowed: list[int]) -> str:
    """The allowed numbers next to `value`, as text: ``"2 or 4"``."""
    below = max((n for n in allowed if n <= value), default=allowed[0])
    above = min((n for n in allowed if n >= value), default=allowed[-1])
    return " or ".join(str(n) for n in sorted({below, above}))


class Difference(NamedTuple):
    """One key that differs between two experiments."""

    key: str
    old: Any
    new: Any
    kind: Kind


def difference(old: Experiment, new: Experiment) -> list[Difference]:
    """The keys whose values differ, in the order of the file; None stands for a key that one of them does not have."""
    before, after = ({key: (value, kind) for key, value, kind in _leaves(e)} for e in (old, new))
    absent = (None, Kind.IDENTITY)
    rows = [
        (key, before.get(key, absent)[0], *after.get(key, (None, before.get(key, absent)[1]))) for key in before | after
    ]
    return [Difference(*row) for row in rows if row[1] != row[2]]


def _leaves(value: Any, key: str = "", kind: Kind | None = None) -> Iterator[tuple[str, Any, Kind]]:
    """``(dotted key, plain value, kind)`` of everything in a section; a field has its own mark or that of its
    section."""
    if isinstance(value, Section):
        for name, field in type(value).model_fields.items():
            own = next((m for m in field.metadata if isinstance(m, Kind)), kind)
            yield from _leaves(getattr(value, name), f"{key}.{name}".lstrip("."), own)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}", kind)
    elif isinstance(value, tuple) and any(isinstance(inner, Section) for inner in value):
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{key}.{place}", kind)
    else:
        assert kind is not None, f"{key} has no Kind"
        yield key, value, kind


# --- mistakes, told


_ALLOWED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text (quote it)",
}


def parse(tree: object, source: str = "the experiment") -> Experiment:
    """The experiment that plain values mean.

    Raises:
        ExperimentError: all mistakes at once: which key, what was given, what is allowed. `source` says where they
            stand.
    """
    for module in trust.modules_of(tree):
        own.allow(module, Path.cwd())  # also those that are imported later, or by workers alone
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(dict(e), Experiment, tree) for e in error.errors(include_url=False)]
    more = [f"... and {len(lines) - 10} more"] if len(lines) > 10 else []
    raise ExperimentError(
        masked(f"{source}: {len(lines)} mistake{'s' * (len(lines) > 1)}\n  " + "\n  ".join(lines[:10] + more))
    )


def _explain(error: dict[str, Any], root: type[Section], tree: object) -> str:
    """One line for one of pydantic's errors; `tree` is what was read."""
    key, section, field, inner = _locate(error["loc"], root, tree)
    about = f" ({field.description})" if field is not None else ""
    if error["type"] == "extra_forbidden":
        place, _, last = key.rpartition(".")
        near = [f"{place}.{k}".lstrip(".") for k in difflib.get_close_matches(last, section.model_fields)]
        near += [k for k in dict.fromkeys(_keys(root, tree)) if k.rpartition(".")[2] == last and k not in (key, *near)]
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        return (
            f"{key}: unknown key; {hint}keys {'of ' + place if place else 'at the top'}: "
            f"{', '.join(section.model_fields)}"
        )
    if error["type"] == "missing":
        return f"{key}: missing{about}"
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}".removeprefix(": ")
    given = json.dumps(error["input"], default=str)
    given = given if len(given) <= 60 else given[:57] + "..."
    if error["type"] in ("model_type", "dict_type", "model_attributes_type"):
        more = ", and others by its name" if field is not None and _plug_in(field) else ""
        allowed = "a mapping" + (f" with the keys {', '.join(inner.model_fields)}{more}" if inner else "")
    else:
        allowed = _ALLOWED.get(error["type"], error["msg"].removeprefix("Input should be "))
    nothing = ", or null" if field is not None and type(None) in get_args(field.annotation) else ""
    return f"{key}: given {given}; allowed: {allowed}{nothing}{about}".removeprefix(": ")


class _Place(NamedTuple):
    """Where an error is: the dotted key, the section around it, its field (None: there is none), the section within."""

    key: str
    section: type[Section]
    field: FieldInfo | None
    inner: type[Section] | None


def _locate(loc: Sequence[int | str], root: type[Section], tree: object) -> _Place:
    """What pydantic's location means in what was read."""
    keys: list[str] = []
    section, field = root, None
    inner: type[Section] | None = root
    within = False
    for part in loc:
        keys.append(str(part))
        tree = _inside(tree, part)
        if within:  # a name or a place in a collection of sections
            within = False
            continue
        section = inner or section
        field = inner.model_fields.get(str(part)) if inner else None
        inner = _section(field, tree) if field else None
        within = field is not None and get_origin(field.annotation) in (dict, tuple)
    return _Place(".".join(keys), section, field, inner)


def _inside(tree: object, part: int | str) -> object:
    """What stands in plain values under a key or at a place; None where nothing does."""
    if isinstance(tree, dict):
        return tree.get(part)
    return tree[part] if isinstance(tree, list | tuple) and isinstance(part, int) and part < len(tree) else None


def _plug_in(field: FieldInfo) -> OptionsOf | None:
    return next((mark for mark in field.metadata if isinstance(mark, OptionsOf)), None)


def _section(field: FieldInfo, value: object) -> type[Section] | None:
    """The section that a field holds, that of the plug-in which `value` names where it is one's."""
    if plug_in := _plug_in(field):
        return plug_in.of(value)
    types = (field.annotation, *get_args(field.annotation))
    return next((each for each in types if isinstance(each, type) and issubclass(each, Section)), None)


def _keys(section: type[Section], tree: object, place: str = "") -> Iterator[str]:
    """Every dotted key of a section, with those of the plug-ins that `tree` names."""
    for name, field in section.model_fields.items():
        yield place + name
        value = tree.get(name) if isinstance(tree, dict) else None
        if inner := _section(field, value):
            yield from _keys(inner, value, f"{place}{name}.")


# --- files


MOST_BYTES = 1_000_000  # of an experiment; the largest of ours has 8,000
MOST_VALUES = 100_000  # in it, once its aliases are written out
MOST_DEEP = 50  # values within each other


class _Loader(yaml.SafeLoader):
    """YAML as people write it: ``1e-5`` is a number, ``010`` is ten, a date is text; a key that stands twice is
    refused, and so is what is small as text and huge or endless as values."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        values, deep = (0.0, 0.0) if node is None else _extent(node, {})
        if values > MOST_VALUES or deep > MOST_DEEP:
            raise yaml.YAMLError(
                f"it stands for {values:,.0f} values, up to {deep:,.0f} within each other; allowed: {MOST_VALUES:,} "
                f"and {MOST_DEEP}"
            )
        return node

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:  # type: ignore[override]
        node = super().compose_mapping_node(anchor)  # type: ignore[arg-type]
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(str(key.value))
        return node


def _extent(node: yaml.Node, known: dict[int, tuple[float, float]]) -> tuple[float, float]:
    """How many values a node stands for, and how many of them within each other, every alias counted as what it
    repeats; infinite where one is within itself."""
    if id(node) not in known:
        known[id(node)] = (math.inf, math.inf)  # until it is known: whoever asks in between is within it
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        extents = [_extent(each, known) for each in inner]
        known[id(node)] = 1 + sum(n for n, _ in extents), 1 + max((deep for _, deep in extents), default=0)
    return known[id(node)]


class _Dumper(yaml.SafeDumper):
    """Quotes the text that `_Loader` would read as something else."""


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < 100 else float(digits)  # Python refuses thousands of digits in its own words


_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {
        first: [rule for rule in rules if rule[0].removeprefix(_TAG) not in ("int", "float", "timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _class.add_implicit_resolver(_TAG + "int", re.compile(r"[-+]?\d[\d_]*$"), list("-+0123456789"))
    _class.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+.0123456789"))
_Loader.add_constructor(_TAG + "int", lambda loader, node: _whole(node.value.replace("_", "")))


def presets() -> list[str]:
    """The names of the experiments that come with raynas."""
    return sorted(p.name.removesuffix(".yaml") for p in _preset_folder().iterdir() if p.name.endswith(".yaml"))


def load_experiment(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """A preset or a user's file, changed by overrides such as ``"recipe.lr=0.1"``, whose values are YAML.

    A relative ``data.path``, ``table`` of a cost, ``tracking.uri`` or run in ``search.propose_from`` counts from the
    file's folder (in an override from the current folder); a path or table that is not there is left as it is, to be
    looked up under RAYNAS_DATA.

    Raises:
        ExperimentError: no such preset or file, not readable, or mistakes in it.
    """
    source = str(name_or_path)
    if source in presets():
        tree = _read((_preset_folder() / f"{source}.yaml").read_bytes(), f"preset {source}")
    elif Path(source).is_file():
        tree = _read_file(Path(source))
        _resolve_paths(tree, Path(source).parent)
    else:
        stem = Path(source).name.removesuffix(".yaml").removesuffix(".yml")
        near = difflib.get_close_matches(stem, presets())
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ExperimentError(
            f"no preset and no file {source!r}{hint}\n  presets: {', '.join(presets())}; or a path of your own"
        )
    _renew(tree, source)
    for text in sorted(overrides, key=lambda text: not text.startswith("search.algorithm=")):  # options are its own
        change = _read_override(text)
        _resolve_paths(change, Path.cwd())
        if isinstance(tree, dict):
            _renew(change, f"override {text!r}", tree)
            _merge(tree, change)
    return parse(tree, source + (f" with {' '.join(overrides)}" if overrides else ""))


def modules_in(file: Path) -> set[str]:
    """The modules of its writer's own that an experiment file names; none is imported."""
    return trust.modules_of(_read_file(file))


def modules_given(overrides: Sequence[str]) -> set[str]:
    """The modules that overrides name."""
    return set[str]().union(*(trust.modules_of(_read_override(text)) for text in overrides))


def _read_file(path: Path) -> Any:
    with path.open("rb") as file:
        return _read(file.read(MOST_BYTES + 1), str(path))


def _preset_folder() -> Traversable:
    return importlib.resources.files("searchspaces") / "presets"


def _read(text: str | bytes, source: str) -> Any:
    """One YAML document as plain values."""
    if len(text) > MOST_BYTES:
        raise ExperimentError(f"{source} is more than {MOST_BYTES:,} bytes long: it is no experiment")
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ExperimentError(f"{source}{where}: {error.problem}") from None
    except RecursionError:
        raise ExperimentError(f"{source}: more than {MOST_DEEP} values within each other") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ExperimentError(f"{source} is not readable as YAML: {error}") from None


def _read_override(text: str) -> dict[str, Any]:
    """``"recipe.lr=0.1"`` as ``{"recipe": {"lr": 0.1}}``."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ExperimentError(f"override {text!r} is not key=value; write for example recipe.lr=0.1")
    tree = _read(value, f"override {text!r}")
    for name in reversed(key.split(".")):
        tree = {name: tree}
    return tree


def _merge(tree: Any, changes: dict[str, Any]) -> None:
    """Put `changes` into `tree`, section by section; one that is given whole under another name replaces the old
    one."""
    for key, value in changes.items():
        old = tree.get(key)
        another = (
            isinstance(value, dict)
            and isinstance(old, dict)
            and len(value) > 1
            and value.get("name", old.get("name")) != old.get("name")
        )
        if isinstance(value, dict) and isinstance(old, dict) and not another:
            _merge(old, value)
        else:
            tree[key] = value


def _renew(tree: Any, source: str, onto: Any = None) -> None:
    """Give the search section of an experiment's plain values the keys of today, so that an override meets its own.

    Args:
        onto: the experiment that these change: it names the algorithm that options belong to, and loses another's.
    """
    search = tree.get("search") if isinstance(tree, dict) else None
    if not isinstance(search, dict):
        return
    old = onto.get("search") if isinstance(onto, dict) else None
    old = old if isinstance(old, dict) else {}
    if "constraints" in search:
        try:
            search["constraints"] = by_cost(search["constraints"])
        except ValueError as error:
            raise ExperimentError(f"{source}: search.constraints: {error}") from None
    before = old.get("algorithm", SearchSettings.model_fields["algorithm"].default)
    if (algorithm := search.get("algorithm", before)) != before:
        old.pop("options", None)
    if algorithm == "fittest" and "initial" in search and isinstance(search.setdefault("options", {}), dict):
        search["options"].setdefault("initial", search.pop("initial"))


def _resolve_paths(tree: Any, folder: Path) -> None:
    """Make the relative paths of an experiment's plain values absolute, counted from `folder`."""
    data, tracking, search, train = (
        tree.get(key) if isinstance(tree, dict) else None for key in ("data", "tracking", "search", "train")
    )
    costs = search.get("costs") if isinstance(search, dict) else None
    files = [(data, "path"), *((cost, "table") for cost in (costs if isinstance(costs, list) else ()))]
    for section, key in files:
        if isinstance(section, dict) and isinstance(section.get(key), str):
            path = folder / Path(section[key]).expanduser()
            section[key] = os.path.abspath(path) if path.exists() else section[key]
    if isinstance(train, dict) and isinstance(train.get("init_from"), str):
        train["init_from"] = os.path.abspath(folder / Path(train["init_from"]).expanduser())
    if isinstance(tracking, dict) and isinstance(tracking.get("uri"), str):
        uri = tracking["uri"]  # "databricks" and whatever has a scheme are MLflow's own forms
        tracking["uri"] = uri if ":" in uri or uri == "databricks" else os.path.abspath(folder / Path(uri).expanduser())
    if isinstance(search, dict) and isinstance(search.get("propose_from"), list):
        search["propose_from"] = [
            os.path.abspath(folder / Path(str(run)).expanduser()) for run in search["propose_from"]
        ]


def dump(experiment: Experiment) -> str:
    """The experiment as YAML, every key written out; it loads back to an equal one."""
    return yaml.dump(experiment.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
