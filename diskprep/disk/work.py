"""Work: what was ordered for one disk, and the state that the steps of its preparation hand on to each other."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import journal
from diskprep import clock, durable
from diskprep.disk import record, target
from diskprep.disk.plan import DiskPlan
from diskprep.events import Emit, Note, Progress
from diskprep.seal import SealedFile
from diskprep.secrets import Secret
from diskprep.seed import Seed, Staging
from diskprep.volume import bitlocker
from diskprep.volume.device import Device
from diskprep.volume.format import open_disk
from diskprep.volume.redo import Redo

#: The journal's record of a disk whose content was not what had been written.
DISTRUSTED = "distrusted"


class Wipe(StrEnum):
    """What becomes of a disk's old content. DISCARD asks the disk to give it up; FULL also writes zeros everywhere."""

    DISCARD = "discard"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to do with one disk.

    `container_sas` goes into the manifest, inside the encrypted volume; nowhere else. `memory`: where the recovery
    password is kept until the disk is sealed (memory.place). `escrow_key`: opens the escrow, when the passphrase is
    known; it is needed only to go on after a restart.
    """

    target: target.Target
    share: DiskPlan
    staging: Staging
    seed: Seed
    seal_digest: str
    container_sas: Secret[str]
    journal_path: Path
    method: bitlocker.Method = bitlocker.Method.XTS_AES_256
    wipe: Wipe = Wipe.DISCARD
    memory: Path | None = None
    escrow_key: Secret[bytes] | None = None

    @property
    def serial(self) -> str:
        return self.share.serial

    @property
    def inputs(self) -> dict[str, str]:
        """What a disk must have been made from to count as done, or as begun. Digests and names only."""
        return {
            "share": record.share_digest(self.share),
            "seal": self.seal_digest,
            "signature": hashlib.sha256(self.container_sas.reveal().encode()).hexdigest(),
            "method": str(self.method),
        }

    def files(self, first: int = 0) -> Iterator[SealedFile]:
        """What the disk is to hold, in the order of writing, from number `first`: packs, then their index files."""
        return itertools.islice(itertools.chain(self.share.packs, self.share.indexes), first, None)

    @property
    def file_count(self) -> int:
        return len(self.share.packs) + len(self.share.indexes)


@dataclass(slots=True)
class Work:
    """The state of one disk's preparation. `files` of the share are on the disk, with `blocks` blocks in all."""

    order: Order
    journal: journal.Journal
    emit: Emit
    device: Device
    password: Secret[str] = field(default_factory=bitlocker.generate_recovery_password)
    volume_guid: str = ""
    files: int = 0
    blocks: int = 0
    manifest_hash: str = ""
    volume: bitlocker.Volume | None = None

    def record(self, type_: str, **fields: Any) -> None:
        """Append to the journal; what it acknowledged survives. Raises StorageFull or StorageUnavailable."""
        try:
            self.journal.append(type_, time=clock.rfc3339(clock.now()), **fields)
        except OSError as error:
            raise durable.storage_error(error, f"write the journal {self.order.journal_path}") from error

    def distrust(self, reason: str) -> None:
        """Have the disk started over the next time. Raises as `record`."""
        self.record(DISTRUSTED, reason=reason)

    @property
    def opened(self) -> bitlocker.Volume:
        """The disk's volume, unlocked once for all that is written; reading back unlocks it anew."""
        if self.volume is None:
            self.volume = open_disk(self.device, self.password)
        return self.volume

    def note(self, text: str) -> None:
        self.emit(Note(stage="disk", item=self.order.serial, text=text))

    @property
    def redo(self) -> Redo:
        """The redo record of the volume that is being filled."""
        return Redo(self.order.journal_path.with_suffix(".redo"), self.volume_guid)

    @property
    def blocks_path(self) -> Path:
        """Where the MD5s of the blocks are kept until they are in the manifest."""
        return self.order.journal_path.with_suffix(".blocks")


class Meter:
    """Turns byte counts from several threads into cumulative Progress events of one disk."""

    def __init__(self, work: Work, stage: str, *, done_bytes: int = 0, total_bytes: int) -> None:
        self._work, self._stage, self._done, self._total = work, stage, done_bytes, total_bytes
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._work.emit(
                Progress(
                    stage=self._stage,
                    item=self._work.order.serial,
                    done_bytes=self._done,
                    total_bytes=self._total,
                )
            )
