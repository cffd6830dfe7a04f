"""An exported child as a version of a model in MLflow's registry."""

from __future__ import annotations

from nas.children.export import child_packages, load_child
from nas.config.experiment import Experiment
from nas.results.tracking import address, register_model
from nas.rundir import forms
from nas.rundir.atomic import sha256, verify
from nas.rundir.directory import RunDir
from nas.space import Arch


def register(run: RunDir, experiment: Experiment, name: str, model: str, alias: str | None) -> str:
    """Make an exported child a version of a registered model, for `mlflow.pytorch.load_model`.

    Args:
        name: of the child's directory.
        model, alias: of the registered model, made if there is none; an alias moves from the version that had it.

    Returns:
        The version.

    Raises:
        ValueError: there is no such child, or MLflow has no run of it.
    """
    files = run.exported_child(name)
    child, about = load_child(files.path, child_packages(experiment.space.name)), forms.read(files.arch, forms.Arch)
    arch = Arch(about.arch).id  # a finetuned child is named otherwise
    label = f"{name}-{sha256(files.weights)[:8]}"
    uri, takes = address(run, experiment.tracking.uri), about.input
    group, shape = experiment.tracking.experiment or experiment.name, list(takes.shape)
    supernet = verify(files.path).get("supernet", "")
    return register_model(run, uri, group, child, arch, supernet, label, shape, takes.any_size, model, alias)
