"""The package as it is installed: every module imports, and nothing of it takes the place of another's name."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import nas

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    module.name
    for package in ("nas", "searchspaces", "cluster")
    for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}.")
    if module.name not in ("nas.cli.__main__", "cluster.probe", "cluster.pack")  # these two are scripts for a cluster
)


def test_every_module_imports_and_the_functions_of_the_package_stay() -> None:
    """A module ``nas.run`` would take the place of the function when it is imported."""
    for name in MODULES:
        importlib.import_module(name)
    assert len(MODULES) > 70
    for name in nas.__all__:
        assert callable(getattr(nas, name)), name
    with pytest.raises(ValueError, match="no preset and no file 'nothing'"):
        nas.run("nothing")


def test_help_imports_no_torch_and_training_no_tune() -> None:
    """What a first command waits for."""
    for given, absent in (
        ("nas.cli.commands", ("torch", "ray", "mlflow")),
        ("nas.pipeline, nas.workers.train", ("ray.tune",)),
    ):
        code = f"import sys, {given}; print([name for name in {absent} if name in sys.modules])"
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert told.stdout.strip() == "[]", given


def test_the_wheel_holds_every_package(tmp_path: Path) -> None:
    """An editable install hides a package that pyproject forgot: the wheel is unpacked by pip elsewhere, and imports
    from there."""
    pip = [sys.executable, "-m", "pip"]
    quiet = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", *quiet, "--no-build-isolation", "--wheel-dir", tmp_path, ROOT], check=True, cwd=tmp_path
    )
    (wheel,) = tmp_path.glob("raynas-*.whl")
    subprocess.run([*pip, "install", *quiet, "--target", tmp_path / "site", wheel], check=True, cwd=tmp_path)
    code = (
        f"import importlib, sys; sys.path.insert(0, sys.argv[1])\nfor name in {MODULES}: "
        "importlib.import_module(name)\nimport nas; print(nas.__file__)"
    )
    told = subprocess.run([sys.executable, "-c", code, tmp_path / "site"], capture_output=True, text=True, cwd=tmp_path)
    assert told.stdout.strip() == str(tmp_path / "site" / "nas" / "__init__.py"), told.stderr[-2000:]
    site = tmp_path / "site"
    presets = site / "searchspaces" / "presets"
    assert (site / "nas" / "py.typed").exists() and list(presets.glob("*.yaml"))
    assert (presets / "experiment.schema.json").exists()
