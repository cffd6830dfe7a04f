"""The cluster package without a cluster: names, command lines, manifests, secrets, what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import yaml
from typer.testing import CliRunner

from cluster import jobs, pack, probe
from cluster.check import Needs, _problems
from cluster.client import Cluster, connect, find_token
from cluster.fetch import unpack, verify
from cluster.jobs import GRACE_S, Work, submit
from cluster.manifests import Pods, ray_up, rayjob
from cluster.names import Refused, inside, split_id, submission_id
from nas.cli.cluster import needs_of, pods_of, work_of
from nas.cli.commands import app
from nas.config.experiment import ExperimentError, load_experiment
from nas.rundir.fence import Fence
from nas.workers import stopping
from nas.workers.stopping import Stopper, watching

GOLDEN = Path(__file__).parent.parent / "golden"
SET = [
    "cluster.storage=/mnt/runs",
    "cluster.image=registry/raynas:1",
    "cluster.claim=runs",
    "train.use_gpu=true",
    "train.workers=4",
]


def work(**more: Any) -> Work:
    return Work(**{"run": "digits", "experiment": "name: digits\n", "storage": "/mnt/a b", **more})


# --- names


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


# --- submitting


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


# --- the way there


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


# --- what is asked of a cluster


def seen(**more: Any) -> dict[str, Any]:
    node = {"node": "n1", "versions": {"python": "3.11", "raynas": None, "ray": "0.1"}, "storage": None, "doctor": None}
    return {"cpus": 4.0, "gpus": 0.0, "storage": None, "mirror": None, "tracking": None, "nodes": [node], **more}


def told(seen: dict[str, Any], **needs: Any) -> str:
    asked = Needs(**{"cpus": 2, "workers": 2, "use_gpu": None, "tracking": None, **needs})
    return "\n".join(_problems(seen, work(), asked))


def test_all_that_is_missing_is_told() -> None:
    good = {"node": "n1", "versions": {}, "storage": None, "doctor": None}
    assert told(seen(nodes=[good])) == ""
    assert "n1: lacks raynas" in told(seen())
    assert "4 CPUs and the run asks for 8" in told(seen(nodes=[]), cpus=8)
    assert "0 GPUs and the run asks for 2" in told(seen(nodes=[]), use_gpu=True)
    assert "1 GPUs and the run asks for 2" in told(seen(nodes=[], gpus=1.0), use_gpu=True)
    assert told(seen(nodes=[], gpus=1.0)) == told(seen(nodes=[], gpus=1.0), use_gpu=False) == "", (
        "one worker uses the one there is"
    )
    assert "n1: has ray 0.1, and here is" in told(seen(nodes=[{**good, "versions": {"ray": "0.1"}}]))
    assert "n1: cluster.storage /mnt/a b cannot be written" in told(
        seen(nodes=[{**good, "storage": "cannot be written: x"}])
    )
    assert "n1: does not answer" in told(seen(nodes=[{"node": "n1", "lost": "gone"}]))
    assert "MLflow at http://m does not answer" in told(seen(nodes=[], tracking="refused"), tracking="http://m")


def test_a_node_sees_whether_storage_is_shared(tmp_path: Path) -> None:
    assert "another directory" in str(probe.storage_problem(str(tmp_path), "t"))
    assert probe.make_storage(str(tmp_path), "t") is None
    assert probe.storage_problem(str(tmp_path), "t") is None
    assert [path.name for path in tmp_path.iterdir()] == [".raynas-probe-t"]
    (tmp_path / "file").touch()
    assert "cannot be written" in str(probe.make_storage(str(tmp_path / "file" / "x"), "t"))
    assert "cannot be written" in str(probe.storage_problem(str(tmp_path / "missing"), "t"))


# --- the experiment's section


@pytest.mark.parametrize(
    "env",
    [
        "{MLFLOW_TRACKING_TOKEN: x}",
        "{AWS_SECRET_ACCESS_KEY: x}",
        "{A: AKIAABCDEFGHIJKLMNOP}",
        "{URL: 'http://me:pass@host'}",
        "{DB_PASSWORD: x}",
    ],
)
def test_secrets_are_refused(env: str) -> None:
    with pytest.raises(ExperimentError, match="looks like a secret.*on the cluster"):
        load_experiment("bignas-digits", [f"cluster.env={env}"])


def test_plain_variables_are_taken() -> None:
    given = load_experiment(
        "bignas-digits", ["cluster.env={RAYNAS_DATA: /data, RAY_AUTH_TOKEN_PATH: /run/token, NCCL_DEBUG: INFO}"]
    )
    assert work_of(load_experiment("bignas-digits", SET)).run_dir == "/mnt/runs/bignas-digits"
    assert given.cluster.env["RAYNAS_DATA"] == "/data"


@pytest.mark.parametrize(
    ("mirror", "says"),
    [
        ("/mnt/runs", "allowed: s3://BUCKET"),
        ("s3://", "allowed: s3://BUCKET"),
        ("s3://AKIA:secret@bucket/runs", "with a key in it"),
        ("s3a://AKIA:secret@bucket/runs", "with a key in it"),
        ("s3://bucket/runs?access_key=a&secret_key=b", "with a key in it"),
    ],
)
def test_a_mirror_is_an_object_store_without_credentials(mirror: str, says: str) -> None:
    with pytest.raises(ExperimentError, match=says):
        load_experiment("bignas-digits", [f"cluster.mirror={mirror}"])


@pytest.mark.parametrize("words", [["run", "bignas-digits", "--mirror"], ["fetch"]])
def test_an_address_with_a_key_is_refused_and_not_repeated(words: list[str]) -> None:
    told = CliRunner().invoke(app, [*words, "s3://AKIAX:topsecret@bucket/runs/x"])
    assert isinstance(told.exception, ValueError) and "with a key in it" in str(told.exception)
    assert "topsecret" not in told.output + str(told.exception)


def test_the_job_keeps_the_mirror_of_its_own_run() -> None:
    mirror = "s3://bucket/runs/?endpoint_override=minio:9000&scheme=http"
    given = work_of(
        load_experiment("bignas-digits", ["cluster.storage=/mnt/runs", f"cluster.mirror={mirror}", "name=mine"])
    )
    words = shlex.split(given.entrypoint)
    assert words[words.index("--mirror") + 1] == "s3://bucket/runs/mine?endpoint_override=minio:9000&scheme=http"
    assert "--mirror" not in work().entrypoint
    with pytest.raises(ExperimentError, match="write this into cluster.mirror"):
        load_experiment("bignas-digits", ["cluster.storage=s3://bucket/runs"])


def test_the_head_tries_the_mirror(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert probe.mirror_problem(None, "t") is None
    assert probe.mirror_problem(f"file://{tmp_path}/store", "t") is None and not list((tmp_path / "store").iterdir())
    problem = probe.mirror_problem(f"file://{tmp_path}/nowhere", "t")
    assert (
        problem
        and "cluster.mirror" in told(seen(nodes=[], mirror=problem))
        and problem in told(seen(nodes=[], mirror=problem))
    )


@pytest.mark.parametrize("storage", ["runs", "~/runs", "/mnt/../etc"])
def test_storage_is_an_absolute_directory(storage: str) -> None:
    with pytest.raises(ExperimentError, match="absolute"):
        load_experiment("bignas-digits", [f"cluster.storage={storage}"])


def test_no_storage_says_what_to_set() -> None:
    with pytest.raises(ValueError, match="cluster.storage is not set"):
        work_of(load_experiment("bignas-digits"))


def test_needs_are_the_larger_of_training_and_search() -> None:
    needs = needs_of(
        load_experiment(
            "bignas-digits",
            ["train.workers=4", "train.cpus_per_worker=2.0", "search.trials=3", "tracking.uri=http://m"],
        )
    )
    assert needs == Needs(8.0, 4, None, "http://m")


# --- manifests


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("RAYNAS_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"{name} changed; if that is meant: RAYNAS_GOLDEN=1 pytest {__file__}"


def test_the_rayjob_is_the_golden_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.manifests.version", lambda _: "2.60.0")
    settings = load_experiment("bignas-digits", [*SET, "cluster.env={RAYNAS_DATA: /mnt/data}"])
    whole = work_of(settings)
    documents = rayjob(Work(whole.run, "the experiment\n", whole.storage, whole.env), pods_of(settings))
    golden("rayjob.yaml", yaml.safe_dump_all(documents, sort_keys=False))


def test_the_environment_in_a_rayjob_is_yaml() -> None:
    env = {"A": 'say "x"\\n', "B": "yes", "C": "1: 2"}
    [_, job] = rayjob(work(storage="/mnt", env=env), Pods(1, 1, 0, "i", "c"))
    found = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    assert {name: found[name] for name in env} == env


def test_kubernetes_names() -> None:
    assert rayjob(work(run="My_run.2"), Pods(1, 1, 0, "i", "c"))[1]["metadata"]["name"] == "my-run-2"
    with pytest.raises(Refused, match="letter first"):
        rayjob(work(run="1st"), Pods(1, 1, 0, "i", "c"))


def test_the_cluster_for_ray_up_is_the_golden_one() -> None:
    golden("ray_up.yaml", yaml.safe_dump(ray_up("digits", ["10.0.0.1", "10.0.0.2", "10.0.0.3"], "me"), sort_keys=False))


# --- what comes back


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one child, as far as fetching is concerned."""
    child = tmp_path / "run" / "children" / "abc123"
    child.mkdir(parents=True)
    (tmp_path / "run" / "experiment.yaml").write_text("name: digits\n")
    (tmp_path / "run" / "secret-notes.txt").write_text("not fetched")
    (child / "weights").write_bytes(os.urandom(30_000))
    files = {"weights": {"size": 30_000, "sha256": hashlib.sha256((child / "weights").read_bytes()).hexdigest()}}
    (child / "manifest.json").write_text(json.dumps({"files": files}))
    (child / "link").symlink_to("/etc/passwd")
    return tmp_path / "run"


def packed(run: Path) -> bytes:
    """What the script writes, behind what Ray writes into the same log."""
    done = subprocess.run([sys.executable, pack.__file__, str(run)], capture_output=True, check=True)
    return b"2026 INFO Runtime env is setting up.\n" + done.stdout


def test_a_pack_comes_back_whole(run: Path, tmp_path: Path) -> None:
    unpack(io.BytesIO(packed(run)), tmp_path / "here")
    assert sorted(path.name for path in (tmp_path / "here").rglob("*") if path.is_file()) == [
        "experiment.yaml",
        "manifest.json",
        "weights",
    ]
    verify(tmp_path / "here" / "children" / "abc123")


@pytest.mark.parametrize("cut", [10, 2_000, 20_000])
def test_a_cut_pack_is_refused(run: Path, tmp_path: Path, cut: int) -> None:
    with pytest.raises(Refused, match="cut|no pack|not come"):
        unpack(io.BytesIO(packed(run)[:cut]), tmp_path / "here")


def test_a_pack_cannot_write_elsewhere(tmp_path: Path) -> None:
    def tar(*members: tuple[str, bytes, bytes]) -> io.BytesIO:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w|") as file:
            for name, content, kind in members:
                info = tarfile.TarInfo(name)
                info.size, info.type, info.linkname = len(content), kind, "/etc"
                file.addfile(info, io.BytesIO(content))
        return io.BytesIO(pack.MARK + out.getvalue())

    sums = json.dumps({"../x": hashlib.sha256(b"1").hexdigest()}).encode()
    with pytest.raises(Refused, match="not a name"):
        unpack(tar(("sha256.json", sums, tarfile.REGTYPE), ("../x", b"1", tarfile.REGTYPE)), tmp_path / "here")
    with pytest.raises(Refused, match="no plain file"):
        unpack(tar(("sha256.json", b"{}", tarfile.REGTYPE), ("link", b"", tarfile.SYMTYPE)), tmp_path / "here")
    with pytest.raises(Refused, match="not come as it was sent"):
        unpack(tar(("sha256.json", b"{}", tarfile.REGTYPE), ("extra", b"1", tarfile.REGTYPE)), tmp_path / "here")
    assert not (tmp_path / "x").exists()


def test_a_changed_child_is_refused(run: Path) -> None:
    child = run / "children" / "abc123"
    (child / "link").unlink()
    verify(child)
    (child / "extra").touch()
    with pytest.raises(Refused, match="extra"):
        verify(child)
    (child / "extra").unlink()
    (child / "weights").write_bytes(b"other")
    with pytest.raises(Refused, match="weights"):
        verify(child)


def test_no_run_is_told(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, pack.__file__, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == f"{tmp_path} holds no run\n"


# --- ending in order


def test_the_fence_carries_the_wish_to_end(tmp_path: Path) -> None:
    fence = Fence.take(tmp_path)
    assert not fence.stopping()
    fence.ask_to_stop()
    assert fence.stopping() and Fence(tmp_path, fence.attempt).stopping()
    fence.check()
    newer = Fence.take(tmp_path)
    assert newer.attempt == fence.attempt + 1 and not newer.stopping() and not fence.stopping()
    fence.ask_to_stop()
    assert not newer.stopping(), "an attempt that is over cannot end a newer one"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "ECHO_S", 0.0)
    said: list[str] = []
    before = signal.getsignal(number)
    stopper = Stopper(Fence.take(tmp_path), said.append)
    with stopper.listening():
        stopper.check()
        os.kill(os.getpid(), number)
        assert stopper.fence.stopping() and number.name in said[0]
        with pytest.raises(KeyboardInterrupt):
            stopper.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_a_signal_after_a_notice_leaves_the_time_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a run that loses its machine is saving: the second one ends it, as ever."""
    monkeypatch.setattr(stopping, "ECHO_S", 0.0)
    stopper = Stopper(Fence.take(tmp_path), lambda text: None)
    with stopper.listening():
        stopper.ask("taken away")
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_machine_that_is_taken_away_ends_its_run_in_order_and_once(tmp_path: Path) -> None:
    said: list[str] = []
    stopper, answers = Stopper(Fence.take(tmp_path), said.append), iter([False, None, True, True])

    def leaving() -> bool:
        answer = next(answers)
        if answer is None:
            raise ConnectionError("the head does not answer")
        return answer

    with watching(leaving, lambda: stopper.ask("taken away"), every_s=0.01):
        assert stopper.asked.wait(30)
    stopper.ask("again")
    assert stopper.fence.stopping() and said == ["taken away"] and next(answers)
