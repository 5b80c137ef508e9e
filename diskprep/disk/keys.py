"""Recovery passwords at rest: `escrow/SERIAL.json` in the staging, sealed to the seed, one file a disk.

Written durably before the disk is touched, so that no disk exists whose password is lost. A disk that is prepared again
gets a new password; the file keeps the earlier ones too, newest first, for another disk may carry them by mistake.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from diskprep import durable, escrow
from diskprep.errors import DataDamaged, NotFound, UsageError
from diskprep.secrets import Secret
from diskprep.seed import Seed, Staging

#: What a drive's id may be: the serial as ATA IDENTIFY gives it, without its padding.
SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,39}")


def check_serial(serial: str) -> str:
    """Return `serial`; raise UsageError when it cannot be a drive's id (it also becomes a file name)."""
    if not SERIAL.fullmatch(serial):
        raise UsageError(
            f"{serial!r} cannot be a disk's serial number",
            hint="2 to 40 letters, digits, dots, hyphens, underscores; give it as IMAGE,serial=NUMBER",
        )
    return serial


def store(staging: Staging, seed: Seed, serial: str, password: Secret[str]) -> None:
    """Seal `password` and keep it."""
    sealed = escrow.seal(seed.escrow_public_key, password, _purpose(seed, serial))
    durable.make_directory(staging.escrow)
    path = _path(staging, serial)
    earlier = _sealed(path) if path.exists() else []
    document = {"serial": serial, "sealed_recovery_passwords": [sealed.hex(), *(value.hex() for value in earlier)]}
    durable.write_json(path, document)


def proof(volume_guid: str, password: Secret[str]) -> str:
    """What the journal keeps of a password that has opened a volume, to know it again: SHA-256 in hex.

    A recovery password is 128 random bits, so nobody finds it from this.
    """
    return hashlib.sha256(f"diskprep recovery password/{volume_guid}/{password.reveal()}".encode()).hexdigest()


def load(
    staging: Staging,
    seed: Seed,
    serial: str,
    private_key: Secret[bytes],
    *,
    opened: Callable[[Secret[str]], bool] = lambda _password: True,
) -> Secret[str]:
    """The newest recovery password of a disk for which `opened` is true. Raises NotFound or DataDamaged."""
    path = _path(staging, serial)
    try:
        values = _sealed(path)
    except NotFound:
        raise NotFound(
            f"the staging {staging.root} has no recovery password for disk {serial}",
            hint="`diskprep status STAGING` lists its disks",
        ) from None
    purpose = _purpose(seed, serial)
    for password in (escrow.unseal(private_key, value, purpose) for value in values):
        if opened(password):
            return password
    raise DataDamaged(
        f"none of the recovery passwords kept for disk {serial} is the one that opened it when it was read back",
        hint="prepare the disk again; the datacenter could not open it",
    )


def _sealed(path: Path) -> list[bytes]:
    document = durable.read_json(path)
    try:
        values = [bytes.fromhex(value) for value in document["sealed_recovery_passwords"]]
    except (KeyError, TypeError, ValueError):
        values = []
    if not values:
        raise DataDamaged(f"{path} is damaged", hint="move it away; the disk has to be prepared again")
    return values


def _path(staging: Staging, serial: str) -> Path:
    return staging.escrow / f"{check_serial(serial)}.json"


def _purpose(seed: Seed, serial: str) -> str:
    return f"diskprep recovery password/{seed.repository_id}/{seed.job_name}/{serial}"
