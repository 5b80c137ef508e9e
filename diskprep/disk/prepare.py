"""Prepare: one disk from claimed to sealed, by a table of steps.

`STEPS` is read by the run and by `--dry-run` alike. Each step ends with a journal record, and the journal acknowledges
before the next step starts. Write order on the disk: old content gone, NTFS and BitLocker, files in batches (data
before metadata), the manifest last; then all is read back through a fresh open, and only then the disk is sealed.

Invariants: the recovery password is in escrow before the disk is touched. A disk without a `sealed` record is
finished for nobody: its manifest is the last file written, and its hash is known to the journal alone. The same command
goes on after the last whole batch (resume.py), and starts a disk over that cannot be trusted.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import journal
from diskprep import __version__, clock, durable
from diskprep.disk import copying, keys, memory, record, target, verify
from diskprep.disk.opening import open_journal
from diskprep.disk.resume import resume
from diskprep.disk.wipe import wipe
from diskprep.disk.work import Meter, Order, Work
from diskprep.errors import DiskRefused, ReadBackFailed, StorageUnavailable
from diskprep.events import Emit, Note
from diskprep.volume.device import Device, open_for_reading
from diskprep.volume.format import format_disk, read_volume_identity

#: How the description of our volumes begins. It is readable without a key, and tells whose a disk is.
_OURS = re.compile(r"diskprep job (?P<job>\S+) disk (?P<serial>\S+) ")


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a disk's life: its name, what it does in words, and the action, which returns the record's fields."""

    name: str
    says: str
    action: Callable[[Work], dict[str, Any]]


def prepare_disk(order: Order, emit: Emit) -> record.PreparedDisk:
    """Bring one disk to sealed; a disk that is sealed for the same share already is only looked at.

    Raises DiskRefused, DiskFailed, ReadBackFailed, StorageFull, DataDamaged (the staging), JournalDamaged or Locked.
    """
    with target.open_claimed(order.target) as device, _journal(order, emit) as log:
        fresh = Work(order=order, journal=log, emit=emit, device=device)
        if done := _sealed_before(order, log, device):
            fresh.note(f"disk {order.serial} is sealed already")
            _tidy(replace(fresh, volume_guid=done.volume_guid))
            return done
        work, finished = resume(fresh, [step.name for step in STEPS])
        for step in STEPS:
            if step.name in finished:
                continue
            work.record(step.name, **step.action(work))
            if step.name in _REDONE:
                work.redo.clear()
        _tidy(work)
        made = record.sealed_disk(log.identity, log.records)
        assert made is not None, "the last step seals"
        return replace(made, recovery_password=work.password)


@contextmanager
def _journal(order: Order, emit: Emit) -> Iterator[journal.Journal]:
    """The disk's journal while it is worked on; what is odd about it or its mirror is told."""
    log = open_journal(order)

    def tell(text: str) -> None:
        emit(Note(stage="disk", item=order.serial, text=text))

    if log.broken is not None:
        tell(f"the journal ended in a torn record, which was cut; the file as it was is {log.broken}")
    try:
        yield log
    finally:
        try:
            log.close()
        except OSError as error:
            raise durable.storage_error(error, f"close the journal {order.journal_path}") from error
        finally:
            if log.mirror_error:
                tell(f"the journal's mirror in the staging is behind: {log.mirror_error}")


def _erase_by_hand(disk: target.Target) -> str:
    """What erases a disk. `wipefs` finds no partition table in an image file, and leaves it."""
    word = shlex.quote(str(disk.path))
    return f"delete the image: rm {word}" if disk.facts is None else f"erase it yourself: wipefs --all {word}"


def _sealed_before(order: Order, log: journal.Journal, device: Device) -> record.PreparedDisk | None:
    """The disk as an earlier run sealed it, when it still carries that volume.

    Raises DiskRefused for a disk that must not be made anew: another job's, one whose job is created, or one that was
    sealed from other inputs.
    """
    serial, found = order.serial, read_volume_identity(device)
    if found is not None and (other := _OURS.match(found[1])) and other["job"] != order.seed.job_name:
        raise DiskRefused(
            f"disk {serial} carries the data of job {other['job']}",
            hint=f"if nobody needs it any more, {_erase_by_hand(order.target)}",
        )
    sealed = record.sealed_disk(log.identity, log.records)
    if sealed is None or found is None or str(found[0]) != sealed.volume_guid:
        if order.staging.job_file.exists():
            raise DiskRefused(
                f"disk {serial} would be made anew, but the import job of this staging is created already",
                hint="delete the job first, if nothing was shipped",
            )
        return None
    claimed = next(entry.fields for entry in reversed(log.records) if entry.type == "claimed")
    changed = [name for name, value in order.inputs.items() if claimed.get(name) != value]
    if changed:
        raise DiskRefused(
            f"disk {serial} is sealed already, with another {' and '.join(changed)}",
            hint=f"give the inputs it was made from; to make it anew, first {_erase_by_hand(order.target)}",
        )
    return sealed


def _claim(work: Work) -> dict[str, Any]:
    order = work.order
    keys.store(order.staging, order.seed, order.serial, work.password)
    return {
        **order.inputs,
        "packs": len(order.share.packs),
        "indexes": len(order.share.indexes),
        "payload_bytes": order.share.payload_bytes,
        "path": str(order.target.path.absolute()),
        "model": order.target.facts.model if order.target.facts else "",
        "program": f"diskprep {__version__}",
    }


def _format(work: Work) -> dict[str, Any]:
    moment = clock.now()
    layout = format_disk(
        work.device,
        method=work.order.method,
        label=work.order.seed.job_name[:32],
        description=f"diskprep job {work.order.seed.job_name} disk {work.order.serial} {moment:%m/%d/%Y}",
        recovery_password=work.password,
        created=moment,
    )
    work.volume_guid = str(layout.volume_guid)
    memory.keep(work.order.memory, work.volume_guid, work.password)
    work.redo.clear()
    return {"volume_guid": work.volume_guid, "start_bytes": layout.start_bytes}


def _read_back(work: Work) -> dict[str, Any]:
    work.device.sync()
    began_s = clock.monotonic_s()
    meter = Meter(work, "read-back", total_bytes=work.order.share.payload_bytes)
    with open_for_reading(work.order.target.path) as fresh:
        if fresh.identity != work.device.identity:
            raise DiskRefused(f"{work.order.target.path} is another disk by now", hint="give the same command again")
        try:
            found = verify.read_back(
                fresh,
                work.password,
                serial=work.order.serial,
                expected_manifest_hash=work.manifest_hash,
                on_bytes=meter.add,
            )
            if found.sha256 != record.share_digest(work.order.share):
                raise ReadBackFailed(
                    f"disk {work.order.serial}: it holds other files than its share", hint="prepare this disk again"
                )
        except ReadBackFailed as error:
            work.distrust(error.message)
            raise
    return {
        "files": found.files,
        "size_bytes": found.size_bytes,
        "seconds": round(clock.monotonic_s() - began_s, 3),
        "recovery_proof": keys.proof(work.volume_guid, work.password),
    }


def _seal(work: Work) -> dict[str, Any]:
    """The mirror is what other computers read, so it has to be there to the last record."""
    if work.journal.mirror_error:
        raise StorageUnavailable(
            f"the journal's mirror in the staging cannot be written: {work.journal.mirror_error}",
            hint="make the staging writable, then give the same command again",
        )
    return {"manifest_hash": work.manifest_hash, "volume_guid": work.volume_guid}


def _tidy(work: Work) -> None:
    """Remove what only an unfinished disk needs."""
    memory.forget(work.order.memory, work.volume_guid)
    work.redo.clear()
    with contextlib.suppress(OSError):
        work.blocks_path.unlink(missing_ok=True)


STEPS = (
    Step("claimed", "put a new recovery password into escrow", _claim),
    Step("wiped", "have the old content discarded, or overwritten", wipe),
    Step("formatted", "write GPT, BitLocker and NTFS; unlock it again", _format),
    Step("filled", "copy the packs and their index files, checking each against the seal", copying.fill),
    Step("manifest", "write DriveManifest.xml", copying.write_manifest),
    Step("verified", "read everything back through a fresh open and compare", _read_back),
    Step("sealed", "declare the disk finished", _seal),
)
#: Steps whose redo record is needed until the journal has them.
_REDONE = ("manifest",)
