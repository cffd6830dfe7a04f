"""The JSON schema of the experiment file: it takes what `load_experiment` takes, and tells an editor what it would
refuse."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, ValidationError

from nas.cli import schema
from nas.config import experiment
from nas.config.experiment import Experiment, ExperimentError, dump, load_experiment, parse, presets

ROOT = Path(__file__).parent.parent.parent
SHIPPED = ROOT / "searchspaces" / "presets" / "experiment.schema.json"
FILES = sorted([*SHIPPED.parent.glob("*.yaml"), *(ROOT / "examples").glob("*.yaml")])


@pytest.fixture(scope="module")
def editor() -> Draft7Validator:
    """The schema as an editor has it."""
    found = json.loads(SHIPPED.read_text())
    Draft7Validator.check_schema(found)
    return Draft7Validator(found)


def test_the_file_is_what_the_code_gives() -> None:
    assert SHIPPED.read_text() == schema.text() + "\n", "nas schema > searchspaces/presets/experiment.schema.json"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_name_it_and_are_valid(path: Path, editor: Draft7Validator) -> None:
    first, _, text = path.read_text().partition("\n")
    (named,) = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", first)
    assert (path.parent / named).resolve() == SHIPPED
    editor.validate(experiment._read(text, path.name))


@pytest.mark.parametrize("name", presets())
def test_what_runs_write_is_valid(name: str, editor: Draft7Validator) -> None:
    editor.validate(experiment._read(dump(load_experiment(name)), name))


def changed(preset: str, key: str, value: object) -> dict[str, Any]:
    """A preset as plain values, with another value under a dotted key."""
    tree = json.loads(json.dumps(load_experiment(preset).model_dump()))
    *above, last = key.split(".")
    place = tree
    for name in above:
        place = place[name]
    place[last] = value
    return tree


@pytest.mark.parametrize(
    ("preset", "key", "value", "at"),
    [
        ("bignas-digits", "epochs", 3, ""),
        ("bignas-digits", "train.worker", 3, "train"),
        ("bignas-digits", "recipe.archs", 4, "recipe"),  # of another recipe
        ("vit-resnas-digits", "recipe.random_children", 4, "recipe"),
        ("bignas-digits", "recipe.name", "sandwitch", "recipe.name"),
        ("bignas-digits", "recipe.lr", -1, "recipe.lr"),
        ("bignas-digits", "recipe.schedule", "cosin", "recipe.schedule"),
        ("bignas-digits", "data.scale", 2, "data"),
        ("quantnas-photos", "data.scale", 5, "data.scale"),
        ("bignas-digits", "space.size", "m29", "space.size"),
        ("bignas-digits", "space.name", "bignass", "space.name"),
        ("bignas-digits", "search.algorithm", "evolve", "search.algorithm"),
        ("bignas-digits", "search.options", {"initial": 3}, "search.options"),  # of fittest
        ("bignas-digits", "search.constraints", {"macs": {"most": 3}}, "search.constraints.macs"),
        ("bignas-digits", "search.constraints", {"macs": {"max": "3T"}}, "search.constraints.macs.max"),
        ("bignas-digits", "search.costs", [{"name": "energy"}], "search.costs.0.name"),
        ("bignas-digits", "finetune.recipe.name", "sandwich", "finetune"),
        ("bignas-digits", "train.zero_stage", 4, "train.zero_stage"),
        ("bignas-digits", "seed", "0", "seed"),
    ],
)
def test_a_mistake_is_told_where_it_is(preset: str, key: str, value: object, at: str, editor: Draft7Validator) -> None:
    tree = changed(preset, key, value)
    places = {".".join(map(str, error.absolute_path)) for each in editor.iter_errors(tree) for error in leaves(each)}
    assert places == {at}
    if key not in ("space.name", "space.size"):  # these are found when the network is made
        with pytest.raises(ExperimentError):
            parse(tree)


def leaves(error: ValidationError) -> list[ValidationError]:
    """An error, or those within it where it is one of a condition."""
    return [inner for each in error.context for inner in leaves(each)] if error.validator == "if" else [error]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("search.constraints", {"macs": {"max": "150k"}, "params": {"min": 1_000, "max": None}}),
        ("search.constraints", {"energy": {"max": 3.7}}),
        ("search.costs", [{"name": "own_cost:Energy", "weight_reads": 2}]),
        ("recipe", {"name": "own_recipe:Balanced", "epochs": 2, "batch": 64, "memory": 0.9}),
        ("data", {"name": "own_task:Scenes", "validation": 20, "train": 64}),
        ("space", {"name": "own_space:resnet"}),
        ("finetune", None),
        ("finetune.recipe.quant", False),  # what YAML makes of off
    ],
)
def test_what_may_be_given(key: str, value: object, editor: Draft7Validator) -> None:
    editor.validate(changed("bignas-digits", key, value))


def test_options_are_those_of_the_algorithm(editor: Draft7Validator) -> None:
    tree = changed("bignas-digits", "search.options", {"parents": 8})
    editor.validate(tree)
    other = copy.deepcopy(tree)
    other["search"] |= {"algorithm": "fittest", "options": {"initial": 3}}
    editor.validate(other)
    del tree["search"]["algorithm"]
    editor.validate(tree)  # evolution where none is named
    other["search"] |= {"algorithm": "own_search:Ageing", "options": {"population": 3}}
    editor.validate(other)


def test_every_key_has_a_description() -> None:
    found = json.loads(SHIPPED.read_text())
    assert set(found["required"]) <= set(found["properties"]) == set(Experiment.model_fields)
    for name, part in {"": found, **found["$defs"]}.items():
        missing = [key for key, value in part.get("properties", {}).items() if not value.get("description")]
        assert not missing, f"{name}: {missing}"
