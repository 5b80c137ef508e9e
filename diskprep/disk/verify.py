"""Proof that a disk holds what was planned: everything read back through a fresh open, with the password alone.

Order: the file table, the directories, the manifest; then all files, in the order in which they lie on the disk. What
the manifest says of a file is kept as one short fingerprint of its blocks' MD5s and its name, so that memory does not
grow with the size of the files: 70 bytes a file, and 48 MiB for what is being hashed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diskprep.disk.hashing import Hashed, hash_files
from diskprep.disk.plan import BLOCK_BYTES
from diskprep.errors import DataDamaged, NotBuilt, NotFound, ReadBackFailed, WrongPassphrase
from diskprep.exchange.manifest import SIZE_LIMIT_BYTES, ManifestBlob, ManifestStream, open_manifest
from diskprep.secrets import Secret
from diskprep.volume.device import Device
from diskprep.volume.format import open_disk
from diskprep.volume.ntfs.table import Table

MANIFEST_PATH = "DriveManifest.xml"
_REPOSITORY = "repository/"
_FINGERPRINT_BYTES: Final = 16
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBack:
    """What a disk was found to hold, without the manifest.

    `sha256`: SHA-256 in hex over the names of all files in the manifest's order, below `repository/`, with a line feed
    between them: what `record.share_digest` makes of the share. Each name is the SHA-256 of the file's content.
    """

    serial: str
    files: int
    size_bytes: int
    sha256: str


def read_back(
    device: Device,
    password: Secret[str],
    *,
    serial: str,
    expected_manifest_hash: str,
    on_bytes: Callable[[int], None] = lambda _count: None,
) -> ReadBack:
    """Unlock, read NTFS, check the manifest by its hash, then every block of every file by its MD5 and every file by
    the SHA-256 that is its name; and that nothing else is on the volume.

    The device's cache is dropped first, so the bytes come from the medium. Raises ReadBackFailed or DiskFailed.
    """
    device.drop_cache()
    device.read_past_cache()
    try:
        table = Table(open_disk(device, password))
        expected = _Expected(table, serial, expected_manifest_hash)
        files = ((number, table.open(number)) for number in range(len(table)) if number != expected.manifest)
        for found in hash_files(files, on_bytes):
            expected.check(found)
    except (DataDamaged, NotBuilt, NotFound, WrongPassphrase) as error:
        raise ReadBackFailed(f"disk {serial}: {error.message}", hint="prepare this disk again") from error
    return ReadBack(serial=serial, files=expected.files, size_bytes=expected.size_bytes, sha256=expected.sha256)


def volume_path(file_path: str) -> str:
    """A manifest's FilePath (back-slashes, from the root) as the path inside the volume."""
    return file_path.replace("\\", "/").lstrip("/")


class _Expected:
    """What the manifest says of each file of the table; it names every file there is, but itself, once."""

    def __init__(self, table: Table, serial: str, expected_hash: str) -> None:
        found = table.find(MANIFEST_PATH)
        if found is None:
            raise DataDamaged("there is no manifest")
        self._table, self._serial, self.manifest = table, serial, found
        self.files, self.size_bytes = 0, 0
        self._check_manifest(expected_hash)
        self._fingerprints: NDArray[np.uint8] = np.zeros((len(table), _FINGERPRINT_BYTES), np.uint8)
        self.sha256 = self._read_manifest()
        table.forget_names()

    def check(self, found: Hashed) -> None:
        """Raise DataDamaged unless a file that was read is what the manifest says."""
        if _fingerprint(found.md5s, found.sha256) != self._fingerprints[found.number].tobytes():
            raise DataDamaged(self._difference(found))

    def _check_manifest(self, expected_hash: str) -> None:
        """Only what has the right hash is taken apart."""
        if self._table.size_bytes(self.manifest) > SIZE_LIMIT_BYTES:
            raise DataDamaged(f"the manifest has more than {SIZE_LIMIT_BYTES} bytes")
        md5 = hashlib.md5(usedforsecurity=False)
        for chunk in self._table.open(self.manifest).chunks():
            md5.update(chunk)
        if md5.hexdigest().upper() != expected_hash:
            raise DataDamaged("the manifest read back is not the one written")

    def _open_manifest(self) -> ManifestStream:
        return open_manifest(self._table.open(self.manifest).chunks())

    def _read_manifest(self) -> str:
        manifest, names = self._open_manifest(), hashlib.sha256()
        if manifest.drive_id != self._serial:
            raise DataDamaged(f"it carries the manifest of disk {manifest.drive_id}")
        seen = np.zeros(len(self._table), np.bool_)
        seen[self.manifest] = True
        for blob in manifest:
            path = volume_path(blob.file_path)
            number = self._table.find(path)
            if number is None:
                raise DataDamaged(f"{path} is missing from the disk")
            if seen[number]:
                raise DataDamaged(f"the manifest names {path} twice")
            if self._table.size_bytes(number) != blob.length_bytes:
                raise DataDamaged(f"{path} has {self._table.size_bytes(number)} bytes, not {blob.length_bytes}")
            seen[number] = True
            fingerprint = _fingerprint(_md5s(blob, path), _named_hash(path))
            self._fingerprints[number] = np.frombuffer(fingerprint, np.uint8)
            names.update((b"\n" if self.files else b"") + path.removeprefix(_REPOSITORY).encode())
            self.files += 1
            self.size_bytes += blob.length_bytes
        extra = np.flatnonzero(~seen)
        if len(extra):
            raise DataDamaged(f"{len(extra)} files are extra on the disk, {self._table.path(int(extra[0]))} among them")
        return names.hexdigest()

    def _difference(self, found: Hashed) -> str:
        """In words, where a file is not what it should be. What it should be is read once more."""
        path = self._table.path(found.number)
        for blob in self._open_manifest():
            if volume_path(blob.file_path) == path:
                wanted = _md5s(blob, path)
                for at in range(0, len(wanted), 16):
                    if wanted[at : at + 16] != found.md5s[at : at + 16]:
                        return f"{path} differs at byte {at // 16 * BLOCK_BYTES}"
                return f"{path} does not hash to its name"
        return f"{path} differs, and so does the manifest now"


def _fingerprint(md5s: bytes | bytearray, sha256: bytes) -> bytes:
    return hashlib.blake2b(sha256 + md5s, digest_size=_FINGERPRINT_BYTES).digest()


def _named_hash(path: str) -> bytes:
    """The SHA-256 that is the name of a file."""
    name = path.rpartition("/")[2]
    if not _SHA256.fullmatch(name):
        raise DataDamaged(f"{path} is not named by its hash")
    return bytes.fromhex(name)


def _md5s(blob: ManifestBlob, path: str) -> bytes:
    """The MD5s of all blocks, 16 bytes each; the manifest must have cut the file into blocks of 4 MiB."""
    if any(block.length != BLOCK_BYTES for block in blob.blocks[:-1]):
        raise DataDamaged(f"the manifest has {path} in blocks of another size than {BLOCK_BYTES}")
    return bytes.fromhex("".join(block.md5 for block in blob.blocks))
