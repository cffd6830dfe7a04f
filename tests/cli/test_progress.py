"""The live line: what it says of a training bounded by time, on a terminal, and in a notebook."""

from __future__ import annotations

import io

import nbformat
from nbclient import NotebookClient
from rich.console import Console

from nas.cli.progress import Screen
from nas.rundir.log import PanelLine, StepLine
from nas.watch import TrainingNotes

SHOWN = """
import threading
from nas.cli.progress import Screen, plain
screen = Screen(plain())
screen.begin("train", "starting")
work = threading.Thread(target=lambda: [screen.advance(n, 9, f"loss {n}", "steps") for n in (3, 6)])
work.start(); work.join()
screen.say("rollback: [nan]")
"""


def line(step: int, seconds: float, share: float) -> StepLine:
    loss = {"largest": 1.25, "smallest": 2.5}
    return StepLine(step=step, total=1000, epoch=1.0, seconds=seconds, lr=0.1, loss=loss, share=share)


def test_minutes_mode_tells_steps_a_second_and_whose_loss() -> None:
    text = io.StringIO()
    screen = Screen(Console(file=text, soft_wrap=True))
    notes = TrainingNotes("accuracy", 2.0, screen)
    notes.take(PanelLine(step=10, panel={"smallest": {"accuracy": 44.0}, "largest": {"accuracy": 66.0}}))
    for each in (line(10, 30.0, 0.25), line(40, 120.0, 1.0)):
        notes.take(each)
    assert text.getvalue().splitlines()[-1] == (
        ": 2:00/2:00 minutes (100 %) | eta 0:00 | step 40, 0.333 steps/s | loss largest 1.250"
        " | accuracy largest 66 smallest 44"
    )


def test_what_a_narrow_terminal_cuts_off_is_the_note() -> None:
    text = io.StringIO()
    screen = Screen(Console(file=text, force_terminal=True, width=70))
    screen.begin("search", "starting")
    for done in (1, 2):
        screen.advance(done, 40, "best accuracy 98.67 within max_macs 150,000 | front 12", "candidates", float(done))
    screen.end("done")
    assert "search: 2/40 candidates (5 %) | 1/s | eta 0:38 | best accuracy" in text.getvalue()


def test_in_a_notebook_one_output_changes() -> None:
    cells = [nbformat.v4.new_code_cell(SHOWN), nbformat.v4.new_code_cell("screen.end('18 steps')")]
    NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=120).execute()
    live, said = cells[0].outputs
    assert said.data["text/plain"].strip() == "rollback: [nan]"
    assert live.data["text/plain"] == "", "the line is taken away at the end"
    (ended,) = cells[1].outputs
    assert ended.data["text/plain"].startswith("train: 18 steps")
    cells = [nbformat.v4.new_code_cell(SHOWN)]
    NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=120).execute()
    assert cells[0].outputs[0].data["text/plain"].startswith("train: 6/9 steps (67 %)")
