"""Fills an NTFS volume with files, batch by batch.

Write order of a batch: (1) plan in memory, (2) file data into clusters that are still free, (3) sync, (4) the caller's
own notes, (5) a redo record of the changed blocks, durable beside the disk, (6) the blocks in place, (7) sync. Until
(6) the file system on the disk is what it was, so a batch that does not fit or whose source fails leaves no trace. From
(5) on the record completes what was broken off. The caller then makes the batch known and clears the record. Without a
record an interruption inside (6) may leave a damaged file system.

Memory depends on the batch, not on how many files the volume has. A Filler that met a failing disk, or was broken off
inside (6), refuses everything after.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from diskprep import interrupts
from diskprep.durable import Buffer
from diskprep.errors import DataDamaged, DiskFailed
from diskprep.volume.device import BlockDevice
from diskprep.volume.ntfs import names, selftest
from diskprep.volume.ntfs.libntfs import Mount
from diskprep.volume.ntfs.lookup import Lookup
from diskprep.volume.ntfs.planner import SMALL_BYTES, Extent, Overlay, Tree, overlay_on, plan_data, write_small
from diskprep.volume.ntfs.reader import Reader
from diskprep.volume.redo import Redo

SOURCE_BLOCK_BYTES: Final = 4 * 1024 * 1024
THREADS: Final = 4  # while some wait for the disk, two cores still have enough to do
_AGAIN = "see that the disk is attached and well, then give the same command again"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file to be written.

    `path`: relative to the volume's root, with forward slashes. `blocks` is called once and yields consecutive
    buffers, each of exactly 4 MiB but the last, `size_bytes` in all; a buffer may be used again for the next one.
    """

    path: str
    size_bytes: int
    blocks: Callable[[], Iterator[Buffer]]


@runtime_checkable
class Sealing(Protocol):
    """A volume that tells what it would write to its device."""

    def sealed_writes(self, data: Buffer, offset: int) -> Iterator[tuple[int, bytes]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    source: SourceFile
    extents: list[Extent]
    cluster_bytes: int


def _ignore(_count: int) -> None:
    """The `on_bytes` of a caller who does not watch."""


class Filler:
    """Writes files to an NTFS volume. One Filler at a time for a volume, used by one thread."""

    def __init__(self, volume: BlockDevice, *, redo: Redo | None = None) -> None:
        """`redo`: makes batches whole or absent; the volume must then be one that seals what is written.

        Raises NotNtfs, DataDamaged (also while a record waits), DiskFailed, StorageUnavailable, ToolMissing.
        """
        if redo is not None and redo.pending() is not None:
            raise DataDamaged("a redo record waits to be written to the disk", hint=_AGAIN)
        self._volume, self._redo, self._failed = volume, redo, False
        self._library = selftest.library()
        with Lookup(volume) as lookup:
            self._cluster_bytes = lookup.geometry.cluster_bytes

    def free_bytes(self) -> int:
        """Room in free clusters. File records, names and indexes take some of it: allow 1 MiB and 2 KiB for a file."""
        with Reader(self._volume) as reader:
            return reader.free_bytes()

    def write(
        self,
        files: Sequence[SourceFile],
        on_bytes: Callable[[int], None] = _ignore,
        threads: int = THREADS,
        *,
        tag: Callable[[], bytes] = bytes,
    ) -> None:
        """Write one batch; all of it is on the medium when this returns.

        `on_bytes` is told the size of each block that was written, from the threads that write. `tag` is called when
        all data are on the medium, and what it returns goes into the redo record. Raises NameNotAllowed, StorageFull
        or StorageUnavailable (nothing in the file system changed), DataDamaged when a source has another size than it
        said, DiskFailed, and whatever `blocks` and `tag` raise.
        """
        if self._failed:
            raise DiskFailed("the disk failed before; nothing is retried on it", hint=_AGAIN)
        for file in files:
            names.check(file.path)
        paths = [file.path for file in files]
        with Lookup(self._volume) as lookup:
            present = lookup.present(paths)
        names.check_collisions(present, paths)
        with overlay_on(self._volume, self._cluster_bytes) as overlay:
            planned = self._plan(overlay, files, [path for path, directory in present.values() if directory], on_bytes)
            try:
                _stream(self._volume, planned, on_bytes, threads)
                self._volume.sync()
            except DiskFailed:
                self._failed = True
                raise
            self._commit(overlay, tag)

    def _commit(self, overlay: Overlay, tag: Callable[[], bytes]) -> None:
        """Make the changes on the disk, once they are durable beside it."""
        note = tag()
        if self._redo is not None:
            assert isinstance(self._volume, Sealing), "a redo record holds ciphertext"
            seal = self._volume.sealed_writes
            self._redo.save(note, (piece for offset, data in overlay.changes() for piece in seal(data, offset)))
        self._failed = True  # whatever ends this before the last sync leaves a file system that nobody may go on with
        for offset, data in overlay.changes():
            self._volume.pwrite(data, offset)
        self._volume.sync()
        self._failed = False

    def _plan(
        self,
        overlay: Overlay,
        files: Sequence[SourceFile],
        directories: Sequence[str],
        on_bytes: Callable[[int], None],
    ) -> list[_Planned]:
        """Place all files; the content of small ones becomes part of the changes at once."""
        planned = []
        with interrupts.held(), Mount(self._library, overlay) as mount, Tree(mount) as tree:
            tree.know(directories)
            for source in files:
                with tree.file(source.path) as inode:
                    if source.size_bytes > SMALL_BYTES:
                        extents = plan_data(mount, overlay, inode, source.size_bytes)
                        planned.append(_Planned(source=source, extents=extents, cluster_bytes=self._cluster_bytes))
                    else:
                        content = b"".join(bytes(block) for block in _checked_blocks(source))
                        write_small(mount, inode, content)
                        on_bytes(len(content))
        return planned


def _checked_blocks(source: SourceFile) -> Iterator[Buffer]:
    """The source's blocks; raises DataDamaged unless they are cut as agreed and have the size that was said."""
    done = 0
    for block in source.blocks():
        expected = min(SOURCE_BLOCK_BYTES, source.size_bytes - done)
        if len(block) != expected or not expected:
            raise DataDamaged(f"{source.path} has another size than the {source.size_bytes} bytes it was planned with")
        done += len(block)
        yield block
    if done != source.size_bytes:
        raise DataDamaged(f"{source.path} ended after {done} of {source.size_bytes} bytes")


def _stream(volume: BlockDevice, planned: Sequence[_Planned], on_bytes: Callable[[int], None], threads: int) -> None:
    """Write the data of all planned files, in the order of their places; the first failure stops all threads."""
    order = sorted(planned, key=lambda item: item.extents[0].volume_offset)
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=max(threads, 1), thread_name_prefix="fill") as pool:
        futures = [pool.submit(_write_file, volume, item, on_bytes, stop) for item in order]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # after a whole run there is nobody left to see it
    for future in futures:
        future.result()


def _write_file(volume: BlockDevice, item: _Planned, on_bytes: Callable[[int], None], stop: threading.Event) -> None:
    position = 0
    for block in _checked_blocks(item.source):
        if stop.is_set():
            return
        _write_block(volume, item, position, memoryview(block).cast("B"))
        position += len(block)
        on_bytes(len(block))


def _write_block(volume: BlockDevice, item: _Planned, position: int, block: memoryview) -> None:
    """Write `block`, at `position` of its file, to its clusters; the rest of the last cluster becomes zeros."""
    end = position + len(block)
    for extent in item.extents:
        begin, stop = max(extent.file_offset, position), min(extent.file_offset + extent.length, end)
        if begin >= stop:
            continue
        place = extent.volume_offset + begin - extent.file_offset
        part = block[begin - position : stop - position]
        tail = len(part) % item.cluster_bytes if stop == item.source.size_bytes else 0
        whole = len(part) - tail
        volume.pwrite(part[:whole], place)
        if tail:
            volume.pwrite(bytes(part[whole:]).ljust(item.cluster_bytes, b"\0"), place + whole)
