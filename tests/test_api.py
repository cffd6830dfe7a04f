"""A run from Python, from its files alone."""

from __future__ import annotations

from pathlib import Path

import nas
from nas.search.journal import Journal, Record
from nas.space import Choice, Space

SPACE = Space([Choice("width", tuple(range(1, 100)))])


def test_a_candidate_whose_scoring_ended_early_says_so(tmp_path: Path) -> None:
    """Its accuracy is that of fewer examples than the others'."""
    (tmp_path / "search").mkdir()
    (tmp_path / "experiment.yaml").write_text("name: digits\n")
    with Journal(tmp_path / "search" / "journal-5a5a5a5a.jsonl", {"supernet": "5a" * 32}) as journal:
        for k, seen in enumerate((None, 64, None)):
            arch, metrics = SPACE.arch({"width": k + 1}), {"accuracy": 60.0 + k}
            journal.append(Record(k, arch, metrics, {"macs": 1000 + k}, 1.0, None, seen=seen))
    run = nas.Run(tmp_path)
    table = run.candidates
    assert list(table.columns) == ["id", "accuracy", "macs", "width", "interval", "rung", "seen", "error"]
    assert list(table.seen.dropna().items()) == [(1, 64)]
    assert run.pick(max={"macs": 1001})["seen"] is None, "the best of those that were scored to the end"
