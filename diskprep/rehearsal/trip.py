"""What the stages of a rehearsal hand on to each other, and the inputs that somebody would type."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from diskprep import compare
from diskprep.datacenter.faults import DriveFault
from diskprep.events import Emit, Note
from diskprep.importjob.model import ReturnAddress
from diskprep.rehearsal.summary import Summary
from diskprep.secrets import Secret
from diskprep.seed import Staging
from diskprep.store import Account
from diskprep.volume.bitlocker import Method

ACCOUNT = "rehearsal"
CONTAINER = "container"
VAULT = "vault"
JOB_NAME = "rehearsal"
RESOURCE_GROUP = "rehearsal"
LOCATION = "westeurope"
CARRIER = "DHL"
TRACKING_NUMBER = "JD0140000000000001"
RETURN_ADDRESS = ReturnAddress(
    recipient_name="Backup operator",
    street_address1="1 Rehearsal Street",
    city="Springfield",
    postal_code="12345",
    country_or_region="Netherlands",
    phone="+31 20 000 0000",
    email="operator@example.invalid",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a rehearsal is asked for. Without `disks` and `disk_bytes`: two disks, as small as the data allows.

    `fault`: what happens to the last disk on its way, or in the datacenter.
    """

    source: Path | None = None
    workdir: Path | None = None
    disks: int | None = None
    disk_bytes: int | None = None
    keep: bool = False
    method: Method = Method.XTS_AES_256
    fault: DriveFault | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A recovery point, and what the source was when it was taken; `ignore`: paths that moved or cannot be read."""

    name: str
    snapshot: str
    truth: compare.Fingerprint
    stored: int
    ignore: frozenset[bytes] = frozenset()


@dataclass(slots=True, kw_only=True)
class Trip:
    """What the stages hand on to each other."""

    options: Options
    source: Path
    root: Path
    account: Account
    staging: Staging
    passphrase: Secret[str]
    summary: Summary
    emit: Emit
    expected: list[Expected]

    def say(self, stage_name: str, text: str) -> None:
        self.emit(Note(stage=stage_name, text=text))


def shown(path: Path) -> str:
    """A path as text that can be written anywhere: names need not be UTF-8."""
    return compare.display(os.fsencode(path))
