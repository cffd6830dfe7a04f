"""One Ray session for all stages of a command: a cluster where one is named, else this machine."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.job_config import JobConfig

from nas.config import own
from nas.config.experiment import Experiment
from nas.rundir.fence import Fence, Fenced, Gone
from nas.workers import local
from nas.workers.stopping import RayDied, off_main_thread, wait_for

END_S = 20.0  # for Ray to end in order, where need be after it has started

RAY_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the end, or a death, is seen; 2 s by default
    # how soon a notice that a node will be taken away reaches the workers; 5 s by default
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_prestart_worker_first_driver": "0",  # workers without our environment, which nobody would use
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours ends the search in order
    # in a submitted job: what is set below adds to the job's own, and may repeat it
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
}


class TooLittle(ValueError):
    """The cluster has less than was asked for; nothing was started."""


@contextmanager
def session(
    logs: Path | None = None, check: Callable[[], None] = lambda: None, meanwhile: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """A connection to Ray: the cluster of RAY_ADDRESS, or a local one that ends with this process. Nested calls
    share one.

    Of a local one nothing is left afterwards, neither processes nor Ray's directory.

    Args:
        logs: where Ray's logs are kept where it dies.
        check: asked while Ray starts; what it raises ends the start.
        meanwhile: done while Ray starts, which takes some seconds; not done where it has started before.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    started, over, left = Future[None](), threading.Event(), False
    thread = threading.Thread(target=_hold, args=(started, over), daemon=True)
    with local.swept() as mark:
        thread.start()
        try:
            meanwhile()
            wait_for(started, check)
            _take_back(signal.SIGTERM)
            mark()
            yield
        except (RayDied, Gone, Fenced) as end:
            left = True
            if isinstance(end, RayDied):
                raise RayDied(f"{end}{local.keep(logs)}") from None
            raise
        finally:
            if not left:  # to end Ray in order while a thread still works on it may take a minute, or crash
                over.set()
                thread.join(END_S)


def _take_back(number: signal.Signals) -> None:
    """Put Python's handler of a signal back into its place. As it starts, Ray puts one before it that prints the stack
    and, whatever comes after, ends the process three seconds later: too soon for a checkpoint to be saved."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, signal.getsignal(number))


def _hold(started: Future[None], over: threading.Event) -> None:
    """Ray from start to end, in a thread of its own: in the main one it takes SIGTERM for itself. And no shorter one,
    since Linux ends Ray's processes with the thread that started them."""
    passed = {name: os.environ[name] for name in ("RAYNAS_DATA", "PYTHONPATH") if os.environ.get(name)}
    told = own.for_workers()
    environment: dict[str, Any] = {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE", **passed, **told}}
    if told:
        environment["worker_process_setup_hook"] = "nas.config.own.in_worker"
    try:
        ray.init(
            include_dashboard=False if "RAY_ADDRESS" not in os.environ else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=environment,
            job_config=_without_this_folder(),
        )
    except BaseException as error:
        started.set_exception(error)
    else:
        started.set_result(None)
        over.wait()
        ray.shutdown()


class _Nowhere(list[str]):
    """A list of folders that none is added to."""

    def extend(self, folders: Iterable[str]) -> None:
        pass


def _without_this_folder() -> JobConfig:
    """Ray puts the driver's folder, and its script's, first on the workers' path, and has nothing to turn that off."""
    config = JobConfig()
    config._py_driver_sys_path = _Nowhere()
    return config


def on_ray(work: Callable[[], Any], fence: Fence) -> Any:
    """Do what waits for Ray, for as long as Ray lives, the run is there, and this attempt may write to it.

    Raises:
        RayDied, Gone, Fenced: one of these is over; whatever `work` raises.
    """

    def check() -> None:
        fence.check()
        local.check_alive()

    return off_main_thread(work, check)


def check_room(experiment: Experiment) -> None:
    """Refuse an experiment whose training or search would wait for ever.

    Raises:
        TooLittle: says what is asked, what there is, and what to change.
    """
    train, trials, gpu = experiment.train, experiment.search.trials, has_gpus(experiment.train.use_gpu)
    count = workers(experiment)
    _check(count * train.cpus_per_worker, count * gpu, f"training with {count} workers", "train.workers")
    _check(trials, gpu, f"searching with {trials} trials at a time", "search.trials")


def _check(cpus: float, gpus: float, what: str, setting: str) -> None:
    have = ray.cluster_resources()
    for name, want in (("CPU", cpus), ("GPU", gpus)):
        if want > have.get(name, 0):
            raise TooLittle(
                f"{what} asks for {want:g} {name}s and the cluster has {have.get(name, 0):g}: lower {setting}, or add "
                "machines"
            )


def workers(experiment: Experiment) -> int:
    """How many train: as set, or one for each GPU where use_gpu is null and there are fewer GPUs, if the batch
    divides among these."""
    train, have = experiment.train, int(gpus())
    share = train.micro_batch or 1
    fewer = train.use_gpu is None and 0 < have < train.workers and experiment.recipe.batch % (have * share) == 0
    return have if fewer else train.workers


def has_gpus(setting: bool | None) -> bool:
    """Whether workers use GPUs: as set, else if the cluster has any."""
    return gpus() > 0 if setting is None else setting


def gpus() -> float:
    """How many the cluster has."""
    return ray.cluster_resources().get("GPU", 0.0)


def gpu_share(trials: int) -> float:
    """The part of a GPU that each of so many trials at a time reserves: a whole number of them fits on every GPU. Ray
    counts in ten-thousandths."""
    on_each = math.ceil(trials / gpus())
    return math.floor(1e4 / on_each) / 1e4


def leaving() -> bool:
    """Whether the machine of this process will be taken away: Ray drains a node at a preemption notice, and where it
    is ended by SIGTERM."""
    from ray._private.state import (
        state,
    )  # Ray 2.60 tells it nowhere else; to workers alone by ray.train.get_preemption_info

    return ray.get_runtime_context().get_node_id() in state.get_draining_nodes()
