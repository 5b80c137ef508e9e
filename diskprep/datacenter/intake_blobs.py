"""The blobs of a drive, copied a few at a time: where each goes, and what came of it.

When a step fails, all after it in that blob are Cancelled. What is kept in memory is a few blobs, however many the
drive has.
Source: the service's published log statuses and the descriptions of what raises them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain

from diskprep.datacenter.faults import DriveFault, DriveFaults
from diskprep.datacenter.intake_log import BlobEntry
from diskprep.datacenter.intake_parts import (
    UNFINISHED,
    BlobStop,
    Place,
    Source,
    Strike,
    Value,
    copy_blocks,
    copy_pages,
    is_this,
    judged,
    read_side,
)
from diskprep.errors import DiskprepError, NotSignedIn
from diskprep.exchange import properties as side_files
from diskprep.exchange.copylog import BlobStatus, BlockStatus, DispositionStatus, FileStatus
from diskprep.exchange.manifest import (
    Disposition,
    ManifestBlob,
    SideFile,
    split_blob_path,
)
from diskprep.store import Account, ImportTarget
from diskprep.volume import bitlocker
from diskprep.volume.ntfs import Reader

_THREADS = 2  # one hashes and stores while the other reads and decrypts
_AHEAD = 4 * _THREADS
_RENAMES_LIMIT = 1000
_NAME_LIMIT_CHARS = 1024
_KNOWN_LIMIT = 64


class Targets:
    """The containers that a drive's credential opens: the one of a signature, or any of an account."""

    def __init__(self, known: dict[str, ImportTarget], account: Account | None = None) -> None:
        self._known, self._account = known, account
        self._lock = threading.Lock()

    def find(self, name: str) -> ImportTarget:
        """The container, created when missing and allowed. Raises NotSignedIn when it is not."""
        with self._lock:
            if name in self._known:
                return self._known[name]
            if self._account is None:
                raise NotSignedIn(f"the signature does not open the container {name!r}")
            if len(self._known) == _KNOWN_LIMIT:
                self._known.clear()
            self._known[name] = self._account.container(name)
            return self._known[name]


class Copier:
    """Copies blobs two at a time; each thread has a reader of its own.

    `again`: the drive was being copied when the stand-in ended. A blob that is there with this drive's content counts
    as Created (one that was there before the drive came, and is equal, cannot be told from it).
    """

    def __init__(self, volume: bitlocker.Volume, targets: Targets, faults: DriveFaults, *, again: bool) -> None:
        self._volume, self._targets, self._faults, self._again = volume, targets, faults, again
        self._lock = threading.Lock()
        self._taken: set[tuple[str, str]] = set()  # names that are being written
        self._local = threading.local()
        self._sides: dict[tuple[str, SideFile], object] = {}

    def copy(self, blobs: Iterable[ManifestBlob]) -> Iterator[BlobEntry]:
        """How each blob ended, in their order. Raises only what `blobs` raises, after the blobs that came before."""
        trouble: Exception | None = None
        struck = _struck(blobs, self._faults)
        running: deque[Future[BlobEntry]] = deque()
        with ThreadPoolExecutor(_THREADS) as pool:
            while True:
                try:
                    blob, strike = next(struck)
                except StopIteration:
                    break
                except Exception as error:  # noqa: BLE001  raised again below
                    trouble = error
                    break
                running.append(pool.submit(self._copy, blob, strike))
                if len(running) == _AHEAD:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        if trouble is not None:
            raise trouble

    def _copy(self, blob: ManifestBlob, strike: Strike) -> BlobEntry:
        try:
            return self._copy_blob(blob, strike)
        except BlobStop as stop:
            cancelled = FileStatus.CANCELLED
            return BlobEntry(
                blob=blob,
                status=stop.status,
                disposition=DispositionStatus.CANCELLED,
                blob_path=blob.blob_path,
                parts=(BlockStatus.CANCELLED,) * len(blob.blocks if blob.pages is None else blob.pages),
                metadata=cancelled if blob.metadata else None,
                properties=cancelled if blob.properties else None,
            )

    def _copy_blob(self, blob: ManifestBlob, strike: Strike) -> BlobEntry:
        source = Source(self._reader(), blob.file_path, strike)
        container, name = split_blob_path(blob.blob_path)
        with self._placed(blob, container, name) as place:
            path = f"{container}/{place.name}"
            if place.disposition is DispositionStatus.SKIPPED:
                status = BlobStatus.COMPLETED
                return BlobEntry(blob=blob, status=status, disposition=place.disposition, blob_path=path)
            if place.done:
                parts = [BlockStatus.COMPLETED] * len(blob.blocks if blob.pages is None else blob.pages)
                status = BlobStatus.COMPLETED
            elif blob.pages is None:
                status, parts = copy_blocks(source, place, blob.blocks)
            else:
                status, parts = copy_pages(source, place, blob.length_bytes, blob.pages)
            metadata, properties = self._copy_sides(blob, place, source.reader, status)
        if status is BlobStatus.COMPLETED and {metadata, properties} - {None, FileStatus.COMPLETED}:
            status = BlobStatus.COMPLETED_WITH_ERRORS
        return BlobEntry(
            blob=blob,
            status=status,
            disposition=place.disposition,
            blob_path=path,
            parts=tuple(parts),
            metadata=metadata,
            properties=properties,
        )

    def _reader(self) -> Reader:
        if not hasattr(self._local, "reader"):
            with judged(BlobStatus.IO_FAILED):
                self._local.reader = Reader(self._volume)
        found: Reader = self._local.reader
        return found

    @contextmanager
    def _placed(self, blob: ManifestBlob, container: str, name: str) -> Iterator[Place]:
        """The name a blob gets, kept from other blobs of this drive until it is written."""
        held: list[tuple[str, str]] = []
        try:
            with judged(BlobStatus.BLOB_REQUEST_FAILED):
                place = self._find_place(blob, container, name, held)
            yield place
        finally:
            with self._lock:
                self._taken.difference_update(held)

    def _find_place(self, blob: ManifestBlob, container: str, name: str, held: list[tuple[str, str]]) -> Place:
        target, wish = self._targets.find(container), blob.disposition
        for candidate in chain((name,), _renamed(name) if wish is Disposition.RENAME else ()):
            with self._lock:
                free = (container, candidate) not in self._taken
                if free:
                    self._taken.add((container, candidate))
                    held.append((container, candidate))
            found = target.inspect(candidate) if free else None
            new = DispositionStatus.CREATED if candidate == name else DispositionStatus.RENAMED
            if free and found is None:
                return Place(target=target, name=candidate, disposition=new)
            if found is not None and self._again and UNFINISHED in found.metadata:
                return Place(target=target, name=candidate, disposition=new, found=found)
            if found is not None and self._again and is_this(target, candidate, found, blob):
                return Place(target=target, name=candidate, disposition=new, found=found, done=True)
            if wish is Disposition.NO_OVERWRITE:
                return Place(target=target, name=name, disposition=DispositionStatus.SKIPPED, found=found)
            if wish is Disposition.OVERWRITE:
                if found is None:  # another blob of this drive is getting this name
                    raise BlobStop(BlobStatus.BLOB_UNEXPECTED_CHANGE)
                if found.leased:
                    raise BlobStop(BlobStatus.LEASE_PRESENT)
                return Place(target=target, name=name, disposition=DispositionStatus.OVERWRITTEN, found=found)
        raise BlobStop(BlobStatus.RENAME_FAILED)

    def _copy_sides(
        self, blob: ManifestBlob, place: Place, reader: Reader, status: BlobStatus
    ) -> tuple[FileStatus | None, FileStatus | None]:
        """Metadata, then properties, for a blob whose content is there; the mark of an unfinished page blob goes."""
        if status is not BlobStatus.COMPLETED:
            cancelled = FileStatus.CANCELLED
            return cancelled if blob.metadata else None, cancelled if blob.properties else None
        target, name = place.target, place.name
        metadata = self._copy_side(
            reader, blob.metadata, side_files.parse_metadata, lambda value: target.set_metadata(name, value)
        )
        if blob.pages is not None and metadata is not FileStatus.COMPLETED and not place.done:
            try:
                target.set_metadata(name, {})
            except DiskprepError:
                metadata = FileStatus.BLOB_REQUEST_FAILED if metadata is None else metadata
        properties = self._copy_side(
            reader, blob.properties, side_files.parse_properties, lambda value: target.set_properties(name, value)
        )
        return metadata, properties

    def _copy_side(
        self,
        reader: Reader,
        file: SideFile | None,
        parse: Callable[[bytes], Value],
        apply: Callable[[Value], None],
    ) -> FileStatus | None:
        if file is None:
            return None
        value = self._side(reader, file, parse)
        if isinstance(value, FileStatus):
            return value
        try:
            apply(value)
        except DiskprepError:
            return FileStatus.BLOB_REQUEST_FAILED
        return FileStatus.COMPLETED

    def _side(self, reader: Reader, file: SideFile, parse: Callable[[bytes], Value]) -> Value | FileStatus:
        """What the file says, or why that cannot be told. Those of a list are read once for all its blobs."""
        key = (parse.__name__, file)
        if key not in self._sides:
            if len(self._sides) >= _KNOWN_LIMIT:
                self._sides = {}
            value = read_side(reader, file, parse)
            self._sides[key] = value
            return value
        return self._sides[key]  # type: ignore[return-value]  # the parser's name is part of the key


def _struck(blobs: Iterable[ManifestBlob], faults: DriveFaults) -> Iterator[tuple[ManifestBlob, Strike]]:
    """Each blob, and what is done to it: the first files are missing, of the next ones the first blocks are damaged."""
    files = faults.files if DriveFault.FILE_MISSING in faults.faults else 0
    blocks = faults.blocks if DriveFault.BLOCKS_DAMAGED in faults.faults else 0
    for blob in blobs:
        parts = len(blob.blocks if blob.pages is None else blob.pages)
        if files and parts:
            files -= 1
            yield blob, Strike(missing=True)
        else:
            damaged = min(blocks, parts)
            blocks -= damaged
            yield blob, Strike(damaged=damaged)


def _renamed(name: str) -> Iterator[str]:
    """`name (2)`, `name (3)`...; the number stands before the last dot of the last part."""
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.rpartition(".")
    if not dot:
        stem, extension = last, ""
    for number in range(2, _RENAMES_LIMIT):
        renamed = f"{folder}{slash}{stem} ({number}){dot}{extension}"
        if len(renamed) > _NAME_LIMIT_CHARS:
            return
        yield renamed
