"""The journal of a disk, opened for one job: whose it is, is known before anything is written.

A journal on this computer that is another job's is refused. The staging's mirror of one is moved aside, for the mirror
follows the journal: a mirror that was taken for the truth would keep this job from its disk for ever.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import journal
from diskprep import durable
from diskprep.disk.record import sealed_disk
from diskprep.disk.work import Order
from diskprep.errors import DiskprepError, DiskRefused, JournalDamaged, Locked, StorageUnavailable


def open_journal(order: Order) -> journal.Journal:
    """The disk's journal, new or of an earlier run; its identity must be this disk and this job.

    Raises DiskRefused when it is another's: neither journal nor mirror is touched then. Raises JournalDamaged, Locked,
    StorageFull or StorageUnavailable.
    """
    identity = {
        "serial": order.serial,
        "size_bytes": order.target.size_bytes,
        "job_name": order.seed.job_name,
        "repository_id": order.seed.repository_id,
    }
    path, mirror = order.journal_path, order.staging.journals / order.journal_path.name
    deciding = path
    _make_folder(path.parent)
    durable.make_directory(mirror.parent)
    try:
        if durable.exists(path):
            _refuse_another(path, identity)
        if durable.exists(mirror) and _is_anothers(mirror, identity):
            mirror.rename(_free_name(mirror))
            durable.fsync_directory(mirror.parent)
        if not path.exists() and mirror.exists():  # begun on another computer, or with another journal folder
            deciding = mirror
            journal.read(mirror)  # a damaged one is not copied
            durable.write_file(path, mirror.read_bytes())
        if not path.exists():
            return journal.Journal.create(path, identity, mirror=mirror)
        return journal.Journal.open(path, mirror=mirror)
    except journal.JournalLocked:
        raise Locked(f"another diskprep is working on disk {order.serial}", hint="wait for it to end") from None
    except journal.JournalDamaged as error:
        raise JournalDamaged(
            str(error), hint=f"move {shlex.quote(str(deciding))} away, then prepare the disk again"
        ) from error
    except OSError as error:
        raise durable.storage_error(error, f"open the journal {path}") from error


def _make_folder(folder: Path) -> None:
    try:
        durable.make_directory(folder)
    except DiskprepError as error:
        raise StorageUnavailable(
            f"the journals cannot be kept: {error.message}",
            hint="name a folder that can be written to: --journals DIR, or --state DIR",
        ) from error


def _refuse_another(path: Path, identity: Mapping[str, Any]) -> None:
    """Raise DiskRefused when the journal at `path` is not this disk's and this job's."""
    found = journal.read(path)[0].fields
    if dict(found) == identity:
        return
    job = found.get("job_name")
    whose = f"job {job}" if job != identity["job_name"] else "another disk of this serial number, or another staging"
    raise DiskRefused(
        f"the journal {path} belongs to {whose}",
        hint="add --journals DIR, with a folder for this job's journals alone",
    )


def _is_anothers(mirror: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a mirror tells of another job, or of a disk of another size that was never finished.

    Raises DiskRefused when it tells of another disk of this job, with the same serial number, that was sealed.
    """
    try:
        first, *records = journal.read(mirror)
    except (journal.JournalDamaged, OSError):  # written anew from the journal, or told where it is all there is
        return False
    if dict(first.fields) == identity:
        return False
    same_job = all(first.fields.get(name) == identity[name] for name in ("job_name", "repository_id"))
    if same_job and sealed_disk(first.fields, records) is not None:
        raise DiskRefused(
            f"this job has another disk with the serial number {identity['serial']}, which is sealed",
            hint="give that disk, or one with another serial number",
        )
    return True


def _free_name(path: Path) -> Path:
    candidate, number = path.with_name(f"{path.name}.old"), 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}.old-{number}"), number + 1
    return candidate
