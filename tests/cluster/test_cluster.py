"""Names, submitting, and the way to the cluster."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from cluster import jobs
from cluster.client import Cluster, connect, find_token
from cluster.jobs import GRACE_S, submit
from cluster.names import Refused, inside, split_id, submission_id
from tests.cluster.working import work


@pytest.mark.parametrize("run", ["digits", "digits-1", "a.b_c-2-3"])
def test_submission_ids_split_again(run: str) -> None:
    assert split_id(submission_id(run, 12)) == (run, 12)


@pytest.mark.parametrize(
    "text", ["digits", "digits-0", "digits-01", "-", "../x-1", "raysubmit_Xe7cvjyGJCyuCvm2", "a/b-1", ""]
)
def test_other_ids_are_none_of_ours(text: str) -> None:
    assert split_id(text) is None


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "a//b", ".hidden", "a/.b", "x\n", "", "a\\..\\b\x00", "n" * 101]
)
def test_names_cannot_leave_their_directory(tmp_path: Path, path: str) -> None:
    with pytest.raises(Refused):
        inside(tmp_path, path)


def test_links_cannot_lead_out(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/")
    with pytest.raises(Refused, match="outside"):
        inside(tmp_path, "out/etc")
    assert inside(tmp_path, "a/b.txt") == tmp_path / "a" / "b.txt"


class Recorder:
    """Stands for Ray's client: remembers submits, and lists what it is told to."""

    def __init__(self, *known: tuple[str, str, str], refuses: int = 0) -> None:
        self.known, self.refuses, self.sent = list(known), refuses, []  # type: ignore[var-annotated]

    def list_jobs(self) -> list[Any]:
        return [self._details(*job) for job in self.known]

    def _details(self, id_: str, status: str, run_dir: str) -> Any:
        metadata = {"raynas": "run", "run_dir": run_dir, "experiment": work().digest}
        return SimpleNamespace(
            submission_id=id_, status=status, metadata=metadata, message="", start_time=len(id_), end_time=None
        )

    def submit_job(
        self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any], metadata: dict[str, str]
    ) -> None:
        if self.refuses:
            self.refuses -= 1
            self.known.append((submission_id, "RUNNING", work().run_dir))
            raise RuntimeError(f"{submission_id} exists")
        files = {path.name: path.read_text() for path in Path(runtime_env["working_dir"]).iterdir()}
        self.sent.append((submission_id, entrypoint, runtime_env["env_vars"], metadata, files))
        self.known.append((submission_id, "PENDING", metadata["run_dir"]))


def on(client: Recorder) -> Cluster:
    return Cluster("http://head:8265", {}, "2.60.0", client)  # type: ignore[arg-type]


def test_a_first_submit() -> None:
    client = Recorder(("other-4", "RUNNING", "/mnt/other"), ("raysubmit_1", "RUNNING", "x"))
    done = submit(on(client), work(env={"A": "1"}))
    [(id_, entrypoint, env, metadata, files)] = client.sent
    assert done.new and done.job.id == id_ == "digits-1"
    assert shlex.split(entrypoint) == ["nas", "run", "experiment.yaml", "--run-dir", "/mnt/a b/digits"]
    assert env == {"A": "1", "RAY_JOB_STOP_SIGNAL": "SIGTERM", "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_S)}
    assert metadata["run_dir"] == "/mnt/a b/digits" and files == {"experiment.yaml": "name: digits\n"}


@pytest.mark.parametrize("status", ["FAILED", "STOPPED", "SUCCEEDED"])
def test_a_submit_after_the_end_is_the_next_attempt(status: str) -> None:
    done = submit(
        on(Recorder(("digits-1", "FAILED", "/mnt/a b/digits"), ("digits-2", status, "/mnt/a b/digits"))), work()
    )
    assert done.new and done.job.id == "digits-3"


def test_a_second_submit_answers_with_the_live_job() -> None:
    client = Recorder(("digits-2", "RUNNING", "/mnt/a b/digits"))
    done = submit(on(client), work())
    assert not done.new and not done.differs and done.job.id == "digits-2" and not client.sent
    assert submit(on(client), work(experiment="name: digits\nseed: 1\n")).differs


def test_two_submits_at_once_make_one_job() -> None:
    done = submit(on(Recorder(refuses=1)), work())
    assert not done.new and done.job.id == "digits-1"


def test_a_live_run_elsewhere_is_not_taken_for_ours() -> None:
    with pytest.raises(Refused, match=r"/mnt/theirs/digits.*name it otherwise"):
        submit(on(Recorder(("digits-1", "RUNNING", "/mnt/theirs/digits"))), work())


def test_a_job_that_is_not_taken_is_told() -> None:
    client = Recorder()
    client.submit_job = lambda **_: (_ for _ in ()).throw(RuntimeError("no agent"))  # type: ignore[method-assign]
    with pytest.raises(Refused, match="no agent"):
        submit(on(client), work())


def test_an_unknown_job_names_the_known_ones() -> None:
    with pytest.raises(Refused, match="digits-1"):
        jobs.found(on(Recorder(("digits-1", "FAILED", "x"))), "digit")
    with pytest.raises(Refused, match="not a name"):
        jobs.found(on(Recorder()), "../x")


def test_a_name_that_is_a_job_and_a_run_is_not_guessed() -> None:
    client = on(Recorder(("digits-2", "RUNNING", "x"), ("digits-2-1", "RUNNING", "y")))
    with pytest.raises(
        Refused, match=r"'digits-2' is a job, attempt 2 at the run 'digits', and a run too: give 'digits-2-1'"
    ):
        jobs.found(client, "digits-2")
    assert jobs.found(client, "digits").id == "digits-2" and jobs.found(client, "digits-2-1").run == "digits-2"


def test_the_token_is_looked_for_where_ray_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    assert find_token() == "home"
    (tmp_path / "file").write_text("file")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert find_token() == "file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "variable")
    assert find_token() == "variable"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert find_token() is None


@pytest.mark.parametrize(
    "address", ["head:8265", "ray://head:10001", "http://u:secret@head:8265", "http://head:8265/x", "http://"]
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(Refused, match="http://HOST:8265") as refused:
        connect(address)
    assert "secret" not in str(refused.value)


def test_no_cluster_is_told_on_one_screen() -> None:
    with pytest.raises(Refused, match="no Ray cluster answers at http://127.0.0.1:9") as refused:
        connect("http://127.0.0.1:9/")
    assert len(str(refused.value).splitlines()) < 10


class Sends(BaseHTTPRequestHandler):
    """Answers as a cluster of Ray that begins to send its visitors elsewhere; notes what these carry."""

    elsewhere: str | None = None
    seen: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.headers["Host"], self.headers["Authorization"]))
        body = b'{"version": "4", "ray_version": "2.0", "ray_commit": "x", "session_name": "s"}'
        self.send_response(302 if self.elsewhere else 200)
        if self.elsewhere:
            self.send_header("Location", self.elsewhere + self.path)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def two_servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """The addresses of a cluster, and of somebody else who would like its token."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-the-cluster")
    monkeypatch.setattr(Sends, "seen", [])
    with contextlib.ExitStack() as stack:
        addresses = []
        for _ in range(2):
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Sends))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            addresses.append(f"http://127.0.0.1:{server.server_port}")
        yield addresses[0], addresses[1]


def test_the_token_goes_nowhere_else(monkeypatch: pytest.MonkeyPatch, two_servers: tuple[str, str]) -> None:
    ours, other = two_servers
    cluster = connect(ours)
    assert Sends.seen and all(token == "Bearer of-the-cluster" for _, token in Sends.seen)
    monkeypatch.setattr(Sends, "elsewhere", other)
    ways: list[Callable[[], object]] = [
        lambda: connect(ours),
        lambda: cluster.get("/api/v0/logs/file"),
        lambda: cluster.client.list_jobs(),
        lambda: cluster.client.submit_job(entrypoint="true"),
        lambda: cluster.client.get_job_logs("x"),
    ]
    for way in ways:
        with pytest.raises(Refused, match=f"{ours}.*sends on to {other}") as refused:
            way()
        assert len(str(refused.value).splitlines()) < 4
    with contextlib.suppress(Exception):  # followed, without the token
        asyncio.run(anext(cluster.client.tail_job_logs("x")))
    assert not [token for host, token in Sends.seen if f"http://{host}" == other and token]
