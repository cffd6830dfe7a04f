"""Tracking: everything arrives once, whatever happens to MLflow, and the caller never waits for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from nas.cli.commands import app
from nas.config.experiment import dump, load_experiment
from nas.results import tracking
from nas.results.history import History, read_history
from nas.results.outbox import PAGE, first_page
from nas.results.tracking import Tracker, check_uri, default_uri, page_of, ui_command
from nas.rundir.directory import RunDir
from nas.search.journal import Journal, Record
from nas.space import Arch, Choice, Space

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore::DeprecationWarning:sqlalchemy")
SUPERNET = "5a" * 32
SPACE = Space([Choice("width", tuple(range(8, 200))), Choice("odd [name]", (1, 2))])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database: Alembic takes seconds, a copy does not."""
    for name, value in tracking.ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def run(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory with a little training, beside a fresh database."""
    monkeypatch.setattr(tracking, "BACKOFF_SECONDS", (0.1, 0.3))
    monkeypatch.setattr(tracking, "POLL_SECONDS", 0.1)
    shutil.copy(template, tmp_path / "mlflow.db")
    run = tmp_path / "digits"
    (run / "train").mkdir(parents=True)
    (run / "search").mkdir()
    (run / "run.json").write_text(json.dumps({"id": "c0ffee", "name": "digits"}))
    (run / "experiment.yaml").write_text("name: digits\nseed: 3\nrecipe: {lr: 0.4}\ntrain: {workers: 1}\n")
    train(run, range(10, 60, 10))
    return run


def train(run: Path, steps: range) -> None:
    with open(run / "train" / "metrics.jsonl", "a") as file:
        for step in steps:
            line = {"step": step, "total": 100, "epoch": step / 10, "seconds": 0.1 * step, "lr": 0.4}
            file.write(json.dumps({**line, "loss": {"largest": 2.0 - step / 100, "random": float("nan")}}) + "\n")
        file.write(json.dumps({"step": steps[-1], "panel": {"smallest": {"accuracy": 50.0 + steps[-1]}}}) + "\n")


def search(run: Path, ks: range) -> list[Record]:
    """Candidates `ks` judged; each eighth fails."""
    records = []
    with Journal(run / "search" / "journal-5a5a5a5a.jsonl", {"supernet": SUPERNET}) as journal:
        for k in ks:
            rng = np.random.default_rng(k)
            cost = {"macs": 1000 + 10 * int(rng.integers(1000)), "params": 100 + k}
            metrics = None if k % 8 == 7 else {"accuracy": float(rng.uniform(50, 90)), "cross_entropy": 1.0}
            error = None if metrics else "RuntimeError: no memory"
            records.append(
                Record(k, SPACE.arch({"width": 8 + k, "odd [name]": 1}), metrics, cost if metrics else {}, 2.0, error)
            )
            journal.append(records[-1])
    return records


def stored(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name("nas")
    return list(client.search_runs([found.experiment_id], max_results=10_000)) if found else []


def candidates(uri: str) -> dict[int, Any]:
    """By k, after it is checked that each is there once, whole, and below the search."""
    runs = stored(uri)
    ks = Counter(int(r.data.tags["raynas.candidate"]) for r in runs if r.data.tags["raynas.kind"] == "candidate")
    assert not ks or max(ks.values()) == 1, f"twice in MLflow: {ks}"
    kinds = Counter(r.data.tags["raynas.kind"] for r in runs)
    assert kinds["search"] <= 1 and kinds["train"] <= 1
    parent = next((r.info.run_id for r in runs if r.data.tags["raynas.kind"] == "search"), None)
    found = {int(r.data.tags["raynas.candidate"]): r for r in runs if "raynas.candidate" in r.data.tags}
    assert all(r.data.tags["mlflow.parentRunId"] == parent for r in found.values())
    return found


def steps(uri: str, kind: str, name: str) -> list[int]:
    from mlflow import MlflowClient

    run = next(r for r in stored(uri) if r.data.tags["raynas.kind"] == kind)
    return [metric.step for metric in MlflowClient(uri).get_metric_history(run.info.run_id, name)]


def arrived(uri: str, records: list[Record]) -> None:
    """Every record is in MLflow once and says what it says."""
    found = candidates(uri)
    assert sorted(found) == [record.k for record in records]
    for record in records:
        run = found[record.k]
        assert run.info.run_name == run.data.tags["raynas.arch"] == record.id
        assert run.data.params == {"width": str(record.arch["width"]), "odd _name_": "1"}
        assert run.data.metrics == {**(record.metrics or {}), **record.cost, "seconds": 2.0}
        assert run.info.end_time - run.info.start_time == 2000
        if record.error:
            assert run.info.status == "FAILED" and run.data.tags["raynas.error"] == record.error
        else:
            assert run.info.status == "FINISHED" and "raynas.error" not in run.data.tags


def send(run: Path, uri: str | None = None, seconds: float = 60.0) -> int:
    tracker = Tracker(RunDir(run), uri, "nas")
    tracker.start()
    return tracker.close(seconds)


def wait(condition: Callable[[], object], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)


def quick(call: Callable[[], Any]) -> Any:
    """The caller is never blocked."""
    begin = time.monotonic()
    result = call()
    assert time.monotonic() - begin < 1.0
    return result


def test_a_run_arrives_whole(run: Path) -> None:
    records, uri = search(run, range(20)), default_uri(RunDir(run))
    best = max((r for r in records if r.metrics), key=lambda r: (r.metrics or {})["accuracy"])
    (run / "children" / best.id).mkdir(parents=True)
    (run / "children" / best.id / "metrics.json").write_text(json.dumps({"id": best.id, "test": {"accuracy": 71.5}}))
    (run / "children" / best.id / "manifest.json").write_text(json.dumps({"supernet": SUPERNET}))
    other = next(r for r in records if r.metrics and r is not best)  # cut from the supernet of an earlier training
    (run / "children" / other.id).mkdir()
    (run / "children" / other.id / "metrics.json").write_text(json.dumps({"id": other.id, "test": {"accuracy": 11.0}}))
    (run / "children" / other.id / "manifest.json").write_text(json.dumps({"supernet": "0" * 64}))
    (run / "report.html").write_text("<p>a report</p>")
    assert send(run) == 0
    assert (
        "test_accuracy" not in candidates(uri)[other.k].data.metrics
        and "raynas.exported" not in candidates(uri)[other.k].data.tags
    )
    child = candidates(uri)[best.k]
    assert child.data.metrics.pop("test_accuracy") == 71.5 and child.data.tags["raynas.exported"] == "true"
    whole = [r for r in stored(uri) if r.data.tags["raynas.kind"] != "candidate"]
    assert {(r.info.run_name, r.info.status) for r in whole} == {
        ("digits train", "FINISHED"),
        ("digits search", "FINISHED"),
    }
    for r in whole:
        assert r.data.params == {"name": "digits", "seed": "3", "recipe.lr": "0.4", "train.workers": "1"}
    assert steps(uri, "train", "loss/largest") == [10, 20, 30, 40, 50] and steps(
        uri, "train", "panel/smallest/accuracy"
    ) == [50]
    assert steps(uri, "search", "hypervolume") == [k for k in range(20) if k % 8 != 7]
    history = read_history(RunDir(run))
    assert history is not None
    on_front = {k for k, r in candidates(uri).items() if r.data.tags["raynas.front"] == "true"}
    assert on_front == {r.k for r in history.front()} and best.k in on_front
    search_run = next(r for r in whole if r.data.tags["raynas.kind"] == "search")
    assert search_run.data.metrics["best_accuracy"] == pytest.approx((best.metrics or {})["accuracy"])
    artifacts = Path(search_run.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(run.parent / "mlartifacts")
    assert {path.name for path in artifacts.iterdir()} == {"front.csv", "report.html"}


def test_a_finished_training_is_finished_whatever_happens_later(run: Path) -> None:
    """At once, since a later kill -9 tells nobody; and where the search is killed."""
    uri, tracker = default_uri(RunDir(run)), Tracker(RunDir(run), None, "nas")

    def states() -> dict[str, str]:
        return {r.data.tags["raynas.kind"]: r.info.status for r in stored(uri) if "raynas.candidate" not in r.data.tags}

    tracker.start()
    tracker.finish("train")
    wait(lambda: states() == {"train": "FINISHED"})
    search(run, range(5))
    assert tracker.close(60, "KILLED") == 0
    assert states() == {"train": "FINISHED", "search": "KILLED"}


def test_the_view_of_all_candidates_comes_with_a_run(run: Path) -> None:
    """The names in it are those that MLflow has; looked at in Chromium against MLflow 3.17 when it was written."""
    from mlflow import MlflowClient

    uri = default_uri(RunDir(run))
    assert send(run) == 0
    assert "viewStateShareKey" not in page_of(uri, "nas"), "MLflow shows an error for a view that is not there yet"
    search(run, range(20))
    assert send(run) == 0
    page = page_of(uri, "nas")
    experiment = MlflowClient(uri).get_experiment_by_name("nas")
    assert (
        f"/experiments/{experiment.experiment_id}/runs?viewStateShareKey=raynas&" in page
        and page_of(uri, "other") == "/"
    )
    view = json.loads(experiment.tags["mlflow.sharedViewState.raynas"])
    assert view["orderByAsc"]
    found = MlflowClient(uri).search_runs(
        [experiment.experiment_id], view["searchFilter"], order_by=[f"{view['orderByKey']} ASC"]
    )
    assert len(found) == 20
    places = [r.data.tags["raynas.page"] for r in found]
    assert places == sorted(places, key=["front", "further", "later"].index) and places.count("later") == 2, (
        "the failed"
    )
    scatter, parallel = view["compareRunCharts"]
    assert (scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == ("macs", "accuracy")
    assert parallel["selectedParams"] == ["width"], "the other choice never varies"
    for column in view["selectedColumns"]:
        kind, name = column.replace("`", "").split(".", 1)
        assert name in getattr(found[0].data, kind) or name == "raynas.exported"


def test_the_page_loads_the_front_and_a_sample_over_all_costs(tmp_path: Path) -> None:
    """Of 445 candidates the hundred that come first; where the search goes on, others may take their places."""
    path = tmp_path / "search" / "journal-5a5a5a5a.jsonl"
    path.parent.mkdir()
    costs = np.random.default_rng(0).permutation(445)

    def told(until: int, *exported: str) -> dict[int, str]:
        with Journal(path, {"supernet": SUPERNET}) as journal:
            for k in range(len(journal.records), until):
                cost = {"macs": int(costs[k])}  # the dearer the better, but for a tenth
                metrics = {"accuracy": float(costs[k] + (40 if costs[k] % 10 == 0 else 0))}
                journal.append(Record(k, Arch({"width": k}), metrics, cost, 2.0, None))
        history = History(path)
        history.update()
        assert {k for k, place in first_page(history, exported).items() if place == "front"} == {
            record.k for record in history.front()
        }
        return first_page(history, exported)

    first, page = told(60), told(445)
    assert len(first) == 60 and len(page) == PAGE
    shown = sorted(int(costs[k]) for k in page)
    assert shown[0] == 0 and shown[-1] == 444 and max(b - a for a, b in zip(shown, shown[1:], strict=False)) <= 10
    left_out = next(k for k in range(445) if k not in page)
    again = told(445, Arch({"width": left_out}).id)
    assert again[left_out] == "further" and len(again) == PAGE


def test_a_candidate_that_leaves_the_first_page_is_told(run: Path) -> None:
    uri = default_uri(RunDir(run))
    search(run, range(20))
    assert send(run) == 0
    (run / "experiment.yaml").write_text("search: {constraints: {macs: {max: 3000}}}\n")
    assert send(run) == 0
    history = read_history(RunDir(run))
    assert history is not None and 0 < len(history.front()) < 20
    told = {k: (r.data.tags["raynas.front"], r.data.tags["raynas.page"]) for k, r in candidates(uri).items()}
    assert {k for k, (flag, _) in told.items() if flag == "true"} == {r.k for r in history.front()}
    assert {k for k, (_, place) in told.items() if place == "front"} == {r.k for r in history.front()}


def test_a_moved_run_leaves_no_flag_behind(run: Path) -> None:
    """Of its MLflow store, under another address, nothing is noted; what it holds is put right all the same."""
    search(run, range(20))
    assert send(run) == 0
    before = {k for k, r in candidates(default_uri(RunDir(run))).items() if r.data.tags["raynas.front"] == "true"}
    moved = run.parent / "moved" / run.name
    shutil.copytree(run, moved)
    shutil.copy(run.parent / "mlflow.db", moved.parent)
    (moved / "experiment.yaml").write_text("search: {constraints: {macs: {max: 3000}}}\n")
    assert send(moved) == 0
    history = read_history(RunDir(moved))
    assert history is not None
    found = candidates(default_uri(RunDir(moved)))
    assert {k for k, r in found.items() if r.data.tags["raynas.front"] == "true"} == {r.k for r in history.front()}
    assert before - {r.k for r in history.front()}, "or this test shows nothing"


def test_a_resumed_run_repeats_nothing(run: Path) -> None:
    records, uri = search(run, range(10)), default_uri(RunDir(run))
    assert send(run) == 0
    before = (run / "tracking.jsonl").read_bytes()
    assert send(run) == 0
    assert (run / "tracking.jsonl").read_bytes() == before  # nothing new: MLflow is not even asked
    train(run, range(40, 90, 10))  # a crash after step 50, resumed from 30
    (run / "experiment.yaml").write_text((run / "experiment.yaml").read_text().replace("workers: 1", "workers: 2"))
    records += search(run, range(10, 25))
    assert send(run) == 0
    arrived(uri, records)
    assert steps(uri, "train", "lr") == list(range(10, 90, 10)) and steps(uri, "train", "panel/smallest/accuracy") == [
        50,
        80,
    ]
    search_steps = steps(uri, "search", "evaluated")
    assert len(search_steps) == len(set(search_steps)) == 22
    tags = next(r for r in stored(uri) if r.data.tags["raynas.kind"] == "train").data.tags
    assert tags["now.train.workers"] == "2"
    flags = [k for k, r in candidates(uri).items() if r.data.tags["raynas.front"] == "true"]
    from nas.results.history import front_table

    assert sorted(flags) == sorted(
        row["k"] for row in front_table(RunDir(run))
    )  # those who left the front have lost the flag


def test_a_torn_note_takes_no_other_along(run: Path) -> None:
    records = search(run, range(4))
    assert send(run) == 0
    notes = run / "tracking.jsonl"
    notes.write_bytes(notes.read_bytes()[:-20])
    records += search(run, range(4, 6))
    assert send(run) == 0
    arrived(default_uri(RunDir(run)), records)
    before = notes.read_bytes()
    assert send(run) == 0 and notes.read_bytes() == before


def test_a_crash_before_the_note_makes_no_twin(run: Path) -> None:
    records, uri = search(run, range(12)), default_uri(RunDir(run))
    assert send(run) == 0
    from mlflow import MlflowClient
    from mlflow.entities import Param, ViewType

    client, found = MlflowClient(uri), candidates(uri)
    done = found[2]
    for k in (
        4,
        5,
        6,
    ):  # what the store holds after death at create (4), within log_batch (5), before set_terminated (6)
        client.delete_run(found[k].info.run_id)
        tags = {key: value for key, value in found[k].data.tags.items() if key.startswith("raynas")} | {
            "mlflow.parentRunId": done.data.tags["mlflow.parentRunId"]
        }
        start = 1000 * k
        new = client.create_run(
            done.info.experiment_id, start_time=start, tags=tags, run_name=found[k].info.run_name
        ).info.run_id
        if k >= 5:
            client.log_batch(new, params=[Param("width", str(8 + k))])
        if k == 6:
            for name, value in found[k].data.metrics.items():
                client.log_metric(new, name, value, timestamp=start, step=0)
    (run / "tracking.jsonl").unlink()
    assert send(run) == 0
    arrived(uri, records)
    everything = client.search_runs([done.info.experiment_id], run_view_type=ViewType.ALL, max_results=1000)
    assert len(everything) == 12 + 2 + 3  # the candidates, search and train, and the three that this test deleted
    for r in candidates(uri).values():
        assert all(len(client.get_metric_history(r.info.run_id, name)) == 1 for name in r.data.metrics)


def test_lost_answers_make_no_twin(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow did what it was asked, and the answer never came: the sender cannot know."""
    from mlflow import MlflowClient

    calls: Counter[str] = Counter()

    def losing(name: str, each: int) -> None:
        real = getattr(MlflowClient, name)

        def call(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
            result = real(self, *args, **kwargs)
            calls[name] += 1
            if calls[name] % each == 0:
                raise ConnectionError("the answer was lost")
            return result

        monkeypatch.setattr(MlflowClient, name, call)

    for name in ("create_run", "log_batch", "set_terminated"):
        losing(name, 4)
    records, uri = search(run, range(10)), default_uri(RunDir(run))
    tracker = Tracker(RunDir(run), None, "nas")
    tracker.start()
    wait(lambda: (run / "tracking.jsonl").exists() and (run / "tracking.jsonl").read_text().count('"candidate"') == 10)
    monkeypatch.undo()
    assert tracker.close(30) == 0
    arrived(uri, records)
    assert steps(uri, "train", "lr") == [10, 20, 30, 40, 50]
    assert len(steps(uri, "search", "evaluated")) == 9


def test_an_empty_twin_is_removed(run: Path) -> None:
    """A create that a slow server did after all, twice."""
    records, uri = search(run, range(3)), default_uri(RunDir(run))
    assert send(run) == 0
    from mlflow import MlflowClient

    first = candidates(uri)[1]
    tags = {
        key: value for key, value in first.data.tags.items() if key.startswith("raynas") or key == "mlflow.parentRunId"
    }
    MlflowClient(uri).create_run(first.info.experiment_id, start_time=1, tags=tags)
    records += search(run, range(3, 4))
    assert send(run) == 0
    arrived(uri, records)


def test_one_refused_candidate_does_not_hold_up_the_others(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    real = MlflowClient.log_batch

    def picky(self: MlflowClient, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> Any:
        if any(param.value == "11" for param in params):
            raise MlflowException("I do not like 11", error_code=INVALID_PARAMETER_VALUE)
        return real(self, run_id, metrics, params, tags)

    monkeypatch.setattr(MlflowClient, "log_batch", picky)
    records = search(run, range(6))
    assert send(run) == 1
    assert candidates(default_uri(RunDir(run)))[3].info.status == "RUNNING"
    monkeypatch.undo()
    assert send(run) == 0  # the next start tries again
    arrived(default_uri(RunDir(run)), records)


def test_a_removed_database_is_filled_again(run: Path, template: Path) -> None:
    records, uri = search(run, range(4)), default_uri(RunDir(run))
    assert send(run) == 0
    shutil.copy(template, run.parent / "mlflow.db")  # emptied, but there
    records += search(run, range(4, 5))
    assert send(run) == 0
    arrived(uri, records)
    assert steps(uri, "train", "lr") == [10, 20, 30, 40, 50]


def test_a_broken_run_is_told_not_raised(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run / "run.json").unlink()
    search(run, range(2))
    tracker = Tracker(RunDir(run), None, "nas")
    tracker.start()
    assert tracker.close(30) > 0 and "MLflow could not be told" in caplog.text


def test_a_full_disk_is_told_in_a_line(
    run: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow logs a traceback of some ninety lines at each try, of what it raises as well."""
    import sqlalchemy

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "before_cursor_execute")
    def full(*given: object) -> None:
        if str(given[2]).startswith("INSERT"):
            raise sqlalchemy.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    tracker = Tracker(RunDir(run), None, "nas")
    tracker.start()
    try:
        wait(lambda: "MLflow could not be told" in caplog.text)
        assert tracker.close(5) > 0
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", full)
    assert "Traceback" not in caplog.text + capfd.readouterr().err and "disk is full" in caplog.text
    assert len(caplog.text.splitlines()) <= 3, caplog.text


def test_a_run_that_is_gone_is_not_the_tracker_s_to_tell(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(RunDir(run), None, "nas")
    tracker.start()
    wait(lambda: (run / "tracking.jsonl").exists())
    shutil.rmtree(run)
    tracker.close(5)
    assert not caplog.text and not run.exists()


def test_a_socket_that_never_answers_blocks_nobody(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    records = search(run, range(5))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracker = quick(lambda: Tracker(RunDir(run), f"http://127.0.0.1:{silent.getsockname()[1]}", "nas"))
        quick(tracker.start)
        for _ in range(20):
            quick(tracker.poke)
            time.sleep(0.05)
        missed = quick(lambda: tracker.close(0.5))
        assert missed >= 5
    assert send(run) == 0  # another store has its own notes
    arrived(default_uri(RunDir(run)), records)


class Server:
    """A real ``mlflow server`` on a port of the loopback."""

    def __init__(self, folder: Path, port: int) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
        command += [
            "--artifacts-destination",
            str(folder / "artifacts"),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ]
        environment = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }  # its helpers cost seconds, and sessions of their own
        with (folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.url = f"http://127.0.0.1:{port}"

    def healthy(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.url}/health", timeout=1).status == 200
        except OSError:
            return False

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # the session of its own that it was started in
            self.process.wait()


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    yield number


@pytest.mark.timeout(120)
def test_a_server_that_comes_late_and_dies_misses_nothing(run: Path, port: int, tmp_path: Path, template: Path) -> None:
    shutil.copy(template, tmp_path / "server.db")
    url, notes = f"http://127.0.0.1:{port}", run / "tracking.jsonl"
    records = search(run, range(40))
    tracker = quick(lambda: Tracker(RunDir(run), url, "nas"))
    quick(tracker.start)
    quick(tracker.poke)
    servers = []
    try:
        time.sleep(0.5)
        assert not notes.exists()
        servers.append(Server(tmp_path, port))
        wait(lambda: notes.exists() and notes.read_text().count('"candidate"') >= 10, 60)
        servers[0].kill()  # in the middle of whatever it did
        assert notes.read_text().count('"candidate"') < 40
        records += search(run, range(40, 50))
        quick(tracker.poke)
        (run / "report.html").write_text("<p>a report</p>")
        servers.append(Server(tmp_path, port))
        wait(servers[1].healthy, 60)
        wait(lambda: notes.read_text().count('"candidate"') >= 50, 60)
        assert tracker.close(30) == 0
        arrived(url, records)
        assert steps(url, "train", "lr") == [10, 20, 30, 40, 50]
        assert len(steps(url, "search", "evaluated")) == 44
        (run / "experiment.yaml").write_text(
            dump(load_experiment("bignas-digits", [f"tracking.uri={url}", "tracking.experiment=nas"]))
        )
        told = CliRunner().invoke(app, ["ui", str(run)])
        assert (
            told.exit_code == 0
            and told.stdout.strip() == url + page_of(url, "nas")
            and "viewStateShareKey" in told.stdout
        )
    finally:
        for server in servers:
            server.kill()
    told = CliRunner().invoke(app, ["ui", str(run)])
    assert isinstance(told.exception, ValueError) and "does not answer" in str(told.exception)


def test_folders_are_refused_with_the_reason() -> None:
    for uri in ("file:///tmp/mlruns", "mlruns", "/abs/mlruns"):
        with pytest.raises(ValueError, match="sqlite:////"):
            check_uri(uri)
    with pytest.raises(ValueError, match="current folder"):
        check_uri("sqlite:///mlflow.db")
    for uri in ("http://host:5000", "sqlite:////data/mlflow.db", "postgresql://me:secret@host/db", "databricks"):
        assert check_uri(uri) == uri


def test_notes_hold_no_password(run: Path) -> None:
    from nas.results.outbox import Sent

    Sent(RunDir(run), "postgresql://me:secret@host/db", "nas").put(("training",), {})
    assert "secret" not in (run / "tracking.jsonl").read_text()
    assert Sent(RunDir(run), "postgresql://other:word@host/db", "nas").values == {("training",): {}}
    assert Sent(RunDir(run), "postgresql://me:secret@host/db", "other").values == {}


def test_the_comparison_is_for_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of this machine cannot be had"):
            ui_command("sqlite:////data/mlflow.db", port)
    command = ui_command("sqlite:////data/mlflow.db", port)
    assert command[command.index("--port") + 1] == str(port)
    assert command[command.index("--backend-store-uri") + 1] == "sqlite:////data/mlflow.db"
    assert command[command.index("--host") + 1] == "127.0.0.1"
    with pytest.raises(ValueError, match="browser"):
        ui_command("http://host:5000", port)
