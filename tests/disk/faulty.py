"""Faults for the tests of disks: runs in a child that die, lose power or get errors at a chosen point.

A point is a call that changes or syncs a file or disk; a run passes some three hundred. What must hold afterwards is in
`must_be_finished`. A power cut takes back what was not synced yet: of data any sectors of 512 bytes, of a directory's
changes the newest ones.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import signal
import stat
import tempfile
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from manifests import parse_manifest
from test_prepare import Bench

import journal
from diskprep import events
from diskprep.disk import copying, prepare, record, verify, work
from diskprep.errors import DiskprepError, NotFound
from diskprep.volume.bitlocker import keys
from diskprep.volume.device import open_for_reading
from diskprep.volume.format import open_disk
from diskprep.volume.ntfs import Reader

MIB = 1 << 20
SECTOR = 512
#: Two batches of two files, one of one; files inside their record and outside, with whole and broken clusters.
SIZES = (2 * MIB + 123, 70_000, 700, 1, 4096)
IMAGE_BYTES = 96 * MIB
CALLS = ("pwrite", "write", "fsync", "fdatasync", "ftruncate", "replace", "link", "unlink", "preadv")
Syscall = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """How a run ended: `error` is the class's name, empty when the disk was sealed, or "killed"."""

    error: str = ""
    message: str = ""
    notes: tuple[str, ...] = ()
    packs_read: tuple[str, ...] = ()
    points: int = 0
    syncs_after: int = 0  # syncs of the disk after it had failed


@dataclass(slots=True)
class Faults:
    """What happens at point number `at`, counted from 0 among the calls that `only` names.

    kind: "kill" (a write is done half), "power" (the same, and what was not synced is lost in part), "error" (the call
    fails with `code`, once), "deed" (`deed` is done before the call) or "" (nothing). `on`: count calls on this file
    only; `when`: while this file exists.
    """

    kind: str = ""
    at: int = -1
    only: tuple[str, ...] = ("pwrite", "write", "fsync", "fdatasync", "replace", "link", "unlink")
    on: Path | None = None
    when: Path | None = None
    code: int = errno.EIO
    deed: Callable[[], None] | None = None
    seed: int = 0
    count: int = 0
    syncs_after: int = 0
    happened: bool = False
    lock: Any = field(default_factory=threading.RLock)
    lost: list[tuple[str, Callable[[random.Random], None]]] = field(default_factory=list)  # (what it is of, undo)

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self._around(name, getattr(os, name)))

    def _around(self, name: str, real: Syscall) -> Syscall:
        def call(*arguments: Any, **options: Any) -> Any:
            if name in ("write", "pwrite", "ftruncate") and not _is_storage(arguments[0]):
                return real(*arguments, **options)
            with self.lock:
                mine = self.on is None or _is_of(arguments[0], self.on)
                if self.happened and mine and name in ("fsync", "fdatasync"):
                    self.syncs_after += 1
                if name in self.only and mine and (self.when is None or self.when.exists()):
                    if self.count == self.at and self.kind:
                        self._happen(name, real, arguments)
                    self.count += 1
                if self.kind == "power":
                    return self._remembered(name, real, arguments, options)
            return real(*arguments, **options)

        return call

    def _happen(self, name: str, real: Syscall, arguments: tuple[Any, ...]) -> None:
        self.happened = True
        if self.deed is not None:
            self.deed()
            return
        if self.kind == "error":
            raise OSError(self.code, os.strerror(self.code))
        if name in ("write", "pwrite"):
            half = (arguments[0], memoryview(arguments[1]).cast("B")[: len(arguments[1]) // 2], *arguments[2:])
            self._remembered(name, real, half, {})
        if self.kind == "power":
            self._cut()
        os.kill(os.getpid(), signal.SIGKILL)

    def _remembered(self, name: str, real: Syscall, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Do the call and remember how to undo it as long as it is not synced."""
        if name in ("fsync", "fdatasync"):
            done = real(*arguments, **options)
            synced = _key(arguments[0])
            self.lost = [entry for entry in self.lost if entry[0] != synced]
            return done
        if name in ("write", "pwrite"):
            descriptor, data = arguments[0], memoryview(arguments[1]).cast("B")
            offset = arguments[2] if name == "pwrite" else os.lseek(descriptor, 0, os.SEEK_CUR)
            self.lost.append((_key(descriptor), _unwrite(descriptor, len(data), offset)))
        elif name in ("replace", "link", "unlink"):
            source, target = Path(arguments[0]), Path(arguments[1 if name != "unlink" else 0])
            self.lost.append((_key(target.parent), _unname(name, source, target)))
        return real(*arguments, **options)

    def _cut(self) -> None:
        """Power goes: of each file any of its unsynced sectors are lost, of each folder its newest changes."""
        rng = random.Random(self.seed)
        kept = {key: rng.random() for key, _undo in self.lost}
        for number, (key, undo) in reversed(list(enumerate(self.lost))):
            names = [place for place, entry in enumerate(self.lost) if entry[0] == key]
            if undo.__name__ == "unwrite" or names.index(number) >= kept[key] * len(names):
                with contextlib.suppress(FileNotFoundError):  # a file whose name was lost before
                    undo(rng)


def _unwrite(descriptor: int, length: int, offset: int) -> Callable[[random.Random], None]:
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
    size, old = os.fstat(again).st_size, os.pread(again, length, offset)
    write, truncate = _REAL["pwrite"], _REAL["ftruncate"]

    def unwrite(rng: random.Random) -> None:
        for at in range(0, length, SECTOR):
            if rng.random() < 0.5:
                was = old[at : at + SECTOR].ljust(min(SECTOR, length - at), b"\0")
                write(again, was, offset + at)
        if _is_file(again) and offset + length > size and rng.random() < 0.5:
            truncate(again, rng.randrange(size, offset + length + 1))

    return unwrite


def _unname(name: str, source: Path, target: Path) -> Callable[[random.Random], None]:
    kept: Path | None = None
    if target.exists() and name != "link":
        folder = Path(tempfile.mkdtemp(prefix=".undo-", dir=target.parent.parent))
        kept = folder / "kept"
        _REAL["link"](target, kept)

    def unname(_rng: random.Random) -> None:
        if name == "replace":
            _REAL["replace"](target, source)
        elif name == "link":
            _REAL["unlink"](target)
        if kept is not None:
            _REAL["replace"](kept, target)

    return unname


_REAL: dict[str, Syscall] = {name: getattr(os, name) for name in ("pwrite", "ftruncate", "replace", "link", "unlink")}


def _is_storage(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    named = str(Path(f"/proc/self/fd/{descriptor}").readlink())
    return (stat.S_ISREG(mode) or stat.S_ISBLK(mode)) and not named.startswith("/memfd:")


def _is_file(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _key(place: int | Path) -> str:
    status = os.fstat(place) if isinstance(place, int) else os.stat(place)  # noqa: PTH116
    return f"{status.st_dev}:{status.st_ino}:{status.st_rdev}"


def _is_of(place: Any, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return _key(place if isinstance(place, int) else Path(place)) == _key(path)
    return False


def quick(patch: pytest.MonkeyPatch) -> None:
    """Small batches, and keys that are stretched for no time: a run then takes a quarter of a second."""
    patch.setattr(copying, "_BATCH_FILES", 2)
    patch.setattr(keys, "_ROUNDS", 16)


def quick_once(patch: pytest.MonkeyPatch) -> None:
    """As `quick`, but keys that others can open the disk with: each is stretched once in a process."""
    quick(patch)
    patch.setattr(keys, "_ROUNDS", 1 << 20)
    known: dict[tuple[bytes, bytes], Any] = {}
    real = keys.stretch

    def stretch(initial: Any, salt: bytes) -> Any:
        key = (initial.reveal(), salt)
        if key not in known:
            known[key] = real(initial, salt)
        return known[key]

    patch.setattr(keys, "stretch", stretch)


def order_of(bench: Bench, disk: str | None = None, *, size: int = IMAGE_BYTES) -> work.Order:
    """An order whose recovery password is kept in a folder, as it is kept in memory."""
    memory = bench.root / "memory"
    memory.mkdir(mode=0o700, exist_ok=True)
    return replace(bench.order(disk, size=size), memory=memory)


def run(order: work.Order, faults: Faults | None = None) -> Told:
    """Prepare the disk in a child, with `faults`; how it ended."""
    faults = faults or Faults()
    told, child_end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(told)
        try:
            _report(child_end, _prepare(order, faults))
        finally:
            os._exit(1)
    os.close(child_end)
    with open(told, "rb") as stream:  # noqa: PTH123  a descriptor
        lines = [json.loads(line) for line in stream.read().splitlines()]
    _pid, status = os.waitpid(pid, 0)
    notes = tuple(line["note"] for line in lines if "note" in line)
    packs = tuple(line["pack"] for line in lines if "pack" in line)
    ends = [line for line in lines if "error" in line]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return Told(error="killed", notes=notes, packs_read=packs)
    assert ends, "the child ended without a word"
    return Told(**ends[0], notes=notes, packs_read=packs)


def _prepare(order: work.Order, faults: Faults) -> Callable[[Callable[[dict[str, Any]], None]], None]:
    def work_and_tell(tell: Callable[[dict[str, Any]], None]) -> None:
        real = copying._reader

        def reader(on: work.Work, file: Any, *rest: Any) -> Any:
            tell({"pack": file.name})
            return real(on, file, *rest)

        def emit(event: events.Event) -> None:
            if isinstance(event, events.Note):
                tell({"note": event.text})

        copying._reader = reader  # type: ignore[assignment]
        faults.install()
        end = {"error": "", "message": ""}
        try:
            prepare.prepare_disk(order, emit)
        except DiskprepError as error:
            end = {"error": type(error).__name__, "message": f"{error.message} ({error.hint})"}
        except BaseException:  # noqa: BLE001  it is shown in the parent
            end = {"error": "a bug", "message": traceback.format_exc()}
        tell({**end, "points": faults.count, "syncs_after": faults.syncs_after})

    return work_and_tell


def _report(end: int, work_and_tell: Callable[[Callable[[dict[str, Any]], None]], None]) -> None:
    write = os.write

    def tell(line: dict[str, Any]) -> None:
        write(end, json.dumps(line).encode() + b"\n")

    work_and_tell(tell)


def points(order: work.Order, **choice: Any) -> int:
    """How many points an undisturbed run passes. The disk is sealed afterwards."""
    told = run(order, Faults(**choice))
    assert told.error == "", told
    return told.points


def recorded_files(order: work.Order) -> set[str]:
    """The files that the journal calls copied, in the last attempt at the disk."""
    if not order.journal_path.exists():
        return set()
    count = 0
    for entry in journal.read(order.journal_path)[1:]:
        if entry.type == "claimed":
            count = 0
        elif entry.type == "batch":
            count = entry.fields["first"] + entry.fields["files"]
    return {file.name for _number, file in zip(range(count), order.files(), strict=False)}


def is_sealed(bench: Bench, order: work.Order) -> bool:
    """Whether anybody would take the disk for finished, by its journal or by the journal's mirror."""
    words = set()
    if order.journal_path.exists():
        identity, *records = journal.read(order.journal_path)
        words.add(record.sealed_disk(identity.fields, records) is not None)
    with contextlib.suppress(NotFound):
        record.recorded_disk(bench.staging, order.serial)
        words.add(True)
    return True in words


def must_be_finished(bench: Bench, order: work.Order) -> None:
    """The disk is what an undisturbed one is, and nothing of the work is left beside it."""
    done = record.recorded_disk(bench.staging, order.serial)
    password = bench.password(order.serial)
    with open_for_reading(order.target.path) as device:
        found = verify.read_back(device, password, serial=order.serial, expected_manifest_hash=done.manifest_hash)
    assert found.files == order.file_count
    with open_for_reading(order.target.path) as device, Reader(open_disk(device, password)) as reader:
        files = {e.path: b"".join(reader.stream(e.path)) for e in reader.list() if not e.is_directory}
    manifest = parse_manifest(files.pop(verify.MANIFEST_PATH))
    assert {path: hashlib.sha256(data).hexdigest() for path, data in files.items()} == {
        f"repository/{file.name}": file.sha256 for file in order.files()
    }
    assert [blob.blob_path for blob in manifest.blobs] == [f"container/{file.name}" for file in order.files()]
    for suffix in (".redo", ".blocks"):
        assert not order.journal_path.with_suffix(suffix).exists()
    assert order.memory is not None
    assert not (order.memory / done.volume_guid).exists()


def interrupted(order: work.Order, after: str, count: int = 1) -> None:
    """Prepare in a child that is killed when the journal has acknowledged the `count`-th record of type `after`."""
    pid = os.fork()
    if not pid:
        real, seen = journal.Journal.append, 0

        def append(self: journal.Journal, type_: str, /, **fields: Any) -> int:
            nonlocal seen
            number = real(self, type_, **fields)
            seen += type_ == after
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return number

        journal.Journal.append = append  # type: ignore[method-assign]
        try:
            prepare.prepare_disk(order, events.silent)
        finally:
            os._exit(1)
    _pid, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), f"there was no record number {count} of type {after}"


def go_on(bench: Bench, *, over: bool | None = None, **changes: Any) -> Told:
    """Give the same call again; it must finish, and write nothing again that a batch has recorded."""
    order = replace(order_of(bench), **changes)
    formatted, copied = is_formatted(order), recorded_files(order)
    told = run(order)
    assert not told.error, told
    started_over = any("is started over" in note for note in told.notes)
    if over is not None:
        assert started_over == over, told.notes
    if formatted and not started_over:
        assert any("goes on" in note or "sealed already" in note for note in told.notes)
        assert not copied & set(told.packs_read)
    must_be_finished(bench, order)
    return told


def points_of(bench: Bench, *only: str, image: bool = False, after: str = "") -> int:
    """How many of these calls an undisturbed run makes; after a record of the type `after` where one is named."""
    place = bench.root / f"twin-{'-'.join(only)}"
    place.mkdir(exist_ok=True)
    order = order_of(Bench(place, SIZES))
    if after:
        interrupted(order, after)
    return points(order, only=only, on=order.target.path if image else None)


#: How often a run may end before the point where it is to die.
ATTEMPTS = 5


def forget(bench: Bench) -> None:
    """What a restart of the computer does to its memory."""
    for path in (bench.root / "memory").iterdir():
        path.unlink()


def guid(order: work.Order) -> str:
    return next(str(e.fields["volume_guid"]) for e in journal.read(order.journal_path)[::-1] if e.type == "formatted")


def is_formatted(order: work.Order) -> bool:
    if not order.journal_path.exists():
        return False
    types = [entry.type for entry in journal.read(order.journal_path)]
    return "formatted" in types[len(types) - types[::-1].index("claimed") :] if "claimed" in types else False


def break_off(bench: Bench, faults: Faults) -> None:
    """A run that dies. The disk is finished for nobody, unless it had been read back and said so in the journal.

    Threads, and how busy the machine is, decide how many points a run has. One that ended before its point came is
    undone, and another dies as far before the end as that one had less.
    """
    order = order_of(bench)
    told = run(order, faults)
    for _ in range(ATTEMPTS):
        if told.error or faults.at < told.points - 1:
            break
        undo(bench, order)
        order = order_of(bench)
        faults = replace(faults, at=told.points - 2)
        told = run(order, faults)
    assert told.error == "killed", told
    if is_sealed(bench, order):
        types = [entry.type for entry in journal.read(order.journal_path)]
        assert types[-2:] == ["verified", "sealed"]


def undo(bench: Bench, order: work.Order) -> None:
    """As if the disk had never been worked on."""
    forget(bench)
    order.target.path.unlink()
    for folder in (order.journal_path.parent, bench.staging.journals, bench.staging.escrow):
        for path in folder.iterdir():
            path.unlink()


def survive(bench: Bench, faults: Faults) -> None:
    break_off(bench, faults)
    go_on(bench, over=False)
