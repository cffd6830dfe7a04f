"""The journal: records as JSON, torn lines, and what is taken up from it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from nas.search.constraints import Constraints
from nas.search.core import resume
from nas.search.journal import Candidate, Journal, Record
from nas.space import Arch
from tests.search.searching import HEADER, _asked, fresh, searcher
from tests.synthetic import OBJECTIVE, SPACE, cost, evaluate

RECORD = Record(0, Arch({"width": 2}), {"accuracy": 0.5, "loss": math.inf}, {"macs": 200}, 1.5, None)
FAILED = Record(1, Arch({"width": 1}), None, {}, 0.5, "out of memory")


def test_records_and_candidates_are_plain_json() -> None:
    for record in (RECORD, FAILED):
        assert Record.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False))) == record
        assert record.id == record.arch.id
    candidate = Candidate(4, RECORD.arch, ((-0.5, 200.0), (-0.25, 100.0)))
    assert Candidate.from_json(json.loads(json.dumps(candidate.to_json()))) == candidate
    with pytest.raises(ValueError, match="does not belong to the architecture"):
        Record.from_json(RECORD.to_json() | {"arch": {"width": 1}})
    with pytest.raises(ValueError, match="the id None does not belong"):
        Record.from_json({key: value for key, value in RECORD.to_json().items() if key != "id"})


def _written(path: Path) -> bytes:
    with Journal(path, HEADER) as journal:
        assert journal.append(RECORD)
        journal.append_constraints(1, Constraints({"macs": (None, 250)}))
        assert journal.append(FAILED)
    return path.read_bytes()


def test_the_journal_reads_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    data = _written(path)
    assert json.loads(data.splitlines()[0]) == {"raynas_journal": 1, **HEADER}
    with Journal(path, HEADER) as journal:
        assert journal.records == [RECORD, FAILED] and journal.constraints == [(1, Constraints({"macs": (None, 250)}))]
        assert not journal.append(replace(RECORD, seconds=9.0))
        with pytest.raises(ValueError, match="candidate 0 is"):
            journal.append(replace(FAILED, k=0))
    assert path.read_bytes() == data and [p.name for p in tmp_path.iterdir()] == ["journal.jsonl"]


def test_torn_anywhere_the_whole_lines_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    data = _written(path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with Journal(path, HEADER) as journal:
            kept = len(journal.records) + len(journal.constraints)
            assert kept == max(0, data[:length].count(b"\n") - 1)
            journal.append(replace(RECORD, k=7))
        with Journal(path, HEADER) as journal:
            assert journal.records[-1].k == 7 and len(journal.records) + len(journal.constraints) == kept + 1


def test_a_last_line_of_rubbish_is_cut_and_one_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    data = _written(path)
    path.write_bytes(data + b'{"k": 2, \x00\xff\n')
    with Journal(path, HEADER) as journal:
        assert len(journal.records) == 2
    assert path.read_bytes() == data
    lines = data.splitlines(keepends=True)
    for damaged, message in (
        (b"{\n", "line 3 is damaged"),
        (b"{}\n", "line 3 is neither"),
        (b"7\n", "line 3 is neither"),
    ):
        path.write_bytes(b"".join((*lines[:2], damaged, *lines[3:])))
        with pytest.raises(ValueError, match=message):
            Journal(path, HEADER)


def test_another_header_is_refused_with_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    _written(path)
    with pytest.raises(ValueError, match=r"\(seed: 3 in the file, 4 now\)"):
        Journal(path, {**HEADER, "seed": 4})
    with pytest.raises(ValueError, match="window: None in the file, 8 now"):
        Journal(path, {**HEADER, "window": 8})
    path.write_text("dear diary\n")
    with pytest.raises(ValueError, match="not a journal"):
        Journal(path, HEADER)
    assert path.read_text() == "dear diary\n"


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    data = _written(path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with Journal(path, HEADER) as journal:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr("os.fsync", full)
            journal.append(replace(RECORD, k=2))
        assert path.read_bytes() == data
        assert journal.append(replace(RECORD, k=2))


def test_a_changed_search_does_not_replay(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl", HEADER) as journal:
        search = fresh("random")
        for _ in range(10):  # as they were written before there were proposals
            record = evaluate(_asked(search))
            search.tell(record)
            journal.append(record)
        with pytest.raises(ValueError, match="this search proposes"):
            resume(searcher("random", SPACE, cost, OBJECTIVE, seed=4, window=8), journal)
        with pytest.raises(ValueError, match="only a fresh search"):
            resume(search, journal)


def test_resume_returns_what_was_in_flight(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl", HEADER) as journal:
        search = fresh("evolution")
        asked = [_asked(search) for _ in range(8)]
        for k in (6, 0, 3):
            journal.append(evaluate(asked[k]))
        again = fresh("evolution")
        assert resume(again, journal) == [asked[k] for k in (1, 2, 4, 5)]
        assert again.next_k == 7 and again.ask() == asked[7]


def test_resume_takes_the_proposals_that_the_journal_has(tmp_path: Path) -> None:
    """Another machine's arithmetic may propose otherwise: what was written counts, and what is written is in flight."""
    with Journal(tmp_path / "journal.jsonl", HEADER) as journal:
        search, other = fresh("evolution"), searcher("random", SPACE, cost, OBJECTIVE, seed=9, window=8)
        asked = [_asked(search) for _ in range(6)]
        journal.append_proposals(asked[:4])
        journal.append_proposals(asked)
        journal.append(evaluate(asked[2]))
        assert path_lines(journal.path, "proposed") == [0, 1, 2, 3, 4, 5]
    with Journal(journal.path, HEADER) as journal:
        assert resume(other, journal) == [asked[k] for k in (0, 1, 3, 4, 5)]
        assert other.next_k == 6
        with pytest.raises(ValueError, match="candidate 3 is proposed twice"):
            journal.append_proposals([replace(asked[3], arch=asked[4].arch)])
    broken = journal.path.read_text().replace(asked[0].arch.id, asked[1].arch.id)
    journal.path.write_text(broken)
    with pytest.raises(ValueError, match=r"line 2 is neither a record nor constraints: it is no proposal"):
        Journal(journal.path, HEADER)


def test_a_proposal_of_another_space_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl", HEADER) as journal:
        journal.append_proposals([Candidate(0, Arch({"width": 7}), ())])
        with pytest.raises(ValueError, match="the space has no choice 'width'"):
            resume(fresh("random"), journal)


def path_lines(path: Path, key: str) -> list[int]:
    """The numbers of a kind of line, as they stand in a journal."""
    return [form[key] for form in map(json.loads, path.read_text().splitlines()) if key in form]
