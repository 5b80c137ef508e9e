"""Several disks at once: what befalls one, or the parent, and what becomes of the others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faulty
import psutil
import pytest
from faulty import Faults, guid, is_sealed, must_be_finished, order_of
from test_prepare import Bench

import journal
from diskprep import events, interrupts
from diskprep.disk import plan as plans
from diskprep.disk import prepare, record, together, work
from diskprep.errors import DiskFailed, DiskprepError, Interrupted
from diskprep.secrets import Secret
from diskprep.volume.ntfs import NameNotAllowed

SIZES = (900_000, 70_000, 700, 5000, 1_200_000, 80_000, 1, 4096, 600_000)
SERIALS = ("WD-0001", "WD-0002", "WD-0003")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    faulty.quick(monkeypatch)
    for name in faulty.CALLS:
        monkeypatch.setattr(os, name, getattr(os, name))  # put back what `Faults.install` changes
    return Bench(tmp_path, SIZES)


def orders(bench: Bench, count: int = 3) -> list[work.Order]:
    """An order for each disk; each gets every `count`-th pack."""
    made = []
    for number, serial in enumerate(SERIALS[:count]):
        part = replace(bench.seal, files=bench.seal.files[number::count])
        order = order_of(bench, str(bench.root / f"{serial}.img"))
        share = plans.make_plan(part, [order.target.offer]).disks[0]
        made.append(replace(order, share=share))
    return made


def all_finished(bench: Bench, given: list[work.Order]) -> None:
    """Go on with the same call, and look at what it made."""
    outcomes = together.prepare_disks(given, events.silent)
    assert [outcome.error for outcome in outcomes] == [None] * len(given)
    for order in given:
        must_be_finished(bench, order)


def test_all_disks_are_made_at_once_and_told_of(bench: Bench) -> None:
    told: list[events.Event] = []
    given = orders(bench)
    disks = together.check(together.prepare_disks(given, told.append))
    assert [disk.serial for disk in disks] == list(SERIALS)
    for order, disk in zip(given, disks, strict=True):
        must_be_finished(bench, order)
        assert disk.recovery_password == bench.password(order.serial)
        assert replace(disk, recovery_password=None) == record.recorded_disk(bench.staging, order.serial)
        for stage in ("disk", "read-back"):
            progress = [
                e for e in told if isinstance(e, events.Progress) and (e.stage, e.item) == (stage, order.serial)
            ]
            done = [event.done_bytes for event in progress]
            assert done == sorted(done)
            assert done[-1] == progress[-1].total_bytes == order.share.payload_bytes
    assert len({disk.volume_guid for disk in disks}) == 3


def test_notes_of_a_disk_arrive_with_its_serial(bench: Bench) -> None:
    given = orders(bench, 2)
    faulty.interrupted(given[1], "batch")
    told: list[events.Event] = []
    together.prepare_disks(given, told.append)
    notes = [(event.item, event.text) for event in told if isinstance(event, events.Note)]
    assert ("WD-0002", f"disk WD-0002 goes on: 2 of {given[1].file_count} files are on it") in notes


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_disk_that_fails_does_not_disturb_the_others(bench: Bench, call: str) -> None:
    given = orders(bench)
    notes: list[str] = []
    faults = Faults(kind="error", at=7, only=(call,), on=given[1].target.path)
    faults.install()
    outcomes = together.prepare_disks(given, lambda e: notes.append(e.text) if isinstance(e, events.Note) else None)
    assert [type(outcome.error) for outcome in outcomes] == [type(None), DiskFailed, type(None)]
    assert any(note.startswith("disk WD-0002 failed: ") for note in notes)
    with pytest.raises(DiskFailed):
        together.check(outcomes)
    assert [is_sealed(bench, order) for order in given] == [True, False, True]
    before = [order.target.path.read_bytes() for order in given]
    faults.kind = ""
    all_finished(bench, given)
    after = [order.target.path.read_bytes() for order in given]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]


def test_when_several_fail_all_are_named(bench: Bench) -> None:
    given = orders(bench)
    Faults(kind="error", at=30, only=("fsync",)).install()  # in each process its own
    with pytest.raises(DiskprepError, match="failed too: WD-0002, WD-0003"):
        together.check(together.prepare_disks(given, events.silent))
    assert not any(is_sealed(bench, order) for order in given)


def test_a_child_that_is_killed_is_told_and_the_others_finish(bench: Bench) -> None:
    given = orders(bench)
    notes: list[str] = []
    faults = Faults(kind="kill", at=20, only=("pwrite",), on=given[0].target.path)
    faults.install()
    outcomes = together.prepare_disks(given, lambda e: notes.append(e.text) if isinstance(e, events.Note) else None)
    assert [type(outcome.error) for outcome in outcomes] == [DiskFailed, type(None), type(None)]
    assert any(note.startswith("disk WD-0001 failed: ") for note in notes)
    assert [is_sealed(bench, order) for order in given] == [False, True, True]
    faults.kind = ""
    all_finished(bench, given)


def test_an_error_of_a_finer_class_keeps_its_exit_code(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_work: work.Work) -> dict[str, Any]:
        raise NameNotAllowed("no such name", hint="another")

    monkeypatch.setattr(prepare, "STEPS", (replace(prepare.STEPS[0], action=fail),))
    outcome = together.prepare_disks(orders(bench, 1), events.silent)[0]
    assert isinstance(outcome.error, DiskprepError)
    assert outcome.error.exit_code == NameNotAllowed.exit_code


# The parent


@contextlib.contextmanager
def in_a_parent(given: list[work.Order], emit: events.Emit = events.silent) -> Iterator[tuple[psutil.Process, int]]:
    """Another process that prepares the disks, and a descriptor at which it tells how that ended."""
    told, end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(told)
        try:
            interrupts.install()
            together.prepare_disks(given, emit)
            os.write(end, b"finished")
        except BaseException as error:  # noqa: BLE001  it is looked at outside
            os.write(end, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(end)
    try:
        yield psutil.Process(pid), told
    finally:
        os.close(told)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Syncs of disks that take their time."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        time.sleep(seconds)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def wait_until(what: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def has_batch(order: work.Order) -> bool:
    return order.journal_path.exists() and any(entry.type == "batch" for entry in journal.read(order.journal_path))


def end_quickly(children: list[psutil.Process]) -> None:
    _gone, alive = psutil.wait_procs(children, timeout=8)
    for child in alive:
        child.kill()
    assert not alive


def test_without_their_parent_the_children_end_and_the_same_call_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = orders(bench, 2)
    with pytest.MonkeyPatch.context() as patch:
        slow(patch, 0.05)
        with in_a_parent(given) as (parent, _told):
            wait_until(lambda: all(has_batch(order) for order in given))
            children = parent.children()
            assert len(children) == 2
            parent.kill()
            end_quickly(children)
    assert not any(is_sealed(bench, order) for order in given)
    all_finished(bench, given)


def test_children_end_too_when_their_parent_had_not_read_everything(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is then reset rather than closed; and a child in a long call has nothing to say for a while."""
    given = orders(bench, 2)
    mark = bench.root / "mark"
    mark.mkdir()

    def talk_and_sleep(made: work.Work) -> dict[str, Any]:
        for number in range(50):
            made.note(f"note {number}")
        (mark / made.order.serial).touch()
        time.sleep(60)
        return {}

    steps = tuple(replace(step, action=talk_and_sleep) if step.name == "wiped" else step for step in prepare.STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "STEPS", steps)
        with in_a_parent(given, emit=lambda _event: time.sleep(60)) as (parent, _told):
            wait_until(lambda: len(list(mark.iterdir())) == 2)
            children = parent.children()
            assert len(children) == 2
            parent.kill()
            end_quickly(children)
    all_finished(bench, given)


def test_an_interrupt_ends_all_within_seconds_and_the_same_call_goes_on(bench: Bench) -> None:
    given = orders(bench, 2)
    with pytest.MonkeyPatch.context() as patch:
        slow(patch, 0.05)
        with in_a_parent(given) as (parent, told):
            wait_until(lambda: all(has_batch(order) for order in given))
            children = parent.children()
            began = time.monotonic()
            parent.send_signal(signal.SIGINT)
            for child in children:
                child.send_signal(signal.SIGINT)  # Ctrl-C at the terminal reaches all of them
            assert os.read(told, 100) == b"KeyboardInterrupt"
            assert time.monotonic() - began < 20
            end_quickly(children)
    assert not any(is_sealed(bench, order) for order in given)
    all_finished(bench, given)


def test_an_interrupted_child_says_so_and_does_not_call_it_a_failure(bench: Bench) -> None:
    given = orders(bench, 1)
    notes: list[str] = []
    stopped: list[together._Child] = []
    real = together._Child.start.__func__  # type: ignore[attr-defined]

    def start(cls: type[together._Child], *arguments: Any) -> together._Child:
        child: together._Child = real(cls, *arguments)
        child.stop()
        stopped.append(child)
        return child

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together._Child, "start", classmethod(start))
        outcome = together.prepare_disks(given, lambda e: notes.append(e.text) if isinstance(e, events.Note) else None)[
            0
        ]
    assert stopped
    assert isinstance(outcome.error, Interrupted)
    assert not any("failed" in note for note in notes)
    all_finished(bench, given)


# The recovery password


def test_the_recovery_password_is_nowhere_but_in_memory_and_in_the_socket(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = orders(bench, 2)
    asked = bench.root / "asked"
    real = subprocess.run

    def run(*arguments: Any, **options: Any) -> Any:
        with asked.open("a") as stream:
            stream.write(json.dumps([str(arguments), {k: str(v) for k, v in options.items()}]) + "\n")
        return real(*arguments, **options)

    monkeypatch.setattr(subprocess, "run", run)
    faulty.interrupted(given[0], "batch")
    kept = [path.read_text() for path in (bench.root / "memory").iterdir()]
    assert len(kept) == 1
    assert found_in(bench.root, Secret(kept[0])) == [bench.root / "memory" / guid(given[0])]
    disks = together.check(together.prepare_disks(given, events.silent))
    assert "mkntfs" in asked.read_text()
    for disk in disks:
        assert disk.recovery_password is not None
        assert found_in(bench.root, disk.recovery_password) == []
        assert disk.recovery_password.reveal() not in repr(disks)
        assert disk.recovery_password.reveal() not in repr([together.Outcome(serial=disk.serial, disk=disk)])


def found_in(root: Path, secret: Secret[str]) -> list[Path]:
    """Files that hold the password, as it is written or as the 16 bytes it stands for."""
    text = secret.reveal()
    raw = b"".join((int(group) // 11).to_bytes(2, "little") for group in text.split("-"))
    needles = (text.encode(), text.replace("-", "").encode(), text.encode("utf-16-le"), raw, raw.hex().encode())
    files = [path for path in root.rglob("*") if path.is_file()]
    return [path for path in files if any(needle in path.read_bytes() for needle in needles)]
