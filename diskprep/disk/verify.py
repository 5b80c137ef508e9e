"""Proof that a disk holds what was planned: everything read back through a fresh open, with the password alone."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from diskprep.disk.plan import BLOCK_BYTES
from diskprep.errors import DataDamaged, NotFound, ReadBackFailed, WrongPassphrase
from diskprep.exchange.manifest import DriveManifest, ManifestBlob, manifest_hash, parse_manifest
from diskprep.secrets import Secret
from diskprep.volume.device import Device
from diskprep.volume.format import open_disk
from diskprep.volume.ntfs import Reader

MANIFEST_PATH = "DriveManifest.xml"
_THREADS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBack:
    """What a disk was found to hold."""

    serial: str
    files: int
    size_bytes: int


def read_back(
    device: Device,
    password: Secret[str],
    *,
    serial: str,
    expected_manifest_hash: str,
    on_bytes: Callable[[int], None] = lambda _count: None,
) -> ReadBack:
    """Unlock, read NTFS, check the manifest by its hash, then every block of every file by its MD5 and every pack by
    the SHA-256 that is its name; and that nothing else is on the volume. `on_bytes` is called from several threads.

    The device's cache is dropped first, so the bytes come from the medium. Raises ReadBackFailed or DiskFailed.
    """
    device.drop_cache()
    try:
        volume = open_disk(device, password)
        with Reader(volume) as reader:
            manifest = _manifest(reader, serial, expected_manifest_hash)
            _nothing_else(reader, manifest)
        mine = threading.local()  # a Reader is for one thread

        def check(blob: ManifestBlob) -> int:
            if not hasattr(mine, "reader"):
                mine.reader = Reader(volume)
            _check_file(mine.reader, blob, on_bytes)
            return blob.length_bytes

        with ThreadPoolExecutor(_THREADS) as pool:
            size = sum(pool.map(check, manifest.blobs))
    except (DataDamaged, NotFound, WrongPassphrase) as error:
        raise ReadBackFailed(f"disk {serial}: {error.message}", hint="prepare this disk again") from error
    return ReadBack(serial=serial, files=len(manifest.blobs), size_bytes=size)


def volume_path(file_path: str) -> str:
    """A manifest's FilePath (back-slashes, from the root) as the path inside the volume."""
    return file_path.replace("\\", "/").lstrip("/")


def _manifest(reader: Reader, serial: str, expected_hash: str) -> DriveManifest:
    data = b"".join(reader.stream(MANIFEST_PATH))
    if manifest_hash(data) != expected_hash:
        raise DataDamaged("the manifest read back is not the one written")
    manifest = parse_manifest(data)
    if manifest.drive_id != serial:
        raise DataDamaged(f"it carries the manifest of disk {manifest.drive_id}")
    return manifest


def _nothing_else(reader: Reader, manifest: DriveManifest) -> None:
    found = {entry.path for entry in reader.list() if not entry.is_directory}
    wanted = {volume_path(blob.file_path) for blob in manifest.blobs} | {MANIFEST_PATH}
    if found != wanted:
        odd = min(found ^ wanted)
        raise DataDamaged(f"{len(found ^ wanted)} files are missing from or extra on the disk, {odd} among them")


def _check_file(reader: Reader, blob: ManifestBlob, on_bytes: Callable[[int], None]) -> None:
    path = volume_path(blob.file_path)
    whole, offset = hashlib.sha256(), 0
    for number, data in enumerate(reader.stream(path, BLOCK_BYTES)):
        block = blob.blocks[number] if number < len(blob.blocks) else None
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest().upper()
        if block is None or (block.offset, block.length, block.md5) != (offset, len(data), digest):
            raise DataDamaged(f"{path} differs at byte {offset}")
        whole.update(data)
        offset += len(data)
        on_bytes(len(data))
    if offset != blob.length_bytes:
        raise DataDamaged(f"{path} has {offset} bytes, not {blob.length_bytes}")
    name = path.rpartition("/")[2]
    if whole.hexdigest() != name:
        raise DataDamaged(f"{path} does not hash to its name")
