"""A finished disk, as its journal tells it. Other computers read the journal's mirror in the staging."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import journal
from diskprep import durable
from diskprep.disk import keys
from diskprep.disk.plan import DiskPlan
from diskprep.errors import JobConflict, JournalDamaged, NotFound
from diskprep.secrets import Secret
from diskprep.seed import Staging


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedDisk:
    """A sealed disk. `recovery_password` is None when an earlier run sealed it: then it is in escrow only.

    `recovery_proof`: keys.proof of the password that opened the disk when it was read back; "" where an early version
    did not keep it.
    """

    serial: str
    path: Path
    size_bytes: int
    payload_bytes: int
    files: int
    manifest_file: str
    manifest_hash: str
    volume_guid: str
    share: str
    seal: str
    recovery_proof: str = ""
    recovery_password: Secret[str] | None = None

    def was_opened_by(self, password: Secret[str]) -> bool:
        """Whether this password opened the disk when it was read back, as far as the journal tells."""
        return self.recovery_proof in ("", keys.proof(self.volume_guid, password))


def share_digest(share: DiskPlan) -> str:
    """SHA-256 in hex of the names of the packs and index files of a share, in order."""
    digest, separator = hashlib.sha256(), b""
    for file in itertools.chain(share.packs, share.indexes):
        digest.update(separator + file.name.encode())
        separator = b"\n"
    return digest.hexdigest()


def recorded(staging: Staging, share: DiskPlan, seal_digest: str) -> PreparedDisk:
    """A disk of the plan as the staging's mirror of its journal tells it.

    Raises NotFound when it is not sealed, JobConflict when it was sealed with something else, JournalDamaged.
    """
    disk = recorded_disk(staging, share.serial)
    if (disk.share, disk.seal) != (share_digest(share), seal_digest):
        raise JobConflict(
            f"disk {disk.serial} was sealed with other packs than the plan says",
            hint="give all disks of the plan to `diskprep disk prepare` again",
        )
    return disk


def recorded_disk(staging: Staging, serial: str) -> PreparedDisk:
    """A sealed disk as the mirror of its journal tells it, whatever is on it. Raises NotFound or JournalDamaged."""
    path = staging.journals / f"{keys.check_serial(serial)}.journal"
    if not path.exists():
        raise NotFound(f"the staging has no journal of disk {serial}", hint="prepare the disk first")
    try:
        identity, *records = journal.read(path)
    except journal.JournalDamaged as error:
        raise JournalDamaged(str(error), hint="use the copy computer's own journal of this disk") from error
    except OSError as error:
        raise durable.storage_error(error, f"read {path}") from error
    sealed = sealed_disk(identity.fields, records)
    if sealed is None:
        raise NotFound(f"disk {serial} is not sealed", hint="give the same `diskprep disk prepare` command again")
    return sealed


def last_step(staging: Staging, serial: str) -> str:
    """The type of the last record in the mirror of a disk's journal; "" when there is none or it cannot be read."""
    try:
        return journal.read(staging.journals / f"{keys.check_serial(serial)}.journal")[-1].type
    except (OSError, journal.JournalDamaged):
        return ""


def sealed_disk(identity: Mapping[str, Any], records: Sequence[journal.Record]) -> PreparedDisk | None:
    """The disk that a journal describes, or None when its last word is not that it is sealed. Raises JournalDamaged."""
    if not records or records[-1].type != "sealed":
        return None
    last = {record.type: record.fields for record in records}
    try:
        return PreparedDisk(
            serial=str(identity["serial"]),
            path=Path(str(last["claimed"]["path"])),
            size_bytes=int(identity["size_bytes"]),
            payload_bytes=int(last["claimed"]["payload_bytes"]),
            files=int(last["claimed"]["packs"]) + int(last["claimed"].get("indexes", 0)),
            manifest_file=str(last["manifest"]["file"]),
            manifest_hash=str(last["manifest"]["hash"]),
            volume_guid=str(last["formatted"]["volume_guid"]),
            share=str(last["claimed"]["share"]),
            seal=str(last["claimed"]["seal"]),
            recovery_proof=str(last.get("verified", {}).get("recovery_proof", "")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise JournalDamaged(
            f"the journal of a disk says that it is sealed, and lacks what belongs to that: {error}",
            hint="prepare the disk again",
        ) from None
