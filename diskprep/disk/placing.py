"""Placing: which packs go together on which disk, so that few disks travel and index files lie on few of them.

Packs are placed in the order of the index files that name them, each group on as few disks as it needs. Where that
leaves something over, the largest go first; a small number of packs is searched through. With a pack goes room for the
index files that name it, once a disk. Pure, and the same every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from diskprep.errors import DataDamaged
from diskprep.seal import FileKind, Seal, SealedFile

MIN_DISK_BYTES = 96 << 20
CLUSTER_BYTES = 4096
BLOCK_BYTES = 4 << 20
_SMALL_DISK_BYTES = 1 << 30
_LARGE_DISK_BYTES = 1 << 41

_GPT_BYTES = 2 << 20
_FILE_OVERHEAD_BYTES = 1024 + 512 + 512  # MFT record, share of the folder's index, the manifest's <Blob>
_BLOCK_OVERHEAD_BYTES = 160  # one <Block> of the manifest
_SIZE_STEP_BYTES = 1 << 20

_SEARCH_PACKS = 24  # no more than that are searched through when the quick ways fail
_SEARCH_STEPS = 20_000


def footprint_bytes(file: SealedFile) -> int:
    """What a file takes of a disk: its clusters, its records in NTFS, its lines in the manifest."""
    blocks = -(-file.size_bytes // BLOCK_BYTES)
    clusters = -(-file.size_bytes // CLUSTER_BYTES) * CLUSTER_BYTES
    return clusters + _FILE_OVERHEAD_BYTES + blocks * _BLOCK_OVERHEAD_BYTES


def usable_bytes(size_bytes: int) -> int:
    """What footprints of a disk of this size may add up to.

    mkntfs takes up to 64 MiB for its log and 1/32768 for the cluster bitmap; BitLocker's regions, folders and slack
    are covered by 12 MiB, and half a percent is left free because a file system filled to the brim fragments. Disks
    over 2 TiB have larger clusters (volume/format.py), of which each file leaves half a one empty.
    """
    log_bytes = min(64 << 20, max(2 << 20, size_bytes // 100))
    clusters_bytes = size_bytes // 256 if size_bytes > _LARGE_DISK_BYTES else 0
    reserve_bytes = _GPT_BYTES + log_bytes + size_bytes // 32768 + size_bytes // 200 + clusters_bytes + (12 << 20)
    return max(0, size_bytes - reserve_bytes)


def takes(size_bytes: int, need_bytes: int) -> bool:
    """Whether one file of this footprint goes on a disk of this size, when nothing else is on it.

    libntfs-3g finds no place for a single file of more than about half of a small volume.
    """
    return need_bytes <= _largest_bytes(size_bytes)


def _largest_bytes(size_bytes: int) -> int:
    return usable_bytes(size_bytes) // (2 if size_bytes < _SMALL_DISK_BYTES else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Data packs and the index files that name them; both are spoken of by number.

    `named[p]`: the index files that name pack p. `needs`, `index_needs`: their footprints in bytes. Packs stand in the
    order of their index files, larger ones first where that is the same.
    """

    packs: Sequence[SealedFile]
    needs: Sequence[int]
    named: Sequence[tuple[int, ...]]
    indexes: Sequence[SealedFile]
    index_needs: Sequence[int]

    @property
    def need_bytes(self) -> int:
        """What all of it takes when each index file is there once."""
        return sum(self.needs) + sum(self.index_needs[index] for index in set().union(*set(self.named)))

    @property
    def largest_bytes(self) -> int:
        """The largest footprint of one file."""
        indexes = set().union(*set(self.named))
        return max(max(self.needs, default=0), max((self.index_needs[index] for index in indexes), default=0))


def load_of(seal: Seal, placed: Iterable[SealedFile] = ()) -> Load:
    """What of the seal is to be placed when the packs `placed` are on disks already.

    Raises DataDamaged when the seal has not all of them, or one of them is there twice.
    """
    indexes = sorted(seal.of_kind(FileKind.INDEX), key=lambda file: file.name)
    named: list[tuple[int, ...]] = [()] * len(seal.files)
    for number, index in enumerate(indexes):
        alone = (number,)
        for place in (seal.indexes or {}).get(index.name, ()):
            named[place] = named[place] + alone if named[place] else alone
    gone: set[str] = set()
    for pack in placed:
        if pack.sha256 in gone:
            raise DataDamaged(f"pack {pack.name} is planned for two disks", hint="prepare the disks again")
        gone.add(pack.sha256)
    data = [place for place, file in enumerate(seal.files) if file.kind is FileKind.DATA]
    places = [place for place in data if seal.files[place].sha256 not in gone]
    if len(places) + len(gone) != len(data):
        raise DataDamaged("packs are planned that the seal does not have", hint="prepare the disks again")
    places.sort(key=lambda place: (named[place], -seal.files[place].size_bytes, seal.files[place].name))
    packs = [seal.files[place] for place in places]
    return Load(
        packs=packs,
        needs=[footprint_bytes(pack) for pack in packs],
        named=[named[place] for place in places],
        indexes=indexes,
        index_needs=[footprint_bytes(index) for index in indexes],
    )


@dataclass(slots=True, kw_only=True)
class Bin:
    """A disk while it is planned: what is on it, and the room in bytes that is left."""

    room_bytes: int
    largest_bytes: int
    packs: list[int] = field(default_factory=list)
    indexes: set[int] = field(default_factory=set)

    def put(self, load: Load, pack: int) -> tuple[int, ...] | None:
        """Add a pack and the index files that come with it, which are returned; None when there is no room."""
        need, named = load.needs[pack], load.named[pack]
        if need > self.room_bytes or need > self.largest_bytes:
            return None
        if self.indexes.issuperset(named):
            new: tuple[int, ...] = ()
        else:
            new = tuple(index for index in named if index not in self.indexes)
            wants = [load.index_needs[index] for index in new]
            need += sum(wants)
            if need > self.room_bytes or max(wants) > self.largest_bytes:
                return None
            self.indexes.update(new)
        self.room_bytes -= need
        self.packs.append(pack)
        return new

    def take_back(self, load: Load, new: tuple[int, ...]) -> None:
        """Undo the last `put`, which brought the index files `new`."""
        self.indexes.difference_update(new)
        self.room_bytes += load.needs[self.packs.pop()] + sum(load.index_needs[index] for index in new)


def fill(load: Load, sizes: Sequence[int]) -> list[Bin]:
    """The packs on disks of these sizes in the order of their index files; some may be on none.

    The next index file begins on the disk where the one before has ended.
    """
    bins, over = _bins(sizes), []
    begin = 0
    for _, group in groupby(range(len(load.packs)), key=load.named.__getitem__):
        end = begin
        for pack in group:
            slot = _first_fit(load, bins, pack, begin)
            if slot is None:
                over.append(pack)
            else:
                end = max(end, slot)
        begin = end
    for pack in over:
        _first_fit(load, bins, pack, 0)
    return bins


def place(load: Load, sizes: Sequence[int]) -> list[Bin] | None:
    """All packs on disks of these sizes, whose order is kept; None when no way is found."""
    for way in (fill, _largest_first, _searched):
        bins = way(load, sizes)
        if holds_all(load, bins):
            return bins
    return None


def spread(load: Load, sizes: Sequence[int]) -> list[Bin]:
    """Each pack on the disk with the most room, so that all disks are used."""
    bins = _bins(sizes)
    for pack in _by_size(load):
        for bin_ in sorted(bins, key=lambda bin_: -bin_.room_bytes):
            if bin_.put(load, pack) is not None:
                break
    return bins


def holds_all(load: Load, bins: Iterable[Bin]) -> bool:
    return sum(len(bin_.packs) for bin_ in bins) == len(load.packs)


def fewest(load: Load, sizes: Sequence[int]) -> tuple[list[int], list[Bin]] | None:
    """Which of the disks, whose sizes descend, take all packs, and what goes on each of them: as few disks as possible,
    the last as small as possible. None when all of them do not suffice.

    Of so many disks the largest take whatever any others take.
    """
    need_bytes = load.need_bytes
    usable = [usable_bytes(size) for size in sizes]

    def on(chosen: list[int]) -> tuple[list[int], list[Bin]] | None:
        if sum(usable[number] for number in chosen) < need_bytes:
            return None
        bins = place(load, [sizes[number] for number in chosen])
        return None if bins is None else (chosen, bins)

    for count in range(len(sizes) + 1):
        found = on(list(range(count)))
        if found is None:
            continue
        first_of = {size: number for number, size in reversed(list(enumerate(sizes)))}
        smaller = sorted((size, first_of[size]) for size in set(sizes[count:]) if size < sizes[count - 1])
        return next((less for _, number in smaller if (less := on([*range(count - 1), number]))), found)
    return None


def size_holding(load: Load) -> int:
    """The size, in whole MiB, of the smallest disk that takes all of the load."""
    return _smallest_size(load.need_bytes, load.largest_bytes)


def size_for(payload: Iterable[SealedFile], disks: int, *, indexes: Iterable[SealedFile] = ()) -> int:
    """A size, in whole MiB and hardly larger than needed, of which `disks` equal disks hold the packs spread evenly,
    and each of them all of `indexes` too."""
    packs, carried = tuple(payload), tuple(indexes)
    every = tuple(range(len(carried)))
    load = Load(
        packs=packs,
        needs=[footprint_bytes(pack) for pack in packs],
        named=[every] * len(packs),
        indexes=carried,
        index_needs=[footprint_bytes(index) for index in carried],
    )
    size = _smallest_size(sum(load.needs) // disks + sum(load.index_needs), load.largest_bytes)
    while not holds_all(load, spread(load, [size] * disks)):
        size += _SIZE_STEP_BYTES
    return size


def _smallest_size(need_bytes: int, largest_bytes: int) -> int:
    """The smallest disk, in whole MiB, with room for this much, and for a file with this footprint."""
    low, high = MIN_DISK_BYTES // _SIZE_STEP_BYTES, (2 * need_bytes + (1 << 30)) // _SIZE_STEP_BYTES
    while low < high:
        middle = (low + high) // 2
        size = middle * _SIZE_STEP_BYTES
        if usable_bytes(size) >= need_bytes and takes(size, largest_bytes):
            high = middle
        else:
            low = middle + 1
    return low * _SIZE_STEP_BYTES


def _bins(sizes: Sequence[int]) -> list[Bin]:
    return [Bin(room_bytes=usable_bytes(size), largest_bytes=_largest_bytes(size)) for size in sizes]


def _by_size(load: Load) -> list[int]:
    return sorted(range(len(load.packs)), key=lambda pack: -load.needs[pack])  # stable


def _largest_first(load: Load, sizes: Sequence[int]) -> list[Bin]:
    bins = _bins(sizes)
    for pack in _by_size(load):
        _first_fit(load, bins, pack, 0)
    return bins


def _first_fit(load: Load, bins: list[Bin], pack: int, begin: int) -> int | None:
    """Put a pack on the first disk from `begin` on that takes it; which one that is."""
    return next((slot for slot in range(begin, len(bins)) if bins[slot].put(load, pack) is not None), None)


def _searched(load: Load, sizes: Sequence[int]) -> list[Bin]:
    """Every way to place the packs, when they are few, until one takes all of them or enough was tried."""
    bins, order = _bins(sizes), _by_size(load)
    if len(order) > _SEARCH_PACKS:
        return bins
    steps = iter(range(_SEARCH_STEPS))

    def go_on(depth: int) -> bool:
        if depth == len(order):
            return True
        pack, seen = order[depth], set()
        for bin_ in bins:
            state = (bin_.room_bytes, bin_.largest_bytes, frozenset(bin_.indexes))
            if state in seen or next(steps, None) is None:
                continue
            seen.add(state)
            new = bin_.put(load, pack)
            if new is not None:
                if go_on(depth + 1):
                    return True
                bin_.take_back(load, new)
        return False

    go_on(0)
    return bins
