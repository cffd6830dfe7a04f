"""Who may import whom, read from the source: the rules of design.md, kept by a machine."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for package in ("nas", "searchspaces", "cluster") for path in (ROOT / package).rglob("*.py"))
MOST_LINES = 500

# Which files alone may import a library, anywhere in them.
HOMES = {
    "deepspeed": {"nas/training/engine.py"},
    "mlflow": {"nas/results/tracking.py"},
    "ray": {
        "nas/workers/train.py",
        "nas/workers/session.py",
        "nas/workers/local.py",
        "nas/cli/doctor.py",
        "nas/workers/trials.py",
        "nas/workers/alone.py",
        "cluster/*",
    },
    "onnx": {"nas/children/formats.py", "nas/children/quantize.py"},
    "onnxruntime": {"nas/children/formats.py", "nas/children/quantize.py"},
    "openvino": {"nas/children/runtimes.py"},
    "executorch": {"nas/children/runtimes.py"},
    "scipy": {
        *("nas/quantization/allocate.py", "nas/search/guided.py", "nas/children/latency.py", "nas/statistics.py"),
    },
    "moocore": {"nas/search/pareto.py"},
    "onnxscript": {"nas/children/formats.py"},
    "typer": {
        *("nas/cli/commands.py", "nas/cli/check.py", "nas/cli/cluster.py", "nas/cli/init.py", "nas/cli/latency.py"),
        *("nas/cli/plan.py", "nas/cli/results.py"),
    },
    "matplotlib": {"nas/results/plots.py"},
    "pyarrow": {"nas/rundir/mirror.py", "cluster/probe.py"},
}
# What alone a file may import besides the standard library; "torch" stands for torch.*, "nas.space" for that module.
DIETS = {
    "nas/space.py": {"numpy"},
    "nas/static.py": {"torch"},
    "nas/preprocess.py": {"torch", "PIL"},
    "nas/pretrained.py": {"torch", "safetensors", "nas.preprocess"},
    "nas/tasks/tiles.py": {"torch"},
    "nas/quantization/levels.py": {"torch"},
    "nas/quantization/target.py": {"nas.config.section"},
    "nas/results/choose.py": {"numpy", "nas.config", "nas.results.history", "nas.rundir", "nas.search", "nas.space"},
    "nas/cli/tied.py": set(),
    "nas/cli/failures.py": set(),
    "nas/quantization/learned.py": {"torch", "nas.quantization.levels"},
    "nas/quantization/integer.py": {"torch", "nas.quantization.levels"},
    "searchspaces/*_child.py": {"torch", "nas.static", "nas.quantization.learned"},
    "nas/elastic/*.py": {"torch", "numpy", "nas.elastic"},
    "nas/recipes/*.py": {
        "torch",
        "numpy",
        "pydantic",
        "nas.recipes",
        "nas.supernet",
        "nas.space",
        "nas.draws",
        "nas.config.section",
    },
    "nas/recipes/options.py": {"pydantic", "nas.config.section"},
    "nas/costs/options.py": {"pydantic", "nas.config.section", "nas.tasks.places"},
    "nas/costs/*.py": {
        *("pydantic", "nas.costs", "nas.space", "nas.supernet", "nas.rundir.forms"),
        *("nas.config.section", "nas.tasks.places"),
    },
    "nas/tasks/places.py": set(),
    "nas/tasks/options.py": {"pydantic", "nas.config.section", "nas.tasks.places"},
    "nas/tasks/*.py": {
        *("torch", "torchvision", "numpy", "PIL", "sklearn", "pydantic", "filelock"),
        *("nas.tasks", "nas.supernet", "nas.preprocess", "nas.draws", "nas.config.section"),
    },
    "nas/supernet.py": {"torch", "nas.space", "nas.config.section"},
    "nas/device.py": {"torch"},
    "nas/rundir/atomic.py": set(),
    "nas/rundir/forms.py": {"pydantic", "nas.rundir.atomic"},
    "nas/config/trust.py": set(),
    "nas/config/own.py": set(),
    "nas/config/section.py": {"pydantic"},
    "nas/config/plugins.py": {"pydantic", "pydantic_core", "nas.config.own", "nas.config.section"},
    "nas/config/sections.py": {"pydantic", "nas.config.addresses", "nas.config.plugins", "nas.config.section"},
    "nas/config/experiment.py": {"pydantic", "yaml", "nas.config"},
    "nas/cli/starter.py": {"PIL", "nas.tasks.places", "yaml"},
    "nas/search/*.py": {
        *("numpy", "moocore", "scipy", "sklearn", "pydantic"),
        *("nas.space", "nas.search", "nas.config.section"),
    },
    "nas/search/core.py": {"numpy", "nas.space", "nas.search", "nas.config.section"},
}
UNPICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@cache
def imported(path: Path, by_name: bool = False) -> tuple[str, ...]:
    """Full names of all that a file imports, at its top, inside functions and for the type checker: ``nas.space.Arch``,
    ``torch.nn``.

    Args:
        by_name: also what it imports by a fixed string, which is how nas finds the package of built-in spaces.
    """
    module = where(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    package = (module if path.name == "__init__.py" else module.rpartition(".")[0]).split(".")
    found: list[str] = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [f"{base}.{alias.name}" for alias in node.names]
        elif (
            by_name
            and isinstance(node, ast.Call)
            and called(node) in ("importlib.import_module", "import_module", "__import__")
        ):
            found += [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return tuple(found)


def called(node: ast.Call) -> str:
    """``"torch.load"`` of ``torch.load(...)``; empty where it is no plain name."""
    parts, function = [], node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    return ".".join([function.id, *reversed(parts)]) if isinstance(function, ast.Name) else ""


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def offences(rule: Callable[[str, str], bool], by_name: bool = False) -> list[str]:
    """Every import, as ``file: name``, that a rule forbids."""
    return [f"{where(path)}: {name}" for path in FILES for name in imported(path, by_name) if rule(where(path), name)]


def test_the_walk_sees_imports_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules below are worth what this reads: inside functions, relative, by importlib."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "nas/search").mkdir(parents=True)
    path = tmp_path / "nas/search/x.py"
    path.write_text(
        "import a.b\ndef f():\n    from c import d\n    from . import e\n    from ..g import h\n    "
        "importlib.import_module('i')\n"
    )
    assert sorted(imported(path)) == ["a.b", "c.d", "nas.g.h", "nas.search.e"]
    assert "i" in imported(path, by_name=True)
    assert len(FILES) > 30


@pytest.mark.parametrize("library", HOMES)
def test_a_library_lives_in_its_own_files(library: str) -> None:
    homes = HOMES[library]
    assert not offences(
        lambda file, name: within(name, library) and not any(Path(file).match(home) for home in homes), by_name=True
    )


@pytest.mark.parametrize("pattern", DIETS)
def test_what_a_file_is_made_of(pattern: str) -> None:
    files = {where(path) for path in FILES if Path(where(path)).match(pattern)}
    assert files, f"no file {pattern}"
    allowed = DIETS[pattern] | set(sys.stdlib_module_names)
    assert not offences(lambda file, name: file in files and not any(within(name, module) for module in allowed))


def test_what_runs_before_a_module_of_the_search_is_empty() -> None:
    """And of the configuration: a plug-in that imports either gets nothing else along."""
    assert not any((ROOT / "nas" / room / "__init__.py").read_text() for room in ("search", "config"))


def test_arrows_run_one_way() -> None:
    """nas imports neither searchspaces nor cluster, but for the latter's commands; cluster neither; searchspaces
    what a network is made of."""
    assert not offences(lambda file, name: file.startswith("nas/") and within(name, "searchspaces"))
    assert not offences(
        lambda file, name: file.startswith("nas/") and within(name, "cluster") and file != "nas/cli/cluster.py"
    )
    assert not offences(lambda file, name: within(name, "nas.cli.cluster") and file != "nas/cli/commands.py")
    others = ("nas", "searchspaces")
    assert not offences(
        lambda file, name: file.startswith("cluster/") and any(within(name, package) for package in others)
    )
    parts = (
        "nas.space",
        "nas.elastic",
        "nas.static",
        "nas.supernet",
        "nas.quantization.learned",
        "nas.quantization.levels",
    )
    assert not offences(
        lambda file, name: (
            file.startswith("searchspaces/") and within(name, "nas") and not any(within(name, part) for part in parts)
        )
    )
    assert not offences(lambda file, name: file.startswith("searchspaces/") and within(name, "cluster"))


def test_nothing_in_nas_asks_which_space_it_serves() -> None:
    """No text in nas names a built-in space, but for help and examples, which are docstrings, and the commands'
    page."""
    names = {path.stem for path in FILES if where(path).startswith("searchspaces/") and "SIZES" in path.read_text()}
    assert names
    found = []
    for path in FILES:
        if where(path).startswith("nas/") and where(path) != "nas/cli/commands.py":
            found += [
                f"{where(path)}:{node.lineno}"
                for node in ast.walk(tree(path))
                if isinstance(node, ast.Constant) and node.value in names
            ]
    assert not found


def test_files_have_a_readable_length() -> None:
    lines = {where(path): len(path.read_text().splitlines()) for path in FILES}
    assert not {file: count for file, count in lines.items() if count > MOST_LINES}


def test_only_commands_print() -> None:
    found = []
    for path in FILES:
        if where(path) not in (
            "nas/cli/commands.py",
            "nas/cli/check.py",
            "nas/cli/cluster.py",
            "nas/cli/init.py",
            "nas/cli/latency.py",
            "nas/cli/plan.py",
            "nas/cli/results.py",
            "nas/cli/progress.py",
            "nas/cli/schema.py",
            "cluster/probe.py",
        ):
            calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
            found += [
                f"{where(path)}:{node.lineno}"
                for node in calls
                if called(node) in ("print", "sys.stdout.write", "sys.stderr.write")
                or called(node).endswith("console.print")
            ]
    assert not found


def test_nothing_is_unpickled_or_evaluated() -> None:
    """Files may come from strangers: no pickle in any guise, no `torch.load`, no `eval` or `exec`, no shell."""
    assert not offences(lambda file, name: name.split(".")[0] in UNPICKLERS, by_name=True)
    forbidden = (
        "eval",
        "exec",
        "torch.load",
        "torch.save",
        "yaml.unsafe_load",
        "yaml.full_load",
        "os.system",
        "os.popen",
    )
    found = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                risky = called(node) in forbidden or any(
                    keyword.arg in ("allow_pickle", "shell", "weights_only")
                    and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
                    for keyword in node.keywords
                )
                found += [f"{where(path)}:{node.lineno}"] * risky
    assert not found
