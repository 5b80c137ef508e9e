"""Escrow: recovery passwords, sealed to the seed so that only its passphrase brings them back.

HPKE (RFC 9180, base mode: X25519, HKDF-SHA256, AES-256-GCM) to the seed's public key; `info` binds a sealed value to
its purpose and its disk. The private key itself is kept sealed by the repository's data key.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from diskprep.errors import DataDamaged
from diskprep.secrets import Secret

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def generate() -> tuple[str, Secret[bytes]]:
    """A new pair: the public key in hex, the private key as 32 bytes."""
    private = X25519PrivateKey.generate()
    return private.public_key().public_bytes_raw().hex(), Secret(private.private_bytes_raw())


def seal(public_key: str, value: Secret[str], purpose: str) -> bytes:
    """`value` sealed so that only the private key opens it, and only for the same `purpose`."""
    recipient = X25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
    return bytes(_SUITE.encrypt(value.reveal().encode(), recipient, info=purpose.encode()))


def unseal(private_key: Secret[bytes], sealed: bytes, purpose: str) -> Secret[str]:
    """The inverse of `seal`. Raises DataDamaged when it was changed, or sealed for something else."""
    private = X25519PrivateKey.from_private_bytes(private_key.reveal())
    try:
        return Secret(_SUITE.decrypt(sealed, private, info=purpose.encode()).decode())
    except (InvalidTag, ValueError):
        raise DataDamaged("a sealed recovery password does not open: it was changed or belongs elsewhere") from None
