"""The package as it is installed: every module imports, and nothing of it takes the place of another's name."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
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


PIP = [sys.executable, "-m", "pip"]
QUIET = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]


def wheel_of(source: Path, folder: Path) -> Path:
    """The wheel of a source tree, made in a folder."""
    given = ["wheel", *QUIET, "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run([*PIP, *given], check=True, cwd=folder)
    (wheel,) = folder.glob("raynas-*.whl")
    return wheel


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
    wheel = wheel_of(ROOT, tmp_path)
    subprocess.run([*PIP, "install", *QUIET, "--target", tmp_path / "site", wheel], check=True, cwd=tmp_path)
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


def test_the_image_is_built_of_all_that_the_wheel_needs(tmp_path: Path) -> None:
    """Its first stage by hand, with what the Dockerfile copies of what .dockerignore lets through."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1:] for line in lines if line.startswith("COPY ") and "--from" not in line]
    let_through = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    (tmp_path / "src").mkdir()
    for *names, into in copied:
        for name in names:
            assert name in let_through
            target = tmp_path / "src" / into / (name if into.endswith("/") else "")
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
    (tmp_path / "whole").mkdir()
    whole, here = (
        zipfile.ZipFile(wheel_of(*each)) for each in ((ROOT, tmp_path / "whole"), (tmp_path / "src", tmp_path))
    )
    assert set(here.namelist()) == set(whole.namelist())
    base = re.search(r"^ARG PYTHON=3\.(\d+)$", "\n".join(lines), re.MULTILINE)
    needed = re.search(r'^requires-python = ">=3\.(\d+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert base and needed and int(base[1]) >= int(needed[1])


@pytest.mark.soak
def test_the_wheel_runs_outside_the_repository(tmp_path: Path) -> None:
    """Installed into an environment of its own, which finds this one's packages and nothing of the repository."""
    wheel, environment, home = wheel_of(ROOT, tmp_path), tmp_path / "venv", tmp_path / "home"
    venv.create(environment, with_pip=True)
    home.mkdir()
    around = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    around["PATH"] = os.pathsep.join([str(environment / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])

    def run(*words: str | Path) -> str:
        ended = subprocess.run(words, cwd=home, env=around, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert ended.returncode == 0, ended.stdout[-2000:]
        return ended.stdout.strip()

    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", *QUIET, wheel)
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    Path(packages, "others.pth").write_text(sysconfig.get_path("purelib"))
    assert Path(run(python, "-c", "import nas; print(nas.__file__)")).is_relative_to(environment)
    small = ("recipe.epochs=3", "search.candidates=10", "export.children=1")
    run(environment / "bin" / "nas", "run", "bignas-digits", *(word for each in small for word in ("--set", each)))
    left = home / "runs" / "bignas-digits"
    assert (left / "report.html").exists() and list(left.glob("children/*/model.safetensors"))
