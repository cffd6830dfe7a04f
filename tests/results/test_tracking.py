"""A run arrives in MLflow whole, with its view, flags and notes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nas.results.history import History, read_history
from nas.results.outbox import PAGE, first_page
from nas.results.tracking import Tracker, default_uri, page_of
from nas.rundir.directory import RunDir
from nas.search.journal import Journal, Record
from nas.space import Arch
from tests.results.tracked import SPACE, SUPERNET, candidates, search, send, steps, stored, train, wait

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore::DeprecationWarning:sqlalchemy")


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


def test_a_setting_that_goes_back_is_told(run: Path) -> None:
    """By commands one after the other, and where one of them follows the run all the while."""
    uri, settings = default_uri(RunDir(run)), (run / "experiment.yaml").read_text()

    def work(step: int, workers: str) -> None:
        (run / "experiment.yaml").write_text(settings.replace("workers: 1", f"workers: {workers}"))
        train(run, range(step, step + 10, 10))

    def now() -> str | None:
        tags: dict[str, str] = next(r for r in stored(uri) if r.data.tags["raynas.kind"] == "train").data.tags
        return tags.get("now.train.workers")

    assert send(run) == 0 and now() is None
    for step, workers in ((60, "2"), (70, "1")):
        work(step, workers)
        assert send(run) == 0 and now() == workers
    tracker = Tracker(RunDir(run), None, "nas")
    tracker.start()
    for step, workers in ((80, "2"), (90, "4"), (100, "2"), (110, "1")):
        work(step, workers)
        wait(lambda workers=workers: now() == workers)  # type: ignore[misc]
    assert tracker.close(60) == 0 and steps(uri, "train", "lr")[-1] == 110


def test_figures_lie_where_they_were_taken(run: Path) -> None:
    """The panel's as the steps'; those of old lines, which do not know when, at the start."""
    from mlflow import MlflowClient

    with open(run / "train" / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 60, "panel": {"smallest": {"accuracy": 70.0}}, "seconds": 6.5}) + "\n")
    uri = default_uri(RunDir(run))
    assert send(run) == 0
    (found,) = stored(uri)
    times = {
        name: [
            (each.step, each.timestamp - found.info.start_time)
            for each in MlflowClient(uri).get_metric_history(found.info.run_id, name)
        ]
        for name in ("lr", "panel/smallest/accuracy")
    }
    assert times["lr"] == [(step, 100 * step) for step in (10, 20, 30, 40, 50)]
    assert times["panel/smallest/accuracy"] == [(50, 0), (60, 6500)]


def test_a_candidate_whose_scoring_ended_early_says_so(run: Path) -> None:
    search(run, range(3))
    with Journal(run / "search" / "journal-5a5a5a5a.jsonl", {"supernet": SUPERNET}) as journal:
        arch, cost = SPACE.arch({"width": 99, "odd [name]": 2}), {"macs": 20_000, "params": 7}
        journal.append(Record(3, arch, {"accuracy": 99.0, "cross_entropy": 1.0}, cost, 2.0, None, seen=64))
    assert send(run) == 0
    found = candidates(default_uri(RunDir(run)))
    assert {k: r.data.tags.get("raynas.seen") for k, r in found.items()} == {0: None, 1: None, 2: None, 3: "64"}
    assert found[3].data.tags["raynas.front"] == "false"
