"""What `nas plan` predicts against what the run then takes, each kind of work by itself, one after the other.

    python -m tests.benchmarks.planning bignas-digits bignas-textures vit-resnas-digits

Measured: docs/plan.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from nas.cli.progress import Screen, plain
from nas.config.experiment import load_experiment
from nas.pipeline import Pipeline
from nas.plan import Plan, Stopwatch, plan


def predicted(found: Plan) -> dict[str, float]:
    """Seconds of each stage, and of all."""
    parts = {part.name: part.together for part in found.parts}
    return {
        "train": parts["train"] + parts["looks and checkpoints"],
        "search": parts["search"],
        "export": parts["export"],
        "all": found.seconds,
    }


def real(preset: str, overrides: list[str]) -> dict[str, float]:
    """The same of the run itself; of a stage without its start, which is nobody's part."""
    clock, began = Stopwatch(Screen(plain())), time.monotonic()
    with (
        tempfile.TemporaryDirectory() as home,
        Pipeline.open(load_experiment(preset, overrides), Path(home) / "run", clock) as run,
    ):
        run.all()
        run.report()
        took = time.monotonic() - began
    stages = {stage.name: stage for stage in reversed(clock.stages)}
    seconds = {name: stage.each * stage.marks[-1][1] for name, stage in stages.items() if name in ("search", "export")}
    train = stages["train"]
    return {"train": train.ended - train.marks[0][0], **seconds, "all": took}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    given = parser.parse_args()
    for preset in given.presets:
        told = predicted(plan(load_experiment(preset, given.overrides), Path("runs", preset), Screen(plain())))
        took = real(preset, given.overrides)
        for name, seconds in took.items():
            print(
                f"{preset:24} {name:8} predicted {told[name]:7.1f} s, took {seconds:7.1f} s: {told[name] / seconds:.2f}"
            )


if __name__ == "__main__":
    main()
