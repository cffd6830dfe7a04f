"""What scoring no further than needed saves, on the candidates of a search that is done.

    nas run bignas-textures && python -m tests.benchmarks.early_stop runs/bignas-textures

Each candidate is judged anew, the three ways in turn, held against the front that it was held against. Told are the
share that was stopped, the share of validation that was scored, the time with calibration, and whether the front is
the same. Measured: docs/search.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from nas.build import load_task, make_supernet
from nas.children.evaluate import Evaluator
from nas.children.hopeless import Hopeless
from nas.device import configure_process
from nas.results.history import read_history
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import RunDir
from nas.search.pareto import front

WAYS = ("never", "exact", "likely")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--score-batch", type=int, default=100)
    given = parser.parse_args()
    device, run = configure_process(False, 1), RunDir(given.run)
    experiment, history, newest = run.load(), read_history(run), Checkpoint.newest(run.checkpoints)
    assert history is not None and newest is not None
    task = load_task(experiment)
    net = make_supernet(experiment, task)
    net.load_state_dict(newest.child_weights())
    settings = experiment.search.model_copy(update={"score_batch": given.score_batch})
    evaluator = Evaluator(net, task, settings, device)
    records = [history.records[k] for k in sorted(history.records)]
    points = np.array([history.point(record) for record in records])
    seconds, seen = dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0)
    stopped: dict[str, list[int]] = {way: [] for way in WAYS}
    examples = evaluator.validation.examples
    for record in records:
        known = points[: max(0, record.k - history.window + 1)]
        bar = [tuple(point) for point in known[front(known)]] if len(known) else []
        for way in WAYS:
            hopeless = Hopeless(task, history.objective, bar, record.cost, examples, way == "likely")
            began = time.perf_counter()
            judged = evaluator.judge(record.arch, 0, None if way == "never" else hopeless)
            seconds[way] += time.perf_counter() - began
            seen[way] += judged.seen or examples
            stopped[way] += [record.k] if judged.seen else []
    whole = {record.k for record in history.front()}
    print(f"{len(records)} candidates, {examples} examples, {given.score_batch} at once")
    for way in WAYS:
        share, scored = len(stopped[way]) / len(records), seen[way] / examples / len(records)
        lost, rate = len(whole & set(stopped[way])), len(records) / seconds[way]
        print(
            f"{way:7} stopped {share:5.1%}, scored {scored:5.1%} of validation, {rate:6.2f} candidates a second, ",
            end="",
        )
        print(f"of the front of {len(whole)} lost {lost}")


if __name__ == "__main__":
    main()
