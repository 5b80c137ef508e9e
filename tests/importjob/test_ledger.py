"""The ledger: what one job has, no other gets, whoever asks at the same moment; damage is told, never forgotten."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import time
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskprep.errors import DataDamaged, FormatTooNew, JobConflict, Locked, StorageUnavailable
from diskprep.importjob import ledger as ledgers
from diskprep.importjob.ledger import JobKey, Ledger, same_number, suggest_number
from diskprep.importjob.model import Package

FIRST = JobKey(subscription_id="sub-a", resource_group="Seeding", job_name="first")
SECOND = JobKey(subscription_id="sub-b", resource_group="seeding", job_name="second")


def package(number: str, count: int = 1) -> Package:
    return Package(carrier="DHL", tracking_number=number, drive_count=count, ship_date=date(2026, 3, 2))


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "deep" / "ledger.json")


def test_a_ledger_that_nothing_was_written_in_is_empty_and_makes_no_file(book: Ledger) -> None:
    assert book.holders(FIRST, ["WD-1"]) == {}
    book.close(FIRST)
    assert book.jobs() == {}
    assert not book.path.parent.exists()


def test_a_drive_is_in_one_open_job_of_all_subscriptions(book: Ledger) -> None:
    book.record_job(FIRST, ["WD-1", "WD-2"])
    book.record_job(FIRST, ["WD-1", "WD-2"])
    with pytest.raises(JobConflict, match=r"drive wd-2 is in import job first") as caught:
        book.record_job(SECOND, ["WD-3", "wd-2"])
    assert "sub-a/seeding/first" in caught.value.hint
    assert set(book.jobs()) == {str(FIRST)}
    book.close(FIRST)
    book.record_job(SECOND, ["WD-3", "wd-2"])
    with pytest.raises(JobConflict, match="is in import job second"):
        book.record_job(FIRST, ["WD-1", "WD-2"])


def test_names_are_compared_as_the_service_compares_them(book: Ledger) -> None:
    book.record_job(FIRST, ["WD-1"])
    book.record_job(JobKey(subscription_id="SUB-A", resource_group="SEEDING", job_name="First"), ["WD-1"])
    assert len(book.jobs()) == 1


def test_a_tracking_number_stays_taken_when_its_job_is_over(book: Ledger) -> None:
    book.record_job(FIRST, ["WD-1"])
    book.record_shipping(FIRST, package("JD 0001"), ["WD-1"])
    book.close(FIRST)
    for number in ("JD 0001", "jd0001", "J D0001"):
        with pytest.raises(JobConflict, match="belongs to import job first") as caught:
            book.record_shipping(SECOND, package(number), ["WD-9"])
        assert f"{number}-1" in caught.value.hint
    book.record_shipping(SECOND, package("JD 0001-1"), ["WD-9"])
    third = JobKey(subscription_id="c", resource_group="d", job_name="third")
    with pytest.raises(JobConflict) as caught:
        book.record_shipping(third, package("JD 0001"), ["WD-9"])
    assert "JD 0001-2" in caught.value.hint


def test_a_corrected_number_gives_the_wrong_one_free(book: Ledger) -> None:
    book.record_shipping(FIRST, package("JD0001"), ["WD-1"])
    book.record_shipping(FIRST, package("JD0002"), ["WD-1"])
    book.record_shipping(SECOND, package("JD0001"), ["WD-2"])
    assert book.jobs()[str(FIRST)].tracking_number == "JD0002"


def test_what_was_refused_is_taken_back(book: Ledger) -> None:
    book.record_job(FIRST, ["WD-1"])
    book.restore(FIRST, None)
    assert book.jobs() == {}
    book.record_job(FIRST, ["WD-1"])
    before = book.jobs()[str(FIRST)]
    book.record_shipping(FIRST, package("JD0001"), ["WD-1"])
    book.restore(FIRST, before)
    book.record_shipping(SECOND, package("JD0001"), ["WD-2"])
    assert book.jobs()[str(FIRST)] == before


def test_a_job_that_was_over_and_is_made_again_begins_anew(book: Ledger) -> None:
    book.record_shipping(FIRST, package("JD0001"), ["WD-1"])
    book.close(FIRST)
    closed = book.jobs()[str(FIRST)]
    assert (closed.open, closed.closed != "") == (False, True)
    book.record_job(FIRST, ["WD-1"])
    again = book.jobs()[str(FIRST)]
    assert (again.open, again.closed, again.tracking_number) == (True, "", "")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"format": "diskprep-ledger", "version": 1}',
        b'{"format": "diskprep-ledger", "version": 1, "jobs": []}',
        b'{"format": "diskprep-ledger", "version": 1, "jobs": {"a/b/c": {}}}',
        b'{"format": "diskprep-ledger", "version": 1, "jobs": {"a/b/c": 7}}',
        b'{"format": "diskprep-ledger", "version": 1, "jobs": {"a/b/c": {"drives": [1]}}}',
        b'{"format": "diskprep-ledger", "version": 1, "jobs": {"a/b/c": {"drives": [], "open": "no"}}}',
        b'{"format": "diskprep-ledger", "version": 1, "jobs": {"a/b/c": {"drives": [], "tracking_number": null}}}',
        b'{"format": "diskprep-ledger", "version": 1, "jobs": {"a/b/c": {"drives": [], "earlier": "JD1"}}}',
        b'{"format": "diskprep-ledger", "version": 1, "jobs": {"a/b/c": {"drives": [], "earlier": [1]}}}',
        b'{"format": "diskprep-job", "version": 1, "jobs": {}}',
    ],
)
def test_a_damaged_ledger_is_never_an_empty_one(book: Ledger, text: bytes) -> None:
    book.path.parent.mkdir()
    book.path.write_bytes(text)
    for call in (
        lambda: book.holders(FIRST, ["WD-1"]),
        lambda: book.record_job(FIRST, ["WD-1"]),
        lambda: book.record_shipping(FIRST, package("JD1"), ["WD-1"]),
        lambda: book.close(FIRST),
    ):
        with pytest.raises(DataDamaged, match="ledger") as caught:
            call()
        assert "copy" in caught.value.hint
    assert book.path.read_bytes() == text


def test_every_truncation_of_a_ledger_is_found(book: Ledger) -> None:
    book.record_shipping(FIRST, package("JD0001"), ["WD-1"])
    whole = book.path.read_bytes()
    for length in range(len(whole.rstrip())):
        book.path.write_bytes(whole[:length])
        with pytest.raises(DataDamaged):
            book.jobs()


def test_a_newer_ledger_is_not_touched(book: Ledger) -> None:
    book.record_job(FIRST, ["WD-1"])
    text = book.path.read_text().replace('"version": 1', '"version": 2')
    book.path.write_text(text)
    with pytest.raises(FormatTooNew):
        book.record_job(SECOND, ["WD-2"])
    assert book.path.read_text() == text


def test_an_error_of_the_disk_is_told_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageUnavailable):
        Ledger(tmp_path / "file" / "ledger.json").record_job(FIRST, ["WD-1"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageUnavailable):
        Ledger(tmp_path / "folder").jobs()


def test_a_ledger_that_is_held_for_long_is_told(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "_LOCK_WAIT_S", 0.1)
    book.record_job(FIRST, ["WD-1"])
    with (book.path.parent / "ledger.json.lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Locked, match=r"another process holds .*/ledger\.json\.lock"):
            book.record_job(SECOND, ["WD-2"])
        assert set(book.jobs()) == {str(FIRST)}
    book.record_job(SECOND, ["WD-2"])


def _claim(path: Path, name: str, start_s: float) -> None:
    """In a process of its own: exit 0 when the number was got, 7 when it was refused."""
    time.sleep(max(0.0, start_s - time.time()))
    key = JobKey(subscription_id="s", resource_group="g", job_name=name)
    try:
        Ledger(path).record_shipping(key, package("JD0001"), [f"WD-{name}"])
    except JobConflict:
        os._exit(7)
    os._exit(0)


def test_of_commands_at_the_same_moment_one_gets_the_number(book: Ledger) -> None:
    context = multiprocessing.get_context("fork")
    start_s = time.time() + 0.2
    crew = [context.Process(target=_claim, args=(book.path, f"job-{n}", start_s)) for n in range(6)]
    for one in crew:
        one.start()
    for one in crew:
        one.join(30)
    assert sorted(one.exitcode or 0 for one in crew) == [0, 7, 7, 7, 7, 7]
    assert len(book.jobs()) == 1


def _write_on(path: Path) -> None:
    for number in range(10_000):
        key = JobKey(subscription_id="s", resource_group="g", job_name=f"job-{number}")
        Ledger(path).record_shipping(key, package(f"JD{number}"), [f"WD-{number}"])


def test_a_ledger_whose_writer_is_killed_is_whole_and_free(book: Ledger) -> None:
    context = multiprocessing.get_context("fork")
    known: set[str] = set()
    for delay_s in (0.02, 0.031, 0.047, 0.053, 0.071):
        writer = context.Process(target=_write_on, args=(book.path,))
        writer.start()
        time.sleep(delay_s)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join(30)
        now = set(book.jobs())
        assert now >= known
        known = now
        book.record_job(SECOND, ["WD-X"])
    document = json.loads(book.path.read_text())
    assert set(document["jobs"]) >= known


@given(st.text("aA1 -", min_size=1, max_size=8), st.lists(st.text("a1-", min_size=1, max_size=4), max_size=6))
def test_a_suggested_number_is_free_and_begins_as_the_carriers(number: str, taken: list[str]) -> None:
    suggested = suggest_number(number, [*taken, *(f"{number}-{n}" for n in range(1, len(taken)))])
    assert suggested.startswith(f"{number}-")
    assert not any(same_number(suggested, other) for other in taken)


def test_a_number_stays_taken_when_its_job_is_made_again(book: Ledger) -> None:
    book.record_shipping(FIRST, package("JD0001"), ["WD-1"])
    book.close(FIRST)
    book.record_job(FIRST, ["WD-1"])
    book.record_shipping(FIRST, package("JD0002"), ["WD-1"])
    for number in ("JD0001", "JD0002"):
        with pytest.raises(JobConflict, match="belongs to import job first"):
            book.record_shipping(SECOND, package(number), ["WD-2"])
    assert book.jobs()[str(FIRST)].numbers == ("JD0001", "JD0002")


def test_a_ledger_that_knows_no_earlier_numbers_is_read(book: Ledger) -> None:
    book.record_shipping(FIRST, package("JD0001"), ["WD-1"])
    document = json.loads(book.path.read_text())
    for fields in document["jobs"].values():
        del fields["earlier"]
    book.path.write_text(json.dumps(document))
    assert book.jobs()[str(FIRST)].numbers == ("JD0001",)
