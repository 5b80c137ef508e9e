"""Preflight: how much there is to stage and what it will become, known before the first byte is written.

`scan` asks directories and opens no file; `estimate` compresses a sample of the content. The same tree gives the same
estimate, unless reading is so slow that it is cut short. Two files with the same content are counted as two:
deduplication is not foreseen, so a source with many copies takes less than what is said here.
"""

from __future__ import annotations

import errno
import math
import os
import random
import stat
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import NamedTuple, Protocol, TypeVar

import zstandard

from diskprep import clock, durable
from diskprep.errors import StorageUnavailable
from diskprep.events import Emit, Progress, silent
from diskprep.reach import reachable
from diskprep.repository import codec
from diskprep.repository.chunker import MIN_BYTES as SMALL_BYTES
from diskprep.source import EntryUnreadable, OpenDirectory, Source, display

_PROGRESS_INTERVAL_S = 0.5
_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_POINTS = 768  # of the source that are remembered while it is scanned: so many, or up to twice as many
_CELL_BYTES = 512
_SPARSE_SHIFT = 10  # a long file weighs at least a 1024th of its length: some file systems report no blocks at all
_MAX_RANGES = 4096
_SPREAD = (0, 4, 2, 6, 1, 5, 3, 7)  # every eighth point is read first, so that any first part is spread out
_SAMPLED_PART = 32
_SAMPLED_BYTES = (7 << 20, 32 << 20)
_BLOCK_BYTES = 128 << 10
_BEFORE_BYTES = 256 << 10  # of its chunk, which help to compress a block; more would not help much more
_FURTHER_GAIN = 0.02  # but a little, where anything does
_COMPRESSIBLE = 0.97
_LIMIT_S = 5.0  # of reading samples from a disk that is slow to seek

_CHUNK_BYTES = 3 << 19  # the mean by the chunker's rule
_PACK_BLOB_BYTES = 32 + 41  # seal and header entry
_INDEX_BLOB_BYTES = 47
_TREE_ENTRY_BYTES = 60  # of about 400 before compression; an id of 32 bytes does not compress
_TREE_BLOB_BYTES = 200  # what a tree costs however few entries it has
_FIXED_BYTES = 4096  # config, key, snapshot, ends of packs
_CONFIDENCE = 1.96  # standard errors to either side of which 95 of 100 results lie
_MODEL_ERROR = 0.02
_TREE_ERROR = 0.3

Entries = list[os.DirEntry[str]]
_Found = TypeVar("_Found")


class Filter(Protocol):
    """What is left out of the backup, as diskprep.source.selection has it. Paths are absolute and original."""

    @property
    def has_patterns(self) -> bool: ...
    @property
    def tags(self) -> Sequence[object]: ...
    @property
    def larger_than_bytes(self) -> int | None: ...
    @property
    def one_file_system(self) -> bool: ...
    def leaves_out(self, path: bytes, /) -> bool: ...
    def marked(self, at: OpenDirectory, names: set[bytes], /, *, path: bytes) -> Collection[bytes] | None: ...


class Sample(NamedTuple):
    """A byte of the source: the one at `point / weight_bytes` of the data of the file `name` in `directory` below
    `top`. The weight is the file's size, or less when it has holes."""

    top: bytes
    directory: bytes
    name: bytes
    size_bytes: int
    weight_bytes: int
    point: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What directories say. `files`: regular files, each link of a hard-linked one; `others`: symlinks, FIFOs, devices,
    sockets. All else counts a hard-linked file once. `size_bytes` is apparent, `allocated_bytes` what the file system
    gave, `data_bytes` the apparent ones without holes (a long file counts at least a 1024th). Small files, up to 512
    KiB, are one blob each, `empty_files` of them none; the others are long. `unreadable`: directories and entries that
    cannot be looked at; `left_out`: entries, of directories the topmost, that are not in the backup."""

    files: int
    directories: int
    others: int
    size_bytes: int
    allocated_bytes: int
    data_bytes: int
    largest_bytes: int
    small_files: int
    small_bytes: int
    long_files: int
    long_bytes: int
    empty_files: int
    unreadable: int
    left_out: int
    samples: tuple[Sample, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes the repository will take, without any gain by deduplication; 95 of 100 times between `low_bytes` and
    `high_bytes`. `online_bytes` of the likely ones are trees and index, which do not travel on disks. `samples` blocks
    with `sampled_bytes` together were compressed, `unread` could not be read."""

    low_bytes: int
    likely_bytes: int
    high_bytes: int
    online_bytes: int
    samples: int
    sampled_bytes: int
    unread: int


def scan(
    sources: Iterable[Source],
    *,
    selection: Filter | None = None,
    exclude: Collection[bytes] = (),
    exclude_identities: Collection[tuple[int, int]] = (),
    emit: Emit = silent,
) -> Scan:
    """Look at all of `sources` without opening a file. `exclude`: absolute original paths to leave out;
    `exclude_identities`: device and inode of directories to leave out. What vanishes under way is not counted.

    Memory: the listing of one directory. Raises NotFound or StorageUnavailable when a source itself cannot be looked
    at, StorageUnavailable when this process runs short of descriptors or memory.
    """
    walk = _Walk(selection, exclude, exclude_identities, emit)
    for source in sources:
        walk.source(source)
    return walk.result()


class _Sampler:
    """Points of a stream of bytes whose length is not known: one in each of equal cells, chosen at random. When there
    are too many, two cells become one, which keeps one of both points."""

    __slots__ = ("_cell_bytes", "_random", "due", "points")

    def __init__(self) -> None:
        self._cell_bytes = _CELL_BYTES
        self._random = random.Random(0)  # noqa: S311 - no secret, and the same in every run
        self.points: list[Sample] = []
        self.due = 0  # the first byte, so that the smallest of trees has a point

    def take(self, path: tuple[bytes, bytes, bytes], size: int, start: int, weight: int) -> None:
        """Note the points in a file that covers `weight` bytes of the stream from `start`."""
        while self.due < start + weight:
            self.points.append(Sample(*path, size, weight, self.due - start))
            if len(self.points) == 2 * _POINTS:
                self._cell_bytes *= 2
                self.points = [self.points[at + self._random.getrandbits(1)] for at in range(0, 2 * _POINTS, 2)]
            self.due = len(self.points) * self._cell_bytes + self._random.randrange(self._cell_bytes)


class _Walk:
    """A scan under way."""

    def __init__(
        self, selection: Filter | None, exclude: Collection[bytes], identities: Collection[tuple[int, int]], emit: Emit
    ) -> None:
        self._selection, self._exclude, self._exclude_identities, self._emit = selection, exclude, identities, emit
        self._filtered = bool(exclude) or (selection is not None and selection.has_patterns)
        longest = None if selection is None else selection.larger_than_bytes
        self._longest = math.inf if longest is None else longest
        self._one_file_system = selection is not None and selection.one_file_system
        self._sampler = _Sampler()
        self._linked: set[tuple[int, int]] = set()
        self._told_s = clock.monotonic_s()
        self._files = self._directories = self._others = self._size = self._blocks = self._weight = 0
        self._largest = self._long_files = self._long_size = self._repeated = self._empty = 0
        self._unreadable = self._left_out = 0

    def source(self, source: Source) -> None:
        top = source.location
        try:
            status = os.lstat(top)
        except OSError as error:
            raise durable.storage_error(error, f"read the source {display(source.path)}") from error
        if self._filtered and self._rejects(source.path):
            return
        if stat.S_ISREG(status.st_mode):
            self._files += 1
            self._special(os.path.dirname(top), b"", os.path.basename(top), status)  # noqa: PTH119, PTH120 - bytes
        elif stat.S_ISDIR(status.st_mode):
            self._tree(top, source.path.rstrip(b"/"), status.st_dev)
        else:
            self._others += 1

    def result(self) -> Scan:
        return Scan(
            files=self._files,
            directories=self._directories,
            others=self._others,
            size_bytes=self._size,
            allocated_bytes=self._blocks * 512,
            data_bytes=self._weight,
            largest_bytes=self._largest,
            small_files=self._files - self._repeated - self._long_files,
            small_bytes=self._size - self._long_size,
            long_files=self._long_files,
            long_bytes=self._long_size,
            empty_files=self._empty,
            unreadable=self._unreadable,
            left_out=self._left_out,
            samples=tuple(self._sampler.points),
        )

    def _tree(self, top: bytes, original: bytes, device: int) -> None:
        pending = [b""]
        while pending:
            directory = pending.pop()
            try:
                descriptor = _open(top, directory, os.O_DIRECTORY)
                try:
                    if self._enters(descriptor, device):
                        with os.scandir(descriptor) as found:
                            entries: Entries = sorted(found, key=attrgetter("name"))
                        entries = self._marked(top, directory, original, entries)
                        pending += self._list(top, directory, original, entries)
                finally:
                    os.close(descriptor)
            except EntryUnreadable:
                self._unreadable += 1
            except OSError as error:
                self._failed(error)
            self._tell()

    def _enters(self, descriptor: int, device: int) -> bool:
        """Count a directory that is open, and say whether its content is in the backup."""
        if self._one_file_system or self._exclude_identities:
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) in self._exclude_identities:
                self._left_out += 1
                return False
            if self._one_file_system and status.st_dev != device:
                self._directories += 1  # stored, but empty
                return False
        self._directories += 1
        return True

    def _list(self, top: bytes, directory: bytes, original: bytes, entries: Entries) -> list[bytes]:
        """Count the entries of a directory that is open; returns the directories in it, as paths below `top`."""
        prefix = directory + b"/" if directory else b""
        here, filtered = original + b"/" + prefix, self._filtered
        longest, sampler, start = self._longest, self._sampler, self._weight
        inner: list[bytes] = []
        files = size_sum = blocks = largest = empty = 0  # of plain small files: of most files
        for entry in entries:
            try:
                if filtered and self._rejects(here + os.fsencode(entry.name)):
                    continue
                if not entry.is_file(follow_symlinks=False):
                    if entry.is_dir(follow_symlinks=False):
                        inner.append(prefix + os.fsencode(entry.name))
                    else:
                        self._others += 1
                    continue
                status = entry.stat(follow_symlinks=False)
            except OSError as error:
                self._failed(error)
                continue
            size = status.st_size
            if size > longest:
                self._left_out += 1
                continue
            files += 1
            if size > SMALL_BYTES or status.st_nlink > 1:
                start += self._special(top, directory, os.fsencode(entry.name), status, ahead=size_sum)
                continue
            size_sum += size
            blocks += status.st_blocks
            if size > largest:  # noqa: PLR1730 - a call of max() takes longer
                largest = size
            if not size:
                empty += 1
            elif start + size_sum > sampler.due:
                sampler.take((top, directory, os.fsencode(entry.name)), size, start + size_sum - size, size)
        self._files += files
        self._size += size_sum
        self._weight += size_sum
        self._blocks += blocks
        self._largest = max(self._largest, largest)
        self._empty += empty
        return inner

    def _special(self, top: bytes, directory: bytes, name: bytes, status: os.stat_result, *, ahead: int = 0) -> int:
        """Take in a file that is long or has several links, `ahead` bytes after what is counted; returns its weight."""
        if status.st_nlink > 1:
            identity = (status.st_dev, status.st_ino)
            if identity in self._linked:
                self._repeated += 1
                return 0
            self._linked.add(identity)
        size = weight = status.st_size
        if size > SMALL_BYTES:
            self._long_files += 1
            self._long_size += size
            weight = min(size, max(status.st_blocks * 512, size >> _SPARSE_SHIFT))
        elif not size:
            self._empty += 1
        self._largest = max(self._largest, size)
        self._size += size
        self._blocks += status.st_blocks
        self._sampler.take((top, directory, name), size, self._weight + ahead, weight)
        self._weight += weight
        return weight

    def _rejects(self, path: bytes) -> bool:
        rejected = path in self._exclude or (self._selection is not None and self._selection.leaves_out(path))
        self._left_out += rejected
        return rejected

    def _marked(self, top: bytes, directory: bytes, original: bytes, entries: Entries) -> Entries:
        """The entries that stay when a tag among them marks the directory."""
        if self._selection is None or not self._selection.tags:
            return entries
        names = {os.fsencode(entry.name) for entry in entries}
        with reachable(top, directory) as name, closing(OpenDirectory.at(name)) as opened:
            kept = self._selection.marked(opened, names, path=original + b"/" + directory)
        if kept is None:
            return entries
        self._left_out += len(entries) - len(kept)
        return [entry for entry in entries if os.fsencode(entry.name) in kept]

    def _failed(self, error: OSError) -> None:
        """Count what cannot be looked at; what vanished is no part of the source any more."""
        if error.errno in _SHORTAGE:
            raise StorageUnavailable(
                f"cannot go on looking at the source: {error.strerror}",
                hint="raise the limit of open files (ulimit -n) or free memory, then give the same command again",
            ) from error
        self._unreadable += error.errno not in (errno.ENOENT, errno.ESTALE)

    def _tell(self) -> None:
        now_s = clock.monotonic_s()
        if now_s - self._told_s >= _PROGRESS_INTERVAL_S:
            self._told_s = now_s
            self._emit(Progress(stage="scan", done_bytes=self._size))


def _open(top: bytes, path: bytes, flags: int) -> int:
    """Open a directory or file below `top` as diskprep.source does: no symlink, no waiting, access time left alone."""
    with reachable(top, path) as name:
        try:
            return os.open(name, _OPEN | flags | os.O_NOATIME)
        except PermissionError:  # only the owner may leave the access time alone
            return os.open(name, _OPEN | flags)


def estimate(found: Scan, *, limit_s: float = _LIMIT_S) -> Estimate:
    """Compress a sample of what a scan found, and say what all of it will take.

    Compresses at most a 32nd of it (7 MiB of a small source) and 64 MiB, and stops after `limit_s` seconds: then the
    interval is wider. Files that cannot be read count as those that can.
    """
    samples = _affordable(found)
    reader, until_s = _Reader(), clock.monotonic_s() + limit_s
    rates: dict[int, float] = {}
    unread = 0
    for at in sorted(range(len(samples)), key=lambda at: _SPREAD[at % len(_SPREAD)]):
        try:
            rates[at] = reader.rate(samples[at])
        except OSError:
            unread += 1
        if clock.monotonic_s() > until_s:
            break
    return _estimate(found, [rates[at] for at in sorted(rates)], reader, unread)


def _affordable(found: Scan) -> Sequence[Sample]:
    """Evenly chosen points whose blocks are not more than may be compressed."""
    least, most = _SAMPLED_BYTES
    budget = min(most, max(least, found.data_bytes // _SAMPLED_PART))
    samples = chosen = found.samples
    while True:
        blocks = {(*s[:3], s.point * s.size_bytes // s.weight_bytes // _BLOCK_BYTES): s.size_bytes for s in chosen}
        if sum(min(_BLOCK_BYTES, size) for size in blocks.values()) <= budget:
            return chosen
        count = len(chosen) * 7 // 8
        chosen = tuple(samples[(2 * at + 1) * len(samples) // (2 * count)] for at in range(count))


class _Reader:
    """Reads and compresses the blocks in which points lie, each once."""

    def __init__(self) -> None:
        self._ranges: dict[tuple[bytes, ...], tuple[list[tuple[int, int]], int]] = {}
        self._rates: dict[tuple[bytes, bytes, bytes, int], float] = {}
        self.blocks = self.read_bytes = 0

    def rate(self, sample: Sample) -> float:
        """What a byte of weight takes when it is stored. Raises OSError."""
        top, directory, name, size, weight, point = sample
        ranges, data_bytes = [(0, size)], size
        if weight < size:
            if sample[:3] not in self._ranges:
                self._ranges[sample[:3]] = self._read(sample, lambda descriptor: _data_ranges(descriptor, size))
            ranges, data_bytes = self._ranges[sample[:3]]
            if not ranges:
                return 0.0
        ends = list(accumulate(stop - start for start, stop in ranges))
        wanted = point * ends[-1] // weight
        start, stop = ranges[at := bisect_right(ends, wanted)]
        into = wanted - ends[at] + stop - start
        offset = start + into - into % _BLOCK_BYTES
        key = (top, directory, name, offset)
        if key not in self._rates:
            before = min(_BEFORE_BYTES, (offset - start) % _CHUNK_BYTES)
            length = before + min(_BLOCK_BYTES, stop - offset)
            content = self._read(sample, lambda descriptor: os.pread(descriptor, length, offset - before))
            self.blocks += 1
            self.read_bytes += len(content[before:])
            self._rates[key] = _block_rate(content[:before], content[before:])
        return self._rates[key] * data_bytes / weight

    def _read(self, sample: Sample, how: Callable[[int], _Found]) -> _Found:
        path = sample.directory + b"/" + sample.name if sample.directory else sample.name
        descriptor = _open(sample.top, path, 0)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.ENOENT, "replaced")
            return how(descriptor)
        finally:
            os.close(descriptor)


def _data_ranges(descriptor: int, size: int) -> tuple[list[tuple[int, int]], int]:
    """Where a file has data, and how much in all; of a file in very many pieces the first ones, and a guess."""
    ranges: list[tuple[int, int]] = []
    position = 0
    while position < size and len(ranges) < _MAX_RANGES:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            position = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno != errno.ENXIO:
                return [(0, size)], size  # a file system that knows no holes
            position = size  # nothing but a hole up to the end
            break
        if start < position:
            ranges.append((start, position))
    seen = sum(stop - start for start, stop in ranges)
    return ranges, seen * size // max(position, 1)


def _block_rate(before: bytes, block: bytes) -> float:
    """What a byte of a block takes, in a chunk of which `before` precedes it."""
    if not block:
        return 0.0  # cut off meanwhile
    alone = min(1.0, len(codec.compress(block)) / len(block))
    if not before or alone > _COMPRESSIBLE:
        return alone
    known = zstandard.ZstdCompressionDict(before, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    frame = zstandard.ZstdCompressor(level=codec.LEVEL, dict_data=known).compress(block)
    return min(alone, len(frame) / len(block)) * (1 - _FURTHER_GAIN)


def _estimate(found: Scan, rates: Sequence[float], reader: _Reader, unread: int) -> Estimate:
    """Arithmetic: content by the mean of the samples, the format's own bytes by the counts."""
    blobs = found.small_files - found.empty_files + found.long_files + found.data_bytes // _CHUNK_BYTES
    trees = (found.files + found.directories + found.others) * _TREE_ENTRY_BYTES + found.directories * (
        _TREE_BLOB_BYTES + _PACK_BLOB_BYTES + _INDEX_BLOB_BYTES
    )
    packed, online = blobs * _PACK_BLOB_BYTES, trees + blobs * _INDEX_BLOB_BYTES + _FIXED_BYTES
    weight = found.data_bytes
    content = min(found.size_bytes, round(weight * sum(rates) / len(rates))) if rates else weight
    # Neighbours in the stream are alike: only what differs between them is chance.
    squares = sum((after - before) ** 2 for before, after in pairwise(rates))
    error = math.sqrt(squares / (2 * (len(rates) - 1) * len(rates))) if len(rates) > 1 else 0.5
    spread = _CONFIDENCE * error * weight + _MODEL_ERROR * content
    low = max(0, content - spread) if rates else 0
    high, slack = min(found.size_bytes, content + spread), _TREE_ERROR * trees
    return Estimate(
        low_bytes=round(low + packed + online - slack),
        likely_bytes=content + packed + online,
        high_bytes=round(high + packed + online + slack),
        online_bytes=online,
        samples=reader.blocks,
        sampled_bytes=reader.read_bytes,
        unread=unread,
    )
