"""What the commands say: to a mistake one screen that names it and the way out, without a traceback; to --help an
example."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.driving import Ended, command, sets

SCREEN = 24  # lines of a terminal
COMMANDS = (
    "run",
    "train",
    "search",
    "export",
    "finetune",
    "quantize",
    "register",
    "report",
    "pick",
    "spaces",
    "doctor",
    "ui",
)

pytestmark = pytest.mark.timeout(300)


def refused(home: Path, *words: str | Path, code: int = 1, **env: str) -> str:
    """What a command said that must have refused."""
    ended = command(*words, cwd=home, patience=200, **env)
    assert ended.code == code, f"exit code {ended.code}:\n{ended.text}"
    return one_screen(ended)


def one_screen(ended: Ended) -> str:
    assert "Traceback" not in ended.text and 'File "' not in ended.text, ended.text
    assert ended.text.strip() and len(ended.lines) <= SCREEN, ended.text
    return ended.text


def test_help_names_every_command(tmp_path: Path) -> None:
    ended = command("--help", cwd=tmp_path)
    assert ended.code == 0
    assert all(re.search(rf"^\s+{name} ", ended.text, re.MULTILINE) for name in COMMANDS)
    assert "nas run bignas-digits" in ended.text
    for word in re.findall(r"^  ([a-z]+)  ", ended.text.partition("Commands:")[2], re.MULTILINE):
        text = command(word, "--help", cwd=tmp_path).text
        assert re.search(rf"Example: nas {word}\b", text), f"nas {word} --help has no example:\n{text}"


def test_no_command_and_a_wrong_command(tmp_path: Path) -> None:
    assert "Commands:" in refused(tmp_path, code=2)
    assert "No such command 'rum'" in refused(tmp_path, "rum", code=2)
    assert "EXPERIMENT" in refused(tmp_path, "run", code=2)


def test_quantize_refuses_what_cannot_be(tmp_path: Path) -> None:
    said = refused(tmp_path, "quantize", "runs/x", "abc", "--bits", "4,8")
    assert "--max-bitops or --max-bytes" in said
    said = refused(tmp_path, "quantize", "runs/x", "abc", "--max-bitops", "20X")
    assert "'20X'" in said and "1.5M" in said


def test_brackets_and_colons_in_a_path_are_printed_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "[red]a :smile:").mkdir()
    (tmp_path / "[red]a :smile:" / "mine").touch()
    said = refused(tmp_path, "run", "bignas-digits", "--run-dir", "[red]a :smile:")
    assert "bignas-digits in [red]a :smile:" in said and "/[red]a :smile: is not empty" in said


# --- mistakes in the experiment


@pytest.mark.parametrize(
    ("target", "near"),
    [("bignas-digit", "bignas-digits"), ("bignas-cifar", "bignas-cifar10"), ("mine.yaml", "presets: ")],
)
def test_unknown_preset(tmp_path: Path, target: str, near: str) -> None:
    said = refused(tmp_path, "run", target)
    assert repr(target) in said and near in said and "bignas-fashion-mnist" in said


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("train.worker=3", ["train.worker: unknown key", "did you mean train.workers"]),
        ("epochs=3", ["epochs: unknown key", "did you mean recipe.epochs"]),
        ("recipe.lr=fast", ["recipe.lr", '"fast"', "a number"]),
        ("train.workers=2.5", ["train.workers", "2.5", "a whole number"]),
        ("data.flip=1", ["data.flip", "true or false"]),
        ("search.candidates=0", ["search.candidates", "0", "greater than 0"]),
        ("search.algorithm=magic", ["search.algorithm", "magic", "evolution", "random"]),
        ("train.workers=7", ["batch 64", "workers 7", "try"]),
        ("recipe.lr", ["recipe.lr", "key=value"]),
        ("search.constraints.max_macs=1.5Q", ["macs.max", "1.5Q", '"1.5M"']),
    ],
)
def test_mistakes_in_values(tmp_path: Path, setting: str, parts: list[str]) -> None:
    said = refused(tmp_path, "run", "bignas-digits", "--set", setting)
    for part in parts:
        assert part in said, said
    assert not (tmp_path / "runs").exists()


def test_all_mistakes_of_a_file_at_once(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nspace: {name: bignas, size: d8}\ndata: {name: digits, validation: many}\nrecipes: {}\n"
    )
    said = refused(tmp_path, "run", "mine.yaml")
    for part in (
        "mine.yaml: 4 mistakes",
        "data.validation",
        "recipe: missing",
        "recipes: unknown key",
        "did you mean recipe",
        "search: missing",
    ):
        assert part in said, said
    (tmp_path / "broken.yaml").write_text("name: [\n")
    assert "broken.yaml, line 2" in refused(tmp_path, "run", "broken.yaml")


def test_a_space_or_a_size_that_is_not_there(tmp_path: Path) -> None:
    said = refused(tmp_path, "run", "bignas-digits", "--set", "space.size=d9")
    assert "d9" in said and "d8" in said and "m28" in said
    said = refused(tmp_path, "spaces", "bigna")
    assert "bigna" in said and "bignas" in said and "my_module:my_space" in said
    assert not (tmp_path / "runs" / "bignas-digits" / "experiment.yaml").exists()


# --- what cannot be done


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("search.constraints.max_macs=10k", ["max_macs", "10,000", "71,904", "61,904"]),
        ("search.constraints.min_macs=1G", ["min_macs", "1,000,000,000", "530,048", "999,469,952"]),
        ("search.constraints.max_params=1k", ["max_params", "1,000", "4,362", "3,362"]),
    ],
)
def test_an_impossible_budget_by_how_much(tmp_path: Path, setting: str, parts: list[str]) -> None:
    said = refused(tmp_path, "run", "bignas-digits", "--set", setting)
    for part in parts:
        assert part in said, said
    assert not (tmp_path / "runs").exists(), "nothing is begun that cannot end"


def test_missing_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "home").mkdir()
    said = refused(
        tmp_path,
        "run",
        "bignas-cifar10",
        RAYNAS_DATA=str(tmp_path / "empty"),
        HOME=str(tmp_path / "home"),
        XDG_CACHE_HOME="",
    )
    assert "CIFAR-10 was not found" in said
    for place in (tmp_path / "empty", tmp_path / "data", tmp_path / "home" / ".cache" / "raynas"):
        assert str(place) in said, said
    assert "cifar-10-batches-py" in said and "To get it:" in said and "download=True" in said and "RAYNAS_DATA" in said
    assert not (tmp_path / "runs").exists()


def test_an_occupied_directory(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("It was a dark night.")
    said = refused(tmp_path, "run", "bignas-digits", "--run-dir", "thesis")
    assert str(tmp_path / "thesis") in said and "holds no run" in said and "--run-dir" in said
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_more_workers_than_the_cluster_has(tmp_path: Path) -> None:
    said = refused(tmp_path, "run", "bignas-digits", *sets(["train.workers=64"]))
    assert re.search(r"64 workers asks for 64 CPUs and the cluster has \d+", said) and "train.workers" in said
    run = tmp_path / "runs" / "bignas-digits"
    assert not (run / "supernet").exists() and not (run / "train" / "metrics.jsonl").exists()


@pytest.mark.parametrize("words", [("report",), ("ui",)])
def test_a_directory_that_is_no_run(tmp_path: Path, words: tuple[str, ...]) -> None:
    for place in ("nowhere", "."):
        said = refused(tmp_path, *words, place)
        assert f"{place} holds no run" in said and "runs/bignas-digits" in said


def test_stages_out_of_order(tmp_path: Path) -> None:
    """Each stage names the one that is missing before it."""
    said = refused(tmp_path, "search", "bignas-digits")
    assert "no trained supernet" in said and "nas train" in said
    said = refused(tmp_path, "export", "bignas-digits")
    assert "no trained supernet" in said and "nas train" in said


# --- what there is


def test_spaces(tmp_path: Path) -> None:
    ended = command("spaces", "bignas", cwd=tmp_path)
    assert ended.code == 0, ended.text
    for text in ("d8", "m28", "c32-lite", "attentivenas", "1,024", "71.9 k", "530 k"):
        assert text in ended.text, ended.text
    ended = command("spaces", "bignas", "d8", cwd=tmp_path)
    assert ended.code == 0, ended.text
    assert "stage2.expand: 2, 4" in ended.text and "1,024" in ended.text and "m28" not in ended.text
    assert "bignas" in command("spaces", cwd=tmp_path).text


def test_doctor(tmp_path: Path) -> None:
    ended = command("doctor", cwd=tmp_path, patience=300)
    assert ended.code == 0, ended.text
    text = one_screen(ended)
    for what in ("Python", "packages", "torch", "compiler", "DeepSpeed", "Ray", "GPUs", "disk", "MLflow"):
        assert what in text
    assert "MISSING" not in text
    ended = command("doctor", cwd=tmp_path, patience=300, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert ended.code == 1 and "MISSING" in ended.text and "http://127.0.0.1:9" in ended.text
    one_screen(ended)
