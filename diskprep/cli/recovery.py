"""The recovery password of a disk, out of the staging's escrow, for whoever knows the passphrase."""

from __future__ import annotations

from diskprep.disk import keys
from diskprep.secrets import Secret
from diskprep.seed import Staging, load_seed
from diskprep.staging.stage import open_staged, unlock_escrow


def recovery_password(place: Staging, serial: str, passphrase: Secret[str]) -> Secret[str]:
    """Raises WrongPassphrase, NotFound or DataDamaged."""
    seed = load_seed(place)
    return keys.load(place, seed, serial, unlock_escrow(place, open_staged(place, passphrase)))
