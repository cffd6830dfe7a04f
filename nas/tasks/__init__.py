"""What "good" means: a task owns the data, the losses, the teacher's signal and the metric."""

from __future__ import annotations

from nas.experiment import Experiment
from nas.tasks.classification import Classification


def load_task(experiment: Experiment) -> Classification:
    """The task that the experiment's data set poses, its images in memory.

    Raises:
        FileNotFoundError: the data set is not on this machine; the message says how to get it.
        ValueError: it is there, but cannot be used.
    """
    return Classification(experiment.data, experiment.seed)
