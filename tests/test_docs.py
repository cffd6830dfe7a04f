"""The pages: what they name is there, their experiments are read, their commands run.

A block of commands says after ```bash what it needs that a laptop has not, and is then read by the parser alone; which
words there are say `NEEDS` in docs/reference.py. Those marked `soak` are run by make soak.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
from jsonschema import Draft7Validator

from nas.cli.commands import app
from nas.config import experiment
from nas.config.experiment import load_experiment, parse, presets
from nas.config.schema import sections
from nas.space import COSTS
from tests.driving import NAS, environment

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PAGES = sorted((ROOT / "docs").glob("*.md"))
FIRST = "first-run.md"  # makes the run that the others go on with
ELSEWHERE = ("children.md",)  # stands in a child's directory: tests/children/test_children.py follows it
HERE = ("", "soak")  # blocks that run on any machine
PATIENCE = 900  # seconds for a page


@dataclass(frozen=True)
class Block:
    """A block of a page: its language, the word after it, its lines."""

    language: str
    word: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(*each) for each in found]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """What makes pages of the code."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- what the pages name


NAMED = sorted(
    set(re.findall(r"`((?:\w+/)*test_\w+\.py)(?:::(\w+))?`( soak)?", (ROOT / "docs/reliability.md").read_text()))
)


@pytest.mark.parametrize(("file", "name", "soak"), NAMED)
def test_every_promise_is_held_by_a_test_that_is_there(file: str, name: str, soak: str) -> None:
    text = (ROOT / "tests" / file).read_text()
    assert not name or f"\ndef {name}(" in text
    whole = re.search(r"^pytestmark = .*soak", text, re.MULTILINE)
    before = text.partition(f"\ndef {name}(")[0].rpartition("\n\n\n")[2] if name else ""
    assert bool(soak) == bool(whole or "mark.soak" in before)


def test_the_page_names_many() -> None:
    assert len(NAMED) > 35


def told() -> Iterator[str]:
    """Every text in the code, as it is put together."""
    for path in sorted([*(ROOT / "nas").rglob("*.py"), *(ROOT / "cluster").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_message_of_the_troubleshooting_page_is_one_of_the_code() -> None:
    quoted = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 25
    code = list(told())
    assert not [message for message in quoted if not any(message in text for text in code)]


def test_words_after_bash_have_a_meaning(reference: ModuleType) -> None:
    used = {block.word for page in PAGES for block in blocks(page) if block.language == "bash"}
    assert used - {""} == set(reference.NEEDS)


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert listed == there | {f"reference/{name}.md" for name in ("experiment", "commands", "metrics")}


# --- experiments


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_experiments_are_read(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole ones as they are, parts of one put into a preset; by the schema too."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(EXAMPLES)
    editor = Draft7Validator(json.loads((ROOT / "searchspaces/presets/experiment.schema.json").read_text()))
    for block in blocks(page):
        if block.language != "yaml":
            continue
        tree = experiment._read(block.text, page.name)
        if "name" not in tree:
            whole = json.loads(json.dumps(load_experiment("bignas-digits").model_dump()))
            del whole["search"]["options"]  # they are evolution's
            experiment._merge(whole, tree)
            tree = whole
        parse(tree, f"{page.name}: {block.text}")
        editor.validate(tree)


# --- commands


def lines(page: Path) -> list[list[str]]:
    """The `nas` commands of a page as words; those in code that is set off by spaces too."""
    shell = "\n".join(block.text for block in blocks(page) if block.language == "bash")
    shell += "\n" + textwrap.dedent("\n".join(re.findall(r"^    (nas .*)$", page.read_text(), re.MULTILINE)))
    found = [shlex.split(line, comments=True) for line in shell.splitlines()]
    return [words[1:] for words in found if words and words[0] == "nas"]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_commands_are_ones_that_there_are(page: Path) -> None:
    """Also those that cannot run here: the parser takes them, and experiments are presets changed by known keys."""
    group: Any = typer.main.get_command(app)
    for name, *words in lines(page):
        if "--help" in words or ">" in words:
            words = words[: words.index(">")] if ">" in words else []
        context = group.commands[name].make_context(name, list(words))
        given = context.params
        target = given.get("experiment")
        own = any("own_" in override for override in given.get("set_") or [])
        if target in presets() and not own:
            load_experiment(target, given.get("set_") or [])


def script(page: Path, words: tuple[str, ...]) -> str:
    """The blocks of a page that have one of these words, in order, as one shell's work. Training and searching is as
    there, but small; ``<id>`` is an exported child."""
    small = "--set search.candidates=10 --set search.trials=1 --set export.children=2 --set train.workers=1"
    parts = [
        "set -euo pipefail",
        "child() { ls runs/bignas-digits/children | grep -v -e - | head -1; }",
        "nas() { case $1 in",
        f'run) command nas "$@" --set recipe.epochs=3 {small};;',
        'search) command nas "$@" --set search.candidates=14;;',
        'finetune) command nas "$@" --set finetune.recipe.epochs=1;;',
        '*) command nas "$@";; esac; }',
    ]
    for block in blocks(page):
        if block.language in ("bash", "python") and block.word in words:
            if block.language == "python":
                body = (
                    f"python - <<'END'\n{block.text}END\n"
                    if "<id>" not in block.text
                    else (f"python <(sed \"s/<id>/$(child)/\" <<'END'\n{block.text}END\n)\n")
                )
            else:
                body = block.text.replace("<id>", '"$(child)"')
            parts += [f"echo {shlex.quote('>>> ' + block.text.splitlines()[0])}", body]
    return "\n".join(parts)


def follow(page: Path, folder: Path, words: tuple[str, ...]) -> str:
    """What a page's commands print, given in a folder as a person would."""
    path = f"{NAS.parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", script(page, words)],
        cwd=folder,
        env=environment(PATH=path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 0, f"{page.name}:\n{ended.stdout[-6000:]}"
    return ended.stdout


def runnable(word: str) -> list[Path]:
    """The pages that have a block with this word."""
    pages = [page for page in PAGES if page.name not in ELSEWHERE]
    return [page for page in pages if any(b.language in ("bash", "python") and b.word == word for b in blocks(page))]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where somebody has followed the first page."""
    folder = tmp_path_factory.mktemp("reader")
    said = follow(ROOT / "docs" / FIRST, folder, ("",))
    assert "compare:  nas ui runs/bignas-digits" in said
    return folder


def test_the_first_page_leaves_what_it_says(first: Path) -> None:
    page = (ROOT / "docs" / FIRST).read_text()
    run = first / "runs" / "bignas-digits"
    named = re.findall(r"^\| `([\w./]+?)/?(?:<id>/)?` \| ", page, re.MULTILINE)
    assert len(named) >= 5 and all((run / name).exists() for name in named)
    mine = load_experiment(first / "mine.yaml")
    assert mine.name == "mine"
    assert json.loads((first / "experiment.schema.json").read_text())["$defs"]


@pytest.mark.parametrize("page", [page for page in runnable("") if page.name != FIRST], ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, first: Path, tmp_path: Path) -> None:
    follow(page, shutil.copytree(first, tmp_path / "reader"), ("",))


@pytest.mark.soak
@pytest.mark.timeout(PATIENCE + 60)
@pytest.mark.parametrize("page", runnable("soak"), ids=lambda page: page.stem)
def test_all_commands_of_a_page_run(page: Path, first: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(first, tmp_path / "reader")
    shutil.copytree(EXAMPLES, folder / "examples")
    follow(page, folder, HERE)


# --- pages made from the code


def test_the_reference_has_every_key(reference: ModuleType) -> None:
    page = reference.experiment()
    for section in sections(experiment.Experiment):
        for name in section.model_fields:
            assert f"| `{name}` |" in page
    for heading in ("`recipe`: sandwich", "`data`: photos, sr-folder", "`search.options`: fittest", "`cluster`"):
        assert f"## {heading}" in page, heading
    row = next(line for line in page.splitlines() if line.startswith("| `clip_norm` |"))
    assert row.endswith("| identity |") and "number > 0 or `null`" in row
    assert "| `workers` | integer > 0, ≤ 16384 | `2` |" in page


def test_the_reference_has_every_command(reference: ModuleType) -> None:
    page = reference.commands()
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        part = page.partition(f"\n## nas {name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            assert all(option in part for option in parameter.opts if option.startswith("--"))
        assert f"Example: `nas {name}" in part


def test_the_reference_has_every_metric_and_cost(reference: ModuleType) -> None:
    page = reference.metrics()
    assert all(f"| `{name}` | {measure.title} |" in page for name, measure in COSTS.items())
    assert all(f"| `{metric}` |" in page for metric in ("accuracy", "cross_entropy", "psnr", "ssim"))


def test_a_block_says_what_it_needs(reference: ModuleType) -> None:
    shown = reference.on_page_markdown("```bash cluster\nnas jobs\n```\n\n```bash soak\nnas search x\n```\n")
    assert shown == '```bash title="needs a Ray cluster"\nnas jobs\n```\n\n```bash\nnas search x\n```\n'
