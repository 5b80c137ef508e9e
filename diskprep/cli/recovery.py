"""The recovery password of a disk, out of the staging's escrow, for whoever knows the passphrase.

Of a sealed disk it is the one that opened it when it was read back.
"""

from __future__ import annotations

from diskprep.disk import keys
from diskprep.disk.record import recorded_disk
from diskprep.errors import NotFound
from diskprep.secrets import Secret
from diskprep.seed import Staging, load_seed
from diskprep.staging.stage import open_staged, unlock_escrow


def recovery_password(place: Staging, serial: str, passphrase: Secret[str]) -> Secret[str]:
    """Raises WrongPassphrase, NotFound or DataDamaged."""
    seed = load_seed(place)
    key = unlock_escrow(place, open_staged(place, passphrase))
    try:
        disk = recorded_disk(place, serial)
    except NotFound:
        return keys.load(place, seed, serial, key)
    return keys.load(place, seed, serial, key, opened=disk.was_opened_by)
