"""BitLocker's metadata: made for a new volume, and opened with a password.

Three identical copies lie on a volume. A copy is taken when its signature and CRC-32 are right, its offsets are those
of the boot sector, the password's key opens the volume master key, and the SHA-256 wrapped under that key is that of
the copy; otherwise the next is tried. A copy that says the volume is not wholly encrypted ends the search.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets as random
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime

from diskprep.errors import DataDamaged
from diskprep.secrets import Secret
from diskprep.volume.bitlocker import keys, layout
from diskprep.volume.bitlocker.layout import (
    COPY_BYTES,
    HEADER_BYTES,
    BootSector,
    Datum,
    DatumType,
    KeyKind,
    MetadataCopy,
    MetadataDamaged,
    Method,
    NoRecoveryProtector,
    Role,
    VolumeNotActive,
    WrongRecoveryPassword,
)
from diskprep.volume.device import BlockDevice

_VMK_HEAD = struct.Struct("<16sQHH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What the metadata say about a volume. Offsets and sizes in bytes, from the volume's start."""

    method: Method
    guid: uuid.UUID
    created: datetime
    description: str
    sector_bytes: int
    encrypted_bytes: int
    copy_offsets: tuple[int, int, int]
    header_offset: int


@dataclass(slots=True)
class Protector:
    """A password on its way to a volume master key; stretched keys are kept, so that each salt costs once."""

    protection: int
    initial: Secret[bytes]
    _stretched: dict[bytes, Secret[bytes]] = field(default_factory=dict)

    def stretched(self, salt: bytes) -> Secret[bytes]:
        if salt not in self._stretched:
            self._stretched[salt] = keys.stretch(self.initial, salt)
        return self._stretched[salt]


def recovery_protector(password: Secret[str]) -> Protector:
    """Raises UsageError when `password` is not a recovery password."""
    raw = keys.parse_recovery_password(password)
    return Protector(layout.PROTECTION_RECOVERY, keys.recovery_hash(raw))


def password_protector(password: Secret[str]) -> Protector:
    return Protector(layout.PROTECTION_PASSWORD, keys.password_hash(password))


def create(metadata: Metadata, *, further_offset: int, recovery_password: Secret[str]) -> tuple[bytes, Secret[bytes]]:
    """The 64 KiB region that goes to each of the three places, and the new volume key it holds.

    `further_offset`: see `layout.relocation_body`. Takes about half a second. Raises UsageError for a recovery
    password that is none.
    """
    created = layout.filetime(metadata.created)
    nonces = keys.Nonces(created)
    vmk, fvek = Secret(random.token_bytes(32)), Secret(random.token_bytes(metadata.method.key_bytes))
    datums = (
        Datum(role=Role.DESCRIPTION, type=DatumType.TEXT, body=(metadata.description + "\0").encode("utf-16-le")),
        _recovery_datum(recovery_password, vmk, created, nonces),
        keys.wrap(vmk, nonces.next(), layout.encode_key(metadata.method.code, fvek.reveal()), role=Role.FVEK),
        Datum(
            role=Role.RELOCATION,
            type=DatumType.RELOCATION,
            body=layout.relocation_body(metadata.header_offset, further_offset, metadata.sector_bytes),
        ),
    )
    copy = MetadataCopy(
        state=layout.STATE_ENCRYPTED,
        next_state=layout.STATE_ENCRYPTED,
        encrypted_bytes=metadata.encrypted_bytes,
        converted_bytes=0,
        relocated_sectors=HEADER_BYTES // metadata.sector_bytes,
        copy_offsets=metadata.copy_offsets,
        header_offset=metadata.header_offset,
        guid=metadata.guid,
        next_nonce=nonces.counter + 1,
        method_code=metadata.method.code,
        method_code_again=metadata.method.code,
        created_filetime=created,
        datums=datums,
        validation=None,
    )
    digest = hashlib.sha256(copy.encode_covered()).digest()
    validation = keys.wrap(
        vmk, nonces.next(committed=True), layout.encode_key(KeyKind.SHA256, digest), role=Role.PROPERTY
    )
    return layout.encode_copy(replace(copy, validation=validation)), fvek


def _recovery_datum(password: Secret[str], vmk: Secret[bytes], created: int, nonces: keys.Nonces) -> Datum:
    """The protector of a recovery password. The password itself is in it under the VMK, so that Windows can show it."""
    raw, salt = keys.parse_recovery_password(password), random.token_bytes(16)
    stretched = keys.stretch(keys.recovery_hash(raw), salt)
    nested = [
        keys.wrap(vmk, nonces.next(), layout.encode_key(kind, key.reveal()), role=role)
        for kind, key, role in (
            (KeyKind.RECOVERY_RAW, raw, Role.RECOVERY_RAW),
            (KeyKind.STRETCHED_RECOVERY, stretched, Role.RECOVERY_STRETCHED),
        )
    ]
    stretch = Datum(
        role=Role.PROPERTY,
        type=DatumType.STRETCH_KEY,
        body=struct.pack("<HH", KeyKind.RECOVERY_RAW, 0) + salt + b"".join(datum.encode() for datum in nested),
    )
    wrapped = keys.wrap(stretched, nonces.next(), layout.encode_key(KeyKind.VMK, vmk.reveal()), role=Role.PROPERTY)
    head = _VMK_HEAD.pack(uuid.uuid4().bytes_le, created, 0, layout.PROTECTION_RECOVERY)
    return Datum(role=Role.VMK, type=DatumType.VMK, body=head + stretch.encode() + wrapped.encode())


def open_copies(
    device: BlockDevice, start_bytes: int, size_bytes: int, protector: Protector
) -> tuple[Metadata, Secret[bytes]]:
    """The metadata and volume key of the volume at `start_bytes`.

    Raises NotBitLocker, VolumeNotActive, NoRecoveryProtector, WrongRecoveryPassword, MethodNotSupported,
    MetadataDamaged, DiskFailed.
    """
    if size_bytes < HEADER_BYTES:
        raise layout.NotBitLocker("there is too little room for a BitLocker volume")
    boot = layout.parse_boot_sector(device.pread(512, start_bytes))
    failures: list[DataDamaged | WrongRecoveryPassword] = []
    for offset in boot.copy_offsets:
        try:
            copy = _read_copy(device, start_bytes, size_bytes, boot, offset)
            return _open_copy(copy, boot, protector)
        except VolumeNotActive:
            raise
        except (DataDamaged, WrongRecoveryPassword) as error:
            failures.append(error)
    for kind in (WrongRecoveryPassword, layout.MethodNotSupported, NoRecoveryProtector):
        telling = next((failure for failure in failures if isinstance(failure, kind)), None)
        if telling is not None:
            raise telling
    raise MetadataDamaged(f"all three copies of the BitLocker metadata are damaged: {failures[0].message}")


def read_identity(device: BlockDevice, *, start_bytes: int, size_bytes: int) -> tuple[uuid.UUID, str]:
    """The volume's identifier and description, which are not secret, from the first copy that can be read.

    Raises DataDamaged.
    """
    boot = layout.parse_boot_sector(device.pread(512, start_bytes))
    for offset in boot.copy_offsets:
        with contextlib.suppress(DataDamaged):
            copy = _read_copy(device, start_bytes, size_bytes, boot, offset)
            return copy.guid, _description(copy)
    raise MetadataDamaged("all three copies of the BitLocker metadata are damaged")


def _read_copy(device: BlockDevice, start_bytes: int, size_bytes: int, boot: BootSector, offset: int) -> MetadataCopy:
    if offset % boot.sector_bytes or not HEADER_BYTES <= offset <= size_bytes - COPY_BYTES:
        raise DataDamaged("a metadata copy is said to be outside the volume")
    copy = layout.parse_copy(device.pread(COPY_BYTES, start_bytes + offset))
    if copy.state != layout.STATE_ENCRYPTED or copy.next_state != layout.STATE_ENCRYPTED:
        raise VolumeNotActive(
            f"the BitLocker volume is not wholly encrypted (state {copy.state}, next {copy.next_state})",
            hint="finish or undo its encryption in Windows",
        )
    if copy.copy_offsets != boot.copy_offsets:
        raise DataDamaged("a metadata copy names other places than the boot sector")
    if layout.parse_relocation(copy.datums) != (copy.header_offset, HEADER_BYTES):
        raise DataDamaged("a metadata copy contradicts itself about the file system's first sectors")
    if not 0 < copy.encrypted_bytes <= size_bytes or copy.encrypted_bytes % boot.sector_bytes:
        raise DataDamaged(f"the BitLocker volume has {copy.encrypted_bytes} bytes, its partition {size_bytes}")
    regions = sorted([(at, COPY_BYTES) for at in copy.copy_offsets] + [(copy.header_offset, HEADER_BYTES)])
    end = HEADER_BYTES
    for at, length in regions:
        if at < end or at % boot.sector_bytes:
            raise DataDamaged("the reserved regions of the BitLocker volume overlap")
        end = at + length
    if end > copy.encrypted_bytes:
        raise DataDamaged("a reserved region is said to be outside the volume")
    return copy


def _open_copy(copy: MetadataCopy, boot: BootSector, protector: Protector) -> tuple[Metadata, Secret[bytes]]:
    method = Method.of_code(copy.method_code)
    vmk = _master_key(copy, protector)
    digest = hashlib.sha256(copy.covered).digest()
    if copy.validation is None or _inner_key(vmk, copy.validation, KeyKind.SHA256) != digest:
        raise DataDamaged("a metadata copy is not what its key holder wrote")
    wrapped = next((d for d in copy.datums if d.role == Role.FVEK and d.type == DatumType.AES_CCM), None)
    if wrapped is None:
        raise DataDamaged("a metadata copy has no volume key")
    fvek = _inner_key(vmk, wrapped, method.code)
    if len(fvek) != method.key_bytes:
        raise DataDamaged("the volume key has a wrong length")
    return _describe(copy, boot, method), Secret(fvek)


def _describe(copy: MetadataCopy, boot: BootSector, method: Method) -> Metadata:
    return Metadata(
        method=method,
        guid=copy.guid,
        created=layout.from_filetime(copy.created_filetime),
        description=_description(copy),
        sector_bytes=boot.sector_bytes,
        encrypted_bytes=copy.encrypted_bytes,
        copy_offsets=copy.copy_offsets,
        header_offset=copy.header_offset,
    )


def _description(copy: MetadataCopy) -> str:
    text = next((d.body for d in copy.datums if d.role == Role.DESCRIPTION and d.type == DatumType.TEXT), b"")
    return text.decode("utf-16-le", "replace").rstrip("\0")


def _master_key(copy: MetadataCopy, protector: Protector) -> Secret[bytes]:
    """The volume master key, from the first protector that the password opens."""
    found = False
    for salt, wrapped in _stretch_protectors(copy, protector.protection):
        found = True
        plain = keys.unwrap(protector.stretched(salt), wrapped)
        if plain is not None:
            kind, key = layout.decode_key(plain)
            if kind == KeyKind.VMK and len(key) == 32:
                return Secret(key)
    if found:
        raise WrongRecoveryPassword("the recovery password does not open this volume")
    raise NoRecoveryProtector("the volume cannot be opened with a password of this kind: it has no such protector")


def _stretch_protectors(copy: MetadataCopy, protection: int) -> Iterator[tuple[bytes, Datum]]:
    """Salt and wrapped master key of each protector of one kind; others are passed over."""
    for datum in copy.datums:
        if datum.type != DatumType.VMK or len(datum.body) < _VMK_HEAD.size:
            continue
        if _VMK_HEAD.unpack_from(datum.body)[3] != protection:
            continue
        nested = layout.parse_datums(datum.body[_VMK_HEAD.size :])
        salt = next((d.body[4:20] for d in nested if d.type == DatumType.STRETCH_KEY), b"")
        wrapped = next((d for d in nested if d.type == DatumType.AES_CCM), None)
        if len(salt) == 16 and wrapped is not None:
            yield salt, wrapped


def _inner_key(key: Secret[bytes], datum: Datum, kind: int) -> bytes:
    plain = keys.unwrap(key, datum)
    if plain is None:
        raise DataDamaged("a key of the metadata does not open")
    found, inner = layout.decode_key(plain)
    if found != kind:
        raise DataDamaged("a key of the metadata is of the wrong kind")
    return inner
