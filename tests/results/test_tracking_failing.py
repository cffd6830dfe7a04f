"""Tracking over crashes, lost answers, refusals, full disks and servers that come late."""

from __future__ import annotations

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

import pytest
from typer.testing import CliRunner

from nas.cli.commands import app
from nas.config.experiment import dump, load_experiment
from nas.results.tracking import Tracker, check_uri, default_uri, page_of, ui_command
from nas.rundir.directory import RunDir
from nas.search.journal import Record
from tests.results.tracked import candidates, search, send, steps, stored, train, wait

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore::DeprecationWarning:sqlalchemy")


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


def quick(call: Callable[[], Any]) -> Any:
    """The caller is never blocked."""
    begin = time.monotonic()
    result = call()
    assert time.monotonic() - begin < 1.0
    return result


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
