"""Training on Ray Train workers: from a run directory to a run directory with a trained supernet in it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch

from nas.config.experiment import Experiment, parse
from nas.device import MemoryShort, configure_process
from nas.rundir.atomic import Damaged
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import RunDir
from nas.rundir.fence import Fence, Fenced, Gone
from nas.rundir.log import Line, TrainingLines
from nas.training.guard import Diverged
from nas.training.loop import Loop
from nas.workers.session import check_room, has_gpus, on_ray, session, workers

Notify = Callable[[Line], None]
CERTAIN = (OSError, Gone, Fenced, Damaged, MemoryShort, Diverged)  # what another try would meet again


class TrainingFailed(RuntimeError):
    """The workers gave up; the message is theirs."""


def prepare(device: torch.device) -> None:
    """What takes long before a training and needs no Ray: to be done while that starts, where it is started here."""
    if device.type == "cpu" and "RAY_ADDRESS" not in os.environ:
        from nas.training.engine import prebuild

        prebuild()


def train(experiment: Experiment, run: RunDir, fence: Fence, notify: Notify = lambda _: None) -> Checkpoint | None:
    """Train the experiment's supernet from where the run stands to the end, or until it is asked to stop.

    Args:
        notify: called in this process with each new line of the training log.

    Returns:
        The newest checkpoint; None where it was asked to stop before the first.

    Raises:
        TooLittle: the cluster has less than the experiment asks for.
        TrainingFailed: a worker raised, or died more often than ``train.max_failures``.
        OSError, Gone, Fenced, Damaged, MemoryShort, Diverged: a worker could not read or write the run, its GPU is too
            small, or its losses are not finite after the last rollback; another try would not help.
        RayDied: a process that Ray cannot do without has died.
    """
    from nas.training.engine import prebuild

    with session(), following(run.training_log, notify):
        check_room(experiment)
        gpu = has_gpus(experiment.train.use_gpu)
        if not gpu:
            prebuild()
        done, failures = -1, 0
        # more than one part where a worker has died, or all have saved and returned since a machine is being taken away
        for part in count():
            try:
                _fit(experiment, run, fence, gpu, part)
            except TrainingFailed:
                failures += 1
                if failures > experiment.train.max_failures:
                    raise
                continue
            newest = Checkpoint.newest(run.checkpoints)
            if newest is None or newest.state.share_done(experiment.train.max_minutes) >= 1 or fence.stopping():
                return newest
            if newest.state.step <= done:
                raise TrainingFailed(
                    f"the workers were asked to leave their machines twice at step {done:,}; the same command continues"
                )
            done = newest.state.step
    return None


def _fit(experiment: Experiment, run: RunDir, fence: Fence, gpu: bool, part: int) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

    settings = experiment.train
    trainer = TorchTrainer(
        work,
        train_loop_config={
            "experiment": experiment.model_dump(mode="json"),
            "run": str(run.path),
            "attempt": fence.attempt,
            "gpu": gpu,
        },
        scaling_config=ScalingConfig(
            num_workers=workers(experiment),
            use_gpu=gpu,
            resources_per_worker={"CPU": settings.cpus_per_worker, "GPU": int(gpu)},
        ),
        run_config=RunConfig(
            name=f"attempt-{fence.attempt}-{part}",
            storage_path=str(run.ray),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=3),  # type: ignore[call-arg]
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
    )
    try:
        on_ray(trainer.fit, fence)
    except TrainingFailedError as error:
        failures = error.worker_failures if isinstance(error, WorkerGroupError) else {0: error}
        said = [failures[rank] for rank in sorted(failures)]
        for each in said:
            if isinstance(each, CERTAIN) and not isinstance(each, (ConnectionError, TimeoutError)):
                raise each from None
        raise TrainingFailed(str(said[0]).strip()) from error  # without the frames of Ray


def work(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray
    import ray.train

    cpus = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))
    device = configure_process(config["gpu"], cpus)
    run, place = RunDir(config["run"]), ray.train.get_context()
    fence = Fence(run.path, config["attempt"])
    Loop(
        parse(config["experiment"]), run, fence, place.get_world_rank(), place.get_world_size(), device, preempted
    ).train()


def preempted() -> bool:
    """Whether Ray has notice that the node of some worker will be taken away; all workers ask together, and get one
    answer."""
    import ray.train

    return ray.train.get_preemption_info() is not None


@contextmanager
def following(path: Path, notify: Notify, every_s: float = 0.25) -> Iterator[None]:
    """Call `notify` with every line that is added to a training log while the context is open."""
    stop, lines = threading.Event(), TrainingLines(path)
    lines.new()

    def follow() -> None:
        last = False
        while not last:
            last = stop.wait(every_s)
            for line in lines.new():
                notify(line)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)
