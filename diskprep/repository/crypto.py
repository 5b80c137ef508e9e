"""The data key: seals and opens every file and blob of a repository.

    sealed = IV (16) || AES-256-CTR ciphertext || Poly1305-AES tag (16)

This is what restic's design document has under "Keys, Encryption and MAC".

Invariants: an IV is random, never all zero and never used twice, also not across fork; the tag is checked before a byte
is decrypted. Contexts are expensive to make, so each thread keeps one, with a pool of IVs and their MAC addends.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged

IV_BYTES = 16
TAG_BYTES = 16
OVERHEAD_BYTES = IV_BYTES + TAG_BYTES
SEAL_ROOM_BYTES = OVERHEAD_BYTES + 16  # the cipher asks for room for a block more than it writes
_POOL_IVS = 1024
_ZERO_IV = bytes(IV_BYTES)


class _Context:
    """One thread's cipher contexts and its pool of unused IVs."""

    __slots__ = ("addends", "ctr", "ecb", "ivs", "pid", "stream", "used")

    def __init__(self, key: DataKey) -> None:
        self.pid = os.getpid()
        # The counter mode's decryption is its encryption; the nonce given here is never used for data.
        self.ctr = Cipher(algorithms.AES(key.encrypt), modes.CTR(_ZERO_IV)).encryptor()
        self.ecb: CipherContext = Cipher(algorithms.AES(key.mac_k), modes.ECB()).encryptor()  # noqa: S305 - a PRF on single blocks
        self.stream: CipherContext = Cipher(algorithms.AES(key.encrypt), modes.ECB()).encryptor()  # noqa: S305 - for counters
        self.ivs = self.addends = b""
        self.used = _POOL_IVS

    def next_iv(self) -> tuple[bytes, bytes]:
        """A fresh IV and its addend s = AES-128(mac_k, IV)."""
        while True:
            if self.used == _POOL_IVS:
                self.ivs = os.urandom(IV_BYTES * _POOL_IVS)
                self.addends = self.ecb.update(self.ivs)
                self.used = 0
            start = self.used * IV_BYTES
            self.used += 1
            iv = self.ivs[start : start + IV_BYTES]
            if iv != _ZERO_IV:
                return iv, self.addends[start : start + IV_BYTES]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataKey:
    """The keys of a repository: `encrypt` (32 bytes), `mac_k` and `mac_r` (16 bytes each). Threads may share it."""

    encrypt: bytes = field(repr=False)
    mac_k: bytes = field(repr=False)
    mac_r: bytes = field(repr=False)
    _local: threading.local = field(default_factory=threading.local, init=False, repr=False)

    def __post_init__(self) -> None:
        for value, size in ((self.encrypt, 32), (self.mac_k, 16), (self.mac_r, 16)):
            if len(value) != size or not any(value):
                raise DataDamaged("the repository's data key has a part of the wrong length, or one that is all zero")

    @classmethod
    def generate(cls) -> DataKey:
        return cls(encrypt=os.urandom(32), mac_k=os.urandom(16), mac_r=os.urandom(16))

    def seal(self, *parts: Buffer) -> bytes:
        """The concatenated parts, encrypted and authenticated; 32 bytes longer."""
        context = self._context()
        iv, addend = context.next_iv()
        context.ctr.reset_nonce(iv)
        if len(parts) == 1:
            ciphertext = context.ctr.update(parts[0])
        else:
            ciphertext = b"".join([context.ctr.update(part) for part in parts])
        return b"".join((iv, ciphertext, Poly1305.generate_tag(self.mac_r + addend, ciphertext)))

    def seal_into(self, target: memoryview, plaintext: Buffer) -> int:
        """Like `seal`, to the beginning of `target`, which must be `SEAL_ROOM_BYTES` longer than the plaintext; returns
        the number of bytes sealed."""
        context = self._context()
        iv, addend = context.next_iv()
        context.ctr.reset_nonce(iv)
        target[:IV_BYTES] = iv
        end = IV_BYTES + context.ctr.update_into(plaintext, target[IV_BYTES:])
        tag = Poly1305.generate_tag(self.mac_r + addend, target[IV_BYTES:end])
        target[end : end + TAG_BYTES] = tag
        return end + TAG_BYTES

    def fresh_ivs(self, count: int) -> tuple[bytes, bytes]:
        """`count` IVs that were never used, and their MAC addends, 16 bytes each."""
        while True:
            ivs = os.urandom(IV_BYTES * count)
            if not any(ivs[start : start + IV_BYTES] == _ZERO_IV for start in range(0, len(ivs), IV_BYTES)):
                return ivs, self._context().ecb.update(ivs)

    def encrypt_blocks(self, counters: Buffer) -> bytes:
        """Whole blocks of 16 bytes, each encrypted by itself: a keystream, when they are counters that never repeat."""
        return self._context().stream.update(counters)

    def open(self, sealed: Buffer) -> bytes:
        """The plaintext of `sealed`. Raises DataDamaged when it was changed or sealed with another key."""
        view = memoryview(sealed).cast("B")
        iv = bytes(view[:IV_BYTES])
        if len(view) < OVERHEAD_BYTES or iv == _ZERO_IV:
            raise DataDamaged("sealed data is too short, or its IV is zero")
        context = self._context()
        ciphertext = view[IV_BYTES:-TAG_BYTES]
        try:
            Poly1305.verify_tag(self.mac_r + context.ecb.update(iv), ciphertext, bytes(view[-TAG_BYTES:]))
        except InvalidSignature:
            raise DataDamaged("sealed data was changed, or belongs to another repository") from None
        context.ctr.reset_nonce(iv)
        return context.ctr.update(ciphertext)

    def open_into(self, target: memoryview, sealed: memoryview) -> int:
        """Like `open`, to the beginning of `target`, which must be 16 bytes longer than the plaintext; returns its
        length. Raises DataDamaged."""
        iv = bytes(sealed[:IV_BYTES])
        if len(sealed) < OVERHEAD_BYTES or iv == _ZERO_IV:
            raise DataDamaged("sealed data is too short, or its IV is zero")
        context = self._context()
        ciphertext = sealed[IV_BYTES:-TAG_BYTES]
        try:
            Poly1305.verify_tag(self.mac_r + context.ecb.update(iv), ciphertext, bytes(sealed[-TAG_BYTES:]))
        except InvalidSignature:
            raise DataDamaged("sealed data was changed, or belongs to another repository") from None
        context.ctr.reset_nonce(iv)
        return context.ctr.update_into(ciphertext, target)

    def _context(self) -> _Context:
        context: _Context | None = getattr(self._local, "context", None)
        if context is None or context.pid != os.getpid():  # a forked child must not draw the parent's IVs again
            context = self._local.context = _Context(self)
        return context
