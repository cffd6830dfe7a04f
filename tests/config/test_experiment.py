"""The experiment file: what is refused and how that is told, presets, overrides, what makes a run the run it is."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nas.config.experiment import (
    Experiment,
    ExperimentError,
    _keys,
    _leaves,
    _section,
    difference,
    dump,
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
    experiment = load_experiment(
        DIGITS, [f"name='{name}'", f"space.options={{a: '{name}', b: [1, 2.5, null]}}", "recipe.lr=1e-7"]
    )
    file = tmp_path / "e.yaml"
    file.write_text(dump(experiment))
    assert load_experiment(file) == experiment and experiment.space.options == {"a": name, "b": [1, 2.5, None]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("010", 10.0),
        ("1_0.5", 10.5),
        ("2", 2.0),
        ("+1e+1", 10.0),
    ],
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
    assert "did you mean recipe.lr or finetune.recipe.lr or fidelity.recipe.lr?" in told("lr=0.1")
    assert "search.constraints.macs.maxx: unknown key" in told("search.constraints.macs.maxx=3")
    assert "keys at the top: name, seed, space" in told("nothing_like_it=1")


def test_all_mistakes_are_told_at_once_and_no_more_than_a_screen() -> None:
    text = told(
        "recipe.lrr=3",
        "train.workers=true",
        "recipe.schedule=step",
        "data=3",
        "search.candidates=null",
        "train.use_gpu=maybe",
    )
    assert "6 mistakes" in text
    assert "train.workers: given true; allowed: a whole number" in text
    assert "recipe.schedule: given \"step\"; allowed: 'cosine' or 'exponential'" in text
    assert (
        "data: given 3; allowed: a mapping with the keys name, validation, and others by its name (which images)"
        in text
    )
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
        (
            "recipe.name=bigger",
            "recipe.name: given 'bigger'; allowed: differentiable, multi_arch, sandwich, single, single_path; or your "
            "own",
        ),
        ("recipe.name=sandwhich", "did you mean sandwich?"),
        ("recipe.name=3", "recipe.name: given 3; allowed: differentiable"),
        ("recipe.name=null", "recipe.name: missing; allowed: differentiable"),
        (
            "recipe={name: multi_arch, epochs: 1, batch: 8}",
            "recipe.archs 16 is more than the 4 examples of one pass on one worker",
        ),
        (
            "data.name=imagenet",
            "data.name: given 'imagenet'; allowed: digits, textures, fashion-mnist, cifar10, folder, photos, "
            "sr-folder; or your own",
        ),
        ("data={name: photos, scale: 2}", "data.patch: missing (side of"),
        (
            "finetune.recipe.name=sandwich",
            "finetune.recipe.name: given 'sandwich'; allowed: a recipe that trains one network: single; or your own",
        ),
        ("finetune.recipe.lrr=1", "did you mean finetune.recipe.lr?"),
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
    "text",
    ["seed: 1\nseed: 2", "space: {name: a, name: b}", "a: [1", "- 1", "just text", "", "seed: !!int x", "? [1]\n: 2"],
)
def test_broken_files_are_told(text: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    assert "broken.yaml" in told(name=file)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_options_are_kept_wherever_the_algorithm_is_named(at: int) -> None:
    given = ["search.options.population=50", "search.options.tournament=7"]
    given.insert(at, "search.algorithm=regularized")
    options = load_experiment("bignas-textures", given).search.options.model_dump()
    assert (options["population"], options["tournament"]) == (50, 7)
    with pytest.raises(ExperimentError, match="populatoin"):
        load_experiment("bignas-textures", ["search.options.populatoin=5", "search.algorithm=random"])


def test_the_usual_algorithm_named_again_keeps_the_files_options(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nspace: {name: bignas, size: d8}\ndata: {name: digits, validation: 300}\n"
        "recipe: {name: single, epochs: 1, batch: 64}\nsearch: {candidates: 9, options: {parents: 5}}\n"
    )
    for given, parents in ([], 5), (["search.algorithm=evolution"], 5):
        told = load_experiment(tmp_path / "mine.yaml", given)
        assert told.search.options.model_dump()["parents"] == parents


def test_a_key_that_stands_twice_is_told_with_its_line(tmp_path: Path) -> None:
    assert "line 3: the key 'seed' stands twice" in told(name=write(tmp_path, "seed: 3"))


def test_an_unknown_preset_is_told_with_the_known_ones() -> None:
    text = told(name="bignas-digit")
    assert "did you mean bignas-digits" in text and "bignas-cifar10" in text


def test_relative_paths_count_from_the_file_and_in_overrides_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert (whole.recipe.name, whole.recipe.epochs, whole.recipe.archs) == (
        "multi_arch",
        3,
        4,
    ) and whole.recipe.lr == 1e-3
    same = load_experiment(DIGITS, ["recipe={name: sandwich, epochs: 3}"])
    assert same.recipe == load_experiment(DIGITS, ["recipe.epochs=3"]).recipe
    assert "recipe.schedule: unknown key" in told("recipe.name=multi_arch")


OPEN = (
    "space.options",
    "cluster.env",
    "search.options",
    "search.costs",
    "search.constraints",
)  # keys of which others decide


def test_every_field_has_a_kind_and_a_description() -> None:
    def check(section: type[Section], tree: dict[str, Any]) -> None:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} is not described"
            if inner := _section(field, tree.get(name)):
                check(inner, tree.get(name) or {})

    others = ["recipe={name: single, epochs: 1, batch: 64}", "data={name: photos, scale: 2, patch: 24, validation: 8}"]
    recipes = [[f"recipe={{name: {name}, epochs: 1, batch: 64}}"] for name in ("single_path", "differentiable")]
    every = [*map(load_experiment, presets()), *(load_experiment(DIGITS, changes) for changes in (others, *recipes))]
    assert {kind for experiment in every for _, _, kind in _leaves(experiment)} == set(Kind)
    for experiment in every:
        tree = experiment.model_dump()
        check(Experiment, tree)
        leaves = {key for key, _, _ in _leaves(experiment) if not key.startswith(OPEN)}
        keys = {key for key in _keys(Experiment, tree) if not key.startswith(OPEN)}
        inner = {k for k in keys if any(o.startswith(k + ".") for o in keys)} - (
            {"finetune"} if experiment.finetune is None else set()
        )
        nothing = {k for k in keys if experiment.finetune is None and k.startswith("finetune.")}
        for section in ("fidelity", "search"):
            if getattr(experiment, section).recipe is None:
                inner -= {f"{section}.recipe"}
                nothing |= {k for k in keys if k.startswith(f"{section}.recipe.")}
        assert leaves == keys - inner - nothing


def test_the_sections_of_plug_ins_are_what_they_were_when_runs_that_exist_began() -> None:
    """Keys and values of the presets' data, recipe and finetune, on the commit before each went into its plug-in's
    file. What keys have come since are what they are by default, which is what those runs did."""
    known = json.loads((Path(__file__).parent.parent / "golden" / "preset_sections.json").read_text())
    assert set(known) <= set(presets())
    for name, sections in known.items():
        experiment = load_experiment(name)
        now = experiment.model_dump(mode="json")
        defaults = {key: field.default for key, field in type(experiment.recipe).model_fields.items()}
        since = {key: value for key, value in now["recipe"].items() if key not in sections["recipe"]}
        assert since == {key: defaults[key] for key in since}, name
        sections["recipe"] |= since
        assert {key: now[key] for key in sections} == sections, name


def test_a_difference_tells_what_it_means() -> None:
    old = load_experiment(DIGITS)
    free = load_experiment(
        DIGITS,
        [
            "train.workers=4",
            "search.trials=4",
            "search.batch=2",
            "export.children=2",
            "tracking.experiment=x",
            "name=y",
        ],
    )
    more = load_experiment(DIGITS, ["recipe.epochs=90", "search.candidates=900", "search.constraints.max_macs=300k"])
    other = load_experiment(
        DIGITS, ["recipe.lr=1", "seed=3", "space.options={sync_batch_norm: true}", "search.window=64"]
    )
    assert {d.kind for d in difference(old, free)} == {Kind.FREE} and len(difference(old, free)) == 6
    assert {d.kind for d in difference(old, more)} == {Kind.EXTEND} and len(difference(old, more)) == 3
    assert ("recipe.lr", old.recipe.lr, 1.0, Kind.IDENTITY) in difference(old, other)
    assert ("space.options.sync_batch_norm", None, True, Kind.IDENTITY) in difference(old, other)
    assert ("space.options.sync_batch_norm", True, None, Kind.IDENTITY) in difference(other, old)
    assert not difference(old, load_experiment(DIGITS))


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        load_experiment(DIGITS).seed = 3  # type: ignore[misc]


def test_light_to_import() -> None:
    """Of what is heavy, only what the plug-ins that a file names import themselves."""
    code = (
        "import sys, nas.config.experiment as e; e.presets(); print('torch' in sys.modules); "
        "e.load_experiment('bignas-digits')"
    )
    code += "; print({'ray', 'mlflow', 'deepspeed'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == [
        "False",
        "set()",
    ]


# --- what is small as text and large as values, and what would be seen by all


def bomb(line: str) -> str:
    """A kilobyte whose last key stands for nine to the eleventh of what its first one has."""
    names = "abcdefghijkl"
    lines = [line.format(name=name, nine=", ".join(9 * [f"*{before}"])) for before, name in pairwise(names)]
    return "\n".join(["a: &a {x: 1}", *lines])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (bomb("{name}: &{name} [{nine}]"), "values, up to 14 within each other; allowed: 100,000"),
        (bomb("{name}: &{name}\n  <<: [{nine}]"), "values, up to 25 within each other"),
        ("a: &a [*a]", "inf values"),
        ("\n".join(["c0: &c0 [1]", *(f"c{n + 1}: &c{n + 1} [*c{n}]" for n in range(2000))]), "2,003 within each other"),
        (100_000 * "[", "within each other"),
        ("name: " + 1_000_001 * "x", "more than 1,000,000 bytes"),
    ],
    ids=["lists", "merged", "endless", "chain", "deep", "long"],
)
def test_a_file_that_is_more_than_it_looks_is_refused_at_once(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "e.yaml").write_text(text)
    began = time.monotonic()
    with pytest.raises(ExperimentError, match=says):
        load_experiment(tmp_path / "e.yaml")
    assert time.monotonic() - began < 15, "promised: 3 s"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("recipe.batch=999999999", "recipe.batch: given 999999999; allowed: less than or equal to 1048576"),
        ("recipe.batch=1048575", "try workers 1 or 3, or batch 1048574 or 1048576"),
        ("recipe.epochs=1e300", "recipe.epochs: given 1e\\+300; allowed"),
        ("train.workers=999999999", "train.workers: given"),
        (f"seed={60 * '9'}", "seed: given 1e\\+60; allowed: at most"),
        (f"seed={6000 * '9'}", "seed: given Infinity; allowed: a whole number"),
        ("search.window=100000000000000000000", "search.window: given 1e\\+20"),
        ("tracking.uri=foo://bar", "tracking.uri: given 'foo://bar'; allowed: http://.*sqlite:////"),
    ],
)
def test_numbers_and_addresses_of_another_world_are_refused(override: str, says: str) -> None:
    with pytest.raises(ExperimentError, match=says):
        load_experiment(DIGITS, [override])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("tracking.uri=https://me:topsecret@host", "MLFLOW_TRACKING_PASSWORD"),
        ("tracking.uri=postgresql+psycopg2://me:topsecret@host/db", "MLFLOW_TRACKING_URI"),
        ("cluster.address=http://me:topsecret@head:8265", "cluster.address: .*environment"),
        ("space.options={of: [{a: 'http://host/x?token=topsecret'}]}", "space.options.of: .*environment"),
    ],
)
def test_no_address_has_a_password(override: str, says: str) -> None:
    with pytest.raises(ExperimentError, match=says) as refused:
        load_experiment(DIGITS, [override])
    assert "://me:topsecret" not in str(refused.value), "nor is it repeated"
    for plain in ("http://host:5000", "postgresql://me@host/db", "databricks://profile"):
        assert load_experiment(DIGITS, [f"tracking.uri={plain}"]).tracking.uri == plain
