"""The experiment file: what is refused and how that is told, presets, overrides, what makes a run the run it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from nas.config.experiment import (
    Experiment,
    ExperimentError,
    _explain,
    _keys,
    _leaves,
    _sections,
    difference,
    dump,
    identity,
    load_experiment,
    parse,
    presets,
)
from nas.config.section import Kind, Section

DIGITS = "bignas-digits"


def told(*overrides: str, name: str | Path = DIGITS) -> str:
    """The message that refuses these overrides."""
    with pytest.raises(ExperimentError) as error:
        load_experiment(name, overrides)
    text = str(error.value)
    assert "pydantic" not in text and "Traceback" not in text and len(text.splitlines()) < 25
    return text


def write(folder: Path, text: str, base: str = DIGITS) -> Path:
    """A file with the digits preset's keys, `text` put before them."""
    file = folder / "mine.yaml"
    file.write_text(text + "\n" + dump(load_experiment(base)))
    return file


@pytest.mark.parametrize("name", presets())
def test_presets_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    experiment = load_experiment(name)
    assert experiment.name == name
    assert load_experiment(write(tmp_path, "", name)) == experiment


@pytest.mark.parametrize("name", ["1e-5", "010", "2024-01-01", "yes", "null", "1_000"])
def test_a_dump_quotes_what_would_be_read_as_something_else(name: str, tmp_path: Path) -> None:
    experiment = load_experiment(DIGITS, [f"name='{name}'", f"space.options={{a: '{name}', b: [1, 2.5, null]}}", "recipe.lr=1e-7"])
    file = tmp_path / "e.yaml"
    file.write_text(dump(experiment))
    assert load_experiment(file) == experiment and experiment.space.options == {"a": name, "b": [1, 2.5, None]}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("1E3", 1000.0), (".5", 0.5), ("5.", 5.0), ("010", 10.0), ("1_0.5", 10.5), ("2", 2.0), ("+1e+1", 10.0)],
)
def test_numbers_are_read_as_people_write_them(text: str, value: float) -> None:
    assert load_experiment(DIGITS, [f"recipe.lr={text}"]).recipe.lr == value


@pytest.mark.parametrize(
    ("text", "value"), [("1.5M", 1_500_000), ("300k", 300_000), ("2G", 2 * 10**9), ("1_000_000", 10**6), ("1e6", 10**6)]
)
def test_costs_are_read_with_their_prefixes(text: str, value: int) -> None:
    assert load_experiment(DIGITS, [f"search.constraints.macs.max={text}"]).search.constraints["macs"].max == value


@pytest.mark.parametrize("text", ["1.5m", "many", "-3", "0", "true"])
def test_odd_costs_are_refused(text: str) -> None:
    assert "search.constraints.params.max" in told(f"search.constraints.params.max={text}")


def test_an_unknown_key_is_told_with_near_misses_and_the_sections_keys() -> None:
    text = told("recipe.lrr=3")
    assert "recipe.lrr: unknown key" in text and "did you mean recipe.lr?" in text and "weight_decay" in text
    assert "did you mean recipe.lr or finetune.recipe.lr?" in told("lr=0.1")
    assert "search.constraints.macs.maxx: unknown key" in told("search.constraints.macs.maxx=3")
    assert "keys at the top: name, seed, space" in told("nothing_like_it=1")


def test_all_mistakes_are_told_at_once_and_no_more_than_a_screen() -> None:
    text = told("recipe.lrr=3", "train.workers=true", "recipe.schedule=step", "data=3", "search.candidates=null", "train.use_gpu=maybe")
    assert "6 mistakes" in text
    assert "train.workers: given true; allowed: a whole number" in text
    assert "recipe.schedule: given \"step\"; allowed: 'cosine' or 'exponential'" in text
    assert "data: given 3; allowed: a mapping with the keys name, path" in text
    assert 'train.use_gpu: given "maybe"; allowed: true or false, or null' in text
    assert "and 5 more" in told(*(f"x{i}=1" for i in range(15)))


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.workers=3", "try workers 2 or 4, or batch 63 or 66"),
        ("train.micro_batch=5", "try 4 or 8"),
        ("search.trials=20", "window 32 allows half of it"),
        ("search.validation=301", "more than the 300 examples of data.validation"),
        ("recipe.warmup_epochs=60", "must be below epochs 60"),
        ("recipe.momentum=0", "nesterov"),
        ("search.constraints={min_macs: 2M, max_macs: 1M}", "no child fits"),
        ("data.name=folder", "needs path"),
        ("data.size=32", "folder alone"),
        ("recipe.lr=.inf", "finite"),
        ("recipe.lr='0.1'", "a number"),
        ("recipe.batch=64.0", "a whole number"),
        ("recipe.label_smoothing=1", "less than 1"),
        ("recipe.name=bigger", "sandwich"),
        ("seed.x=1", "a whole number"),
        ("space.options=3", "a mapping"),
        ("recipe", "not key=value"),
        ("recipe..lr=1", "not key=value"),
        ("recipe.lr=[1", "line 1"),
    ],
)
def test_refused(override: str, part: str) -> None:
    assert part in told(override)


@pytest.mark.parametrize("name", ["../up", ".hidden", "a/b", "a..b", "", "two words", "é", "x" * 101, "end\n"])
def test_a_name_is_a_safe_directory(name: str) -> None:
    tree = load_experiment(DIGITS).model_dump() | {"name": name}
    with pytest.raises(ExperimentError, match="name: given"):
        parse(tree)


@pytest.mark.parametrize(
    "text", ["seed: 1\nseed: 2", "space: {name: a, name: b}", "a: [1", "- 1", "just text", "", "seed: !!int x", "? [1]\n: 2"]
)
def test_broken_files_are_told(text: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    assert "broken.yaml" in told(name=file)


def test_a_key_that_stands_twice_is_told_with_its_line(tmp_path: Path) -> None:
    assert "line 3: the key 'seed' stands twice" in told(name=write(tmp_path, "seed: 3"))


def test_an_unknown_preset_is_told_with_the_known_ones() -> None:
    text = told(name="bignas-digit")
    assert "did you mean bignas-digits" in text and "bignas-cifar10" in text


def test_relative_paths_count_from_the_file_and_in_overrides_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "pictures").mkdir(parents=True)
    (tmp_path / "pictures").mkdir()
    file = write(tmp_path, "")
    wanted = ["data.name=folder", "data.size=32"]
    tree = dump(load_experiment(file, [*wanted, "data.path=pictures_"])).replace("pictures_", "pictures")
    file.write_text(tree.replace("uri: null", "uri: runs"))
    monkeypatch.chdir(tmp_path / "here")
    experiment = load_experiment(file)
    assert experiment.data.path == str(tmp_path / "pictures") and experiment.tracking.uri == str(tmp_path / "runs")
    changed = load_experiment(file, ["data.path=pictures", "tracking.uri=http://host:5000"])
    assert changed.data.path == str(tmp_path / "here" / "pictures") and changed.tracking.uri == "http://host:5000"
    assert load_experiment(file, ["data.path=elsewhere"]).data.path == "elsewhere"


def test_a_section_given_whole_under_another_name_replaces_the_old_one() -> None:
    whole = load_experiment(DIGITS, ["recipe={name: multi_arch, epochs: 3, batch: 64}", "recipe.archs=4"])
    assert (whole.recipe.name, whole.recipe.epochs, whole.recipe.archs) == ("multi_arch", 3, 4) and whole.recipe.lr == 1e-3
    same = load_experiment(DIGITS, ["recipe={name: sandwich, epochs: 3}"])
    assert same.recipe == load_experiment(DIGITS, ["recipe.epochs=3"]).recipe
    assert "recipe.schedule: unknown key" in told("recipe.name=multi_arch")


OPEN = ("space.options", "cluster.env", "search.options", "search.costs", "search.constraints")  # keys of which others decide


def test_every_field_has_a_kind_and_a_description() -> None:
    def check(section: type[Section]) -> None:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} is not described"
            for inner in _sections(field.annotation):
                check(inner)

    check(Experiment)
    assert {kind for _, _, kind in _leaves(load_experiment(DIGITS))} == set(Kind)
    others = ["recipe={name: single, epochs: 1, batch: 64}", "data={name: photos, scale: 2, patch: 24, validation: 8}"]
    recipes = [[f"recipe={{name: {name}, epochs: 1, batch: 64}}"] for name in ("single_path", "differentiable")]
    every = [*map(load_experiment, presets()), *(load_experiment(DIGITS, changes) for changes in (others, *recipes))]
    leaves = {key for experiment in every for key, _, _ in _leaves(experiment) if not key.startswith(OPEN)}
    keys = {key for key in _keys(Experiment) if not any(other.startswith(key + ".") for other in _keys(Experiment))}
    assert leaves == {key for key in keys if not key.startswith(OPEN)}


def test_identity_and_difference_agree() -> None:
    old = load_experiment(DIGITS)
    free = load_experiment(
        DIGITS, ["train.workers=4", "search.trials=4", "search.batch=2", "export.children=2", "tracking.experiment=x", "name=y"]
    )
    more = load_experiment(DIGITS, ["recipe.epochs=90", "search.candidates=900", "search.constraints.max_macs=300k"])
    other = load_experiment(DIGITS, ["recipe.lr=1", "seed=3", "space.options={sync_batch_norm: true}", "search.window=64"])
    assert identity(old) == identity(free) == identity(more) != identity(other)
    assert {d.kind for d in difference(old, free)} == {Kind.FREE} and len(difference(old, free)) == 6
    assert {d.kind for d in difference(old, more)} == {Kind.EXTEND} and len(difference(old, more)) == 3
    assert ("recipe.lr", old.recipe.lr, 1.0, Kind.IDENTITY) in difference(old, other)
    assert ("space.options.sync_batch_norm", None, True, Kind.IDENTITY) in difference(old, other)
    assert ("space.options.sync_batch_norm", True, None, Kind.IDENTITY) in difference(other, old)
    assert not difference(old, load_experiment(DIGITS))


def test_mistakes_inside_a_union_of_recipes_are_told_by_the_key_that_was_written() -> None:
    class One(Section):
        name: Literal["one"]
        lr: float = Field(description="rate")

    class Two(Section):
        name: Literal["two"]
        steps: int = Field(description="steps")

    class Both(Section):
        recipe: Annotated[One | Two, Field(discriminator="name")] = Field(description="how")

    def lines(recipe: object) -> list[str]:
        with pytest.raises(ValidationError) as error:
            Both.model_validate({"recipe": recipe})
        return [_explain(dict(e), Both) for e in error.value.errors()]

    assert lines({"name": "two", "steps": "x"}) == ['recipe.steps: given "x"; allowed: a whole number (steps)']
    assert lines({"name": "two", "steps": 1, "step": 1}) == [
        "recipe.step: unknown key; did you mean recipe.steps? keys of recipe: name, steps"
    ]
    assert lines({"name": "one"}) == ["recipe.lr: missing (rate)"]
    assert "'one', 'two'" in lines({"name": "three"})[0]


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        load_experiment(DIGITS).seed = 3  # type: ignore[misc]


def test_light_to_import() -> None:
    heavy = {"torch", "ray", "mlflow", "deepspeed"}
    code = f"import sys, nas.config.experiment as e; e.load_experiment('bignas-digits'); print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
