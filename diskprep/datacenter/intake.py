"""The copy process of the datacenter: one drive, from unlocking it to its copy log.

In order, and the first step that fails ends the drive with its status: disk, BitLocker, NTFS, manifest (hash, form,
drive id), credential. Then each blob: file, name collision, blocks by MD5, commit; when a step fails, all after it in
that blob are Cancelled. A damaged block is not uploaded; the blob's good blocks then stay uncommitted.
Source: the service's published log statuses and the descriptions of what raises them.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diskprep.datacenter.lifecycle import DIAGNOSTICS
from diskprep.errors import (
    DataDamaged,
    DiskFailed,
    DiskprepError,
    NotFound,
    NotSignedIn,
)
from diskprep.exchange import manifest as drive_manifest
from diskprep.exchange.copylog import (
    BlobLog,
    BlobStatus,
    BlockLog,
    BlockStatus,
    DispositionStatus,
    DriveLog,
    DriveStatus,
    overall_status,
)
from diskprep.exchange.manifest import Block, Disposition, DriveManifest, ManifestBlob
from diskprep.secrets import Secret
from diskprep.store import Account, BlobStore
from diskprep.volume import bitlocker
from diskprep.volume.device import open_for_reading
from diskprep.volume.format import open_disk
from diskprep.volume.ntfs import NotNtfs, Reader

_THREADS = 2  # one hashes and stores while the other reads and decrypts
_RENAMES_LIMIT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveOrder:
    """A drive to be read: what the job says of it, and the disk whose `serial` was read on arrival."""

    serial: str
    path: Path
    recovery_password: Secret[str]
    manifest_file: str
    manifest_hash: str
    diagnostics_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveResult:
    """What came of a drive. Logs go to `container`; `manifest` is the file's bytes, empty when it was not read."""

    log: DriveLog
    bytes_succeeded: int
    container: BlobStore
    container_name: str
    manifest: bytes = b""


#: `done` and `total` bytes of a drive; total is 0 until the manifest was read.
OnProgress = Callable[[int, int], None]


class _Stop(Exception):
    """The drive ends here."""

    def __init__(self, status: DriveStatus) -> None:
        super().__init__(status)
        self.status = status


class _BlobStop(Exception):
    """The blob ends here; all that would follow is cancelled."""

    def __init__(self, status: BlobStatus) -> None:
        super().__init__(status)
        self.status = status


def copy_drive(order: DriveOrder, account: Account, on_progress: OnProgress) -> DriveResult:
    """Copy one drive into the account. Raises NotBuilt for manifests this version cannot honour; else never fails."""
    diagnostics = order.diagnostics_path.partition("/")[0] or DIAGNOSTICS
    try:
        with _unlocked(order) as volume:
            manifest, raw = _read_manifest(order, volume)
            container, name = _open_container(account, manifest)
            blobs = _Copier(volume, container, name, manifest, on_progress).run()
    except _Stop as stop:
        log = DriveLog(drive_id=order.serial, status=stop.status)
        return DriveResult(
            log=log, bytes_succeeded=0, container=account.container(diagnostics), container_name=diagnostics
        )
    return DriveResult(
        log=DriveLog(drive_id=order.serial, status=overall_status(blobs), blobs=blobs),
        bytes_succeeded=sum(blob.length_bytes for blob in blobs if not blob.failed),
        container=container,
        container_name=name,
        manifest=raw,
    )


@contextmanager
def _unlocked(order: DriveOrder) -> Iterator[bitlocker.Volume]:
    """The decrypted volume of a drive. Only what goes wrong in here is judged; what the body raises passes through."""
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
            volume = open_disk(device, order.recovery_password)
        yield volume


def _read_manifest(order: DriveOrder, volume: bitlocker.Volume) -> tuple[DriveManifest, bytes]:
    with _judged({DataDamaged: DriveStatus.MANIFEST_NAME_INVALID}):
        path = _inside(drive_manifest.check_file_path(order.manifest_file))
    with _judged({NotNtfs: DriveStatus.VOLUME_NOT_NTFS, DiskprepError: DriveStatus.READ_MANIFEST_FAILED}):
        reader = Reader(volume)
    with reader, _judged({NotFound: DriveStatus.MANIFEST_NOT_FOUND, DiskprepError: DriveStatus.READ_MANIFEST_FAILED}):
        entry = reader.stat(path)
        if entry.is_directory or entry.size_bytes > drive_manifest.SIZE_LIMIT_BYTES:
            raise _Stop(DriveStatus.MANIFEST_FORMAT_INVALID)
        data = b"".join(reader.stream(path))
    if drive_manifest.manifest_hash(data) != order.manifest_hash.upper():
        raise _Stop(DriveStatus.MANIFEST_CORRUPTED)
    with _judged({DataDamaged: DriveStatus.MANIFEST_FORMAT_INVALID}):
        manifest = drive_manifest.parse_manifest(data)
    if manifest.drive_id != order.serial:
        raise _Stop(DriveStatus.MANIFEST_DRIVE_ID_MISMATCH)
    return manifest, data


def _open_container(account: Account, manifest: DriveManifest) -> tuple[BlobStore, str]:
    """The container that the manifest's signature opens. An account key cannot be tried here and is refused."""
    if manifest.container_sas is None:
        raise _Stop(DriveStatus.BLOB_REQUEST_FORBIDDEN)
    with _judged({DiskprepError: DriveStatus.BLOB_REQUEST_FORBIDDEN}):
        return account.open_sas(manifest.container_sas), manifest.container_sas.reveal().partition("?")[0]


class _Copier:
    """Copies the blobs of one manifest, two at a time; each thread has a reader of its own."""

    def __init__(
        self,
        volume: bitlocker.Volume,
        container: BlobStore,
        container_name: str,
        manifest: DriveManifest,
        on_progress: OnProgress,
    ) -> None:
        self._volume, self._container, self._container_name = volume, container, container_name
        self._blobs, self._on_progress = manifest.blobs, on_progress
        self._total = sum(blob.length_bytes for blob in manifest.blobs)
        self._done = 0
        self._lock = threading.Lock()
        self._taken: set[str] = set()  # names that blobs of this drive have got, or are getting
        self._local = threading.local()

    def run(self) -> tuple[BlobLog, ...]:
        self._on_progress(0, self._total)
        with ThreadPoolExecutor(_THREADS, initializer=self._open_reader) as pool:
            return tuple(pool.map(self._copy, self._blobs))

    def _open_reader(self) -> None:
        self._local.reader = Reader(self._volume)

    def _copy(self, blob: ManifestBlob) -> BlobLog:
        try:
            log = self._copy_blob(blob)
        except _BlobStop as stop:
            cancelled = [BlockStatus.CANCELLED] * len(blob.blocks)
            log = _blob_log(blob, stop.status, DispositionStatus.CANCELLED, cancelled)
        with self._lock:
            self._done += blob.length_bytes
            self._on_progress(self._done, self._total)
        return log

    def _copy_blob(self, blob: ManifestBlob) -> BlobLog:
        reader: Reader = self._local.reader
        path = _inside(blob.file_path)
        try:
            size = reader.stat(path).size_bytes
        except NotFound:
            raise _BlobStop(BlobStatus.FILE_NOT_FOUND) from None
        except DiskprepError as error:
            raise _BlobStop(BlobStatus.IO_FAILED) from error
        container, name = drive_manifest.split_blob_path(blob.blob_path)
        if container != self._container_name:
            raise _BlobStop(BlobStatus.BLOB_REQUEST_FORBIDDEN)
        name, disposition = self._dispose(name, blob.disposition)
        if disposition is DispositionStatus.SKIPPED:
            return _blob_log(blob, BlobStatus.COMPLETED, disposition)
        statuses = [self._copy_block(reader, path, size, name, block) for block in blob.blocks]
        status, good = BlobStatus.COMPLETED_WITH_ERRORS, BlockStatus.UNCOMMITTED
        if all(status is BlockStatus.COMPLETED for status in statuses):
            try:
                self._container.commit_blocks(name, [block.block_id for block in blob.blocks])
                status, good = BlobStatus.COMPLETED, BlockStatus.COMPLETED
            except DiskprepError:
                status = BlobStatus.BLOB_REQUEST_FAILED
        ended = [good if status is BlockStatus.COMPLETED else status for status in statuses]
        return _blob_log(blob, status, disposition, ended, blob_path=f"{container}/{name}")

    def _dispose(self, name: str, wish: Disposition) -> tuple[str, DispositionStatus]:
        """The name a blob gets, and what that means for one that is there already."""
        try:
            with self._lock:
                name, disposition = self._find_name(name, wish)
                self._taken.add(name)
                return name, disposition
        except NotSignedIn:
            raise _BlobStop(BlobStatus.BLOB_REQUEST_FORBIDDEN) from None
        except DiskprepError as error:
            raise _BlobStop(BlobStatus.BLOB_REQUEST_FAILED) from error

    def _find_name(self, name: str, wish: Disposition) -> tuple[str, DispositionStatus]:
        if not self._exists(name):
            return name, DispositionStatus.CREATED
        if wish is Disposition.NO_OVERWRITE:
            return name, DispositionStatus.SKIPPED
        if wish is Disposition.OVERWRITE:
            return name, DispositionStatus.OVERWRITTEN
        free = next((new for new in _renamed(name) if not self._exists(new)), None)
        if free is None:
            raise _BlobStop(BlobStatus.RENAME_FAILED)
        return free, DispositionStatus.RENAMED

    def _exists(self, name: str) -> bool:
        return name in self._taken or self._container.stat(name) is not None

    def _copy_block(self, reader: Reader, path: str, size: int, name: str, block: Block) -> BlockStatus:
        if block.offset + block.length > size:
            return BlockStatus.FILE_UNEXPECTED_END
        try:
            data = reader.read(path, block.offset, block.length)
        except DiskprepError:
            return BlockStatus.IO_FAILED
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        if digest.hex().upper() != block.md5:
            return BlockStatus.CORRUPTED
        try:
            self._container.stage_block(name, block.block_id, data, digest)
        except DiskprepError:
            return BlockStatus.BLOB_REQUEST_FAILED
        return BlockStatus.COMPLETED


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


def _inside(file_path: str) -> str:
    """A manifest's path (back-slashes, from the root) as the reader wants it."""
    return file_path.lstrip("\\").replace("\\", "/")


def _renamed(name: str) -> Iterator[str]:
    """`name (2)`, `name (3)`...; the number stands before the last dot of the last part."""
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.rpartition(".")
    if not dot:
        stem, extension = last, ""
    for number in range(2, _RENAMES_LIMIT):
        yield f"{folder}{slash}{stem} ({number}){dot}{extension}"


def _blob_log(
    blob: ManifestBlob,
    status: BlobStatus,
    disposition: DispositionStatus,
    blocks: list[BlockStatus] | None = None,
    blob_path: str = "",
) -> BlobLog:
    return BlobLog(
        status=status,
        blob_path=blob_path or blob.blob_path,
        file_path=blob.file_path,
        length_bytes=blob.length_bytes,
        disposition=blob.disposition,
        disposition_status=disposition,
        blocks=tuple(BlockLog(block=block, status=ended) for block, ended in zip(blob.blocks, blocks, strict=True))
        if blocks is not None
        else (),
    )
