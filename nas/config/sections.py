"""The sections of an experiment file, as frozen typed values. Imports pydantic alone.

Every field is marked with its `Kind`, on the field or on the section that holds it: whether a run may continue under
another value. What belongs to a plug-in, such as a recipe or a task, stands in the plug-in's file.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)

from nas.config import plugins
from nas.config.addresses import absolute, no_secret, object_store, tracking
from nas.config.plugins import OptionsOf
from nas.config.section import Amount, ChildOptions, CostOptions, Kind, Section, as_tuple, count


def safe_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name) or ".." in name:
        raise ValueError(f"given {name!r}; allowed: up to 100 letters, digits, . _ - with no leading . and no ..")
    return name


class SpaceSettings(Section):
    """Which supernet."""

    name: Annotated[str, AfterValidator(plugins.check_space)] = Field(
        description="a built-in space such as bignas, or your own my_module:my_space"
    )
    size: str = Field(default="", description="one of the space's sizes, for example d8")
    options: dict[str, JsonValue] = Field(
        default={}, description="plain values for the family, for example sync_batch_norm: true"
    )
    child: dict[str, int | float] | None = Field(
        default=None, description="choices of one child, to train it alone; null: the whole space"
    )
    inherit: Annotated[str | None, Kind.FREE] = Field(
        default=None,
        description=(
            "a supernet's checkpoint that the child starts from; null: fresh weights. Looked at when training begins"
        ),
    )

    @model_validator(mode="after")
    def _inherits(self) -> SpaceSettings:
        if self.inherit and self.child is None:
            raise ValueError("inherit is for a child alone: give its choices as child, or leave inherit out")
        return self


class TrainSettings(Section):
    """Where and how safely training runs; what is learnt does not depend on it, but for rounding."""

    workers: int = Field(
        default=2, gt=0, le=2**14, description="Ray Train workers; fewer where use_gpu is null and there are fewer GPUs"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(default=1, description="DeepSpeed ZeRO stage")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of activations; losses and weights are fp32"
    )
    use_gpu: bool | None = Field(default=None, description="one GPU a worker; null: if the cluster has them")
    cpus_per_worker: PositiveFloat = Field(default=1.0, description="CPUs that each worker reserves")
    loaders: Annotated[int, Field(ge=0, le=256)] | None = Field(
        default=None,
        description=(
            "processes of each worker that decode images in files; 0: a thread; null: one less than its CPUs where it "
            "has a GPU, else 0"
        ),
    )
    checkpoint_every: PositiveInt = Field(default=200, description="steps between checkpoints")
    keep: PositiveInt = Field(default=2, description="checkpoints kept")
    init_from: Annotated[str | None, Kind.IDENTITY] = Field(
        default=None,
        description=(
            "what the supernet begins with: a run, a checkpoint of one, an exported child, a file of safetensors; "
            "null: fresh weights. Looked at when training begins"
        ),
    )
    max_minutes: PositiveFloat | None = Field(
        default=None, description="stop at a checkpoint after so many minutes; null: no limit"
    )
    micro_batch: PositiveInt | None = Field(
        default=None, description="examples at once on a worker; below batch / workers gradients accumulate"
    )
    max_failures: NonNegativeInt = Field(default=3, description="restarts of the workers before giving up")
    max_rollbacks: NonNegativeInt = Field(
        default=3, description="returns to an earlier checkpoint for a loss that is not finite"
    )


class Bounds(Section):
    """What a child may cost, of one cost; null: no bound."""

    min: Amount | None = Field(default=None, description='the least, for example 1_500_000, "300k" or 3.7')
    max: Amount | None = Field(default=None, description='the most, for example 1_500_000, "300k" or 3.7')

    @model_validator(mode="after")
    def _order(self) -> Bounds:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:,} is above max {self.max:,}: no child fits")
        return self


OLD_BOUNDS = {  # keys of constraints in experiments from before there was one for every cost
    "min_macs": ("macs", "min"),
    "max_macs": ("macs", "max"),
    "max_params": ("params", "max"),
    "max_bitops": ("bitops", "max"),
}


def by_cost(constraints: object) -> object:
    """Constraints as plain values, their old keys as what these mean: ``{"max_macs": 9}`` as ``{"macs": {"max": 9}}``.

    Raises:
        ValueError: an old and a new key name the same bound and do not agree.
    """
    if not isinstance(constraints, dict):
        return constraints
    found = {name: bounds for name, bounds in constraints.items() if name not in OLD_BOUNDS}
    for key, (name, side) in OLD_BOUNDS.items():
        if key not in constraints or not isinstance(bounds := found.get(name) or {}, dict):
            continue
        old, new = constraints[key], bounds.get(side)
        if None not in (old, new) and count(old) != count(new):
            raise ValueError(f"{key} {old} and {name}.{side} {new} are the same bound: give one of them")
        found[name] = {**bounds, side: new if old is None else old}
    return found


def _that_bind(constraints: dict[str, Bounds]) -> dict[str, Bounds]:
    """Without those that have no bound: what old experiments wrote out for every cost."""
    return {name: bounds for name, bounds in constraints.items() if (bounds.min, bounds.max) != (None, None)}


Budget = Annotated[dict[str, Bounds], BeforeValidator(by_cost), AfterValidator(_that_bind)]


def _rungs(rungs: tuple[tuple[float, int], ...]) -> tuple[tuple[float, int], ...]:
    """Refuse rungs that are none: the first takes all, each after it some of those and trains them for longer."""
    shares, steps = zip(*rungs, strict=True)
    if shares[0] != 1 or not all(0 < share < 1 for share in shares[1:]):
        raise ValueError(f"given the shares {shares}; allowed: 1 for the first rung, then numbers between 0 and 1")
    if steps[0] < 0 or any(b <= a for a, b in pairwise(steps)):
        raise ValueError(f"given the steps {steps}; allowed: 0 or more, and more from rung to rung")
    return rungs


def _as_pairs(given: object) -> object:
    """Lists of lists as tuples of tuples."""
    return tuple(map(as_tuple, given)) if isinstance(given, list | tuple) else given


def _known_search(name: str) -> str:
    plugins.find("search", name)
    return name


def _own_cost(given: object) -> object:
    """The options of a cost, of plain values, as its section."""
    if not isinstance(given, dict):
        return given
    if not isinstance(name := given.get("name"), str):
        raise ValueError(
            f"name: given {name!r}; allowed: {', '.join(plugins.built_in('cost'))}; or your own as my_module:MyCost"
        )
    return _options(plugins.options("cost", name), given, name)


def _options(section: type[Section], given: dict[str, Any], owner: str) -> Section:
    """The options that plain values mean, with the owner's keys where one is unknown."""
    if stray := [key for key in given if key not in section.model_fields]:
        known = ", ".join(section.model_fields) or "none"
        raise ValueError(f"unknown key {', '.join(stray)}; options of {owner}: {known}")
    return section.model_validate(given)


class SearchSettings(Section):
    """How children are proposed and judged."""

    algorithm: Annotated[str, AfterValidator(_known_search), Kind.IDENTITY] = Field(
        default="evolution", description="who proposes: guided, evolution, ... (docs/search.md), or my_module:MySearch"
    )
    options: Annotated[SerializeAsAny[Section], Kind.IDENTITY] = Field(
        default=Section(), validate_default=True, description="the algorithm's own"
    )
    candidates: Annotated[PositiveInt, Kind.EXTEND] = Field(description="children to judge in all")
    window: Annotated[PositiveInt, Kind.IDENTITY] = Field(
        default=32, description="candidate k is proposed from the records of 0 .. k - window"
    )
    propose_from: Annotated[tuple[str, ...], BeforeValidator(as_tuple), Kind.IDENTITY] = Field(
        default=(), description="finished runs of the recipe differentiable; what they found are the first candidates"
    )
    costs: Annotated[
        tuple[Annotated[SerializeAsAny[CostOptions], BeforeValidator(_own_cost)], ...],
        BeforeValidator(as_tuple),
        Kind.IDENTITY,
    ] = Field(
        default=(),
        description=(
            "costs beside those that are counted: {name: latency, table: latency.json}, or your own {name: "
            "my_module:MyCost} and its options"
        ),
    )
    cost: Annotated[str | None, Kind.IDENTITY] = Field(
        default=None, description="what is to be small; null: macs, or bitops where bits are chosen too"
    )
    constraints: Annotated[Budget, Kind.EXTEND] = Field(
        default={}, description="what a child may cost or reach, by name: {macs: {max: 150k}}"
    )
    metric: Annotated[str | None, Kind.IDENTITY] = Field(
        default=None,
        description=(
            "what is good; null: accuracy of classes, psnr of images; cross_entropy tells close children apart on few "
            "images"
        ),
    )
    objectives: Annotated[tuple[str, ...], BeforeValidator(as_tuple), Kind.IDENTITY] = Field(
        default=(),
        description=(
            "in place of metric and cost: two or more of the task's metrics and of the costs, one of each at least"
        ),
    )
    rungs: Annotated[
        tuple[tuple[float, int], ...],
        Field(min_length=1),
        BeforeValidator(_as_pairs),
        AfterValidator(_rungs),
        Kind.IDENTITY,
    ] = Field(
        default=((1.0, 0),),
        description=(
            "[share, steps]: who is scored, after how many steps by itself as search.recipe says: [[1, 0], [0.25, "
            "100]] trains the better quarter"
        ),
    )
    recipe: Annotated[
        SerializeAsAny[ChildOptions] | None,
        OptionsOf("recipe", ChildOptions, "a recipe that trains one network"),
        Kind.IDENTITY,
    ] = Field(default=None, description="how children learn in the steps of rungs; its schedule is laid over them")
    calibration: Annotated[PositiveInt, Kind.IDENTITY] = Field(
        default=2048, description="training images for a child's batch statistics"
    )
    calibration_batch: Annotated[PositiveInt, Kind.IDENTITY] = Field(
        default=256, description="images at once in calibration"
    )
    validation: Annotated[PositiveInt | None, Kind.IDENTITY] = Field(
        default=None, description="validation images to score on; null: all"
    )
    early_stop: Annotated[Literal["never", "exact", "likely"], Kind.IDENTITY] = Field(
        default="never",
        description=(
            "scoring ends once a candidate is beaten whatever is left (exact), or by four standard errors (likely); "
            "looked at after each sixteenth of validation: score_batch should be no larger"
        ),
    )
    trials: Annotated[PositiveInt, Kind.FREE] = Field(default=2, description="Ray Tune trials at a time")
    batch: Annotated[PositiveInt | None, Kind.FREE] = Field(
        default=None, description="candidates that a trial judges at a time; null: from the measured time"
    )
    score_batch: Annotated[PositiveInt, Kind.FREE] = Field(default=500, description="images at once in scoring")
    max_minutes: Annotated[PositiveFloat | None, Kind.FREE] = Field(
        default=None, description="stop after so many minutes; null: no limit"
    )

    @model_validator(mode="before")
    @classmethod
    def _old_initial(cls, given: object) -> object:
        """``initial`` stood beside ``algorithm`` once; it was written out whatever the algorithm was, and meant
        something to fittest alone."""
        if not isinstance(given, dict) or "initial" not in given:
            return given
        rest = {key: value for key, value in given.items() if key != "initial"}
        options = rest.get("options") or {}
        if rest.get("algorithm") != "fittest" or not isinstance(options, dict):
            return rest
        if options.get("initial", given["initial"]) != given["initial"]:
            raise ValueError(
                f"initial {given['initial']} and options.initial {options['initial']} are the same: give one of them"
            )
        return {**rest, "options": {**options, "initial": given["initial"]}}

    @field_validator("options", mode="before")
    @classmethod
    def _of_the_algorithm(cls, given: object, info: ValidationInfo) -> object:
        algorithm = info.data.get("algorithm")  # missing where it is refused itself
        if algorithm is None or not isinstance(given, dict | Section):
            return Section() if algorithm is None else given
        plain = given if isinstance(given, dict) else given.model_dump()
        return _options(plugins.options("search", algorithm), plain, algorithm)

    @model_validator(mode="after")
    def _one_way_of_saying_it(self) -> SearchSettings:
        if twice := [name for name in self.objectives if self.objectives.count(name) > 1]:
            raise ValueError(f"objectives: {twice[0]} stands there twice")
        if self.objectives and (self.metric or self.cost):
            named = " and ".join(name for name in ("metric", "cost") if getattr(self, name))
            raise ValueError(
                f"objectives {', '.join(self.objectives)} stand in place of {named}: give one or the other"
            )
        return self

    @model_validator(mode="after")
    def _trained_somehow(self) -> SearchSettings:
        if self.rungs[-1][1] and not self.recipe:
            raise ValueError(
                f"rungs {[list(rung) for rung in self.rungs]} train children, and no search.recipe says how; for "
                "example {name: single, epochs: 10, batch: 64, lr: 0.02, weight_decay: 1e-4}"
            )
        return self

    @model_validator(mode="after")
    def _to_the_end(self) -> SearchSettings:
        if self.early_stop != "never" and len(self.rungs) > 1:
            raise ValueError(f"early_stop {self.early_stop} is for searches of one rung: leave out it or rungs")
        return self

    @model_validator(mode="after")
    def _in_flight(self) -> SearchSettings:
        flying, batch = self.trials * (self.batch or 1), self.batch or 1
        if flying > self.window / 2:
            raise ValueError(
                f"trials {self.trials} x batch {batch} = {flying} candidates at once, but window {self.window} allows "
                "half of it: "
                f"lower them, or begin a new run with window {2 * flying} or more"
            )
        return self


class FinetuneSettings(Section):
    """Whether and how exported children are trained on by themselves."""

    children: NonNegativeInt = Field(
        default=1, description="how many children of the front nas run trains on, the best first"
    )
    fresh: bool = Field(default=False, description="begin from fresh weights instead of the supernet's")
    teacher: str | None = Field(
        default=None, description="whose soft labels help: largest, or the id of an exported child; null: nobody's"
    )
    recipe: Annotated[
        SerializeAsAny[ChildOptions], OptionsOf("recipe", ChildOptions, "a recipe that trains one network")
    ] = Field(description="how it learns")


class FidelitySettings(Section):
    """How far the supernet's scores are to be trusted: children trained alone beside it, by ``nas fidelity``."""

    children: Annotated[int, Field(ge=4, le=10_000)] = Field(
        default=12, description="how many, over the range of costs that the constraints leave"
    )
    seeds: Annotated[int, Field(ge=2, le=100)] = Field(default=2, description="trainings of each")
    recipe: Annotated[
        SerializeAsAny[ChildOptions] | None,
        OptionsOf("recipe", ChildOptions, "a recipe that trains one network"),
    ] = Field(default=None, description="how each learns from fresh weights; null: as finetune.recipe says")


class ExportSettings(Section):
    """What is handed over."""

    children: PositiveInt = Field(default=5, description="children of the front, spread over it")
    onnx: bool = Field(default=True, description="also write model.onnx")


class TrackingSettings(Section):
    """Where MLflow writes."""

    uri: Annotated[str, AfterValidator(tracking)] | None = Field(
        default=None, description="MLflow's tracking URI; null: in the run directory"
    )
    experiment: str | None = Field(default=None, description="MLflow's experiment; null: the experiment's name")


class ClusterSettings(Section):
    """Where `nas submit` sends the run. Everything here means the cluster's machines, not this one."""

    address: str | None = Field(default=None, description="of the cluster's Jobs server, for example http://head:8265")
    storage: Annotated[str, AfterValidator(absolute)] | None = Field(
        default=None, description="directory that all machines share; runs are its folders"
    )
    mirror: Annotated[str, AfterValidator(object_store)] | None = Field(
        default=None,
        description="s3://bucket/prefix or gs://...: runs are kept there too, and restored where storage has lost them",
    )
    env: Annotated[dict[str, str], AfterValidator(no_secret)] = Field(
        default={}, description="environment variables of the run; no secrets"
    )
    image: str | None = Field(default=None, description="Kubernetes only: container image with raynas in it")
    claim: str | None = Field(
        default=None, description="Kubernetes only: PersistentVolumeClaim behind storage, ReadWriteMany"
    )
