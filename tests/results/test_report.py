"""The report says what the files say, needs nothing but itself, and leaves out what is not there."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from nas.cli.commands import app
from nas.cli.results import show
from nas.config.experiment import dump, load_experiment
from nas.results.history import History, agreements, front_table, outcome, read_constraints, read_history, standing
from nas.results.plots import human, search_figure, search_picture
from nas.results.report import write_report
from nas.rundir.directory import RunDir
from nas.rundir.log import Lines, read_training
from nas.search.constraints import ANYTHING
from nas.search.journal import Candidate, Journal, Record
from nas.space import Arch, Choice, Space
from nas.statistics import half_width

SPACE = Space([Choice("width", tuple(range(1, 3000)))])
SUPERNET = "5a" * 32
# (accuracy, MACs) by k; None failed. The front, cheapest first: 1, 4, 0.
GIVEN: list[tuple[float, int] | None] = [
    (91.5, 50_000_000),
    (60.25, 400_000),
    (55.0, 900_000),
    None,
    (80.125, 1_234_567),
    (math.nan, 10),
]


class Page(HTMLParser):
    """Tags with their attributes, the text, and the table's cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.cells, self._open = "", [[]], []  # type: str, list[list[str]], list[str]
        self.feed(text)
        self.rows = [row for row in self.cells if row]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self._open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data
        if "td" in self._open or "th" in self._open:
            self.cells[-1][-1] += data


def search(run: Path, given: list[tuple[float, int] | None], **header: Any) -> list[Record]:
    (run / "search").mkdir(parents=True, exist_ok=True)
    records = []
    with Journal(run / "search" / "journal-5a5a5a5a.jsonl", {"supernet": SUPERNET, **header}) as journal:
        for k, what in enumerate(given):
            metrics = {"accuracy": what[0], "cross_entropy": 1.0} if what else None
            cost = {"macs": what[1], "params": 10 * k + 5000, "bitops": what[1] * 1024} if what else {}
            records.append(
                Record(k, SPACE.arch({"width": k + 1}), metrics, cost, 30.0, None if what else "<b>no</b> memory")
            )
            journal.append(records[-1])
    return records


def train(run: Path) -> None:
    (run / "train").mkdir(parents=True)
    lines: list[dict[str, Any]] = [
        {
            "step": s,
            "total": 40,
            "epoch": 1.0,
            "seconds": 60.0 * s,
            "lr": 0.1,
            "loss": {"largest": 9.0, "smallest": 9.5},
        }
        for s in (10, 20, 30)
    ]
    lines += [{"step": 20, "event": "rollback", "reason": "<i>nan</i>"}]
    lines += [{**line, "loss": {"largest": 1.0, "smallest": 1.5}} for line in lines[1:3]]
    lines += [{"step": 30, "panel": {"smallest": {"accuracy": 44.0}, "largest": {"accuracy": 66.0}}}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "train" / "metrics.jsonl").write_text(text + '{"step": 40, "lo')


def export(run: Path, name: str, test: float, validation: float, supernet: str = SUPERNET) -> None:
    (run / "children" / name).mkdir(parents=True)
    metrics = {"id": name, "validation": {"accuracy": validation}, "test": {"accuracy": test}, "parity": {}}
    (run / "children" / name / "metrics.json").write_text(json.dumps(metrics))
    (run / "children" / name / "manifest.json").write_text(json.dumps({"supernet": supernet}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"id": "c0ffee", "name": "<script>alert(1)</script> & co"}))
    return run


@pytest.mark.parametrize("supernet", [SUPERNET, "0" * 64])
def test_only_a_child_of_this_supernet_is_offered_and_shown(supernet: str, run: Path) -> None:
    records = search(run, GIVEN)
    best = max((record for record in records if record.metrics), key=lambda record: record.metrics["accuracy"])
    export(run, best.id, 79.5, 80.125, supernet)
    Image.new("RGB", (4, 4)).save(run / "children" / best.id / "a.png")
    panel = {"label": "child", "note": "99.99 dB", "file": "a.png", "enlarged": False}
    (run / "children" / best.id / "pictures.json").write_text(json.dumps([{"title": "a", "panels": [panel]}]))
    (run / "experiment.yaml").write_text(dump(load_experiment("bignas-digits")))
    ended = CliRunner().invoke(app, ["pick", str(run)])
    assert ended.exit_code == 0, ended.output
    assert (
        ("it is in" in ended.output) == ("99.99 dB" in write_report(RunDir(run)).read_text()) == (supernet == SUPERNET)
    )
    assert ("next: nas export" in ended.output) == (supernet != SUPERNET)


def test_children_of_an_earlier_supernet_and_half_written_ones_are_not_taken_for_these(run: Path) -> None:
    records = search(run, GIVEN)
    export(run, records[4].id, 79.5, 80.125, "0" * 64)
    export(run, records[2].id, 54.25, 57.75, "0" * 64)
    export(run, f".{records[0].id}.1f2e3d4c.tmp", 1.0, 1.0)
    rows = {row["id"]: row for row in front_table(RunDir(run))}
    assert set(rows) == {records[k].id for k in (0, 1, 2, 4)}
    on_front, off = rows[records[4].id], rows[records[2].id]
    assert on_front["front"] and not on_front["exported"] and on_front["test"] is None, (
        "the search judged another network of that name"
    )
    assert off["exported"] and off["test"] == 54.25 and off["k"] is None and off["validation"] is None
    assert "1 child was exported" not in write_report(RunDir(run)).read_text()


def test_a_whole_run(run: Path) -> None:
    records = search(run, GIVEN)
    train(run)
    (run / "experiment.yaml").write_text("name: digits # <img src=x>\n")
    export(run, records[4].id, 79.5, 80.125)
    export(run, records[2].id, 54.25, 57.75)  # not on the front, and finetuned
    path = write_report(RunDir(run))
    assert path == run / "report.html" and [p.name for p in run.iterdir() if "report" in p.name] == ["report.html"]
    page = Page(path.read_text())
    head, *rows = page.rows
    assert head == [
        "id",
        "MACs",
        "parameters",
        "validation accuracy",
        "validation accuracy, as exported",
        "test accuracy",
        "files",
    ]
    link = "children/{}/".format
    assert rows == [
        [records[1].id, "400 k", "5.01 k", "60.25", "–", "–", ""],
        [records[2].id, "900 k", "5.02 k", "55.00", "57.75", "54.25", link(records[2].id)],
        [records[4].id, "1.23 M", "5.04 k", "80.12", "80.12", "79.50", link(records[4].id)],
        [records[0].id, "50.0 M", "5.00 k", "91.50", "–", "–", ""],
    ]
    for said in (
        "trained for 30 of 40 steps in 30 min",
        "judged 6 candidates, 2 of which failed",
        f"{records[0].id}, reaches accuracy 91.50 on validation with 50.0 M MACs",
        f"{records[1].id}, reaches accuracy 60.25 on validation with 400 k MACs",
        "2 children were exported",
        "2 failed candidates are not shown",
        "on the validation set alone",
        SUPERNET,
        "name: digits # <img src=x>",
        "<script>alert(1)</script> & co",
        "<i>nan</i>",
    ):
        assert said in page.text, said
    tags = [tag for tag, _ in page.tags]
    assert tags.count("svg") == 3 and "script" not in tags and "img" not in tags and "b" in tags and "i" not in tags


def test_it_needs_nothing_but_itself(run: Path) -> None:
    search(run, GIVEN)
    train(run)
    text = write_report(RunDir(run)).read_text()
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:", "children/")), (tag, name, value)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {a or b for a, b in targets} <= set(ids)


def test_the_picture_names_its_points(run: Path) -> None:
    records = search(run, GIVEN)
    history = read_history(RunDir(run))
    assert history is not None
    picture = search_picture(history, {records[4].id: {}})
    titles = re.findall(r"<title>([^<]*)</title>", picture)
    assert [title.split()[0] for title in titles] == [
        records[k].id for k in (0, 1, 2, 4, 1, 4, 0)
    ]  # the cloud, then the front
    assert titles[3] == f"{records[4].id} (candidate 4): accuracy 80.12, 1.23 M MACs, 5.04 k parameters, 1.26 G BitOPs"
    assert len(re.findall(rf">{records[4].id}</text>", picture)) == 1  # searchable text, the exported one alone
    assert "#010203" not in picture and "currentColor" in picture


def test_a_budget_holds_everywhere(run: Path) -> None:
    """The summary, the picture, the progress, the table and the hypervolume are of what lies within it."""
    records = search(run, [*GIVEN, (95.0, 60_000_000), (85.0, 1_100_000)])
    export(run, records[0].id, 90.0, 91.5)
    (run / "experiment.yaml").write_text("search: {constraints: {max_macs: 1.3M, params: {min: 5000, max: 5100}}}\n")
    history = read_history(RunDir(run))
    assert history is not None and [r.k for r in history.front()] == [1, 7]
    assert [(p.k, p.front_size) for p in history.progress] == [(0, 0), (1, 1), (2, 1), (4, 2), (6, 2), (7, 2)]
    assert math.isnan(history.progress[0].best) and history.progress[-1].best == 85.0
    assert standing(history).startswith("best accuracy 85 within max_macs 1,300,000, min_params 5,000")
    assert "| front 2 | hypervolume" in standing(history)
    assert outcome(history).startswith("8 candidates (2 failed), 2 on the front within max_macs 1,300,000")
    page = Page(write_report(RunDir(run)).read_text())
    within = "with at most 1.30 M MACs and at least 5.00 k parameters and at most 5.10 k parameters"
    assert f"2 stand on the front of those {within}. The best child, {records[7].id}" in page.text
    assert f"Children in grey do not stand on the front of those {within}" in page.text
    assert [row[0] for row in page.rows[1:]] == [records[k].id for k in (1, 7, 0)]
    picture = search_picture(history, {records[0].id})
    assert len(re.findall(r'<g id="search-bound">', picture)) == 1, "a line for the cost of the axis"
    assert all(f">{words}</text>" in picture for words in ("at most 1.30 M MACs", "at least 5.00 k parameters"))
    assert len(re.findall(r">[^<]*</title>", picture)) == 6 + 2
    (run / "experiment.yaml").write_text("search: {constraints: {macs: {max: 100}}}\n")
    assert "There is no front of those with at most 100 MACs" in write_report(RunDir(run)).read_text()
    for damaged in ("search: [", "search: {constraints: {macs: nonsense}}", "3"):
        (run / "experiment.yaml").write_text(damaged)
        assert read_constraints(RunDir(run)) == ANYTHING


def test_the_best_child_is_not_the_dearest_of_three_objectives(run: Path) -> None:
    """The dearest is the worst, and stands on the front for its few parameters alone."""
    (run / "search").mkdir()
    header = {"supernet": SUPERNET, "objective": {"further": {"params": "lower"}}}
    given = [(60.0, 1000, 900), (90.0, 2000, 1000), (50.0, 3000, 10)]
    with Journal(run / "search" / "journal-5a5a5a5a.jsonl", header) as journal:
        for k, (accuracy, macs, params) in enumerate(given):
            arch, cost = SPACE.arch({"width": k + 1}), {"macs": macs, "params": params}
            journal.append(Record(k, arch, {"accuracy": accuracy}, cost, 30.0, None))
    history = read_history(RunDir(run))
    assert history is not None and [record.k for record in history.front()] == [0, 1, 2]
    text = Page(write_report(RunDir(run)).read_text()).text
    assert f"The best child, {history.records[1].id}, reaches accuracy 90.00" in text
    assert f"The smallest on the front, {history.records[0].id}, reaches accuracy 60.00" in text


@pytest.mark.parametrize(
    ("minutes", "panel", "told"),
    [
        (None, None, "in 30 min."),
        (100, None, "in 30 min, of the 100 min that it was given."),  # interrupted
        (30, None, "in 30 min, to the end of the 30 min that it was given."),
        (30.01, 1800.7, "in 30 min, to the end of the 30.01 min that it was given."),  # its last step is not in the log
        (31, 1800.7, "in 30 min, of the 31 min that it was given."),
    ],
)
def test_a_time_is_used_up_only_where_it_was(run: Path, minutes: float | None, panel: float | None, told: str) -> None:
    train(run)
    log = run / "train" / "metrics.jsonl"
    if panel is not None:
        figures = {"largest": {"accuracy": 66.0}}
        line = json.dumps({"step": 31, "panel": figures, "seconds": panel})
        log.write_text(log.read_text().rpartition("\n")[0] + f"\n{line}\n")
    (run / "experiment.yaml").write_text(f"train: {{max_minutes: {'null' if minutes is None else minutes}}}\n")
    page = Page(write_report(RunDir(run)).read_text())
    assert f"trained for 30 of 40 steps {told}" in page.text


def test_a_finetune_is_told_before_and_after(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it began from has a row, though it stands on no front and was not exported."""
    records = search(run, GIVEN)
    (before, after) = (records[2].id, f"{records[2].id}-finetuned")
    export(run, after, 54.25, 57.75)
    about = json.loads((run / "children" / after / "metrics.json").read_text())
    (run / "children" / after / "metrics.json").write_text(json.dumps({**about, "macs": 900_000, "params": 5020}))
    show(RunDir(run), [before, after])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert rows == [
        [before, "900", "k", "5.02", "k", "55.00"],
        [after, "900", "k", "5.02", "k", "57.75", "54.25"],
    ]
    show(RunDir(run), [before])
    assert "test" not in capsys.readouterr().out, "no column without a figure"


def test_labels_do_not_overprint(run: Path) -> None:
    """Thirty exported children on a spot: those labels that there is a place for, each clear of the others."""
    records = search(run, [(90 + k / 100, 1_000_000 + 3000 * k) for k in range(30)] + [(60.0, 400_000)])
    (run / "experiment.yaml").write_text("search: {constraints: {macs: {max: 1.1M}}}\n")
    history = read_history(RunDir(run))
    assert history is not None
    figure = search_figure(history, {record.id for record in records})
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert 3 <= len(boxes) < 31 and records[-1].id in [text.get_text() for text in axes.texts]
    assert all(not box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])
    x = axes.transData.transform((1_100_000, 90))[0]
    assert not any(box.x0 < x < box.x1 for box in boxes)
    legend = axes.get_legend()
    assert legend is not None and legend.get_window_extent().y0 >= axes.bbox.y1
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_large_cloud_is_an_image(run: Path) -> None:
    search(run, [(50 + k % 40, 1000 + k) for k in range(2100)])
    history = read_history(RunDir(run))
    assert history is not None
    picture = search_picture(history, {})
    assert "data:image/png;base64," in picture and len(picture) < 300_000


def test_a_picture_waits_for_what_mlflows_thread_is_importing(tmp_path: Path) -> None:
    """Matplotlib asks IPython for its version, once a process; MLflow imports IPython where its server is away."""
    (tmp_path / "IPython.py").write_text("import time\ntime.sleep(2)\nversion_info = (9, 0)\n")
    program = (
        "import sys, threading; sys.path.insert(0, '.'); from nas.results.plots import svg\n"
        "threading.Thread(target=__import__, args=('IPython',)).start()\n"
        "while 'IPython' not in sys.modules: pass\n"
        "print(svg(lambda figure: None, 'nothing', 1.0)[:4])"
    )
    drawn = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert drawn.stdout == "<svg\n", drawn.stderr


@pytest.mark.parametrize("make", ["nothing", "train", "header", "failures"])
def test_what_is_missing_is_left_out_and_said(run: Path, make: str) -> None:
    if make == "train":
        train(run)
    elif make == "header":
        search(run, [])
    elif make == "failures":
        search(run, [None, None])
    page = Page(write_report(RunDir(run)).read_text())
    assert [tag for tag, _ in page.tags].count("svg") == (1 if make == "train" else 0)
    assert ("Every candidate has failed so far; the last one with: <b>no</b> memory" in page.text) == (
        make == "failures"
    )
    assert ("No candidate has been judged yet" in page.text) == (make != "failures")
    assert ("No training step" in page.text) == (make != "train")
    assert "no front and no exported child" in page.text and "no experiment.yaml" in page.text


def test_a_step_done_twice_counts_as_done_later(run: Path) -> None:
    train(run)
    training = read_training(RunDir(run).training_log)
    assert [(line.step, line.loss["largest"]) for line in training.steps] == [(10, 9.0), (20, 1.0), (30, 1.0)]
    assert [event.step for event in training.events] == [20]


def test_the_front_table_for_other_objectives(run: Path) -> None:
    objective = {"metric": "cross_entropy", "cost": "params", "better": "lower"}
    records = search(run, GIVEN, objective=objective)
    assert [row["id"] for row in front_table(RunDir(run))] == [
        records[0].id
    ]  # all equal in cross-entropy, so the fewest parameters
    history = read_history(RunDir(run))
    assert history is not None and history.progress[-1].best == 1.0
    write_report(RunDir(run))


def test_progress_is_told_in_order_of_k(run: Path) -> None:
    records = search(run, GIVEN)
    path = run / "search" / "journal-5a5a5a5a.jsonl"
    head, *lines = path.read_text().splitlines(keepends=True)
    path.write_text(head + lines[2] + lines[0])
    history = History(path)
    history.update()
    assert [p.k for p in history.progress] == [0]  # 2 is there, 1 is not
    with path.open("a") as file:
        file.write(lines[1] + lines[3] + lines[4] + lines[0].replace("91.5", "99.5") + lines[5][:-9])
    history.update()
    assert [(p.k, p.evaluated, p.best, p.front_size) for p in history.progress] == [
        (0, 1, 91.5, 1),
        (1, 2, 91.5, 2),
        (2, 3, 91.5, 2),
        (4, 4, 91.5, 3),
    ]
    decades = [math.log10(b / a) for a, b in ((400_000, 1_234_567), (1_234_567, 50_000_000), (50_000_000, 500_000_000))]
    area = 60.25 * decades[0] + 80.125 * decades[1] + 91.5 * decades[2]
    assert history.progress[-1].hypervolume == pytest.approx(area)
    assert history.records[0] == records[0] and 5 not in history.records


def test_lines_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = Lines(path)
    assert lines.new() == []
    path.write_bytes(b'{"a": 1}\n{"a": 2')
    assert lines.new() == [{"a": 1}] and lines.new() == []
    path.write_bytes(b'{"a": 1}\n{"a": 2}\nda{mage\n')
    assert lines.new() == [{"a": 2}]
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": 3}\n')  # the writer cut the damaged end off
    assert lines.new() == [{"a": 3}]


def test_human() -> None:
    given = {
        0: "0",
        12: "12",
        999: "999",
        1000: "1.00 k",
        9_994: "9.99 k",
        9_996: "10.0 k",
        99_960: "100 k",
        999_600: "1.00 M",
        None: "–",
    }
    assert {number: human(number) for number in given} == given
    assert human(1_234_567) == "1.23 M" and human(2.5e10) == "25.0 G"


def test_it_tells_where_the_front_came_from_and_what_it_agrees_on(tmp_path: Path) -> None:
    """Of ten candidates the even ones are the front; those with a depth have it in common, and nobody else has it."""
    (tmp_path / "search").mkdir()
    header = {"supernet": SUPERNET, "window": 4}
    with Journal(tmp_path / "search" / "journal-5a5a5a5a.jsonl", header) as journal:
        for k in range(10):
            good = k % 2 == 0
            choices = {"width": k + 1, "kernel": 3 if good or k == 1 else 5, "always": 7}
            choices |= {"depth": 2 if k else 1} if good else {}
            accuracy = 50.0 + k if good else 10.0
            journal.append(Record(k, Arch(choices), {"accuracy": accuracy}, {"macs": 1000 + k}, 1.0, None))
    history = read_history(RunDir(tmp_path))
    assert history is not None and [record.k for record in history.front()] == [0, 2, 4, 6, 8]
    found = [(each.choice, each.value, each.count, each.having, each.share) for each in agreements(history)]
    assert found == [("kernel", 3, 5, 5, 0.6), ("depth", 2, 4, 5, 0.8)]
    page = Page(write_report(RunDir(tmp_path)).read_text())
    assert "Of the 5 on the front 2 were proposed before any result was known" in page.text
    # by hand: 50 points of accuracy over one decade, and 2 more for each of the others a little cheaper
    blind = 50 + 2 * (4 - math.log10(1002))
    whole = blind + sum(2 * (4 - math.log10(1000 + k)) for k in (4, 6, 8))
    assert f"any result was known, came to {blind:.4g}; all 10 to {whole:.4g}." in page.text
    assert ["kernel", "3", "5 of 5", "60%"] in page.rows and ["depth", "2", "4 of 5", "80%"] in page.rows


def test_intervals_ties_and_what_a_predictor_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Candidate 1 is 1.0 better than 0 on every part; 2 is 0.5 better than 1, but not on the same parts."""
    (tmp_path / "search").mkdir()
    parts = [
        tuple(80.0 + n for n in range(16)),
        tuple(81.0 + n for n in range(16)),
        tuple(81.5 + (15 - n) for n in range(16)),
    ]
    path = tmp_path / "search" / "journal-5a5a5a5a.jsonl"
    with Journal(path, {"supernet": SUPERNET, "window": 4}) as journal:
        for k, each in enumerate(parts):
            arch, mean = Arch({"width": k + 1}), sum(each) / 16
            journal.append_proposals([Candidate(k, arch, (), mean + 1)])
            journal.append(Record(k, arch, {"accuracy": mean}, {"macs": 1000 + k}, 1.0, None, (), each))
        for k in range(3, 9):
            arch = Arch({"width": k + 1})
            journal.append_proposals([Candidate(k, arch, (), 50.0 + k)])
            journal.append(Record(k, arch, {"accuracy": 40.0 + k}, {"macs": 2000 + k}, 1.0, None))
    rows = front_table(RunDir(tmp_path))
    assert [row["tied"] for row in rows] == ["", "", rows[1]["id"]]
    width = half_width(list(parts[0]))
    assert [row["interval"] for row in rows] == pytest.approx([width] * 3)
    show(RunDir(tmp_path))
    said = capsys.readouterr().out
    assert f"87.50\N{NO-BREAK SPACE}±{width:.2f}" in said and said.count("\N{NO-BREAK SPACE}=") == 1
    page = Page(write_report(RunDir(tmp_path)).read_text())
    assert [row[3] for row in page.rows if "±" in "".join(row)] == [
        f"87.50 ± {width:.2f}",
        f"88.50 ± {width:.2f}",
        f"89.00 ± {width:.2f} =",
    ]
    assert "Kendall's tau 1.00 of what it expected and what was scored, of the last 9" in page.text
