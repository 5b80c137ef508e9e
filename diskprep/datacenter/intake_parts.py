"""A file of a drive on its way into a container: its blocks or page ranges by MD5, and the files beside it.

A damaged block is not uploaded; the good blocks of its blob then stay uncommitted. A page blob is visible while it is
written, and carries a mark in its metadata until it is whole.
Source: the service's published log statuses and the descriptions of what raises them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from diskprep.errors import DataDamaged, DiskprepError, NotFound, NotSignedIn
from diskprep.exchange import properties as side_files
from diskprep.exchange.copylog import BlobStatus, BlockStatus, DispositionStatus, FileStatus
from diskprep.exchange.manifest import Block, ManifestBlob, PageRange, SideFile, manifest_hash
from diskprep.store import BlobState, ImportTarget
from diskprep.volume.ntfs import Reader

UNFINISHED = "diskprep_unfinished"  # the mark of a page blob that is not whole
Value = TypeVar("Value")


class BlobStop(Exception):
    """The blob ends here; all that would follow is cancelled."""

    def __init__(self, status: BlobStatus) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """What is done to one blob on order."""

    missing: bool = False
    damaged: int = 0  # so many of its first blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a blob goes. `found`: what is there now; `done`: it is this blob, from an earlier run."""

    target: ImportTarget
    name: str
    disposition: DispositionStatus
    found: BlobState | None = None
    done: bool = False


class Source:
    """A file of the drive, with what is done to it on order."""

    def __init__(self, reader: Reader, file_path: str, strike: Strike) -> None:
        self.reader, self._path = reader, inside(file_path)
        self._damaged = strike.damaged
        if strike.missing:
            raise BlobStop(BlobStatus.FILE_NOT_FOUND)
        try:
            entry = reader.stat(self._path)
        except NotFound:
            raise BlobStop(BlobStatus.FILE_NOT_FOUND) from None
        except DiskprepError as error:
            raise BlobStop(BlobStatus.IO_FAILED) from error
        if entry.is_directory:
            raise BlobStop(BlobStatus.FILE_ACCESS_DENIED)
        self._size = entry.size_bytes

    def read(self, part: Block | PageRange) -> tuple[bytes, bytes] | BlockStatus:
        """The part's bytes and their MD5, or why they are not what the manifest says."""
        if part.offset + part.length > self._size:
            return BlockStatus.FILE_UNEXPECTED_END
        try:
            data = self.reader.read(self._path, part.offset, part.length)
        except DiskprepError:
            return BlockStatus.IO_FAILED
        if self._damaged:
            self._damaged -= 1
            data = bytes((data[0] ^ 1,)) + data[1:]
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        return (data, digest) if digest.hex().upper() == part.md5 else BlockStatus.CORRUPTED


def copy_blocks(source: Source, place: Place, blocks: tuple[Block, ...]) -> tuple[BlobStatus, list[BlockStatus]]:
    """Read, check and stage every block, and commit them when all are good. How the blob and its blocks ended."""
    target, name, expected = place.target, place.name, place.found
    if expected is not None and expected.is_page_blob:
        with judged(BlobStatus.BLOB_REQUEST_FAILED):
            target.delete(name)
        expected = None
    statuses = []
    for block in blocks:
        read = source.read(block)
        if not isinstance(read, BlockStatus):
            data, digest = read
            read = _requested(target.stage_block, name, block.block_id, data, digest)
        statuses.append(read)
    status, good = BlobStatus.COMPLETED_WITH_ERRORS, BlockStatus.UNCOMMITTED
    if all(each is BlockStatus.COMPLETED for each in statuses):
        try:
            if _version(target.inspect(name)) != _version(expected):
                status = BlobStatus.BLOB_UNEXPECTED_CHANGE
            else:
                target.commit_blocks(name, [block.block_id for block in blocks])
                status, good = BlobStatus.COMPLETED, BlockStatus.COMPLETED
        except NotSignedIn:
            status = BlobStatus.BLOB_REQUEST_FORBIDDEN
        except DiskprepError:
            status = BlobStatus.BLOB_REQUEST_FAILED
    return status, [good if each is BlockStatus.COMPLETED else each for each in statuses]


def copy_pages(
    source: Source, place: Place, length_bytes: int, pages: tuple[PageRange, ...]
) -> tuple[BlobStatus, list[BlockStatus]]:
    """Make the page blob, and write every page range that is good. How the blob and its ranges ended."""
    target, name = place.target, place.name
    with judged(BlobStatus.BLOB_REQUEST_FAILED):
        target.create_pages(name, length_bytes, {UNFINISHED: "true"})
    statuses = []
    for part in pages:
        read = source.read(part)
        if not isinstance(read, BlockStatus):
            data, digest = read
            read = _requested(target.write_pages, name, part.offset, data, digest)
        statuses.append(read)
    whole = all(each is BlockStatus.COMPLETED for each in statuses)
    return BlobStatus.COMPLETED if whole else BlobStatus.COMPLETED_WITH_ERRORS, statuses


def _requested(request: Callable[..., None], *args: object) -> BlockStatus:
    try:
        request(*args)
    except NotSignedIn:
        raise BlobStop(BlobStatus.BLOB_REQUEST_FORBIDDEN) from None
    except DiskprepError:
        return BlockStatus.BLOB_REQUEST_FAILED
    return BlockStatus.COMPLETED


def _version(state: BlobState | None) -> str:
    return "" if state is None else state.version


def is_this(target: ImportTarget, name: str, found: BlobState, blob: ManifestBlob) -> bool:
    """Whether what is there is what the manifest describes."""
    if found.size_bytes != blob.length_bytes or found.is_page_blob != (blob.pages is not None):
        return False
    parts: Iterable[Block | PageRange] = blob.blocks if blob.pages is None else blob.pages
    return all(manifest_hash(target.read(name, part.offset, part.length)) == part.md5 for part in parts)


def read_side(reader: Reader, file: SideFile, parse: Callable[[bytes], Value]) -> Value | FileStatus:
    """What a file with metadata or properties says, or why that cannot be told."""
    data = _read_small(reader, inside(file.path), side_files.SIZE_LIMIT_BYTES)
    if isinstance(data, FileStatus):
        return data
    if manifest_hash(data) != file.md5:
        return FileStatus.CORRUPTED
    try:
        return parse(data)
    except DataDamaged:
        return FileStatus.XML_READ_FAILED


def _read_small(reader: Reader, path: str, limit_bytes: int) -> bytes | FileStatus:
    try:
        entry = reader.stat(path)
        if entry.is_directory:
            return FileStatus.FILE_ACCESS_DENIED
        if entry.size_bytes > limit_bytes:
            return FileStatus.XML_READ_FAILED
        return reader.read(path, 0, entry.size_bytes)
    except NotFound:
        return FileStatus.FILE_NOT_FOUND
    except DiskprepError:
        return FileStatus.IO_FAILED


@contextmanager
def judged(status: BlobStatus) -> Iterator[None]:
    """End the blob with `status` when something fails; a credential that is refused has its own."""
    try:
        yield
    except NotSignedIn:
        raise BlobStop(BlobStatus.BLOB_REQUEST_FORBIDDEN) from None
    except DiskprepError as error:
        raise BlobStop(status) from error


def inside(file_path: str) -> str:
    """A manifest's path (back-slashes, from the root) as the reader wants it."""
    return file_path.lstrip("\\").replace("\\", "/")
