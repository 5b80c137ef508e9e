"""Recovery passwords at rest: `escrow/SERIAL.json` in the staging, sealed to the seed, one file a disk.

Written durably before the disk is touched, so that no disk exists whose password is lost.
"""

from __future__ import annotations

import re
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
    durable.write_json(_path(staging, serial), {"serial": serial, "sealed_recovery_password": sealed.hex()})


def load(staging: Staging, seed: Seed, serial: str, private_key: Secret[bytes]) -> Secret[str]:
    """The recovery password of a disk. Raises NotFound or DataDamaged."""
    path = _path(staging, serial)
    try:
        document = durable.read_json(path)
    except NotFound:
        raise NotFound(
            f"the staging {staging.root} has no recovery password for disk {serial}",
            hint="`diskprep status STAGING` lists its disks",
        ) from None
    try:
        sealed = bytes.fromhex(document["sealed_recovery_password"])
    except (KeyError, TypeError, ValueError):
        raise DataDamaged(f"{path} is damaged") from None
    return escrow.unseal(private_key, sealed, _purpose(seed, serial))


def _path(staging: Staging, serial: str) -> Path:
    return staging.escrow / f"{check_serial(serial)}.json"


def _purpose(seed: Seed, serial: str) -> str:
    return f"diskprep recovery password/{seed.repository_id}/{seed.job_name}/{serial}"
