"""The same run as files for those who start clusters: a RayJob for KubeRay (ray.io/v1), and a cluster for `ray up` on
machines of your own.

Plain dictionaries; whoever writes them dumps them as YAML. There is no secret in them: the token comes from a
Kubernetes Secret that KubeRay makes, or from a file on the machines.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from cluster.jobs import EXPERIMENT, GRACE_S, Work
from cluster.names import Refused

FOLDER = "/etc/raynas"  # where the experiment is mounted in the pods
RETRIES = 3  # each with a new cluster, continuing the run
MEMORY_GI = 4  # a CPU; change it in the manifest


@dataclass(frozen=True)
class Pods:
    """What the pods are.

    Attributes:
        workers: how many worker pods; the head runs none of the work.
        cpus, gpus: of each.
        image: with raynas in it.
        claim: the PersistentVolumeClaim (ReadWriteMany) behind the storage.
    """

    workers: int
    cpus: int
    gpus: int
    image: str
    claim: str


def rayjob(work: Work, pods: Pods) -> list[dict[str, Any]]:
    """A ConfigMap with the experiment, and the RayJob that runs it and is continued by KubeRay when its cluster fails.

    Raises:
        Refused: the run's name is none for Kubernetes.
    """
    name = work.run.lower().replace("_", "-").replace(".", "-")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", name):
        raise Refused(
            f"the run's name {work.run!r} becomes {name!r}; Kubernetes wants a letter first, and up to 47 letters, "
            "digits and -"
        )
    labels = {"app.kubernetes.io/name": "raynas", "app.kubernetes.io/instance": name}
    files = {EXPERIMENT: work.experiment, **{file: content.decode() for file, content in work.files.items()}}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": files}
    env = work.env_vars()
    if work.files:  # the user's own modules
        env["PYTHONPATH"] = ":".join([FOLDER, *filter(None, [env.get("PYTHONPATH")])])
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "entrypoint": work.command(f"{FOLDER}/{EXPERIMENT}"),
            "submissionMode": "K8sJobMode",
            "backoffLimit": RETRIES,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 300,
            "runtimeEnvYAML": "env_vars:\n" + "".join(f"  {key}: {_quoted(value)}\n" for key, value in env.items()),
            "rayClusterSpec": _ray_cluster(name, work, pods),
        },
    }
    return [config, job]


def _ray_cluster(name: str, work: Work, pods: Pods) -> dict[str, Any]:
    head = _pod(name, "ray-head", 2, 0, work, pods)
    worker = _pod(name, "ray-worker", pods.cpus, pods.gpus, work, pods)
    count = {"replicas": pods.workers, "minReplicas": pods.workers, "maxReplicas": pods.workers}
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0", "num-gpus": "0"}, "template": head},
        "workerGroupSpecs": [{"groupName": "workers", **count, "rayStartParams": {}, "template": worker}],
    }


def _pod(name: str, container: str, cpus: int, gpus: int, work: Work, pods: Pods) -> dict[str, Any]:
    amounts: dict[str, Any] = {
        "cpu": str(cpus),
        "memory": f"{MEMORY_GI * cpus}Gi",
        **({"nvidia.com/gpu": str(gpus)} if gpus else {}),
    }
    mounts = [
        {"name": "storage", "mountPath": work.storage},
        {"name": "experiment", "mountPath": FOLDER, "readOnly": True},
    ]
    volumes = [
        {"name": "storage", "persistentVolumeClaim": {"claimName": pods.claim}},
        {"name": "experiment", "configMap": {"name": name}},
    ]
    drain = [
        {"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": str(GRACE_S)}
    ]  # when the pod is ended: time for a checkpoint
    main = {
        "name": container,
        "image": pods.image,
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "env": drain,
        "volumeMounts": mounts,
    }
    return {"spec": {"terminationGracePeriodSeconds": GRACE_S + 20, "containers": [main], "volumes": volumes}}


def ray_up(name: str, hosts: Sequence[str], user: str) -> dict[str, Any]:
    """A cluster for `ray up` on machines of your own, the first of them the head; raynas, the storage and the token are
    there already.

    It listens on the machines' own addresses for each other, while the dashboard and the Jobs server stay on the head's
    loopback.
    """
    head, *workers = hosts
    start = "RAY_AUTH_MODE=token ray start --disable-usage-stats"
    return {
        "cluster_name": name,
        "provider": {"type": "local", "head_ip": head, "worker_ips": workers},
        "auth": {"ssh_user": user},
        "min_workers": len(workers),
        "max_workers": len(workers),
        "head_start_ray_commands": [
            "ray stop",
            f"{start} --head --port=6379 --dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": ["ray stop", f"{start} --address=$RAY_HEAD_IP:6379"],
    }


def _quoted(value: str) -> str:
    """Text in YAML that nothing reads as anything else."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
