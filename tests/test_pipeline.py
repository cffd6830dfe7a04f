"""One real `nas run` from an experiment file to exported children, and what the same command does afterwards. Like a
user, by the command.

Runs are costly, so one is shared; a test that changes a run changes a copy of it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import nas
from nas.rundir import atomic
from nas.rundir.checkpoint import Checkpoint
from nas.statistics import half_width
from tests.driving import (
    PARITY,
    PATIENCE,
    STRANGER,
    Ended,
    check_tracked,
    command,
    contents,
    environment,
    flip_byte,
    journal,
    metrics,
    records,
    sets,
    supernet,
    tracked,
)

TINY = [
    *("recipe.epochs=4", "recipe.warmup_epochs=1", "search.candidates=40", "search.window=8"),
    *("train.checkpoint_every=25", "export.children=3"),
]
STEPS_AN_EPOCH = 18  # of 64 out of 1,200 digits
NOISE = re.compile(r"\(\w+ pid=\d+|\b(INFO|WARNING|DEBUG)\b|Warning:|Traceback|ray::|\[rank\d|it/s\]|╭|https?://")


# --- the run


@dataclass(frozen=True)
class Done:
    """The shared run: where the command was given, its directory, the words, and what it said."""

    home: Path
    run: Path
    words: list[str | Path]
    ended: Ended


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A finished run. Read it, and leave it as it is."""
    home = tmp_path_factory.mktemp("done")
    words: list[str | Path] = ["run", "bignas-digits", *sets(TINY)]
    ended = command(*words, cwd=home, patience=PATIENCE)
    assert ended.code == 0, ended.text
    return Done(home, home / "runs" / "bignas-digits", words, ended)


@pytest.fixture
def copy(done: Done, tmp_path: Path) -> Path:
    """The finished run, copied with its MLflow store, to be changed."""
    shutil.copytree(done.run.parent, tmp_path / "runs")
    return tmp_path / "runs" / done.run.name


@pytest.fixture(scope="module", params=range(3))
def child(request: pytest.FixtureRequest, done: Done) -> Path:
    """Each of the exported children."""
    return sorted((done.run / "children").iterdir())[request.param]


pytestmark = pytest.mark.timeout(2 * PATIENCE)


def test_it_prints_the_front_and_what_to_do_next(done: Done) -> None:
    text, children = done.ended.text, sorted((done.run / "children").iterdir())
    rows = {
        row[0]: [cell for cell in row[1:] if cell[0] not in "=±"]
        for line in done.ended.lines
        if (row := line.split()) and re.fullmatch(r"[0-9a-f]{12}", row[0])
    }
    assert sorted(rows) == [path.name for path in children] and len(rows) == 3
    for path in children:
        figures = json.loads((path / "metrics.json").read_text())
        shown = [f"{figures[part]['accuracy']:.2f}" for part in ("validation", "test")]
        assert rows[path.name][-3:-1] == shown, "validation and test accuracy stand in the table"
    for title in ("child", "MACs", "parameters", "validation", "test"):
        assert title in text
    assert str(done.run / "report.html") in text and str(done.run / "children") in text
    assert "nas ui runs/bignas-digits" in text


def test_it_prints_no_wall_of_logs(done: Done) -> None:
    lines = done.ended.lines
    assert len(lines) <= 25 + done.ended.seconds / 5, done.ended.text  # a line now and then where there is no terminal
    assert not [line for line in lines if NOISE.search(line)], done.ended.text
    assert max(map(len, lines)) <= 200


def test_the_run_directory_holds_what_is_named_and_no_rubbish(done: Done) -> None:
    names = {path.name for path in done.run.iterdir()}
    wanted = {"run.json", "experiment.yaml", "history.jsonl", "train", "supernet", "search", "children"}
    wanted |= {"report.html", "tracking.jsonl", "attempt"}
    assert names - {".lock"} == wanted
    beside = {path.name for path in done.run.parent.iterdir()}
    assert beside <= {done.run.name, "mlflow.db", "mlartifacts"}
    assert {path.name for path in done.home.iterdir()} == {"runs"}
    left = [path for path in done.run.rglob("*") if path.name.endswith((".tmp", ".old", ".new"))]
    assert not left
    total = 4 * STEPS_AN_EPOCH
    assert sorted(path.name for path in (done.run / "supernet").iterdir()) == [f"step-{n:08d}" for n in (50, total)]
    assert {path.name.partition("-")[0] for path in (done.run / "search").iterdir()} == {"journal", "current"}
    page = (done.run / "report.html").read_text()
    assert all(path.name in page for path in (done.run / "children").iterdir())


def test_what_ran_is_written_down_and_reads_back(done: Done) -> None:
    from nas.config.experiment import load_experiment

    assert load_experiment(done.run / "experiment.yaml") == load_experiment("bignas-digits", TINY)


def test_the_journal_is_complete(done: Done) -> None:
    found = records(done.run)
    assert sorted(found) == list(range(40))
    assert all(record["error"] is None and record["metrics"]["accuracy"] > 10 for record in found.values())
    assert len({record["id"] for record in found.values()}) == 40, "no architecture is judged twice"
    header = json.loads(next((done.run / "search").glob("journal-*")).read_text().splitlines()[0])
    assert header["supernet"] == supernet(done.run)


def test_mlflow_has_every_candidate_once(done: Done) -> None:
    runs = check_tracked(done.run, 40)
    assert len(tracked(done.run)["train"]) == 1
    for k, record in records(done.run).items():
        data = runs[k].data
        assert data.params == {name: str(value) for name, value in record["arch"].items()}
        wanted = {**record["metrics"], **record["cost"], "seconds": record["seconds"]}
        wanted["interval"] = half_width(record["parts"])
        assert {name: value for name, value in data.metrics.items() if not name.startswith("test_")} == pytest.approx(
            wanted, rel=1e-12
        )


def test_a_child_is_whole_and_agrees_with_the_search(done: Done, child: Path) -> None:
    manifest = atomic.verify(child)
    assert manifest["supernet"] == supernet(done.run)
    assert set(manifest["files"]) == {
        "model.safetensors",
        "model.py",
        "config.json",
        "arch.json",
        "metrics.json",
        "model.onnx",
        "picture.onnx",
        "README.md",
    }
    figures = json.loads((child / "metrics.json").read_text())
    record = next(record for record in records(done.run).values() if record["id"] == child.name)
    assert figures["validation"] == record["metrics"], "export measures as the search did"
    assert {name: figures[name] for name in record["cost"]} == record["cost"]
    about = json.loads((child / "arch.json").read_text())
    assert about["arch"] == record["arch"] and about["supernet"] == manifest["supernet"]
    assert set(figures["parity"]) == {"examples", "supernet", "reloaded", "onnx", "picture_onnx"}
    assert max(value for name, value in figures["parity"].items() if name != "examples") <= PARITY
    assert set(figures["test"]) == set(figures["validation"])


COMPARE = """
import json
import numpy, onnxruntime, torch

x = numpy.random.default_rng(0).random((7, *json.load(open("arch.json"))["input"]["shape"]), dtype=numpy.float32)
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
theirs = session.run(None, {session.get_inputs()[0].name: x})[0]
with torch.no_grad():
    ours = model.network(torch.from_numpy(x)).numpy()
assert not {"nas", "searchspaces", "ray", "deepspeed", "mlflow"} & set(sys.modules)
apart, size = float(abs(ours - theirs).max()), float(abs(ours).max())
print(json.dumps({"shape": ours.shape, "apart": apart, "size": size, "outputs": ours.tolist()}))
"""


def test_a_child_loads_where_there_is_no_raynas_by_the_lines_of_its_card(child: Path) -> None:
    card = (child / "README.md").read_text()
    lines, *_ = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    script = STRANGER + lines + COMPARE
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=child, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["shape"] == [7, 10] and found["size"] > 0.1
    assert found["apart"] <= PARITY
    x = np.random.default_rng(0).random((7, 1, 8, 8), dtype=np.float32)
    import torch

    with torch.no_grad():
        ours = nas.load_child(child)(torch.from_numpy(x)).numpy()
    assert np.abs(ours - np.array(found["outputs"], np.float32)).max() <= 1e-6
    assert atomic.verify(child), "loading it leaves nothing behind that the manifest would miss"


def test_load_child_refuses_a_changed_byte(done: Done, tmp_path: Path) -> None:
    first = sorted((done.run / "children").iterdir())[0]
    for name in ("model.safetensors", "arch.json"):
        child = shutil.copytree(first, tmp_path / name / first.name)
        flip_byte(child / name)
        with pytest.raises(atomic.Damaged, match=re.escape(name)):
            nas.load_child(child)


def test_load_child_runs_no_class_from_elsewhere(done: Done, tmp_path: Path) -> None:
    child = shutil.copytree(sorted((done.run / "children").iterdir())[0], tmp_path / "child")
    about = json.loads((child / "arch.json").read_text())
    for home in ("os:system", "searchspaces_of_mine:Child", "nas.static:Block"):
        text = json.dumps({**about, "child": home, "network": {}})
        (child / "arch.json").write_text(text)
        manifest = json.loads((child / "manifest.json").read_text())
        manifest["files"]["arch.json"] = {"size": len(text), "sha256": atomic.sha256(child / "arch.json")}
        (child / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=re.escape(home)):
            nas.load_child(child)


# --- the same command again, and others after it


@pytest.fixture(scope="module")
def again(done: Done, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str], Ended]]:
    """A copy of the finished run: where it is, what it held, and what the same command then said."""
    home = tmp_path_factory.mktemp("again")
    shutil.copytree(done.run.parent, home / "runs")
    run = home / "runs" / done.run.name
    before = contents(run)
    yield run, before, command(*done.words, cwd=home)


def test_the_same_command_finishes_at_once(done: Done, again: tuple[Path, dict[str, str], Ended]) -> None:
    run, before, ended = again
    assert ended.code == 0, ended.text
    for stage in ("train", "search", "export"):
        assert f"{stage}: done before" in ended.text
    assert ended.seconds < 60, "no Ray is started"
    assert "Ray" not in ended.text
    table = [line for line in done.ended.lines if re.match(r"\s*[0-9a-f]{12} ", line)]
    assert table and all(line in ended.lines for line in table)


def test_the_same_command_changes_nothing_that_matters(again: tuple[Path, dict[str, str], Ended]) -> None:
    run, before, _ = again
    after = contents(run)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {"history.jsonl", "attempt", "tracking.jsonl", "report.html"}
    check_tracked(run, 40)


def test_report_and_a_directory_as_the_experiment(again: tuple[Path, dict[str, str], Ended]) -> None:
    run, before, _ = again
    (run / "report.html").unlink()
    ended = command("report", run, cwd=run.parent)
    assert ended.code == 0, ended.text
    assert "report.html" in ended.text and (run / "report.html").stat().st_size > 10_000
    ended = command("train", run, cwd=run.parent)
    assert ended.code == 0 and "train: done before" in ended.text, ended.text
    ended = command("search", run, cwd=run.parent)
    assert ended.code == 0 and "search: done before: 40 candidates" in ended.text, ended.text
    front = list(nas.Run(run).front.query("front").index)
    assert re.findall(r"^\s*([0-9a-f]{12}) ", ended.text, re.MULTILINE) == front, "it ends with the table"
    assert f"{len(front)} on the front" in ended.text and "next: nas export bignas-digits" in ended.text


def test_the_best_child_under_a_budget(done: Done) -> None:
    """From Python and by the command, which tells how to take it away."""
    run = nas.Run(done.run)
    table = run.candidates
    best = run.pick(max={"macs": "200k"})
    assert best["macs"] <= 200_000 and best["accuracy"] == table[table.macs <= 200_000].accuracy.max()
    assert table.loc[best.name].id == best["id"]
    ended = command("pick", "runs/bignas-digits", "--max", "macs=200k", cwd=done.home)
    assert ended.code == 0 and re.findall(r"^\s*([0-9a-f]{12}) ", ended.text, re.MULTILINE) == [best["id"]]
    taken = (done.run / "children" / best["id"]).is_dir()
    assert (f"children/{best['id']}" if taken else f"nas export runs/bignas-digits --child {best['id']}") in ended.text
    ended = command("pick", "runs/bignas-digits", "--min", "accuracy=100.5", "--knee", cwd=done.home)
    best_first = table.sort_values(["accuracy", "macs"], ascending=[False, True])
    assert ended.code == 1 and f"the nearest is {best_first.id.iloc[0]}" in ended.text
    ended = command("pick", "runs/bignas-digits", "--max", "100k", cwd=done.home)
    assert ended.code == 1 and "'100k' is no bound; write for example --max macs=100k" in ended.text


def test_the_notebook(again: tuple[Path, dict[str, str], Ended]) -> None:
    """As it stands, where its run is done."""
    run, before, _ = again
    book = nbformat.read(Path(__file__).parent.parent / "examples" / "notebook.ipynb", as_version=4)
    NotebookClient(book, timeout=120, resources={"metadata": {"path": run.parent.parent}}).execute()
    outputs = [list(cell.outputs) for cell in book.cells if cell.cell_type == "code"]
    assert any("search: done before" in output.data["text/plain"] for output in outputs[0])
    assert outputs[0][-1].data["text/plain"] == "Run('runs/bignas-digits')"
    assert sum("image/png" in output.data for cell in outputs for output in cell) == 1
    assert "text/html" in outputs[1][0].data and nas.Run(run).pick(max={"macs": "150k"})["id"] in str(outputs)
    assert "tensor([" in outputs[-1][-1].data["text/plain"]
    assert {name: sha for name, sha in contents(run).items() if name.startswith("children")}.items() <= before.items()


def test_another_identity_is_refused_with_the_difference(again: tuple[Path, dict[str, str], Ended]) -> None:
    run, _, _ = again
    before = contents(run)
    ended = command("run", run, *sets(["seed=7", "recipe.lr=0.125", "train.zero_stage=2"]), cwd=run.parent)
    assert ended.code == 1
    assert (
        "seed: 0 in bignas-digits, 7 now" in ended.text and "recipe.lr: 0.2 in bignas-digits, 0.125 now" in ended.text
    )
    assert "zero_stage" not in ended.text, "what may change is no reason"
    assert "--run-dir" in ended.text and "Traceback" not in ended.text
    assert contents(run) == before


def test_more_candidates_and_another_budget(copy: Path) -> None:
    old = next((copy / "search").glob("journal-*")).read_text()
    children = contents(copy / "children")
    ended = command(
        "run",
        copy,
        *sets(["search.candidates=56", "search.constraints.max_macs=250k", "search.trials=1", "export.onnx=false"]),
        cwd=copy.parent,
        patience=PATIENCE,
    )
    assert ended.code == 0, ended.text
    assert "train: done before" in ended.text
    (path,) = (copy / "search").glob("journal-*")
    assert path.read_text().startswith(old), "the journal goes on"
    added = journal(copy)[len(old.splitlines()) - 1 :]
    assert added[0]["from_k"] == 40 and added[0]["constraints"]["macs"] == [None, 250_000]
    found = records(copy)
    assert sorted(found) == list(range(56))
    assert max(found[k]["cost"]["macs"] for k in range(40)) > 250_000, "or this test shows nothing"
    assert max(found[k]["cost"]["macs"] for k in range(40, 56)) <= 250_000
    check_tracked(copy, 56)
    shown = re.findall(r"^\s*([0-9a-f]{12}) ", ended.text, re.MULTILINE)
    by_id = {record["id"]: record for record in found.values()}
    assert shown and all(by_id[name]["cost"]["macs"] <= 250_000 for name in shown), (
        "children of the new budget are exported"
    )
    assert children.items() <= contents(copy / "children").items(), "and the old ones stay"
    assert (
        "within max_macs 250,000" in ended.text and "to lift that: --set search.constraints.macs.max=null" in ended.text
    )
    front = {k for k, each in check_tracked(copy, 56).items() if each.data.tags["raynas.front"] == "true"}
    assert all(found[k]["cost"]["macs"] <= 250_000 for k in front), "MLflow's front is that of the budget"
    assert f"56 candidates, {len(front)} on the front within max_macs 250,000" in ended.text
    page = (copy / "report.html").read_text()
    assert (
        f"{len(front)} stand on the front of those with at most 250 k MACs" in page
        and "at most 250 k MACs</text>" in page
    )
    last = json.loads((copy / "history.jsonl").read_text().splitlines()[-1])
    assert last["changed"] == {
        "search.candidates": [40, 56],
        "search.constraints.macs.max": [None, 250_000],
        "search.trials": [2, 1],
        "export.onnx": [True, False],
    }


def test_another_search_over_the_same_supernet(done: Done, tmp_path: Path) -> None:
    """Nothing is trained, and who was judged before is not judged again; what it begins with is left as it is."""
    before, other = contents(done.run), tmp_path / "other"
    words = [
        "search",
        done.run,
        "--run-dir",
        other,
        "--set",
        "search.cost=params",
        *sets(["search.candidates=24", "search.trials=1"]),
    ]
    ended = command(*words, cwd=tmp_path, patience=PATIENCE)
    assert ended.code == 0, ended.text
    assert f"the supernet of {done.run}, step 72; 40 children that were judged there are not judged again" in ended.text
    assert contents(done.run) == before and supernet(other) == supernet(done.run)
    known = {record["id"]: record for record in records(done.run).values()}
    found = records(other)
    old = [record for record in found.values() if record["id"] in known]
    assert sorted(found) == list(range(24)) and len(old) >= 8, "of the first that are proposed all are known"
    for record in old:
        assert record["seconds"] == 0 and record["parts"] == known[record["id"]]["parts"]
        assert record["metrics"] == known[record["id"]]["metrics"]
    assert all(record["seconds"] > 0 for record in found.values() if record["id"] not in known)
    again = command("train", other, cwd=tmp_path, patience=PATIENCE)
    assert again.code == 0 and "train: done before (72 steps)" in again.text, again.text
    refused = command("search", done.run, "--run-dir", tmp_path / "third", "--set", "recipe.lr=0.3", cwd=tmp_path)
    assert refused.code == 1 and "trained otherwise (recipe.lr)" in refused.text and not (tmp_path / "third").exists()


def test_a_search_that_scores_no_further_than_needed(done: Done, tmp_path: Path) -> None:
    """The same candidates until the first that was stopped is known; who was stopped stands on no front."""
    settings = [
        "search.early_stop=exact",
        "search.score_batch=20",
        "search.candidates=24",
        "search.trials=1",
        "search.metric=accuracy",
    ]
    ended = command("search", done.run, "--run-dir", tmp_path / "run", *sets(settings), cwd=tmp_path, patience=PATIENCE)
    assert ended.code == 0, ended.text
    found, whole = records(tmp_path / "run"), records(done.run)
    stopped = {k for k, record in found.items() if "seen" in record}
    assert stopped and all(found[k]["seen"] % 19 == 0 and found[k]["seen"] < 300 for k in stopped)
    for k in range(min(stopped) + 8):
        assert found[k]["id"] == whole[k]["id"]
        assert k in stopped or found[k]["metrics"] == pytest.approx(whole[k]["metrics"], rel=1e-6), "but for rounding"
    shown = set(re.findall(r"^\s*([0-9a-f]{12}) ", ended.text, re.MULTILINE))
    assert shown and not shown & {found[k]["id"] for k in stopped}
    told = f"{len(stopped)} of which were hopeless before all validation examples were scored"
    assert told in (tmp_path / "run" / "report.html").read_text()


def test_more_epochs_with_another_stage_and_one_worker(copy: Path) -> None:
    """Training goes on from the last checkpoint, at another world size and stage, and a new search begins."""
    (old,) = (copy / "search").glob("journal-*")
    kept, first = old.read_text(), supernet(copy)
    words = ["recipe.epochs=5", "train.zero_stage=2", "train.workers=1"]
    words += ["search.candidates=12", "search.trials=1", "export.onnx=false"]
    ended = command("run", copy, *sets(words), cwd=copy.parent, patience=PATIENCE)
    assert ended.code == 0, ended.text
    total, before = 5 * STEPS_AN_EPOCH, 4 * STEPS_AN_EPOCH
    news = [line["step"] for line in metrics(copy) if line.get("total") == total]
    assert news and min(news) == before + 1 and max(news) == total
    assert Checkpoint.newest(copy / "supernet").state.step == total  # type: ignore[union-attr]
    assert supernet(copy) != first
    assert old.read_text() == kept
    assert sorted(records(copy)) == list(range(12))
    ids = {each.info.run_id: each.data.tags["raynas.supernet"] for each in tracked(copy)["search"]}
    assert sorted(ids.values()) == sorted([first, supernet(copy)]), "a search in MLflow for each supernet"
    of = Counter(ids[each.data.tags["mlflow.parentRunId"]] for each in tracked(copy)["candidate"])
    assert of == {first: 40, supernet(copy): 12}
    shown = re.findall(r"^\s*([0-9a-f]{12}) ", ended.text, re.MULTILINE)
    for name in shown:
        assert atomic.verify(copy / "children" / name)["supernet"] == supernet(copy)
    last = json.loads((copy / "history.jsonl").read_text().splitlines()[-1])
    assert {"recipe.epochs": [4.0, 5.0], "train.zero_stage": [1, 2], "train.workers": [2, 1]}.items() <= last[
        "changed"
    ].items()


def test_quantize_a_child(copy: Path) -> None:
    """By the command, twice; and the report shows it."""
    name = sorted(path.name for path in (copy / "children").iterdir())[0]
    ended = command("quantize", copy, name, "--bits", "4", cwd=copy.parent)
    assert ended.code == 0, ended.text
    home = copy / "children" / f"{name}-w4a4"
    figures = json.loads((home / "metrics.json").read_text())
    manifest = atomic.verify(home)
    written = {"model.safetensors", "model.py", "quantized.py", "config.json", "arch.json", "metrics.json", "README.md"}
    assert {*written, "model.onnx", "picture.onnx"} == set(manifest["files"])
    assert (
        all(row["method"] in ended.text for row in figures["rows"]) and f"{name}-w4a4" in ended.text.split("next:")[1]
    )
    assert f"{name}-w4a4" in (copy / "report.html").read_text()
    assert "done before" in command("quantize", copy, name, "--bits", "4", cwd=copy.parent).text
    ended = command("quantize", copy, name, "--max-bytes", "100", cwd=copy.parent)
    assert ended.code == 1 and "are missing" in ended.text
    ended = command("quantize", copy, "4711", cwd=copy.parent)
    assert ended.code == 1 and "'4711'" in ended.text and name in ended.text


def test_export_of_one_candidate(copy: Path) -> None:
    exported = {path.name for path in (copy / "children").iterdir()}
    record = next(record for record in records(copy).values() if record["id"] not in exported)
    ended = command("export", copy, "--child", str(record["k"]), "--set", "export.onnx=false", cwd=copy.parent)
    assert ended.code == 0, ended.text
    child = copy / "children" / record["id"]
    assert atomic.verify(child) and not (child / "model.onnx").exists()
    assert json.loads((child / "metrics.json").read_text())["validation"] == record["metrics"]
    assert re.findall(r"^\s*([0-9a-f]{12}) ", ended.text, re.MULTILINE) == [record["id"]]
    ended = command("export", copy, "--child", "4711", cwd=copy.parent)
    assert ended.code == 1 and "4711" in ended.text and "Traceback" not in ended.text
