"""The experiment file: what a run is, as frozen typed values; presets and overrides. Imports pydantic and PyYAML alone.

Every field is marked with its `Kind`, on the field or on the section that holds it: whether a run may continue under
another value. To add a recipe, write a second `Section` with its own ``name: Literal[...]`` and make ``Recipe`` the union
``Annotated[Sandwich | Other, Field(discriminator="name")]``; nothing else here changes.
"""

from __future__ import annotations

import difflib
import importlib.resources
import json
import os
import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from nas.cluster_values import absolute, no_secret


class ExperimentError(ValueError):
    """A mistake in an experiment file or an override, told so that its writer can mend it."""


class Kind(StrEnum):
    """Whether a run that has begun may continue under another value of a field."""

    IDENTITY = "identity"  # no: it would be another run
    FREE = "free"  # yes, at any resume; it is recorded
    EXTEND = "extend"  # yes: the run goes on from where it stands


class Section(BaseModel):
    """Frozen, keyword only, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _safe_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name) or ".." in name:
        raise ValueError(f"given {name!r}; allowed: up to 100 letters, digits, . _ - with no leading . and no ..")
    return name


def _count(value: object) -> object:
    """``"1.5M"`` and ``3e5`` as whole numbers; anything else is left to pydantic."""
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMG]?)", value.strip())
        number = float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]] if found else 0.5
        if abs(number - round(number)) > 1e-6:
            raise ValueError(f'given {value!r}; allowed: a whole number, plain or such as "300k", "1.5M", "2G"')
        return round(number)
    return int(value) if isinstance(value, float) and value.is_integer() else value


Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, BeforeValidator(_count), Field(gt=0)]


class SpaceSettings(Section):
    """Which supernet."""

    name: str = Field(description="a built-in space such as bignas, or your own my_module:my_space")
    size: str = Field(default="", description="one of the space's sizes, for example d8")
    options: dict[str, JsonValue] = Field(default={}, description="plain values for the family, for example sync_batch_norm: true")


class DataSettings(Section):
    """Which images, how they are divided, how they are varied in training."""

    name: Literal["digits", "fashion-mnist", "cifar10", "folder"] = Field(description="the data set")
    path: str | None = Field(default=None, description="folder only: has train/<class> and val/<class> or test/<class>")
    size: PositiveInt | None = Field(default=None, description="folder only: side of the square images, pixels")
    validation: PositiveInt = Field(description="examples held out of the training part for the search, drawn alike from every class")
    shift: NonNegativeInt = Field(default=0, description="random crop after padding each side by so many pixels")
    flip: bool = Field(default=False, description="mirror left and right with probability 1/2")
    rand_augment: bool = Field(default=False, description="RandAugment (arXiv:1909.13719) on every training image; slow")

    @model_validator(mode="after")
    def _folder(self) -> DataSettings:
        given = {key: getattr(self, key) is not None for key in ("path", "size")}
        if self.name == "folder" and not all(given.values()):
            raise ValueError("name: folder needs path (where the images are) and size (pixels)")
        if self.name != "folder" and any(given.values()):
            raise ValueError(f"path and size are for name: folder alone; {self.name} has its own: leave them out")
        return self


class Sandwich(Section):
    """BigNAS's sandwich rule with in-place distillation (arXiv:2003.11142)."""

    name: Literal["sandwich"] = Field(description="the recipe")
    epochs: Annotated[PositiveFloat, Kind.EXTEND] = Field(description="passes over the training part")
    batch: PositiveInt = Field(description="examples a step over all workers")
    lr: PositiveFloat = Field(description="peak learning rate at this batch")
    warmup_epochs: NonNegativeFloat = Field(default=0.0, description="epochs of linear warm-up")
    schedule: Literal["cosine", "exponential"] = Field(default="cosine", description="how the learning rate falls after the warm-up")
    momentum: Share = Field(default=0.9, description="of SGD")
    nesterov: bool = Field(default=True, description="Nesterov's momentum")
    weight_decay: NonNegativeFloat = Field(description="on weights of convolutions and linear layers")
    label_smoothing: Share = Field(default=0.1, description="share of the target spread over all classes, largest network only")
    dropout: Share = Field(default=0.2, description="probability before the classifier, largest network only")
    drop_path: Share = Field(default=0.0, description="largest probability of dropping a residual branch, largest network only")
    random_children: NonNegativeInt = Field(default=2, description="random networks a step, besides the largest and the smallest")
    clip_norm: PositiveFloat | None = Field(default=None, description="largest gradient norm; null for no clipping")

    @model_validator(mode="after")
    def _consistent(self) -> Sandwich:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} must be below epochs {self.epochs:g}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: true needs a momentum above 0")
        return self


Recipe = Sandwich


class TrainSettings(Section):
    """Where and how safely training runs; what is learnt does not depend on it, but for rounding."""

    workers: PositiveInt = Field(default=2, description="Ray Train workers")
    zero_stage: Literal[0, 1, 2, 3] = Field(default=1, description="DeepSpeed ZeRO stage")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="of activations; losses and weights are fp32")
    use_gpu: bool | None = Field(default=None, description="one GPU a worker; null: if the cluster has them")
    cpus_per_worker: PositiveFloat = Field(default=1.0, description="CPUs that each worker reserves")
    checkpoint_every: PositiveInt = Field(default=200, description="steps between checkpoints")
    keep: PositiveInt = Field(default=2, description="checkpoints kept")
    max_minutes: PositiveFloat | None = Field(default=None, description="stop at a checkpoint after so many minutes; null: no limit")
    micro_batch: PositiveInt | None = Field(
        default=None, description="examples at once on a worker; below batch / workers gradients accumulate"
    )
    max_failures: NonNegativeInt = Field(default=3, description="restarts of the workers before giving up")
    max_rollbacks: NonNegativeInt = Field(default=3, description="returns to an earlier checkpoint for a loss that is not finite")


class Constraints(Section):
    """What a child may cost for one image; null: no bound."""

    max_macs: Count | None = Field(default=None, description='most multiply-accumulates, for example 1_500_000 or "1.5M"')
    min_macs: Count | None = Field(default=None, description='fewest multiply-accumulates, for example "300k"')
    max_params: Count | None = Field(default=None, description='most parameters, for example "100k"')

    @model_validator(mode="after")
    def _order(self) -> Constraints:
        if self.min_macs and self.max_macs and self.min_macs > self.max_macs:
            raise ValueError(f"min_macs {self.min_macs:,} is above max_macs {self.max_macs:,}: no child fits")
        return self


class SearchSettings(Section):
    """How children are proposed and judged."""

    algorithm: Annotated[Literal["evolution", "random"], Kind.IDENTITY] = Field(default="evolution", description="who proposes")
    candidates: Annotated[PositiveInt, Kind.EXTEND] = Field(description="children to judge in all")
    window: Annotated[PositiveInt, Kind.IDENTITY] = Field(
        default=32, description="candidate k is proposed from the records of 0 .. k - window"
    )
    constraints: Annotated[Constraints, Kind.EXTEND] = Field(default=Constraints(), description="the budget")
    metric: Annotated[Literal["accuracy"], Kind.IDENTITY] = Field(default="accuracy", description="what is good, percent")
    calibration: Annotated[PositiveInt, Kind.IDENTITY] = Field(default=2048, description="training images for a child's batch statistics")
    calibration_batch: Annotated[PositiveInt, Kind.IDENTITY] = Field(default=256, description="images at once in calibration")
    validation: Annotated[PositiveInt | None, Kind.IDENTITY] = Field(default=None, description="validation images to score on; null: all")
    trials: Annotated[PositiveInt, Kind.FREE] = Field(default=2, description="Ray Tune trials at a time")
    batch: Annotated[PositiveInt | None, Kind.FREE] = Field(default=None, description="candidates a trial; null: from the measured time")
    score_batch: Annotated[PositiveInt, Kind.FREE] = Field(default=500, description="images at once in scoring")
    max_minutes: Annotated[PositiveFloat | None, Kind.FREE] = Field(default=None, description="stop after so many minutes; null: no limit")

    @model_validator(mode="after")
    def _in_flight(self) -> SearchSettings:
        flying, batch = self.trials * (self.batch or 1), self.batch or 1
        if flying > self.window / 2:
            raise ValueError(
                f"trials {self.trials} x batch {batch} = {flying} candidates at once, but window {self.window} allows half of it: "
                f"lower them, or begin a new run with window {2 * flying} or more"
            )
        return self


class ExportSettings(Section):
    """What is handed over."""

    children: PositiveInt = Field(default=5, description="children of the front, spread over it")
    onnx: bool = Field(default=True, description="also write model.onnx")


class TrackingSettings(Section):
    """Where MLflow writes."""

    uri: str | None = Field(default=None, description="MLflow's tracking URI; null: in the run directory")
    experiment: str | None = Field(default=None, description="MLflow's experiment; null: the experiment's name")


class ClusterSettings(Section):
    """Where `nas submit` sends the run. Everything here means the cluster's machines, not this one."""

    address: str | None = Field(default=None, description="of the cluster's Jobs server, for example http://head:8265")
    storage: Annotated[str, AfterValidator(absolute)] | None = Field(default=None, description="directory that all machines share; runs are its folders")
    env: Annotated[dict[str, str], AfterValidator(no_secret)] = Field(default={}, description="environment variables of the run; no secrets")
    image: str | None = Field(default=None, description="Kubernetes only: container image with raynas in it")
    claim: str | None = Field(default=None, description="Kubernetes only: PersistentVolumeClaim behind storage, ReadWriteMany")


class Experiment(Section):
    """A whole run. Made by `load_experiment` or `parse`, which tell mistakes as `ExperimentError`."""

    name: Annotated[str, AfterValidator(_safe_name), Kind.FREE] = Field(description="letters, digits, '.', '_', '-'")
    seed: Annotated[NonNegativeInt, Kind.IDENTITY] = Field(default=0, description="of every draw")
    space: Annotated[SpaceSettings, Kind.IDENTITY] = Field(description="which supernet")
    data: Annotated[DataSettings, Kind.IDENTITY] = Field(description="which images")
    recipe: Annotated[Recipe, Kind.IDENTITY] = Field(description="how the supernet learns")
    train: Annotated[TrainSettings, Kind.FREE] = Field(default=TrainSettings(), description="where training runs")
    search: SearchSettings = Field(description="how children are found")
    export: Annotated[ExportSettings, Kind.FREE] = Field(default=ExportSettings(), description="what is handed over")
    tracking: Annotated[TrackingSettings, Kind.FREE] = Field(default=TrackingSettings(), description="where MLflow writes")
    cluster: Annotated[ClusterSettings, Kind.FREE] = Field(default=ClusterSettings(), description="where nas submit sends it")

    @model_validator(mode="after")
    def _across(self) -> Experiment:
        batch, workers, micro = self.recipe.batch, self.train.workers, self.train.micro_batch
        wrong = []
        if batch % workers:
            near = _near(workers, [n for n in range(1, batch + 1) if batch % n == 0])
            below = batch - batch % workers
            batches = f"{below} or {below + workers}" if below else str(workers)
            wrong.append(f"recipe.batch {batch} does not divide among train.workers {workers}: try workers {near}, or batch {batches}")
        elif micro and (batch // workers) % micro:
            share = batch // workers
            near = _near(micro, [n for n in range(1, share + 1) if share % n == 0])
            wrong.append(f"train.micro_batch {micro} does not divide the {batch} / {workers} = {share} examples of a worker: try {near}")
        if (self.search.validation or 0) > self.data.validation:
            wrong.append(f"search.validation {self.search.validation} is more than the {self.data.validation} examples of data.validation")
        if wrong:
            raise ValueError("\n  ".join(wrong))
        return self


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


def identity(experiment: Experiment) -> dict[str, Any]:
    """What makes the run this run: the identity fields as plain values by dotted key, for example ``{"recipe.lr": 0.05, ...}``."""
    return {key: value for key, value, kind in _leaves(experiment) if kind is Kind.IDENTITY}


def difference(old: Experiment, new: Experiment) -> list[Difference]:
    """The keys whose values differ, in the order of the file; None stands for a key that one of them does not have."""
    before, after = ({key: (value, kind) for key, value, kind in _leaves(e)} for e in (old, new))
    absent = (None, Kind.IDENTITY)
    rows = [(key, before.get(key, absent)[0], *after.get(key, (None, before.get(key, absent)[1]))) for key in before | after]
    return [Difference(*row) for row in rows if row[1] != row[2]]


def _leaves(value: Any, key: str = "", kind: Kind | None = None) -> Iterator[tuple[str, Any, Kind]]:
    """``(dotted key, plain value, kind)`` of everything in a section; a field has its own mark or that of its section."""
    if isinstance(value, Section):
        for name, field in type(value).model_fields.items():
            own = next((m for m in field.metadata if isinstance(m, Kind)), kind)
            yield from _leaves(getattr(value, name), f"{key}.{name}".lstrip("."), own)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}", kind)
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
        ExperimentError: all mistakes at once: which key, what was given, what is allowed. `source` says where they stand.
    """
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(dict(e), Experiment) for e in error.errors(include_url=False)]
    more = [f"... and {len(lines) - 10} more"] if len(lines) > 10 else []
    raise ExperimentError(f"{source}: {len(lines)} mistake{'s' * (len(lines) > 1)}\n  " + "\n  ".join(lines[:10] + more))


def _explain(error: dict[str, Any], root: type[Section]) -> str:
    """One line for one of pydantic's errors."""
    key, section, field = _locate(error["loc"], root)
    about = f" ({field.description})" if field is not None else ""
    if error["type"] == "extra_forbidden":
        place, _, last = key.rpartition(".")
        near = [f"{place}.{k}".lstrip(".") for k in difflib.get_close_matches(last, section.model_fields)]
        near += [k for k in _keys(root) if k.rpartition(".")[2] == last and k not in near]
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        return f"{key}: unknown key; {hint}keys {'of ' + place if place else 'at the top'}: {', '.join(section.model_fields)}"
    if error["type"] == "missing":
        return f"{key}: missing{about}"
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}".removeprefix(": ")
    given = json.dumps(error["input"], default=str)
    given = given if len(given) <= 60 else given[:57] + "..."
    if error["type"] in ("model_type", "dict_type"):
        inner = _sections(field.annotation) if field is not None else [root]
        allowed = "a mapping" + (f" with the keys {', '.join(inner[0].model_fields)}" if inner else "")
    else:
        allowed = _ALLOWED.get(error["type"], error["msg"].removeprefix("Input should be "))
    nothing = ", or null" if field is not None and type(None) in get_args(field.annotation) else ""
    return f"{key}: given {given}; allowed: {allowed}{nothing}{about}".removeprefix(": ")


def _locate(loc: Sequence[int | str], root: type[Section]) -> tuple[str, type[Section], Any]:
    """The dotted key of pydantic's location, the section that the key stands in, and its field (None: there is none)."""
    parts, keys, section, field = list(loc), [], root, None
    inner: list[type[Section]] = [root]
    while parts:
        if inner:
            section = inner[0] if len(inner) == 1 else next(s for s in inner if parts[0] in get_args(s.model_fields["name"].annotation))
            if len(inner) > 1 and len(parts) > 1:  # pydantic puts the tag of a union before the key
                parts.pop(0)
        part = parts.pop(0)
        keys.append(str(part))
        field = section.model_fields.get(str(part)) if inner else None
        inner = _sections(field.annotation) if field is not None else []
    return ".".join(keys), section, field


def _sections(annotation: Any) -> list[type[Section]]:
    """The sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [s for inner in get_args(annotation) for s in _sections(inner)]


def _keys(section: type[Section], place: str = "") -> Iterator[str]:
    """Every dotted key of a section."""
    for name, field in section.model_fields.items():
        yield place + name
        for inner in _sections(field.annotation):
            yield from _keys(inner, f"{place}{name}.")


# --- files


class _Loader(yaml.SafeLoader):
    """YAML as people write it: ``1e-5`` is a number, ``010`` is ten, a date is text; a key that stands twice is refused."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:  # type: ignore[override]
        node = super().compose_mapping_node(anchor)  # type: ignore[arg-type]
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(str(key.value))
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes the text that `_Loader` would read as something else."""


_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {
        first: [rule for rule in rules if rule[0].removeprefix(_TAG) not in ("int", "float", "timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _class.add_implicit_resolver(_TAG + "int", re.compile(r"[-+]?\d[\d_]*$"), list("-+0123456789"))
    _class.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+.0123456789"))
_Loader.add_constructor(_TAG + "int", lambda loader, node: int(node.value.replace("_", "")))


def presets() -> list[str]:
    """The names of the experiments that come with raynas."""
    return sorted(p.name.removesuffix(".yaml") for p in _preset_folder().iterdir() if p.name.endswith(".yaml"))


def load_experiment(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """A preset or a user's file, changed by overrides such as ``"recipe.lr=0.1"``, whose values are YAML.

    A relative ``data.path`` or ``tracking.uri`` counts from the file's folder (in an override from the current folder); a
    ``data.path`` that is not there is left as it is, to be looked up under RAYNAS_DATA.

    Raises:
        ExperimentError: no such preset or file, not readable, or mistakes in it.
    """
    source = str(name_or_path)
    if source in presets():
        tree = _read((_preset_folder() / f"{source}.yaml").read_bytes(), f"preset {source}")
    elif Path(source).is_file():
        tree = _read(Path(source).read_bytes(), source)
        _resolve_paths(tree, Path(source).parent)
    else:
        stem = Path(source).name.removesuffix(".yaml").removesuffix(".yml")
        near = difflib.get_close_matches(stem, presets())
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ExperimentError(f"no preset and no file {source!r}{hint}\n  presets: {', '.join(presets())}; or a path of your own")
    changes: dict[str, Any] = {}
    for text in overrides:
        _merge(changes, _read_override(text))
    _resolve_paths(changes, Path.cwd())
    if isinstance(tree, dict):
        _merge(tree, changes)
    return parse(tree, source + (f" with {' '.join(overrides)}" if overrides else ""))


def _preset_folder() -> Traversable:
    return importlib.resources.files("searchspaces") / "presets"


def _read(text: str | bytes, source: str) -> Any:
    """One YAML document as plain values."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ExperimentError(f"{source}{where}: {error.problem}") from None
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
    """Put `changes` into `tree`, section by section."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


def _resolve_paths(tree: Any, folder: Path) -> None:
    """Make the relative paths of an experiment's plain values absolute, counted from `folder`."""
    data, tracking = (tree.get(key) if isinstance(tree, dict) else None for key in ("data", "tracking"))
    if isinstance(data, dict) and isinstance(data.get("path"), str):
        path = folder / Path(data["path"]).expanduser()
        data["path"] = os.path.abspath(path) if path.exists() else data["path"]
    if isinstance(tracking, dict) and isinstance(tracking.get("uri"), str):
        uri = tracking["uri"]  # "databricks" and whatever has a scheme are MLflow's own forms
        tracking["uri"] = uri if ":" in uri or uri == "databricks" else os.path.abspath(folder / Path(uri).expanduser())


def dump(experiment: Experiment) -> str:
    """The experiment as YAML, every key written out; it loads back to an equal one."""
    return yaml.dump(experiment.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
