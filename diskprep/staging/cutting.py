"""Cutting: how a long file becomes chunks. By content, where restic would cut it too; or in blocks of one size, for
files that are written to in place."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from diskprep.durable import Buffer
from diskprep.repository.chunker import MIN_BYTES, Chunker


class Cutter(Protocol):
    """Finds the ends of chunks in a stream, without a state of its own."""

    @property
    def zero_bytes(self) -> int:
        """Length of the chunks that zeros without end are cut into."""
        ...

    @property
    def reach_bytes(self) -> int:
        """How far into a hole a chunk can reach that began before it."""
        ...

    def cut(self, data: Buffer, start: int, stop: int, *, final: bool, clear: int = 0) -> int | None:
        """The end of the chunk that starts at `start`, when `data[:stop]` is there; None: more is needed to tell.
        `clear`: an earlier look has found no end up to there."""
        ...


@dataclass(frozen=True, slots=True)
class ContentCutter:
    """restic's chunks. Zeros have a cut at every place that may have one, so they come in chunks of the least size."""

    chunker: Chunker
    zero_bytes: int = MIN_BYTES
    reach_bytes: int = MIN_BYTES + 64

    def cut(self, data: Buffer, start: int, stop: int, *, final: bool, clear: int = 0) -> int | None:
        return self.chunker.cut(data, start, stop, final=final, clear=clear)


@dataclass(frozen=True, slots=True)
class BlockCutter:
    """Blocks of `block_bytes`; the last one of a file may be shorter."""

    block_bytes: int

    @property
    def zero_bytes(self) -> int:
        return self.block_bytes

    @property
    def reach_bytes(self) -> int:
        return self.block_bytes

    def cut(self, data: Buffer, start: int, stop: int, *, final: bool, clear: int = 0) -> int | None:
        del data, clear  # the length alone decides
        if stop - start >= self.block_bytes:
            return start + self.block_bytes
        return stop if final and stop > start else None


class LateCutter:
    """A content cutter that is made at the first need, in a thread: it takes half a second, and most sources of small
    files never need it."""

    def __init__(self, make: Callable[[], Chunker]) -> None:
        self._make = make
        self._thread: threading.Thread | None = None
        self._made: ContentCutter | Exception | None = None

    def is_ready(self) -> bool:
        """Begin to make it; whether it is made."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="chunker", daemon=True)
            self._thread.start()
        return self._made is not None

    def get(self) -> ContentCutter:
        """The cutter, once it is made. Raises what making it raised."""
        if not self.is_ready():
            assert self._thread is not None
            self._thread.join()
        if isinstance(self._made, Exception):
            raise self._made
        assert self._made is not None
        return self._made

    def _run(self) -> None:
        try:
            self._made = ContentCutter(self._make())
        except Exception as error:  # noqa: BLE001 - raised again by `get`
            self._made = error
