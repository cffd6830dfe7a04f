"""What "good" means: a task owns the data, the losses, the teacher's signal and the metric."""

from __future__ import annotations

from pathlib import Path

from nas.config.experiment import Experiment
from nas.config.sections import Data, DataSettings
from nas.tasks import datasets, pairs
from nas.tasks.classification import Classification
from nas.tasks.super_resolution import SuperResolution
from nas.tasks.task import Task


def load_task(experiment: Experiment) -> Task:
    """The task that the experiment's data set poses, its images in memory.

    Raises:
        FileNotFoundError: the data set is not on this machine; the message says how to get it.
        ValueError: it is there, but cannot be used.
    """
    data = experiment.data
    return Classification(data, experiment.seed) if isinstance(data, DataSettings) else SuperResolution(data, experiment.seed)


def locate(data: Data) -> Path | None:
    """Where a data set lies, without reading it; None for one that is built in.

    Raises:
        DataMissing: it is not there.
    """
    return datasets.locate(data) if isinstance(data, DataSettings) else pairs.locate(data)
