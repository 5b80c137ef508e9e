"""Fills an NTFS volume with files, batch by batch.

Write order of a batch: (1) plan in memory, (2) file data into clusters that are still free, (3) sync, (4) the changed
blocks of the file system in place, (5) sync. Until (4) the volume on disk is what it was, so a batch that does not fit
or whose source fails leaves no trace. An interruption inside (4) may leave a damaged file system: there is no redo
journal, and a disk that was interrupted is started over by the caller.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final

from diskprep import interrupts
from diskprep.durable import Buffer
from diskprep.errors import DataDamaged
from diskprep.volume.device import BlockDevice
from diskprep.volume.ntfs import names, selftest
from diskprep.volume.ntfs.libntfs import Mount
from diskprep.volume.ntfs.planner import SMALL_BYTES, Extent, Overlay, Tree, overlay_on, plan_data, write_small
from diskprep.volume.ntfs.reader import Reader

SOURCE_BLOCK_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file to be written.

    `path`: relative to the volume's root, with forward slashes. `blocks` is called once and yields consecutive
    buffers, each of exactly 4 MiB but the last, `size_bytes` in all; a buffer may be used again for the next one.
    """

    path: str
    size_bytes: int
    blocks: Callable[[], Iterator[Buffer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    source: SourceFile
    extents: list[Extent]


def _ignore(_count: int) -> None:
    """The `on_bytes` of a caller who does not watch."""


class Filler:
    """Writes files to an NTFS volume. One Filler at a time for a volume, used by one thread."""

    def __init__(self, volume: BlockDevice) -> None:
        """Raises NotNtfs, DataDamaged, DiskFailed, ToolMissing."""
        self._volume = volume
        self._library = selftest.library()
        with Reader(volume) as reader:
            self._cluster_bytes = reader.geometry.cluster_bytes
            self._existing = {names.fold(e.path): (e.path, e.is_directory) for e in reader.list()}

    def free_bytes(self) -> int:
        """Room in free clusters. File records, names and indexes take some of it: allow 1 MiB and 2 KiB for a file."""
        with Reader(self._volume) as reader:
            return reader.free_bytes()

    def write(self, files: Sequence[SourceFile], on_bytes: Callable[[int], None] = _ignore, threads: int = 2) -> None:
        """Write one batch; all of it is on the medium when this returns.

        `on_bytes` is told the size of each block that was written, from the threads that write. Raises NameNotAllowed,
        StorageFull (nothing on the disk changed), DataDamaged when a source has another size than it said, DiskFailed,
        and whatever `blocks` raises.
        """
        for file in files:
            names.check(file.path)
        names.check_collisions(self._existing, [file.path for file in files])
        with overlay_on(self._volume, self._cluster_bytes) as overlay:
            planned = self._plan(overlay, files, on_bytes)
            _stream(self._volume, planned, on_bytes, threads)
            self._volume.sync()
            for offset, data in overlay.changes():
                self._volume.pwrite(data, offset)
            self._volume.sync()
        for file in files:
            self._remember(file.path)

    def _plan(self, overlay: Overlay, files: Sequence[SourceFile], on_bytes: Callable[[int], None]) -> list[_Planned]:
        """Place all files; the content of small ones becomes part of the changes at once."""
        planned = []
        with interrupts.held(), Mount(self._library, overlay) as mount, Tree(mount) as tree:
            tree.know([path for path, is_directory in self._existing.values() if is_directory])
            for source in files:
                with tree.file(source.path) as inode:
                    if source.size_bytes > SMALL_BYTES:
                        extents = plan_data(mount, overlay, inode, source.size_bytes)
                        planned.append(_Planned(source=source, extents=extents))
                    else:
                        content = b"".join(bytes(block) for block in _checked_blocks(source))
                        write_small(mount, inode, content)
                        on_bytes(len(content))
        return planned

    def _remember(self, path: str) -> None:
        self._existing[names.fold(path)] = (path, False)
        while "/" in path:
            path = path.rpartition("/")[0]
            self._existing[names.fold(path)] = (path, True)


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
        if stop == item.source.size_bytes and stop % volume.sector_bytes:
            tail = len(part) % volume.sector_bytes
            whole = len(part) - tail
            volume.pwrite(part[:whole], place)
            volume.pwrite(bytes(part[whole:]).ljust(volume.sector_bytes, b"\0"), place + whole)
        else:
            volume.pwrite(part, place)
