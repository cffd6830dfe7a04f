"""The command line. Nothing else prints for people."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from rich.table import Column, Table

from nas.cli import check, cluster, failures, init, latency, plan, results, schema, tables
from nas.cli.progress import plain
from nas.cli.results import NOTHING, RUN, Set, Trust, resolve, run_at
from nas.config.addresses import masked, object_store
from nas.config.experiment import Experiment, ExperimentError, load_experiment
from nas.config.trust import Untrusted

if TYPE_CHECKING:
    from nas.pipeline import Pipeline
    from nas.rundir import directory as run_directory


class Commands(typer.core.TyperGroup):
    """One line, the list of commands, and the names of those that are for a cluster: with usage and options, which say
    that there is --help, they do not fit a screen."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in super().list_commands(ctx) if name not in ON_A_CLUSTER]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        formatter.buffer.insert(0, f"{self.help}\n")  # a section after text would begin with an empty line
        formatter.write(f"On a cluster: {', '.join(ON_A_CLUSTER)} (nas submit --help)\n")


console = plain()
app = typer.Typer(
    name="nas",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train one supernet, cut many small networks. First: nas run bignas-digits",
)

EXPERIMENT = typer.Argument(metavar="EXPERIMENT", help="A preset's name, a YAML file, or the directory of a run.")
Target = Annotated[str, EXPERIMENT]
RunDir = Annotated[
    Path | None, typer.Option("--run-dir", metavar="DIR", help="Where the run lives. [default: runs/<name>]")
]
Minutes = Annotated[float | None, typer.Option("--minutes", min=0.01, help="Bound the time of this stage.")]
MirrorAt = Annotated[
    str | None,
    typer.Option(
        "--mirror",
        metavar="URI",
        help="Keep the run in an object store too (s3://..., gs://...); restore it from there.",
    ),
]
ON_A_CLUSTER = [command.__name__ for command in cluster.COMMANDS]
FORMATS = {"pt2": "torch", "openvino": "openvino", "executorch": "executorch"}  # of children, and what each needs


def experiment_of(run: Path, overrides: list[str] = NOTHING, trusted: list[str] = NOTHING) -> Experiment:
    """The experiment of a run that is there.

    Raises:
        ValueError: the directory holds no run.
    """
    return resolve(str(run_at(run).path), None, overrides, trusted)[0]


def open_pipeline(
    target: str,
    run_dir: Path | None,
    overrides: list[str],
    trusted: list[str] = NOTHING,
    mirror: str | None = None,
    check: Callable[[Experiment, run_directory.RunDir], object] = lambda experiment, run: None,
) -> Any:
    """The pipeline of a command, as a context; and a screen that is put right whatever happens.

    Args:
        check: what of the command can be refused by the run's files alone, or by those of the run whose supernet it
            begins with; this, and what else needs no torch, is looked at before that is imported.
    """
    from contextlib import contextmanager

    from nas.rundir.checkpoint import newest_sha
    from nas.rundir.directory import RunDir

    experiment, run, source = results.begun(target, run_dir, overrides, trusted)
    at = RunDir(run.absolute())
    check(experiment, source if source and newest_sha(at.checkpoints) is None else at)

    @contextmanager
    def opened() -> Any:
        from nas.cli.progress import Screen
        from nas.pipeline import Pipeline

        screen = Screen(console)
        try:
            with Pipeline.open(experiment, run, screen, mirror, source) as pipeline:
                yield pipeline
        finally:
            screen.stop()

    return opened()


@app.command()
def run(
    experiment: Target,
    run_dir: RunDir = None,
    set_: Set = NOTHING,
    minutes: Minutes = None,
    mirror: MirrorAt = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only what nas plan does.")] = False,
    trust: Trust = NOTHING,
) -> None:
    """Do all: train, search, export, finetune where the experiment says so, report. The same command again continues,
    and a finished run says so.

    --minutes bounds the training; --set search.max_minutes=5 bounds the search.

    Example: nas run bignas-digits --set search.candidates=100
    """
    kept, given = object_store(mirror) if mirror else None, bounded(set_, "train", minutes)
    if dry_run:
        plan.plan(experiment, run_dir, given, trust, mirror)
        return
    with open_pipeline(experiment, run_dir, given, trust, kept) as pipeline:
        ids = pipeline.all()
        if not pipeline.worked:
            console.print(
                "all is done; more candidates (--set search.candidates=N), epochs (--set recipe.epochs=N) or --minutes "
                "extend the run",
            )
        finish(pipeline, ids)


@app.command()
def train(
    experiment: Target,
    run_dir: RunDir = None,
    set_: Set = NOTHING,
    minutes: Minutes = None,
    trust: Trust = NOTHING,
) -> None:
    """Train the supernet, or go on training it.

    Example: nas train bignas-fashion-mnist --minutes 10
    """
    with open_pipeline(experiment, run_dir, bounded(set_, "train", minutes), trust) as pipeline:
        pipeline.train()
        report_line(pipeline)
    console.print(f"next: nas search {os.path.relpath(pipeline.run.path)}")


@app.command()
def search(
    experiment: Target,
    run_dir: RunDir = None,
    set_: Set = NOTHING,
    minutes: Minutes = None,
    trust: Trust = NOTHING,
) -> None:
    """Search the trained supernet for children, or go on searching.

    Example: nas search runs/bignas-digits --set search.constraints.macs.max=300k --set search.candidates=400
    """
    from nas.results.taking import check_supernet

    with open_pipeline(experiment, run_dir, bounded(set_, "search", minutes), trust, check=check_supernet) as pipeline:
        pipeline.search()
        path, at = pipeline.report(), pipeline.run
    results.show_front(at)
    console.print(f"report: {path}\nnext: nas export {os.path.relpath(at.path)}")


@app.command()
def export(
    experiment: Target,
    child: Annotated[
        str | None, typer.Option("--child", help="One candidate, by id or number, instead of the front.")
    ] = None,
    format_: Annotated[
        list[str],
        typer.Option("--format", metavar="FORMAT", help="Also as pt2, openvino or executorch; repeatable."),
    ] = NOTHING,
    run_dir: RunDir = None,
    set_: Set = NOTHING,
    trust: Trust = NOTHING,
) -> None:
    """Write children as files that need no raynas: weights, their source, ONNX, figures, a model card.

    Example: nas export runs/bignas-digits --set export.children=8 --format openvino
    """
    from nas.results.choose import check_candidate

    check_formats(format_)
    check = partial(check_candidate, only=child)
    with open_pipeline(experiment, run_dir, set_, trust, check=check) as pipeline:
        ids = pipeline.export(child)
        pipeline.add_formats(ids, format_)
        finish(pipeline, ids)


@app.command()
def finetune(
    run: Annotated[Path, RUN],
    child: Annotated[str, typer.Argument(help="Id or number of a candidate.")],
    set_: Set = NOTHING,
    trust: Trust = NOTHING,
) -> None:
    """Train one child on by itself, as the section finetune of the experiment says, and export it beside the others.

    Example: nas finetune runs/vit-resnas-digits 17 --set finetune.recipe.epochs=20 --set finetune.teacher=largest
    """
    if experiment_of(run, set_, trust).finetune is None:
        raise ValueError(
            "the experiment has no section finetune; for example: --set 'finetune={recipe: {name: single, epochs: 20, "
            "batch: 64}}'"
        )
    from nas.results.choose import FINETUNED, check_candidate

    with open_pipeline(str(run), None, set_, trust, check=partial(check_candidate, only=child)) as pipeline:
        after = pipeline.finetune(child)
        finish(pipeline, [after.removesuffix(FINETUNED), after])


@app.command()
def fidelity(
    run: Annotated[Path, RUN],
    children: Annotated[
        int | None, typer.Option("--children", min=4, help="How many. [default: as the run says]")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=2, help="Trainings of each. [default: likewise]")] = None,
    set_: Set = NOTHING,
    trust: Trust = NOTHING,
) -> None:
    """Train some children alone, and tell how far the supernet's scores agree with that: whether a search here can
    find anything.

    Example: nas fidelity runs/bignas-digits --children 12 --seeds 2
    """
    at = run_at(run)
    from nas.results.fidelity import check_ready

    with open_pipeline(str(at.path), None, set_, trust, check=check_ready) as pipeline:
        found = pipeline.fidelity(children, seeds)
        report_line(pipeline)
    if found is None:
        console.print(f"too few networks are whole yet; the same command goes on: nas fidelity {os.path.relpath(run)}")
        return
    many = f"{len(found.archs)} networks, each trained alone {found.alone.shape[1]} times"
    console.print(f"how far scores agree with {found.head.metric} of {many} (95 % intervals)")
    console.print(tables.fidelity(found), found.verdict, sep="")


@app.command()
def quantize(
    run: Annotated[Path, RUN],
    child: Annotated[str, typer.Argument(metavar="CHILD", help="An exported child, by id.")],
    bits: Annotated[
        str | None,
        typer.Option(
            help="Bits of weights and activations, 2 to 8; several for a budget to choose from. [default: 8, or 4,8]"
        ),
    ] = None,
    max_bitops: Annotated[
        str | None, typer.Option(metavar="N", help="The most MACs x weight bits x activation bits, for example 20M.")
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option(metavar="N", help="The most bytes of weights, for example 40k.")
    ] = None,
    set_: Set = NOTHING,
    trust: Trust = NOTHING,
) -> None:
    """Quantize an exported child: AdaQuant on training images, bits allocated by an integer program where there is a
    budget.

    Example: nas quantize runs/bignas-digits e5b4bb4dae2e --bits 4
    """
    from nas.quantization.target import read_target

    target = read_target(bits, max_bitops, max_bytes)
    experiment_of(run, set_, trust)
    with open_pipeline(str(run), None, set_, trust, check=lambda _, run: run.exported_child(child)) as pipeline:
        figures = pipeline.quantize(child, target)
        path = pipeline.run.child(figures["id"]).path
        report_line(pipeline)
    console.print(tables.quantized(figures))
    console.print(
        f"next: python -c 'import nas; net = nas.load_child(\"{os.path.relpath(path)}\")', or its model.onnx in ONNX "
        "Runtime",
    )


@app.command()
def register(
    run: Annotated[Path, RUN],
    child: Annotated[str, typer.Argument(metavar="CHILD", help="The id of an exported child.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the registered model, made if there is none.")],
    alias: Annotated[str | None, typer.Option("--alias", help="Of this version, for example champion.")] = None,
    trust: Trust = NOTHING,
) -> None:
    """Make an exported child a model in MLflow's registry, loadable by mlflow.pytorch.load_model.

    Example: nas register runs/bignas-digits CHILD digits --alias champion
    """
    settings, at = experiment_of(run, trusted=trust), run_at(run)
    at.exported_child(child)
    from nas.results.registry import register as enter

    version = enter(at, settings, child, name, alias)
    console.print(
        f"{name}, version {version}: "
        f"mlflow.pytorch.load_model('models:/{name}{'@' + alias if alias else '/' + version}')",
    )


for looking in (results.report, results.pick):
    app.command()(looking)


@app.command()
def spaces(
    space: Annotated[str | None, typer.Argument(help="One space; all by default.")] = None,
    size: Annotated[str | None, typer.Argument(help="One of its sizes.")] = None,
) -> None:
    """List search spaces: how many networks each holds, and what the smallest and the largest cost.

    Example: nas spaces bignas attentivenas
    """
    from nas.config.plugins import built_in_spaces, check_space

    if space:
        check_space(space)
    from nas.build import find_space, load_supernet, space_of

    if space and size:
        space_of(space, size)
    from nas.results.plots import human
    from nas.space import COSTS
    from nas.supernet import undrawn

    shown = {name: measure.title for name, measure in COSTS.items() if measure.shown}
    first, *others = shown.values()
    costs = [head for end in ("smallest", "largest") for head in (f"{end} {first}", *others)]
    names = (Column(head, no_wrap=True) for head in ("space", "size", "networks"))
    table = Table(*names, *costs, Column("input", no_wrap=True), box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in [space] if space else built_in_spaces():
        for each in [size] if size else list(getattr(find_space(name), "SIZES", [""])):
            with undrawn():  # it is asked for its costs alone
                net = load_supernet(name, each)
            ends = net.cost(net.space.smallest()), net.cost(net.space.largest())
            figures = [human(cost[key]) for cost in ends for key in shown]
            networks = net.space.cardinality
            table.add_row(
                name,
                each,
                f"{networks:,}" if networks < 1e6 else f"{networks:.1e}",
                *figures,
                "x".join(map(str, net.input_shape)),
            )
            if size:
                for choice in net.space.choices.values():
                    console.print(f"  {choice.name}: {', '.join(map(str, choice.values))}")
    console.print(table)


@app.command()
def doctor(
    experiment: Annotated[
        str | None, typer.Argument(metavar="[EXPERIMENT]", help="Look at what this one needs, its data too.")
    ] = None,
) -> None:
    """Look at this machine: what is missing for a run, and how to mend it.

    Example: nas doctor
    """
    from nas.cli.doctor import examine

    table, missing = Table("", "what", "found", "to do", box=None), 0
    for finding in examine(load_experiment(experiment) if experiment else None):
        missing += not finding.ok
        table.add_row(
            "ok" if finding.ok else "MISSING", finding.what, finding.found, "" if finding.ok else finding.mend
        )
    console.print(table)
    if missing:
        raise typer.Exit(1)


@app.command()
def ui(
    run: Annotated[Path, RUN],
    port: Annotated[int, typer.Option(min=1, max=65535, help="On this machine alone.")] = 5000,
    trust: Trust = NOTHING,
) -> None:
    """Open MLflow on the store of this run, to compare candidates; runs beside it share the store. Of a server only the
    page is named.

    Example: nas ui runs/bignas-digits
    """
    from nas.cli import tied
    from nas.results.tracking import UI_ENVIRONMENT, address, page_of, reachable, ui_command

    settings = experiment_of(run, trusted=trust)
    uri, name = address(run_at(run), settings.tracking.uri), settings.tracking.experiment or settings.name
    if uri.startswith(("http://", "https://")):
        if why := reachable(uri):
            raise ValueError(f"this run is tracked where nobody answers: {why}")
        console.print(f"{masked(uri).rstrip('/')}{page_of(uri, name)}")
        return
    command = ui_command(uri, port)
    console.print(f"http://127.0.0.1:{port}{page_of(uri, name)}\n(Ctrl-C ends it)")
    raise typer.Exit(tied.run(command, UI_ENVIRONMENT))


app.command("plan")(plan.planned)
for command in (latency.latency, init.init, check.check, schema.schema, *cluster.COMMANDS):
    app.command()(command)


def check_formats(names: list[str]) -> None:
    """Refuse what is no format of children, and one whose package is not installed.

    Raises:
        ValueError: says which there are, or what to install.
    """
    for name in names:
        if name not in FORMATS:
            raise ValueError(f"no format {name!r}; there are {', '.join(FORMATS)}, and ONNX by itself (export.onnx)")
        if importlib.util.find_spec(FORMATS[name]) is None:
            raise ValueError(f"the format {name} needs the package {FORMATS[name]}: pip install 'raynas[{name}]'")


def bounded(overrides: list[str], stage: str, minutes: float | None) -> list[str]:
    """The overrides with the time bound of a stage."""
    return [*overrides, f"{stage}.max_minutes={minutes}"] if minutes else overrides


def report_line(pipeline: Pipeline) -> None:
    console.print(f"report: {pipeline.report()}")


def finish(pipeline: Pipeline, ids: list[str]) -> None:
    """The table of the exported children, and where everything is."""
    path, run = pipeline.report(), pipeline.run
    results.show(run, ids)
    console.print(f"report:   {path}\nchildren: {run.children}\ncompare:  nas ui {os.path.relpath(run.path)}")


def main() -> None:
    """Any command: a person's mistake, or a machine's failure, is one clear message without a traceback, and an exit
    code that is not 0."""
    from nas.cli.main import SIGNALS, STOPPED
    from nas.rundir.atomic import Damaged
    from nas.rundir.fence import Fenced, Gone
    from nas.workers.stopping import RayDied

    clear = (ExperimentError, Untrusted, Damaged, Fenced, Gone, RayDied, OSError)
    try:
        app()
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # typer makes 130 of a KeyboardInterrupt
            raise
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        console.print(STOPPED, style="yellow")
        sys.exit(130)
    except (*clear, ValueError, RuntimeError) as error:
        if os.environ.get("RAYNAS_DEBUG"):
            raise
        told = failures.told(error) if isinstance(error, OSError) else str(error)
        console.print(f"error: {told}", style="red")
        if not isinstance(error, clear):
            console.print("(RAYNAS_DEBUG=1 shows where)", style="dim")
        if isinstance(error, (RayDied, Gone, Fenced)):
            sys.stdout.flush()
            os._exit(1)  # a thread may still wait for a Ray that is gone, and Ray at exit for its head
        sys.exit(1)


if __name__ == "__main__":
    main()
