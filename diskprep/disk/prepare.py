"""Prepare: one disk from claimed to sealed, by a table of steps.

`STEPS` is read by the run and by `--dry-run` alike. Each step ends with a journal record, and the journal acknowledges
before the next step starts. Write order on the disk: old content gone, NTFS and BitLocker, files in batches (data
before metadata), the manifest last; then all is read back through a fresh open, and only then the disk is sealed.

Invariants: the recovery password is in escrow before the disk is touched. A disk without a `sealed` record is
disposable: the same command starts it over, and nobody takes it for finished, because its manifest is the last file
written and its hash is known to the journal alone.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import journal
from diskprep import clock, durable
from diskprep.disk import keys, record, target, verify
from diskprep.disk.plan import BLOCK_BYTES, DiskPlan
from diskprep.durable import Buffer
from diskprep.errors import (
    DataDamaged,
    DiskRefused,
    JournalDamaged,
    Locked,
    StorageUnavailable,
)
from diskprep.events import Emit, Note, Progress
from diskprep.exchange import manifest as drive_manifest
from diskprep.seal import SealedFile
from diskprep.secrets import Secret
from diskprep.seed import Seed, Staging
from diskprep.volume import bitlocker
from diskprep.volume.device import Device, open_for_reading
from diskprep.volume.format import format_disk, open_disk, read_volume_identity
from diskprep.volume.ntfs import Filler, SourceFile

FOLDER = "repository"
MANIFEST_FILE = f"\\{verify.MANIFEST_PATH}"
_BATCH_FILES = 64
_BATCH_BYTES = 4 << 30
_CLIENT = "diskprep"
#: How the description of our volumes begins. It is readable without a key, and tells whose a disk is.
_OURS = re.compile(r"diskprep job (?P<job>\S+) disk (?P<serial>\S+) ")


class Wipe(StrEnum):
    """What becomes of a disk's old content. DISCARD asks the disk to give it up; FULL also writes zeros everywhere."""

    DISCARD = "discard"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to do with one disk. `container_sas` goes into the manifest, inside the encrypted volume; nowhere else."""

    target: target.Target
    share: DiskPlan
    staging: Staging
    seed: Seed
    seal_digest: str
    container_sas: Secret[str]
    journal_path: Path
    method: bitlocker.Method = bitlocker.Method.XTS_AES_256
    wipe: Wipe = Wipe.DISCARD

    @property
    def inputs(self) -> dict[str, str]:
        """What a sealed disk must have been made from to count as done. Digests and names only."""
        return {
            "share": record.share_digest(self.share),
            "seal": self.seal_digest,
            "signature": hashlib.sha256(self.container_sas.reveal().encode()).hexdigest(),
            "method": str(self.method),
        }


@dataclass(slots=True)
class _Run:
    """The state that the steps of one disk hand on to each other."""

    order: Order
    journal: journal.Journal
    emit: Emit
    device: Device
    password: Secret[str] = field(default_factory=bitlocker.generate_recovery_password)
    volume_guid: str = ""
    filler: Filler | None = None
    blobs: dict[str, drive_manifest.ManifestBlob] = field(default_factory=dict)
    manifest_hash: str = ""

    def record(self, type_: str, **fields: Any) -> None:
        """Append to the journal; what it acknowledged survives. Raises StorageFull or StorageUnavailable."""
        try:
            self.journal.append(type_, **fields)
        except OSError as error:
            raise durable.storage_error(error, f"write the journal {self.order.journal_path}") from error


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a disk's life: its name, what it does in words, and the action, which returns the record's fields."""

    name: str
    says: str
    action: Callable[[_Run], dict[str, Any]]


def prepare_disk(order: Order, emit: Emit) -> record.PreparedDisk:
    """Bring one disk to sealed; a disk that is sealed for the same share already is only looked at.

    Raises DiskRefused, DiskFailed, ReadBackFailed, StorageFull, DataDamaged (the staging), JournalDamaged or Locked.
    """
    with target.open_claimed(order.target) as device, _journal(order, emit) as log:
        if done := _sealed_before(order, log, device):
            emit(Note(stage="disk", item=order.share.serial, text=f"disk {order.share.serial} is sealed already"))
            return done
        run = _Run(order=order, journal=log, emit=emit, device=device)
        for step in STEPS:
            run.record(step.name, time=clock.rfc3339(clock.now()), **step.action(run))
        made = record.sealed_disk(log.identity, log.records)
        assert made is not None, "the last step seals"
        return replace(made, recovery_password=run.password)


@contextmanager
def _journal(order: Order, emit: Emit) -> Iterator[journal.Journal]:
    """The disk's journal while it is worked on; what is odd about it or its mirror is told."""
    log = _open_journal(order)

    def tell(text: str) -> None:
        emit(Note(stage="disk", item=order.share.serial, text=text))

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


def _open_journal(order: Order) -> journal.Journal:
    """The disk's journal, new or of an earlier run; its identity must be this disk and this job."""
    identity = {
        "serial": order.share.serial,
        "size_bytes": order.target.size_bytes,
        "job_name": order.seed.job_name,
        "repository_id": order.seed.repository_id,
    }
    path, mirror = order.journal_path, order.staging.journals / order.journal_path.name
    for place in (path, mirror):
        durable.make_directory(place.parent)
    try:
        if not path.exists() and mirror.exists():  # begun on another computer, or with another journal folder
            durable.write_file(path, mirror.read_bytes())
        log = journal.Journal.open(path, mirror=mirror) if path.exists() else None
        if log is None:
            return journal.Journal.create(path, identity, mirror=mirror)
    except journal.JournalLocked:
        raise Locked(f"another diskprep is working on disk {order.share.serial}", hint="wait for it to end") from None
    except journal.JournalDamaged as error:
        raise JournalDamaged(str(error), hint=f"move {path} away, then prepare the disk again") from error
    except OSError as error:
        raise durable.storage_error(error, f"open the journal {path}") from error
    if dict(log.identity) != identity:
        log.close()
        raise DiskRefused(
            f"the journal {path} belongs to another disk or job",
            hint="prepare this job with a journal folder of its own",
        )
    return log


def _sealed_before(order: Order, log: journal.Journal, device: Device) -> record.PreparedDisk | None:
    """The disk as an earlier run sealed it, when it still carries that volume.

    Raises DiskRefused for a disk that must not be made anew: another job's, one whose job is created, or one that was
    sealed from other inputs.
    """
    serial, found = order.share.serial, read_volume_identity(device)
    if found is not None and (other := _OURS.match(found[1])) and other["job"] != order.seed.job_name:
        raise DiskRefused(
            f"disk {serial} carries the data of job {other['job']}",
            hint=f"if nobody needs it any more, erase it yourself: wipefs --all {order.target.path}",
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
            hint=f"give the inputs it was made from; to make it anew, erase it first: wipefs --all {order.target.path}",
        )
    return sealed


def _claim(run: _Run) -> dict[str, Any]:
    order = run.order
    keys.store(order.staging, order.seed, order.share.serial, run.password)
    return {
        **order.inputs,
        "packs": len(order.share.packs),
        "payload_bytes": order.share.payload_bytes,
        "path": str(order.target.path),
    }


def _wipe(run: _Run) -> dict[str, Any]:
    """Have the old content gone, so that it does not travel in the free space of the new volume."""
    discarded = run.device.discard()
    serial = run.order.share.serial
    if run.order.wipe is Wipe.FULL and run.device.is_block_device:
        zeros, size = bytes(BLOCK_BYTES), run.device.size_bytes
        for offset in range(0, size, BLOCK_BYTES):
            run.device.pwrite(zeros[: min(BLOCK_BYTES, size - offset)], offset)
            run.emit(Progress(stage="wipe", item=serial, done_bytes=offset, total_bytes=size))
        run.device.sync()
    elif not discarded:
        text = f"disk {serial} cannot discard: its free space keeps its old content; `--wipe full` overwrites it"
        run.emit(Note(stage="disk", item=serial, text=text))
    return {"discarded": discarded, "how": str(run.order.wipe)}


def _format(run: _Run) -> dict[str, Any]:
    moment = clock.now()
    layout = format_disk(
        run.device,
        method=run.order.method,
        label=run.order.seed.job_name[:32],
        description=f"{_description_of(run.order)}{moment:%m/%d/%Y}",
        recovery_password=run.password,
        created=moment,
    )
    run.volume_guid = str(layout.volume_guid)
    return {"volume_guid": run.volume_guid, "start_bytes": layout.start_bytes}


def _fill(run: _Run) -> dict[str, Any]:
    """Copy the packs, batch by batch. Each pack is checked against the seal as it is read from the staging."""
    run.filler = Filler(open_disk(run.device, run.password))
    meter = _Meter(run, "disk")
    for batch in _batches(run.order.share.packs):
        files = [
            SourceFile(path=f"{FOLDER}/{pack.name}", size_bytes=pack.size_bytes, blocks=_reader(run, pack))
            for pack in batch
        ]
        run.filler.write(files, on_bytes=meter.add)
        run.record("batch", files=len(batch), size_bytes=sum(pack.size_bytes for pack in batch))
    return {"files": len(run.blobs)}


def _write_manifest(run: _Run) -> dict[str, Any]:
    manifest = drive_manifest.DriveManifest(
        drive_id=run.order.share.serial,
        container_sas=run.order.container_sas,
        account_key=None,
        client_creator=_CLIENT,
        blobs=tuple(run.blobs[pack.name] for pack in run.order.share.packs),
    )
    data = drive_manifest.write_manifest(manifest)
    run.manifest_hash = drive_manifest.manifest_hash(data)

    def blocks() -> Iterator[Buffer]:
        for offset in range(0, len(data), BLOCK_BYTES):
            yield data[offset : offset + BLOCK_BYTES]

    assert run.filler is not None, "the disk is filled before its manifest is written"
    run.filler.write([SourceFile(path=verify.MANIFEST_PATH, size_bytes=len(data), blocks=blocks)])
    return {"file": MANIFEST_FILE, "hash": run.manifest_hash, "size_bytes": len(data)}


def _read_back(run: _Run) -> dict[str, Any]:
    run.blobs.clear()  # a large disk has many; the manifest on it holds them now
    run.device.sync()
    meter = _Meter(run, "read-back")
    with open_for_reading(run.order.target.path) as fresh:
        found = verify.read_back(
            fresh,
            run.password,
            serial=run.order.share.serial,
            expected_manifest_hash=run.manifest_hash,
            on_bytes=meter.add,
        )
    return {"files": found.files, "size_bytes": found.size_bytes}


def _seal(run: _Run) -> dict[str, Any]:
    """The mirror is what other computers read, so it has to be there to the last record."""
    if run.journal.mirror_error:
        raise StorageUnavailable(
            f"the journal's mirror in the staging cannot be written: {run.journal.mirror_error}",
            hint="make the staging writable, then give the same command again",
        )
    return {"manifest_hash": run.manifest_hash, "volume_guid": run.volume_guid}


STEPS = (
    Step("claimed", "put a new recovery password into escrow", _claim),
    Step("wiped", "have the old content discarded, or overwritten", _wipe),
    Step("formatted", "write GPT, BitLocker and NTFS; unlock it again", _format),
    Step("filled", "copy the packs, checking each against the seal", _fill),
    Step("manifest", "write DriveManifest.xml", _write_manifest),
    Step("verified", "read everything back through a fresh open and compare", _read_back),
    Step("sealed", "declare the disk finished", _seal),
)


def _description_of(order: Order) -> str:
    return f"diskprep job {order.seed.job_name} disk {order.share.serial} "


class _Meter:
    """Turns byte counts from several threads into cumulative Progress events of one disk."""

    def __init__(self, run: _Run, stage: str) -> None:
        self._run, self._stage, self._done, self._lock = run, stage, 0, threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            share = self._run.order.share
            self._run.emit(
                Progress(stage=self._stage, item=share.serial, done_bytes=self._done, total_bytes=share.payload_bytes)
            )


def _reader(run: _Run, pack: SealedFile) -> Callable[[], Iterator[Buffer]]:
    """Blocks of a pack for the filler. At the end it has proven the pack's SHA-256 and knows each block's MD5."""

    def blocks() -> Iterator[Buffer]:
        path = run.order.staging.repository / pack.name
        whole, offset, found = hashlib.sha256(), 0, []
        try:
            with path.open("rb", buffering=0) as stream:
                while data := stream.read(BLOCK_BYTES):
                    while len(data) < BLOCK_BYTES and (more := stream.read(BLOCK_BYTES - len(data))):
                        data += more
                    whole.update(data)
                    found.append(drive_manifest.block_of(offset, data))
                    offset += len(data)
                    yield data
        except OSError as error:
            raise StorageUnavailable(f"cannot read {path} in the staging: {error.strerror}") from error
        if whole.hexdigest() != pack.sha256 or offset != pack.size_bytes:
            raise DataDamaged(
                f"{path} in the staging is not what the seal says",
                hint="stage again: the staging was changed or damaged",
            )
        run.blobs[pack.name] = drive_manifest.ManifestBlob(
            blob_path=f"{run.order.seed.container}/{pack.name}",
            file_path=f"\\{FOLDER}\\" + pack.name.replace("/", "\\"),
            length_bytes=pack.size_bytes,
            blocks=tuple(found),
        )

    return blocks


def _batches(packs: Sequence[SealedFile]) -> Iterator[list[SealedFile]]:
    batch: list[SealedFile] = []
    size = 0
    for pack in packs:
        if batch and (len(batch) == _BATCH_FILES or size + pack.size_bytes > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(pack)
        size += pack.size_bytes
    if batch:
        yield batch
