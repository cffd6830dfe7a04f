"""What a run does, told to MLflow: the only file that imports it.

A background thread follows the files of the run directory and sends what is not yet sent. Nothing that the caller does
waits for MLflow. A server that is away neither stops nor slows the work; what it missed is sent when it is back, in
this process or at the next start, and once.

Once, because three things hold. What was sent is noted in ``RUN/tracking.jsonl``. A crash, or an answer that got lost,
can fall between MLflow's taking something and that note; so after a start and after every failure the runs that MLflow
has are looked up by tag before another is created, and half-filled ones are completed. And a figure is sent only for
steps later than those a run has.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nas.config.addresses import masked
from nas.results.history import read_json
from nas.results.outbox import FIGURES, VIEW_KEY, VIEW_TAG, Item, Key, Outbox, Sent
from nas.rundir.directory import RunDir

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from torch import nn

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0  # training writes from another process, which cannot poke
BACKOFF_SECONDS = (1.0, 60.0)  # after the first failure, and at most
CLOSE_TRIES = 2
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE"}  # of this one item: another try would not help
ENVIRONMENT = {
    # MLflow's client repeats a create whose answer got lost, which makes two runs; this file repeats, and looks first.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


UI_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # jobs are not what it is opened for


def default_uri(run: RunDir) -> str:
    """The store that runs beside each other share."""
    return f"sqlite:///{run.mlflow}"


def check_uri(uri: str) -> str:
    """`uri` itself, if MLflow can keep a run there.

    Raises:
        ValueError: a folder, which MLflow 3 refuses, or a database whose place depends on the current folder.
    """
    scheme = urlsplit(uri).scheme
    if scheme == "file" or (not scheme and uri != "databricks"):
        raise ValueError(
            f"tracking.uri is {uri!r}, a folder: MLflow has given up file stores; "
            "write sqlite:////absolute/path/mlflow.db, or http://... of an `mlflow server`"
        )
    if scheme == "sqlite" and not uri.startswith("sqlite:////"):
        raise ValueError(
            f"tracking.uri is {uri!r}, whose place depends on the current folder; write "
            "sqlite:////absolute/path/mlflow.db"
        )
    return uri


def ui_command(uri: str, port: int) -> list[str]:
    """The command that opens the comparison of the runs in a database, for this machine alone.

    Raises:
        ValueError: `uri` is a server, which shows the comparison itself; or another program has the port.
    """
    if urlsplit(check_uri(uri)).scheme in ("http", "https", "databricks", ""):
        raise ValueError(f"{masked(uri)} is a server: open it in a browser")
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise ValueError(
            f"port {port} of this machine cannot be had ({error.strerror}); give another: --port"
        ) from error
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]


@dataclass
class _Held:
    """A run in MLflow and what it holds."""

    id: str
    start: int  # milliseconds
    status: str = "RUNNING"
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: frozenset[str] = frozenset()
    last_step: dict[str, int] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


class _Store:
    """MLflow, by explicit run ids alone. Every call may raise when the server is away; connect again before the
    next."""

    def __init__(self, uri: str, experiment: str, run: RunDir) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient  # takes seconds, so in the background

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback of what it raises as well
        about = read_json(run.about)
        self.raynas_run, self.raynas_name = str(about["id"]), str(about.get("name", run.path.name))
        self.client: MlflowClient = MlflowClient(uri)
        self.experiment = self._experiment(
            experiment, run.mlflow_artifacts.as_uri() if uri.startswith("sqlite:") else None
        )
        self.runs: dict[Key, _Held] = {}
        self._look_up()

    def _experiment(self, name: str, artifacts: str | None) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return self.client.create_experiment(name, artifact_location=artifacts)  # None: a server decides itself
        if found.lifecycle_stage != "active":
            raise RuntimeError(
                f"the MLflow experiment {name!r} was deleted; restore it there, or name another in tracking.experiment"
            )
        return str(found.experiment_id)

    def _look_up(self) -> None:
        query, token = f"tags.`raynas.run` = '{self.raynas_run}'", None
        while True:
            page = self.client.search_runs(
                [self.experiment], query, max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
            )
            for run in page:
                self._know(run)
            token = page.token
            if not token:
                return

    def _know(self, run: Run) -> None:
        """Take in a run that MLflow has. Of twins, which a lost answer to a create can make, the empty one is
        deleted."""
        tags, info = run.data.tags, run.info
        new = _Held(info.run_id, info.start_time, info.status, dict(run.data.params), frozenset(run.data.metrics))
        new.tags = dict(tags)
        key: Key = tuple(tags[name] for name in ("raynas.kind", "raynas.supernet") if name in tags)
        if "raynas.candidate" in tags:
            key = (*key, int(tags["raynas.candidate"]))
        old = self.runs.setdefault(key, new)
        if old is not new:
            twin, self.runs[key] = (old, new) if new.metrics and not old.metrics else (new, old)
            if not twin.metrics and twin.status == "RUNNING":
                self.client.delete_run(twin.id)

    def send(self, item: Item) -> None:
        """Make the item's run hold what it says; what is there already is not sent again."""
        run = self._open(item)
        if run is None:
            return
        if item.run[0] == "candidate" and item.finish and run.status != "RUNNING":  # of a directory that has moved, say
            item = Item(item.key, None, item.run, tags=dict(item.tags.items() - run.tags.items()))
        if run.status != "RUNNING" and item.run[0] != "candidate" and not item.finish:
            self.client.update_run(run.id, status="RUNNING")  # an earlier session had ended it
            run.status = "RUNNING"
        self._log(run, item)
        for name, text in item.shared.items():
            self.client.set_experiment_tag(self.experiment, name, text)
        for name, content in item.artifacts.items():
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, name).write_bytes(content)
                self.client.log_artifact(run.id, str(Path(folder, name)))
        if item.finish:
            end = run.start + int(1000 * item.seconds) if item.run[0] == "candidate" else None
            self.client.set_terminated(run.id, item.finish, end)
            run.status = item.finish

    def _open(self, item: Item) -> _Held | None:
        """The run of an item, made where MLflow does not have it; None where it is gone and not to be made again."""
        if item.run in self.runs:
            return self.runs[item.run]
        if item.run[0] != "candidate":
            return self._create(item.run, f"{self.raynas_name} {item.run[0]}", {}, 0.0)
        if item.name is None:
            return None
        search = self._open(Item((), None, ("search", item.run[1])))
        assert search is not None
        return self._create(item.run, item.name, {**item.born, "mlflow.parentRunId": search.id}, item.seconds)

    def _create(self, key: Key, name: str, tags: Mapping[str, str], seconds: float) -> _Held:
        start = int(1000 * (time.time() - seconds))
        own = dict(zip(("raynas.kind", "raynas.supernet", "raynas.candidate"), map(str, key), strict=False))
        tags = {"raynas.run": self.raynas_run, **own, **tags}
        run = self.client.create_run(self.experiment, start_time=start, tags=tags, run_name=name)
        self.runs[key] = _Held(run.info.run_id, start, tags=tags)
        return self.runs[key]

    def _log(self, run: _Held, item: Item) -> None:
        """Params, tags and figures, in one request where MLflow's limits allow. A param cannot be changed: its news
        becomes a tag."""
        from mlflow.entities import Metric, Param, RunTag

        news = {at: held for at, held in item.figures.items() if at[1] > self._last_step(run, at[0])}
        metrics = [Metric(name, value, run.start + since, step) for (name, step), (value, since) in news.items()]
        params = [Param(name, value) for name, value in item.params.items() if name not in run.params]
        today = {name: run.tags.get(f"now.{name}", value) for name, value in run.params.items()}
        changed = {f"now.{name}": value for name, value in item.params.items() if today.get(name, value) != value}
        tags = [RunTag(name, value) for name, value in {**item.tags, **changed}.items()]
        while metrics or params or tags:
            self.client.log_batch(run.id, metrics[:FIGURES], params[:100], tags[:100])
            metrics, params, tags = metrics[FIGURES:], params[100:], tags[100:]
        for name, step in news:
            run.last_step[name] = max(step, run.last_step[name])
        run.params = {**item.params, **run.params}
        run.tags = {**run.tags, **item.tags, **changed}

    def _last_step(self, run: _Held, name: str) -> int:
        if name not in run.last_step:
            history = self.client.get_metric_history(run.id, name) if name in run.metrics else []
            run.last_step[name] = max((metric.step for metric in history), default=-1)
        return run.last_step[name]


class Tracker:
    """Sends a run to MLflow in the background. Used by the driver, and by it alone.

    Args:
        run: what is followed.
        uri: MLflow's tracking URI; None: `default_uri`.
        experiment: the name of MLflow's experiment.

    Raises:
        ValueError: a URI that MLflow cannot keep a run at.
    """

    def __init__(self, run: RunDir, uri: str | None, experiment: str) -> None:
        self.run = run
        self.uri = check_uri(uri or default_uri(run))
        self.experiment = experiment
        self._sent = Sent(run, self.uri, experiment)
        self._outbox = Outbox(run, self._sent)
        self._files = threading.Lock()  # of the two above; never held while MLflow is waited for
        self._store: _Store | None = None
        self._refused: set[Key] = set()
        self._doubt = False  # whether a create may have been done that was answered too late
        self._ending: str | None = None
        self._deadline = float("inf")
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to follow the run. What an earlier start has missed is sent first."""
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        self._thread.start()

    def poke(self) -> None:
        """Tell that there may be something new."""
        self._wake.set()

    def finish(self, stage: str) -> None:
        """Tell that a stage, ``train`` or ``search``, is done: its MLflow run is ended as FINISHED now, and stays so
        whatever happens to the rest."""
        with self._files:
            self._outbox.finished.add(stage)
        self.poke()

    def close(self, timeout: float, status: str = "FINISHED") -> int:
        """Send what is left, for at most `timeout` seconds, and stop.

        Args:
            timeout: seconds.
            status: how MLflow's runs end: FINISHED, FAILED or KILLED.

        Returns:
            How many things could not be sent; the next start sends them.
        """
        self._deadline = time.monotonic() + timeout
        self._ending = status
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)
        try:
            with self._files:
                return sum(item.count for item in self._outbox.pending(status))
        except (OSError, ValueError) as error:
            self._warn("cannot tell what MLflow misses", error)
            return 1

    def _follow(self) -> None:
        failures, tries = 0, 0
        while True:
            self._wake.clear()
            ending = self._ending  # read once: a close that comes during the pass gets a pass of its own
            try:
                self._pass(ending)
                failures = 0
            except Exception as error:  # whatever it is, tracking must not stop the work
                self._store, self._doubt = None, True  # connecting anew looks up what MLflow got
                failures += 1
                if failures == 1:
                    self._warn(f"MLflow could not be told, will try again: {type(error).__name__}", error)
            tries += ending is not None
            if time.monotonic() >= self._deadline or (ending and (failures == 0 or tries >= CLOSE_TRIES)):
                return
            if ending:
                time.sleep(min(BACKOFF_SECONDS[0], max(0.0, self._deadline - time.monotonic())))
            elif failures:
                self._closing.wait(min(BACKOFF_SECONDS[0] * 2 ** (failures - 1), BACKOFF_SECONDS[1]))
            else:
                self._wake.wait(POLL_SECONDS)

    def _pass(self, ending: str | None) -> None:
        """Send all that is pending. Raises where the server is away."""
        items = self._pending(ending)
        if items and self._store is None:
            self._store = _Store(self.uri, self.experiment, self.run)
            if self._sent.values and not self._store.runs:  # the store was emptied behind our back
                with self._files:
                    self._sent.forget()
                    self._outbox.restart()
                items = self._pending(ending)
        for item in items:
            if time.monotonic() >= self._deadline or (self._ending and not ending):
                return
            self._send(item)
        if ending and self._doubt:
            self._store = _Store(self.uri, self.experiment, self.run)  # a last look for twins

    def _pending(self, ending: str | None) -> list[Item]:
        if not self.run.is_run():  # deleted: nothing of it shall be made again
            return []
        with self._files:
            return [item for item in self._outbox.pending(ending) if item.key not in self._refused]

    def _send(self, item: Item) -> None:
        from mlflow.exceptions import MlflowException

        assert self._store is not None
        mark: Key = ("open", *item.run)
        if item.run[0] != "candidate" and item.key != mark and not self._sent.values.get(mark):
            self._note(mark, True)  # before sending, so that after a crash somebody ends that run
        try:
            self._store.send(item)
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            self._refused.add(item.key)
            log.warning("MLflow refuses %s: %s", "/".join(map(str, item.key)), error)
        else:
            self._note(item.key, item.value)

    def _warn(self, what: str, error: Exception) -> None:
        """A line, unless the run itself is gone, of which its driver tells."""
        if self.run.is_run():
            said = [line for line in str(error).splitlines() if not line.startswith("(raised as")]  # SQLAlchemy's hints
            log.warning("%s: %s", what, said[0] if said else "")

    def _note(self, key: Key, value: object) -> None:
        with self._files:
            self._sent.put(key, value)


def address(run: RunDir, uri: str | None) -> str:
    """Where a run is tracked: as set, else MLFLOW_TRACKING_URI, else SQLite beside the run."""
    return check_uri(uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(run))


def reachable(uri: str, timeout_s: float = 5.0) -> str | None:
    """Why an MLflow server does not answer; None where it does, and for a store that is no server."""
    from urllib.error import URLError
    from urllib.request import urlopen

    if not uri.startswith(("http://", "https://")):
        return None
    try:
        urlopen(uri.rstrip("/") + "/health", timeout=timeout_s).close()
    except (URLError, OSError) as error:
        return f"{masked(uri)} does not answer: {error}"
    return None


def page_of(uri: str, experiment: str) -> str:
    """Where MLflow's pages compare the candidates of an experiment: the path of the view that comes with a run
    (`nas.results.outbox.view`)."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    found = MlflowClient(uri).get_experiment_by_name(experiment)
    if not found:
        return "/"
    view = (
        f"viewStateShareKey={VIEW_KEY}&" if VIEW_TAG in found.tags else ""
    )  # a search leaves it, when its command ends
    return f"/#/experiments/{found.experiment_id}/runs?{view}compareRunsMode=CHART"


def register_model(
    run: RunDir,
    uri: str,
    experiment: str,
    child: nn.Module,
    arch: str,
    supernet: str,
    label: str,
    shape: Sequence[int],
    any_size: bool,
    name: str,
    alias: str | None,
) -> str:
    """Make an exported child a version of a registered model, for `mlflow.pytorch.load_model`; raynas itself never
    loads one.

    Args:
        child: in evaluation mode.
        arch, supernet: its id, and the sha256 of what it was cut from, which are in the tags of its run in MLflow; the
            model belongs to that run.
        label: tells this child's files from those of others of that architecture, and from an earlier export's.
        shape: of one input, ``(C, H, W)``; the batch dimension is free, and with `any_size` height and width are too.
        name, alias: of the registered model; an alias moves from the version that had it.

    Returns:
        The version.

    Raises:
        ValueError: MLflow has no run of that child.
    """
    store = _Store(check_uri(uri), experiment, run)
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    query = f"tags.`raynas.run` = '{store.raynas_run}' and tags.`raynas.arch` = '{arch}'"
    for cut_from in (
        f" and tags.`raynas.supernet` = '{supernet}'",
        "",
    ):  # a finetuned one has a run of its own
        runs = store.client.search_runs(
            [store.experiment], query + cut_from, max_results=1, order_by=["attributes.start_time DESC"]
        )
        if runs:
            break
    if not runs:
        raise ValueError(f"MLflow at {masked(uri)} has no run of the child {arch}; nas export {run.path} sends it")
    pixels = torch.rand(2, *shape)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        axes = [[-1, t.shape[1], -1, -1] if any_size else [-1, *t.shape[1:]] for t in (pixels, child(pixels))]
        takes, gives = (Schema([TensorSpec(np.dtype(np.float32), each)]) for each in axes)
        signature = ModelSignature(inputs=takes, outputs=gives)
        needs = [f"torch=={torch.__version__.partition('+')[0]}"]
        mlflow.pytorch.save_model(
            child,
            f"{folder}/model",
            signature=signature,
            input_example=pixels.numpy(),
            pip_requirements=needs,
            serialization_format="pt2",
        )
        store.client.log_artifacts(runs[0].info.run_id, f"{folder}/model", f"models/{label}")
    with contextlib.suppress(MlflowException):  # it is there already
        store.client.create_registered_model(name)
    version = store.client.create_model_version(
        name, f"runs:/{runs[0].info.run_id}/models/{label}", runs[0].info.run_id, tags={"raynas.arch": arch}
    )
    if alias:
        store.client.set_registered_model_alias(name, alias, version.version)
    return str(version.version)
