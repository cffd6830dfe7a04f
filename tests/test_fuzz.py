"""Files as nobody writes them: what is read of them is told or used, at once, and nothing is written beside them.

Fifty cases of each in the suite, a thousand in soak.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nas
from nas.config.experiment import dump, load_experiment
from nas.results.history import History
from nas.results.report import write_report
from nas.rundir import atomic
from nas.rundir.directory import RunDir
from nas.search.journal import Journal

OLD = Path(__file__).parent / "golden" / "old-run"
CHILD = "a7fb0a02abc3"
PROMISED_S = 2.0
PATIENCE = 5  # times what is promised, on a busy machine

Tree = Any
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**9, -(10**9), 10**18, 2**64, 10**400])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["os:system", "../../x", "/etc/passwd", "a:b:c", "\0", "http://u:p@h", ":", "", "1e400", "-"])
)
values: st.SearchStrategy[Tree] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


def places(tree: Tree, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in plain values."""
    yield path
    if isinstance(tree, dict):
        for key, inner in tree.items():
            yield from places(inner, (*path, key))
    elif isinstance(tree, list):
        for place, inner in enumerate(tree):
            yield from places(inner, (*path, place))


@st.composite
def changed(draw: st.DrawFn, tree: Tree) -> Tree:
    """Plain values with one to three of them replaced, taken out or named otherwise."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(tree))))
        if not path:
            continue
        *way, last = path
        inner = tree
        for key in way:
            inner = inner[key]
        what = draw(st.sampled_from(["replace", "replace", "remove", "rename"]))
        if what == "replace":
            inner[last] = draw(values)
        elif what == "rename" and isinstance(inner, dict):
            inner[draw(st.text(max_size=8))] = inner.pop(last)
        else:
            del inner[last]
    return tree


@st.composite
def torn(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes of which some are cut out, repeated or others."""
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.integers(0, 40)))
        data = (
            data[:begin] + draw(st.sampled_from([b"", data[begin:end] * 2, b"\n"]) | st.binary(max_size=8)) + data[end:]
        )
    return data


def cases(function: Callable[..., None]) -> Callable[..., None]:
    """Run a test on fifty cases, and on a thousand in soak."""
    quiet = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}

    @pytest.mark.parametrize("number", [50, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
    def counted(number: int, tmp_path: Path) -> None:
        before = sorted(tmp_path.parent.iterdir())
        home = tmp_path / "home"

        @settings(max_examples=number, database=None, **quiet)  # type: ignore[arg-type]
        @given(st.data())
        def each(data: st.DataObject) -> None:
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            function(home, data)

        each()
        assert sorted(tmp_path.parent.iterdir()) == before and list(tmp_path.iterdir()) == [home]

    counted.__name__, counted.__doc__ = function.__name__, function.__doc__
    return counted


def told_or_used(use: Callable[[], object]) -> None:
    """It does what it should or says why not, as a person's mistake: in words of ours, and soon."""
    began = time.monotonic()
    try:
        use()
    except ValueError as error:
        assert str(error) and "Traceback" not in str(error) and len(str(error)) < 20_000
    assert time.monotonic() - began < PATIENCE * PROMISED_S


EXPERIMENT = dump(load_experiment("bignas-digits"))
TREE = load_experiment("quantnas-photos").model_dump(mode="json")


@cases
def test_experiment_files(home: Path, data: st.DataObject) -> None:
    path = home / "mine.yaml"
    path.write_bytes(data.draw(torn(EXPERIMENT.encode())))
    told_or_used(lambda: load_experiment(path))
    path.write_text(json.dumps(data.draw(changed(TREE))))
    told_or_used(lambda: load_experiment(path))


@cases
def test_experiments_of_a_run(home: Path, data: st.DataObject) -> None:
    (home / "experiment.yaml").write_text(json.dumps(data.draw(changed(TREE))))
    (home / "run.json").write_text(json.dumps(data.draw(values)))
    told_or_used(lambda: RunDir(home).load())


JOURNAL = next((OLD / "search").iterdir()).read_bytes()


@cases
def test_journals(home: Path, data: st.DataObject) -> None:
    lines = JOURNAL.splitlines(keepends=True)
    head = {key: value for key, value in json.loads(lines[0]).items() if key != "raynas_journal"}
    line = data.draw(st.integers(0, len(lines) - 1))
    text = json.dumps(data.draw(changed(json.loads(lines[line])))).encode() + b"\n"
    for content in (data.draw(torn(JOURNAL)), b"".join([*lines[:line], text, *lines[line + 1 :]])):
        path = home / "journal-00000000.jsonl"
        path.write_bytes(content)
        told_or_used(lambda path=path: History(path).update())
        told_or_used(lambda path=path: Journal(path, head).close())


def child_in(home: Path) -> Path:
    return Path(shutil.copytree(OLD / "children" / CHILD, home / CHILD))


def seal(directory: Path) -> None:
    files = [path for path in directory.iterdir() if path.name != "manifest.json"]
    facts = {path.name: {"size": path.stat().st_size, "sha256": atomic.sha256(path)} for path in files}
    (directory / "manifest.json").write_text(json.dumps({"files": facts}))


@cases
def test_arch_json(home: Path, data: st.DataObject) -> None:
    child = child_in(home)
    about = json.loads((child / "arch.json").read_text())
    (child / "arch.json").write_text(json.dumps(data.draw(changed(about))))
    seal(child)
    told_or_used(lambda: nas.load_child(child))


@cases
def test_manifests(home: Path, data: st.DataObject) -> None:
    child = child_in(home)
    manifest = json.loads((child / "manifest.json").read_text())
    (child / "manifest.json").write_text(json.dumps(data.draw(changed(manifest))))
    told_or_used(lambda: nas.load_child(child))
    (child / "manifest.json").write_bytes(data.draw(torn(json.dumps(manifest).encode())))
    told_or_used(lambda: nas.load_child(child))


@cases
def test_reports(home: Path, data: st.DataObject) -> None:
    run = Path(shutil.copytree(OLD, home / "run"))
    for name in (f"children/{CHILD}/metrics.json", "run.json"):
        form = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(data.draw(changed(form))))
    journal = next((run / "search").iterdir())
    journal.write_bytes(data.draw(torn(JOURNAL)))
    told_or_used(lambda: write_report(RunDir(run)))
