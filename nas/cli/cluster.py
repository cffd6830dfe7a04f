"""The commands that run an experiment on a cluster. They translate between an experiment and `cluster`, which knows
no experiments."""

from __future__ import annotations

import math
import time
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.table import Table

from nas.cli.progress import plain
from nas.config import own
from nas.config.addresses import below, object_store
from nas.config.experiment import Experiment, dump, load_experiment
from nas.config.trust import modules_of

if TYPE_CHECKING:
    from cluster.jobs import Job, Work
    from cluster.manifests import Pods

console = plain()
Target = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="A preset's name or a YAML file.")]
Id = Annotated[
    str, typer.Argument(metavar="ID", help="A job such as bignas-digits-1, or a run, whose newest job is meant.")
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="URL", help="Of the cluster. [default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265]"
    ),
]
Set = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one value; repeatable.")]

NOTHING: list[str] = []


def say(text: str) -> None:
    console.print(text)


def submit(
    experiment: Target,
    address: Annotated[
        str | None, typer.Option("--address", metavar="URL", help="Of the cluster. [default: cluster.address]")
    ] = None,
    set_: Set = NOTHING,
    kuberay: Annotated[
        Path | None, typer.Option("--kuberay", metavar="FILE", help="Submit nothing; write a RayJob for kubectl apply.")
    ] = None,
    ray_up: Annotated[
        Path | None, typer.Option("--ray-up", metavar="FILE", help="Submit nothing; write a cluster for `ray up`.")
    ] = None,
    host: Annotated[
        list[str], typer.Option("--host", help="For --ray-up: a machine, the head first; repeatable.")
    ] = NOTHING,
) -> None:
    """Run an experiment on a Ray cluster: `nas run` there, in a folder of cluster.storage.

    A submit after a failure or a stop continues the run; one of a live run answers with its job.

    Example: nas submit bignas-digits --address http://head:8265 --set cluster.storage=/mnt/runs
    """
    settings = load_experiment(experiment, set_)
    if kuberay or ray_up:
        write_manifests(settings, kuberay, ray_up, host)
    else:
        send(settings, address)


def send(settings: Experiment, address: str | None) -> None:
    """Check the cluster, and submit."""
    from cluster.check import check
    from cluster.client import connect
    from cluster.jobs import submit as start

    work = work_of(settings)
    cluster = connect(address or settings.cluster.address)
    for line in check(cluster, work, needs_of(settings)):
        say(line)
    done = start(cluster, work)
    job, at = done.job, f" --address {cluster.address}" if address or settings.cluster.address else ""
    say(f"{job.id} {'submitted' if done.new else 'is ' + job.status.lower() + ' already'}; its run is {job.run_dir}")
    if done.differs:
        say("it was submitted with another experiment than this one; to change that, stop it first")
    say(f"follow: nas logs {job.id} --follow{at}\nstop:   nas stop {job.id}{at}\nfetch:  nas fetch {job.id}{at}")


def write_manifests(settings: Experiment, kuberay: Path | None, ray_up: Path | None, hosts: list[str]) -> None:
    """Files that start a cluster, for Kubernetes or for machines of one's own."""
    import getpass

    import yaml

    from cluster.manifests import ray_up as machines
    from cluster.manifests import rayjob

    if kuberay:
        kuberay.write_text(yaml.safe_dump_all(rayjob(work_of(settings), pods_of(settings)), sort_keys=False))
        say(f"{kuberay} written; next: kubectl apply -f {kuberay}")
    if ray_up:
        if not hosts:
            raise ValueError("--ray-up needs the machines: --host HEAD --host ANOTHER ...")
        ray_up.write_text(yaml.safe_dump(machines(settings.name, hosts, getpass.getuser()), sort_keys=False))
        say(f"{ray_up} written; next: ray up {ray_up}")


def pods_of(experiment: Experiment) -> Pods:
    """The pods for an experiment: one for each training worker, and room for the search in them."""
    from cluster.manifests import Pods

    train, cluster = experiment.train, experiment.cluster
    if not cluster.image or not cluster.claim:
        raise ValueError(
            "Kubernetes needs cluster.image (with raynas in it) and cluster.claim (the PersistentVolumeClaim behind "
            "cluster.storage)"
        )
    cpus = max(math.ceil(train.cpus_per_worker), math.ceil(experiment.search.trials / train.workers))
    return Pods(train.workers, cpus, int(train.use_gpu is True), cluster.image, cluster.claim)


def work_of(experiment: Experiment) -> Work:
    """What `cluster` is to run."""
    from cluster.jobs import Work

    if experiment.cluster.storage is None:
        raise ValueError(
            "cluster.storage is not set: an absolute directory that every machine of the cluster mounts, "
            "for example --set cluster.storage=/mnt/shared/runs; the run becomes a folder of it"
        )
    mirror = below(experiment.cluster.mirror, experiment.name) if experiment.cluster.mirror else None
    return Work(
        experiment.name,
        dump(experiment),
        experiment.cluster.storage,
        experiment.cluster.env,
        own_files(experiment),
        mirror,
    )


def own_files(experiment: Experiment) -> dict[str, bytes]:
    """The files of a user's own modules, and of what these import, that lie where they stand; what is installed is
    expected on the cluster as well.

    Raises:
        ValueError: one is a package, which is not sent.
    """
    here: dict[str, Path] = {}
    for module in modules_of(experiment.model_dump()):
        here |= {n: path for n, path in own.files(module, Path.cwd()).items() if not PathFinder.find_spec(n)}
    if packages := [name for name, path in here.items() if path.is_dir()]:
        raise ValueError(
            f"{', '.join(packages)} is a folder, and single files alone are sent to a cluster: install it there, or "
            "make it one file"
        )
    return {path.name: path.read_bytes() for path in here.values()}


def needs_of(experiment: Experiment) -> Any:
    """What the cluster must have for it."""
    from cluster.check import Needs

    train = experiment.train
    cpus = max(train.workers * train.cpus_per_worker, experiment.search.trials)
    return Needs(cpus, train.workers, train.use_gpu, experiment.tracking.uri)


def jobs(address: Address = None) -> None:
    """List the runs that a cluster knows.

    Example: nas jobs --address http://head:8265
    """
    from cluster.client import connect
    from cluster.jobs import listed

    table = Table("job", "status", "began", "took", "run", box=None)
    for job in listed(connect(address)):
        table.add_row(job.id, job.status, clock(job.began), took(job), job.run_dir)
    console.print(table)


def status(id_: Id, address: Address = None) -> None:
    """Say how a job stands.

    Example: nas status bignas-digits
    """
    from cluster.client import connect
    from cluster.jobs import found

    job = found(connect(address), id_)
    say(f"{job.id}: {job.status}, began {clock(job.began)}, took {took(job)}\nrun: {job.run_dir}")
    if job.message:
        say("\n".join(job.message.strip().splitlines()[-15:]))


def logs(
    id_: Id,
    follow: Annotated[bool, typer.Option("--follow", help="Until it ends; its success is this one's.")] = False,
    address: Address = None,
) -> None:
    """Print what a job printed.

    Example: nas logs bignas-digits --follow
    """
    from cluster.client import connect
    from cluster.jobs import finished, found, log
    from cluster.jobs import follow as following

    cluster = connect(address)
    job = found(cluster, id_)
    for text in following(cluster, job) if follow else [log(cluster, job)]:
        console.file.write(text)
        console.file.flush()
    if follow and (job := finished(cluster, job, 60)).status != "SUCCEEDED":
        say(f"{job.id}: {job.status}")
        raise typer.Exit(1)


def stop(id_: Id, address: Address = None) -> None:
    """End a job in order: it saves a checkpoint first. `nas submit` continues it.

    Example: nas stop bignas-digits
    """
    from cluster.client import connect
    from cluster.jobs import found
    from cluster.jobs import stop as end

    cluster = connect(address)
    job = found(cluster, id_)
    if job.live:
        say(f"{job.id}: saving and ending")
        job = end(cluster, job)
    say(f"{job.id}: {job.status}")


def fetch(
    id_: Id,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="[default: fetched/<run>]")] = None,
    address: Address = None,
) -> None:
    """Bring the children and the report of a run to this machine, and verify them; from a mirror (s3://..., gs://...)
    all of the run.

    Example: nas fetch bignas-digits
    """
    if "://" in id_:
        restore(id_, to)
        return
    from cluster.client import connect
    from cluster.fetch import fetch as bring
    from cluster.jobs import found

    cluster = connect(address)
    job = found(cluster, id_)
    came = bring(cluster, job, to or Path("fetched") / job.run)
    say(f"{len(came.children)} children in {came.folder}, verified ({came.through})")


def restore(uri: str, to: Path | None) -> None:
    """A run as its mirror has it; the mirror is only read."""
    from nas.rundir.mirror import Mirror

    uri = object_store(uri)
    target = (to or Path("fetched") / urlsplit(uri).path.rpartition("/")[2]).absolute()
    if target.exists():
        raise ValueError(f"{target} is there already; give another --to")
    target.parent.mkdir(parents=True, exist_ok=True)
    Mirror(uri, target, say).restore()
    say(f"the whole run is in {target}")


def clock(stamp: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stamp)) if stamp else ""


def took(job: Job) -> str:
    from nas.cli.progress import clock as spell

    return spell((job.ended or time.time()) - job.began) if job.began else ""


COMMANDS = (submit, jobs, status, logs, stop, fetch)
