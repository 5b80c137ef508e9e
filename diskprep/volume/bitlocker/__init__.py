"""BitLocker volumes: made, opened with a recovery password, read and written decrypted."""

from diskprep.volume.bitlocker.keys import generate_recovery_password, parse_recovery_password
from diskprep.volume.bitlocker.layout import (
    MetadataDamaged,
    Method,
    MethodNotSupported,
    NoRecoveryProtector,
    NotBitLocker,
    VolumeNotActive,
    WrongRecoveryPassword,
)
from diskprep.volume.bitlocker.metadata import Metadata
from diskprep.volume.bitlocker.volume import Volume, unlock, unlock_with_password

__all__ = [
    "Metadata",
    "MetadataDamaged",
    "Method",
    "MethodNotSupported",
    "NoRecoveryProtector",
    "NotBitLocker",
    "Volume",
    "VolumeNotActive",
    "WrongRecoveryPassword",
    "generate_recovery_password",
    "parse_recovery_password",
    "unlock",
    "unlock_with_password",
]
