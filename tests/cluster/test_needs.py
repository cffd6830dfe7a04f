"""What is asked of a cluster, the experiment's section, and manifests."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster import probe
from cluster.check import Needs, _problems
from cluster.jobs import Work
from cluster.manifests import FOLDER, Pods, ray_up, rayjob
from cluster.names import Refused
from nas.cli.cluster import needs_of, pods_of, work_of
from nas.cli.commands import app
from nas.config.experiment import ExperimentError, load_experiment
from tests.cluster.working import work

GOLDEN = Path(__file__).parent.parent / "golden"


SET = [
    "cluster.storage=/mnt/runs",
    "cluster.image=registry/raynas:1",
    "cluster.claim=runs",
    "train.use_gpu=true",
    "train.workers=4",
]


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


def test_own_modules_come_before_what_the_environment_names() -> None:
    [_, job] = rayjob(work(env={"PYTHONPATH": "/opt/mine"}, files={"mine.py": b""}), Pods(1, 1, 0, "i", "c"))
    found = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    assert found["PYTHONPATH"].split(":") == [FOLDER, "/opt/mine"]


def test_kubernetes_names() -> None:
    assert rayjob(work(run="My_run.2"), Pods(1, 1, 0, "i", "c"))[1]["metadata"]["name"] == "my-run-2"
    with pytest.raises(Refused, match="letter first"):
        rayjob(work(run="1st"), Pods(1, 1, 0, "i", "c"))


def test_the_cluster_for_ray_up_is_the_golden_one() -> None:
    golden("ray_up.yaml", yaml.safe_dump(ray_up("digits", ["10.0.0.1", "10.0.0.2", "10.0.0.3"], "me"), sort_keys=False))
