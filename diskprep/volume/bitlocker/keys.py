"""BitLocker's keys: recovery passwords, key stretching, wrapping with AES-CCM.

A recovery password is 128 random bits in eight groups of six digits; each group is a 16-bit number times 11, so a
mistyped group is noticed. The chain is: password -> stretched key -> volume master key (VMK) -> volume key (FVEK).
"""

from __future__ import annotations

import hashlib
import re
import secrets as random
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESCCM

from diskprep.errors import UsageError
from diskprep.secrets import Secret
from diskprep.volume.bitlocker.layout import Datum, DatumType

_GROUPS = re.compile(r"[0-9]{6}(?:-[0-9]{6}){7}")
_ROUNDS = 0x100000
_TAG_BYTES = 16


def generate_recovery_password() -> Secret[str]:
    """A new recovery password: 48 digits in eight groups with `-` between."""
    return Secret("-".join(f"{random.randbelow(1 << 16) * 11:06d}" for _ in range(8)))


def parse_recovery_password(text: Secret[str]) -> Secret[bytes]:
    """The 16 bytes that a recovery password stands for. Raises UsageError, which never repeats the digits."""
    typed = text.reveal().strip()
    if not _GROUPS.fullmatch(typed):
        raise UsageError("a recovery password is eight groups of six digits with - between them")
    values = [int(group) for group in typed.split("-")]
    for position, value in enumerate(values, 1):
        if value % 11 or value // 11 > 0xFFFF:
            raise UsageError(f"group {position} of the recovery password is mistyped")
    return Secret(struct.pack("<8H", *(value // 11 for value in values)))


def recovery_hash(raw: Secret[bytes]) -> Secret[bytes]:
    """What is stretched for a recovery password of 16 bytes."""
    return Secret(hashlib.sha256(raw.reveal()).digest())


def password_hash(password: Secret[str]) -> Secret[bytes]:
    """What is stretched for a user's password."""
    return Secret(hashlib.sha256(hashlib.sha256(password.reveal().encode("utf-16-le")).digest()).digest())


def stretch(initial: Secret[bytes], salt: bytes) -> Secret[bytes]:
    """The AES-256 key made of a 32-byte hash and a 16-byte salt with 2^20 rounds of SHA-256 (about half a second)."""
    sha256, last = hashlib.sha256, bytes(32)
    tail = initial.reveal() + salt
    for counter in range(_ROUNDS):
        last = sha256(last + tail + counter.to_bytes(8, "little")).digest()
    return Secret(last)


def wrap(key: Secret[bytes], nonce: bytes, payload: bytes, *, role: int) -> Datum:
    """`payload` as an AES-CCM datum: nonce, tag, ciphertext. A 12-byte nonce is used once with a key."""
    sealed = AESCCM(key.reveal(), tag_length=_TAG_BYTES).encrypt(nonce, payload, None)
    return Datum(role=role, type=DatumType.AES_CCM, body=nonce + sealed[-_TAG_BYTES:] + sealed[:-_TAG_BYTES])


def unwrap(key: Secret[bytes], datum: Datum) -> bytes | None:
    """The payload of an AES-CCM datum, or None when `key` does not open it."""
    nonce, tag, sealed = datum.body[:12], datum.body[12:28], datum.body[28:]
    if len(tag) < _TAG_BYTES:
        return None
    try:
        return AESCCM(key.reveal(), tag_length=_TAG_BYTES).decrypt(nonce, sealed + tag, None)
    except InvalidTag:
        return None


@dataclass(slots=True)
class Nonces:
    """Nonces of one metadata build: one time, and a counter that starts at 2 as Windows' does."""

    filetime: int
    counter: int = 2

    def next(self, *, committed: bool = False) -> bytes:
        """A nonce of 12 bytes. `committed` sets the mark Windows puts on the validation part's."""
        nonce = struct.pack("<QI", self.filetime | (1 << 63 if committed else 0), self.counter)
        self.counter += 1
        return nonce
