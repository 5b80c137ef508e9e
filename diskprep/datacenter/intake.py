"""The copy process of the datacenter: one drive, from unlocking it to its copy logs.

In order, and the first step that fails ends the drive with its status: disk, BitLocker, NTFS, manifest (hash, form,
drive id), credential; then its blobs. The drive is only read. What may go wrong on order goes wrong in the reading.

A manifest is read three times, as a stream: its hash, then its rules, then blob by blob while they are copied. So no
blob is written for a manifest that is found to break a rule at its end, and memory does not grow with it.
Source: the service's published log statuses and the descriptions of what raises them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diskprep.datacenter.faults import NO_FAULTS, DriveFault, DriveFaults
from diskprep.datacenter.intake_blobs import Copier, Targets
from diskprep.datacenter.intake_log import DriveLogs, Spool, without_credential
from diskprep.datacenter.intake_parts import inside
from diskprep.datacenter.lifecycle import DIAGNOSTICS
from diskprep.errors import DataDamaged, DiskFailed, DiskprepError, NotFound
from diskprep.exchange import manifest as drive_manifest
from diskprep.exchange.copylog import DriveStatus
from diskprep.exchange.manifest import ManifestBlob, ManifestHead
from diskprep.secrets import Secret
from diskprep.seed import CONTAINER_NAME
from diskprep.store import Account, ImportTarget
from diskprep.volume import bitlocker
from diskprep.volume.device import open_for_reading
from diskprep.volume.format import open_disk
from diskprep.volume.ntfs import NotNtfs, Reader

_MANIFEST_NAME_LIMIT_CHARS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveOrder:
    """A drive to be read: what the job says of it, and the disk whose `serial` was read on arrival.

    `path`: an image or a block device. `again`: it was being read when the stand-in ended; what is already in the
    container is this drive's own. `keep_manifest`: whether a copy of the manifest is wanted.
    """

    serial: str
    path: Path
    recovery_password: Secret[str]
    manifest_file: str
    manifest_hash: str
    diagnostics_path: str
    again: bool = False
    keep_manifest: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveResult:
    """What came of a drive. Logs go to `container`.

    `error_log` is None when nothing failed; `manifest_copy` is the manifest without its credential, None when it was
    not read, or not wanted.
    """

    status: DriveStatus
    bytes_succeeded: int
    container: ImportTarget
    container_name: str
    verbose_log: Spool
    error_log: Spool | None
    manifest_copy: Spool | None = None


#: `done` and `total` bytes of a drive; total is 0 until the manifest was read.
OnProgress = Callable[[int, int], None]


class _Stop(Exception):
    """The drive ends here."""

    def __init__(self, status: DriveStatus) -> None:
        super().__init__(status)
        self.status = status


def copy_drive(
    order: DriveOrder, account: Account, on_progress: OnProgress, faults: DriveFaults = NO_FAULTS
) -> DriveResult:
    """Copy one drive into the account, with what was ordered to go wrong in reading it.

    Whatever is on the drive gives a status. Raises StorageFull or StorageUnavailable when the account cannot be
    opened at all, or there is no room for the logs.
    """
    logs, kept = DriveLogs(order.serial), Spool() if order.keep_manifest else None
    container: ImportTarget | None = None
    name, status = "", None
    try:
        with _unlocked(order, faults) as volume:
            manifest = _Manifest(order, volume, faults)
            head, total_bytes = manifest.check(kept)
            targets, container, name = _open_targets(account, head, order)
            _copy(manifest, Copier(volume, targets, faults, again=order.again), logs, total_bytes, on_progress)
    except _Stop as stop:
        status = stop.status
    if container is None:
        container, name, kept = *_diagnostics(account, order), None
    status = logs.end(status)
    good = status in (DriveStatus.COMPLETED, DriveStatus.COMPLETED_WITH_WARNINGS)
    return DriveResult(
        status=status,
        bytes_succeeded=logs.bytes_succeeded,
        container=container,
        container_name=name,
        verbose_log=logs.verbose,
        error_log=None if good else logs.errors,
        manifest_copy=kept if kept is not None and kept.size_bytes else None,
    )


def _copy(manifest: _Manifest, copier: Copier, logs: DriveLogs, total_bytes: int, on_progress: OnProgress) -> None:
    done_bytes = 0
    on_progress(0, total_bytes)
    for entry in copier.copy(manifest.blobs()):
        logs.add(entry)
        done_bytes += entry.blob.length_bytes
        on_progress(done_bytes, total_bytes)


@contextmanager
def _unlocked(order: DriveOrder, faults: DriveFaults) -> Iterator[bitlocker.Volume]:
    """The decrypted volume of a drive. Only what goes wrong in here is judged; what the body raises passes through."""
    if DriveFault.UNREADABLE in faults.faults:
        raise _Stop(DriveStatus.DISK_OPERATION_FAILED)
    password = order.recovery_password
    if DriveFault.WRONG_KEY in faults.faults:
        password = bitlocker.generate_recovery_password()
    with _judged({NotFound: DriveStatus.DISK_NOT_FOUND, DiskFailed: DriveStatus.DISK_OPERATION_FAILED}):
        device = open_for_reading(order.path)
    with device:
        with _judged(
            {
                bitlocker.NotBitLocker: DriveStatus.BITLOCKER_VOLUME_NOT_FOUND,
                bitlocker.VolumeNotActive: DriveStatus.BITLOCKER_NOT_ACTIVATED,
                bitlocker.NoRecoveryProtector: DriveStatus.BITLOCKER_PROTECTOR_NOT_FOUND,
                bitlocker.WrongRecoveryPassword: DriveStatus.BITLOCKER_KEY_INVALID,
                bitlocker.MetadataDamaged: DriveStatus.BITLOCKER_UNLOCK_VOLUME_FAILED,
                DiskFailed: DriveStatus.DISK_OPERATION_FAILED,
                DiskprepError: DriveStatus.BITLOCKER_FAILED,
            }
        ):
            volume = open_disk(device, password)
        yield volume


class _Manifest:
    """The manifest of a drive, found under the name that the job has."""

    def __init__(self, order: DriveOrder, volume: bitlocker.Volume, faults: DriveFaults) -> None:
        self._order, self._faults = order, faults.faults
        if len(order.manifest_file) > _MANIFEST_NAME_LIMIT_CHARS:
            raise _Stop(DriveStatus.MANIFEST_NAME_TOO_LONG)
        with _judged({DataDamaged: DriveStatus.MANIFEST_NAME_INVALID}):
            self._path = inside(drive_manifest.check_file_path(order.manifest_file))
        with _judged({NotNtfs: DriveStatus.VOLUME_NOT_NTFS, DiskprepError: DriveStatus.READ_MANIFEST_FAILED}):
            self._reader = Reader(volume)
        with _judged({NotFound: DriveStatus.MANIFEST_NOT_FOUND, DiskprepError: DriveStatus.READ_MANIFEST_FAILED}):
            entry = self._reader.stat(self._path)
        if entry.is_directory:
            raise _Stop(DriveStatus.MANIFEST_ACCESS_DENIED)
        if entry.size_bytes > drive_manifest.SIZE_LIMIT_BYTES:
            raise _Stop(DriveStatus.MANIFEST_FORMAT_INVALID)

    def check(self, kept: Spool | None) -> tuple[ManifestHead, int]:
        """Hash, rules and drive id; what stands before the blobs, and all blobs' bytes. A copy goes to `kept`."""
        if self._hash(kept) != self._order.manifest_hash.upper():
            raise _Stop(DriveStatus.MANIFEST_CORRUPTED)
        with _judged({DataDamaged: DriveStatus.MANIFEST_FORMAT_INVALID}):
            stream = drive_manifest.open_manifest(self._chunks())
            total_bytes = sum(blob.length_bytes for blob in stream)
        if stream.drive_id != self._order.serial or DriveFault.WRONG_SERIAL in self._faults:
            raise _Stop(DriveStatus.MANIFEST_DRIVE_ID_MISMATCH)
        return stream.head, total_bytes

    def blobs(self) -> Iterator[ManifestBlob]:
        """Once more, for the copying. That it is still the same is known at the end."""
        with _judged({DataDamaged: DriveStatus.MANIFEST_CORRUPTED}):
            stream = drive_manifest.open_manifest(self._chunks())
            blobs = iter(stream)
        while True:
            with _judged({DataDamaged: DriveStatus.MANIFEST_CORRUPTED}):
                blob = next(blobs, None)
            if blob is None:
                break
            yield blob
        if stream.hash != self._order.manifest_hash.upper():
            raise _Stop(DriveStatus.MANIFEST_CORRUPTED)

    def _hash(self, kept: Spool | None) -> str:
        digest = hashlib.md5(usedforsecurity=False)
        for number, chunk in enumerate(self._chunks()):
            digest.update(chunk)
            if kept is not None and not number:
                kept.write(without_credential(chunk) or b"")
            elif kept is not None and kept.size_bytes:
                kept.write(chunk)
        if DriveFault.MANIFEST_EDITED in self._faults:
            digest.update(b"\n")
        return digest.hexdigest().upper()

    def _chunks(self) -> Iterator[bytes]:
        with _judged({DiskprepError: DriveStatus.READ_MANIFEST_FAILED}):
            yield from self._reader.stream(self._path)


def _open_targets(account: Account, head: ManifestHead, order: DriveOrder) -> tuple[Targets, ImportTarget, str]:
    """What the manifest's credential opens, and where the logs go: beside the blobs when it is one container."""
    with _judged({DiskprepError: DriveStatus.BLOB_REQUEST_FORBIDDEN}):
        if head.container_sas is not None:
            name = head.container_sas.reveal().partition("?")[0]
            container = account.open_sas(head.container_sas)
            return Targets({name: container}), container, name
        assert head.account_key is not None, "a head has one credential"
        opened = account.open_key(head.account_key)
    container, name = _diagnostics(opened, order)
    return Targets({name: container}, opened), container, name


def _diagnostics(account: Account, order: DriveOrder) -> tuple[ImportTarget, str]:
    """The container for logs that the job names."""
    name = order.diagnostics_path.partition("/")[0]
    if not CONTAINER_NAME.fullmatch(name):
        name = DIAGNOSTICS
    return account.container(name), name


@contextmanager
def _judged(statuses: dict[type[DiskprepError], DriveStatus]) -> Iterator[None]:
    """End the drive with the status of the first class that an error belongs to."""
    try:
        yield
    except DiskprepError as error:
        for kind, status in statuses.items():
            if isinstance(error, kind):
                raise _Stop(status) from error
        raise
