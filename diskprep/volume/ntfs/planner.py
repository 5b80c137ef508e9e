"""Plans a batch: libntfs-3g works on a copy-on-write view of the volume and writes no file data.

For a larger file the library is given an address inside memory that cannot be read (`_Mirage`). It passes the address
on to our write callback unchanged, so a write from there says where a piece of the file belongs; everything else it
writes is metadata, or the content of a small file, and is kept in memory as blocks. Nothing reaches the volume
until those blocks are written, and dropping them undoes the batch.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import numpy as np

from diskprep.errors import DataDamaged, DiskprepError
from diskprep.volume.device import BlockDevice
from diskprep.volume.ntfs.libntfs import Mount

_BLOCK_BYTES = 4096
SMALL_BYTES: Final = 64 * 1024
_MIRAGE_BYTES = 1 << 40
_MAP_NORESERVE = 0x4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """`length` bytes of a file from `file_offset` belong at `volume_offset`; the last may go past the file's end."""

    file_offset: int
    volume_offset: int
    length: int


class _Mirage:
    """Addresses that stand for file data; touching one would end the process, so nothing does."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(
            -1, _MIRAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, prot=0
        )
        self.address = int(np.frombuffer(self._memory, np.uint8).ctypes.data)

    def offset(self, address: int) -> int | None:
        distance = address - self.address
        return distance if 0 <= distance < _MIRAGE_BYTES else None

    def close(self) -> None:
        self._memory.close()


@dataclass(slots=True)
class Overlay:
    """The volume with changes on top that are only in memory. A Backend of `libntfs.Mount`.

    Invariant: a block of changes never reaches into a second cluster, so that writing it back cannot undo file data
    that was written beside it.
    """

    volume: BlockDevice
    cluster_bytes: int
    blocks: dict[int, bytearray] = field(default_factory=dict)
    mirage: _Mirage = field(default_factory=_Mirage)
    extents: list[Extent] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return self.volume.size_bytes

    @property
    def block_bytes(self) -> int:
        return min(_BLOCK_BYTES, self.cluster_bytes)

    def load(self, address: int, length: int, offset: int) -> None:
        view = memoryview((ctypes.c_char * length).from_address(address)).cast("B")
        self.volume.pread_into(view, offset)
        for number, start, at, count in self._pieces(offset, length):
            if number in self.blocks:
                view[at : at + count] = self.blocks[number][start : start + count]

    def store(self, address: int, length: int, offset: int) -> None:
        file_offset = self.mirage.offset(address)
        if file_offset is not None:
            self.extents.append(Extent(file_offset=file_offset, volume_offset=offset, length=length))
            return
        data = ctypes.string_at(address, length)
        for number, start, at, count in self._pieces(offset, length):
            self._block(number)[start : start + count] = data[at : at + count]

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
        """A range cut at the borders of blocks: block, place in the block, place in the range, length."""
        size, at = self.block_bytes, 0
        while at < length:
            number, start = divmod(offset + at, size)
            count = min(size - start, length - at)
            yield number, start, at, count
            at += count

    def _block(self, number: int) -> bytearray:
        if number not in self.blocks:
            begin = number * self.block_bytes
            count = min(self.block_bytes, self.volume.size_bytes - begin)
            self.blocks[number] = bytearray(self.volume.pread(count, begin))
        return self.blocks[number]

    def take_extents(self, size_bytes: int) -> list[Extent]:
        """The extents recorded since the last call, which must cover `size_bytes` without a gap."""
        extents, self.extents = sorted(self.extents, key=lambda extent: extent.file_offset), []
        end = 0
        for extent in extents:
            if extent.file_offset != end:
                raise DataDamaged("the NTFS library planned a file with a gap")
            end += extent.length
        if end != size_bytes:
            raise DataDamaged("the NTFS library planned another size than the file's")
        return extents

    def changes(self) -> Iterator[tuple[int, bytes]]:
        """(volume offset, bytes) of what changed, in order, neighbouring blocks together."""
        start, data, following = 0, bytearray(), -1
        for number in sorted(self.blocks):
            if number != following and data:
                yield start, bytes(data)
                data.clear()
            if not data:
                start = number * self.block_bytes
            data += self.blocks[number]
            following = number + 1
        if data:
            yield start, bytes(data)


@contextlib.contextmanager
def overlay_on(volume: BlockDevice, cluster_bytes: int) -> Iterator[Overlay]:
    """An overlay, and the end of its addresses."""
    overlay = Overlay(volume, cluster_bytes)
    try:
        yield overlay
    finally:
        overlay.mirage.close()


class Tree:
    """Directories of a mount, each opened once and held, because the library must not open one twice."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._open: dict[str, int] = {"": mount.root()}
        self._existing: set[str] = set()

    def know(self, directories: Sequence[str]) -> None:
        """Say which directories are on the volume already."""
        self._existing.update(directories)

    def directory(self, path: str) -> int:
        """The open directory `path`, made with those above it where it does not exist."""
        if path not in self._open:
            above, _, name = path.rpartition("/")
            parent = self.directory(above)
            if path in self._existing:
                self._open[path] = self._mount.lookup(parent, name)
            else:
                self._open[path] = self._mount.create(parent, name, is_directory=True)
        return self._open[path]

    @contextlib.contextmanager
    def file(self, path: str) -> Iterator[int]:
        """A new file, closed at the end."""
        above, _, name = path.rpartition("/")
        parent = self.directory(above)
        inode = self._mount.create(parent, name, is_directory=False)
        try:
            yield inode
        except BaseException:
            with contextlib.suppress(Exception):
                self._mount.close(inode, parent)
            raise
        self._mount.close(inode, parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except DiskprepError:
            if kind is None:  # otherwise the first failure is the one to tell
                raise

    def close(self) -> None:
        """Close every directory, the deepest first."""
        for path in sorted(self._open, key=lambda p: (p != "", p.count("/")), reverse=True):
            inode = self._open.pop(path)
            self._mount.close(inode, None if not path else self._open[path.rpartition("/")[0]])


def plan_data(mount: Mount, overlay: Overlay, inode: int, size_bytes: int) -> list[Extent]:
    """Give a new file clusters for `size_bytes`, to be written later. Raises StorageFull."""
    whole = -(-size_bytes // overlay.cluster_bytes) * overlay.cluster_bytes
    if whole > _MIRAGE_BYTES:
        raise DataDamaged(f"a file of {size_bytes} bytes is too large")
    # Whole clusters, then cut to size: the library would itself read the last bytes where they do not fill a cluster.
    mount.write(inode, overlay.mirage.address, whole, keep=size_bytes)
    return overlay.take_extents(whole)


def write_small(mount: Mount, inode: int, data: bytes) -> None:
    """Write a small file's content; it becomes part of the changes."""
    buffer = ctypes.create_string_buffer(data, len(data))
    mount.write(inode, ctypes.addressof(buffer), len(data), keep=len(data))
