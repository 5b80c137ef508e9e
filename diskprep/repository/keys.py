"""Key files: the data key, wrapped by a key that scrypt derives from a passphrase.

`keys/<SHA-256 of the file>` is plain JSON; its `data` is the data key sealed with the derived key. Several key files
may stand side by side, one a passphrase. Parameters of a file that was not written here are bounded before use.
"""

from __future__ import annotations

import base64
import binascii
import getpass
import hashlib
import json
import os
from dataclasses import dataclass
from datetime import datetime

from diskprep import clock
from diskprep.errors import DataDamaged, WrongPassphrase
from diskprep.repository.crypto import DataKey
from diskprep.secrets import Secret

SALT_BYTES = 64
_MAX_MEMORY_BYTES = 1 << 30
_MAX_WORK = 1 << 28  # N * r * p: about a minute


@dataclass(frozen=True, slots=True, kw_only=True)
class ScryptCost:
    """scrypt's parameters: needs 128 * n * r bytes of memory, p times over."""

    n: int = 1 << 15
    r: int = 8
    p: int = 5

    def __post_init__(self) -> None:
        power_of_two = self.n > 1 and self.n & (self.n - 1) == 0
        if not power_of_two or self.r < 1 or self.p < 1:
            raise DataDamaged("a key file has impossible scrypt parameters")
        if 128 * self.n * self.r > _MAX_MEMORY_BYTES or self.n * self.r * self.p > _MAX_WORK:
            raise DataDamaged("a key file demands more memory or time than any honest one")

    @property
    def memory_bytes(self) -> int:
        return 128 * self.n * self.r

    @property
    def work(self) -> int:
        """What the time is proportional to."""
        return self.n * self.r * self.p


DEFAULT_COST = ScryptCost()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFile:
    """What a key file says to everybody, and the data key it keeps sealed. `created` is None when it is no time."""

    created: datetime | None
    username: str
    hostname: str
    cost: ScryptCost
    salt: bytes
    sealed: bytes

    def unwrap(self, passphrase: Secret[str]) -> DataKey:
        """The data key. Raises WrongPassphrase, or DataDamaged when what the passphrase opens is no key."""
        kek = derive(passphrase, self.salt, self.cost)
        try:
            plaintext = kek.open(self.sealed)
        except DataDamaged:
            raise WrongPassphrase("the passphrase does not open this key") from None
        try:
            parts = json.loads(plaintext)
            return DataKey(
                encrypt=_binary(parts["encrypt"]), mac_k=_binary(parts["mac"]["k"]), mac_r=_binary(parts["mac"]["r"])
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataDamaged("a key file is damaged") from None


def derive(passphrase: Secret[str], salt: bytes, cost: ScryptCost) -> DataKey:
    """The key-encrypting key of a passphrase."""
    material = hashlib.scrypt(
        passphrase.reveal().encode("utf-8", "surrogateescape"),  # bytes that are no UTF-8 are taken as they are
        salt=salt,
        n=cost.n,
        r=cost.r,
        p=cost.p,
        maxmem=128 * cost.n * cost.r + 128 * cost.r * cost.p + (1 << 20),
        dklen=64,
    )
    return DataKey(encrypt=material[:32], mac_k=material[32:48], mac_r=material[48:])


def wrap(key: DataKey, passphrase: Secret[str], hostname: str, cost: ScryptCost = DEFAULT_COST) -> bytes:
    """The content of a new key file."""
    salt = os.urandom(SALT_BYTES)
    parts = {"mac": {"k": _text(key.mac_k), "r": _text(key.mac_r)}, "encrypt": _text(key.encrypt)}
    sealed = derive(passphrase, salt, cost).seal(json.dumps(parts, separators=(",", ":")).encode())
    document = {
        "created": clock.rfc3339(clock.now()),
        "username": username(),
        "hostname": hostname,
        "kdf": "scrypt",
        "N": cost.n,
        "r": cost.r,
        "p": cost.p,
        "salt": _text(salt),
        "data": _text(sealed),
    }
    return json.dumps(document, separators=(",", ":")).encode()


def parse(content: bytes) -> KeyFile:
    """A key file as it is stored. Raises DataDamaged."""
    try:
        document = json.loads(content)
        if document["kdf"] != "scrypt":
            raise DataDamaged("a key file uses an unknown key derivation")
        found = KeyFile(
            created=_moment(document.get("created")),
            username=str(document.get("username", "")),
            hostname=str(document.get("hostname", "")),
            cost=ScryptCost(n=int(document["N"]), r=int(document["r"]), p=int(document["p"])),
            salt=_binary(document["salt"]),
            sealed=_binary(document["data"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        raise DataDamaged("a key file is damaged") from None
    if len(found.salt) != SALT_BYTES:
        raise DataDamaged(f"a key file's salt is not {SALT_BYTES} bytes long")
    return found


def unwrap(content: bytes, passphrase: Secret[str]) -> DataKey:
    """The data key in a key file as it is stored. Raises WrongPassphrase or DataDamaged."""
    return parse(content).unwrap(passphrase)


def username() -> str:
    """The name of the user this process runs as, for records; empty when it has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _moment(text: object) -> datetime | None:
    try:
        return clock.parse_rfc3339(str(text))
    except ValueError:
        return None


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _binary(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
