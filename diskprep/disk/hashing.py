"""Hashes of many files that are read one after the other, in one pass: the MD5 of each block, the SHA-256 of the whole.

Two threads read neighbouring pieces into a ring of blocks, always the next two there are, so that the disk works while
a piece is decrypted and never has to go back. One thread carries the SHA-256s on, and one takes the MD5s of eight
blocks at once. All run without the interpreter's lock, so the pace is that of the slowest, which on a disk is reading.
A block's place is used again only when all have finished with it, and the blocks come back in the order in which they
were read.
"""

from __future__ import annotations

import hashlib
import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from diskprep.disk.plan import BLOCK_BYTES
from diskprep.exchange import md5

if TYPE_CHECKING:
    from hashlib import _Hash as HASH

RING_BLOCKS: Final = md5.LANES + 4  # some are filled while those of a group are hashed
_READERS = 2
_PIECE_BYTES = 1 << 20


class Source(Protocol):
    """What is read. `read_into` fills the view with the bytes from `offset`, up to a whole unit past the end; several
    threads call it at once.
    """

    size_bytes: int
    unit_bytes: int

    def read_into(self, view: memoryview, offset: int) -> None: ...


@dataclass(slots=True)
class Hashed:
    """A file that was read whole. `number` is the caller's; `md5s`: 16 bytes for each block of 4 MiB."""

    number: int
    size_bytes: int
    md5s: bytearray = field(default_factory=bytearray)
    sha256: bytes = b""


@dataclass(slots=True)
class _Block:
    """A block in the ring. Its MD5 is number `lane` of those of its group."""

    file: Hashed
    chain: HASH
    data: memoryview
    place: int
    is_last: bool
    reads: list[Future[None]]
    lane: int = 0
    sha256: Future[bytes] | None = None
    md5s: Future[list[bytes]] | None = None


def hash_files(files: Iterable[tuple[int, Source]], on_bytes: Callable[[int], None]) -> Iterator[Hashed]:
    """Read files in the order given, each from its beginning to its end; give each when it is hashed, in that order.

    `files`: (the caller's number, where to read). Raises what reading raises. `on_bytes` is told the size of each block
    that was hashed, from the caller's thread.
    """
    with (
        ThreadPoolExecutor(_READERS, "read") as readers,
        ThreadPoolExecutor(1, "sha256") as chains,
        ThreadPoolExecutor(1, "md5") as lanes,
    ):
        ring = _Ring(readers, chains, lanes)
        for number, source in files:
            file, chain = Hashed(number, source.size_bytes), hashlib.sha256()
            for offset in range(0, max(source.size_bytes, 1), BLOCK_BYTES):  # an empty file is an empty block
                if ring.is_full:
                    yield from ring.take_out(on_bytes)
                ring.put_in(file, source, offset, chain)
        ring.finish()
        while ring.blocks:
            yield from ring.take_out(on_bytes)


class _Ring:
    """The blocks that are read and hashed, in order, each at its place in one stretch of memory."""

    def __init__(self, readers: ThreadPoolExecutor, chains: ThreadPoolExecutor, lanes: ThreadPoolExecutor) -> None:
        self._readers, self._chains, self._lanes = readers, chains, lanes
        self._view = memoryview(mmap.mmap(-1, RING_BLOCKS * BLOCK_BYTES))  # whole pages, as a device may want them
        self._memory = np.frombuffer(self._view, np.uint8)
        self.blocks: deque[_Block] = deque()
        self._coming: deque[_Block] = deque()
        self._group: list[_Block] = []
        self._place = 0

    @property
    def is_full(self) -> bool:
        return len(self.blocks) == RING_BLOCKS

    def put_in(self, file: Hashed, source: Source, offset: int, chain: HASH) -> None:
        """Have the block of a file at `offset` read; then have the block before it hashed."""
        at, size = self._place * BLOCK_BYTES, min(BLOCK_BYTES, file.size_bytes - offset)
        whole = min(-(-size // source.unit_bytes) * source.unit_bytes, BLOCK_BYTES)
        block = _Block(
            file=file,
            chain=chain,
            data=self._view[at : at + size],
            place=at,
            is_last=offset + size == file.size_bytes,
            reads=[
                self._readers.submit(
                    source.read_into, self._view[at + begin : at + min(begin + _PIECE_BYTES, whole)], offset + begin
                )
                for begin in range(0, whole, _PIECE_BYTES)
            ],
        )
        self.blocks.append(block)
        self._coming.append(block)
        self._place = (self._place + 1) % RING_BLOCKS
        if len(self._coming) > 1:
            self._hash(self._coming.popleft())

    def finish(self) -> None:
        """Have everything hashed that was put in."""
        while self._coming:
            self._hash(self._coming.popleft())
        self._close_group()

    def take_out(self, on_bytes: Callable[[int], None]) -> Iterator[Hashed]:
        """Wait for the oldest block; its file, if it was the last of it."""
        block = self.blocks.popleft()
        assert block.sha256 is not None, "the ring has room for more than a group"
        assert block.md5s is not None
        digest, md5s = block.sha256.result(), block.md5s.result()
        if block.data:
            block.file.md5s += md5s[block.lane]
            on_bytes(len(block.data))
        if block.is_last:
            block.file.sha256 = digest
            yield block.file

    def _hash(self, block: _Block) -> None:
        """Wait until a block is read, and have it hashed."""
        for piece in block.reads:
            piece.result()
        block.sha256 = self._chains.submit(_carry, block.chain, block.data, block.is_last)
        block.lane = len(self._group)
        self._group.append(block)
        if len(self._group) == md5.LANES:
            self._close_group()

    def _close_group(self) -> None:
        """Have the MD5s taken of what was read since the last time."""
        spans = [(block.place, len(block.data)) for block in self._group]
        found = self._lanes.submit(md5.digests, self._memory, spans)
        for block in self._group:
            block.md5s = found
        self._group = []


def _carry(chain: HASH, data: memoryview, is_last: bool) -> bytes:
    """Take a block into its file's hash; the hash, after the last."""
    chain.update(data)
    return chain.digest() if is_last else b""
