"""The seal: what a staging's repository holds once staging has ended, with digests. The stages after it read this.

Invariant: a sealed repository is never changed by diskprep; each stage that uses a file checks it against the seal.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, overload

from diskprep import durable
from diskprep.errors import DataDamaged, FormatTooNew, NotFound
from diskprep.store import check_name

FORMAT = "diskprep-seal"
VERSION = 1
_DIGEST_BYTES = 32
_SIZE_LIMIT_BYTES = 4 << 30  # about 16 million packs


class FileKind(StrEnum):
    """What a repository file is. Data packs travel on disks, with the index files that name them; all kinds but data
    packs go online with the job."""

    CONFIG = "config"
    KEY = "key"
    DATA = "data"
    TREE = "tree"
    INDEX = "index"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedFile:
    """One file of the repository; `name` is relative to it, `sha256` is of the bytes as stored, in hex."""

    name: str
    kind: FileKind
    size_bytes: int
    sha256: str


class PackList(Sequence[SealedFile]):
    """Data packs in 40 bytes each, their SHA-256 and size: name and kind follow from that when a pack is asked for.

    A disk of 20 TB takes over a million packs. Equal lists have the same packs in the same order. Raises DataDamaged
    for a file that is no data pack under the name of its SHA-256. `size_bytes`: of all packs together.
    """

    __slots__ = ("_digests", "_sizes", "size_bytes")

    def __init__(self, packs: Iterable[SealedFile] = ()) -> None:
        digests, sizes = bytearray(), array("Q")
        for pack in packs:
            if pack.kind is not FileKind.DATA or pack.name != _pack_name(pack.sha256):
                raise DataDamaged(f"{pack.name} is no data pack under the name of its SHA-256")
            try:
                digest = bytes.fromhex(pack.sha256)
            except ValueError:
                digest = b""
            if len(digest) != _DIGEST_BYTES:
                raise DataDamaged(f"{pack.sha256!r} is not a SHA-256")
            digests += digest
            sizes.append(pack.size_bytes)
        self._digests, self._sizes, self.size_bytes = bytes(digests), sizes, sum(sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, place: int) -> SealedFile: ...
    @overload
    def __getitem__(self, place: slice) -> PackList: ...
    def __getitem__(self, place: int | slice) -> SealedFile | PackList:
        places = range(len(self._sizes))[place]
        if isinstance(places, int):
            return self._pack(places)
        return PackList(map(self._pack, places))

    def __iter__(self) -> Iterator[SealedFile]:
        return map(self._pack, range(len(self._sizes)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackList):
            return NotImplemented
        return self._digests == other._digests and self._sizes == other._sizes

    def __hash__(self) -> int:
        return hash(self._digests)

    def __repr__(self) -> str:
        return f"PackList({len(self)} packs, {self.size_bytes} bytes)"

    def _pack(self, place: int) -> SealedFile:
        name = self._digests[place * _DIGEST_BYTES : (place + 1) * _DIGEST_BYTES].hex()
        return SealedFile(name=_pack_name(name), kind=FileKind.DATA, size_bytes=self._sizes[place], sha256=name)


def _pack_name(digest: str) -> str:
    return f"data/{digest[:2]}/{digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """All files of the repository of one staging. `snapshot` is the id of the first recovery point, in hex.

    `indexes`: object name of each index file -> where in `files` the data packs stand that it names, ascending; files
    that name none are not in it. None: a seal that does not tell.
    """

    job_name: str
    repository_id: str
    snapshot: str
    created: str
    files: tuple[SealedFile, ...]
    indexes: Mapping[str, tuple[int, ...]] | None = None

    def of_kind(self, *kinds: FileKind) -> tuple[SealedFile, ...]:
        return tuple(file for file in self.files if file.kind in kinds)

    @property
    def data_packs(self) -> tuple[SealedFile, ...]:
        return self.of_kind(FileKind.DATA)

    @property
    def online_files(self) -> tuple[SealedFile, ...]:
        return tuple(file for file in self.files if file.kind is not FileKind.DATA)

    def indexes_of(self, packs: Iterable[SealedFile]) -> tuple[SealedFile, ...]:
        """The index files that name at least one of these data packs; none when the seal does not tell."""
        if not self.indexes:
            return ()
        wanted, files = {pack.sha256 for pack in packs}, self.files
        return tuple(
            index
            for index in self.of_kind(FileKind.INDEX)
            if any(files[place].sha256 in wanted for place in self.indexes.get(index.name, ()))
        )

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the seal's canonical form; plans, journals and certificates name it."""
        document = json.dumps(_document(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(document.encode()).hexdigest()


def _document(seal: Seal) -> dict[str, Any]:
    """The seal as JSON has it. What an index names is text: the first place, then each one's distance from the last."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "job_name": seal.job_name,
        "repository_id": seal.repository_id,
        "snapshot": seal.snapshot,
        "created": seal.created,
        "files": [
            {"name": file.name, "kind": file.kind, "size_bytes": file.size_bytes, "sha256": file.sha256}
            for file in seal.files
        ],
    }
    if seal.indexes is not None:
        document["indexes"] = {name: _encode_places(places) for name, places in seal.indexes.items()}
    return document


def _encode_places(places: Sequence[int]) -> str:
    return " ".join([str(place - before) for before, place in pairwise((0, *places))])


def _parse_places(text: str, name: str, files: Sequence[SealedFile]) -> tuple[int, ...]:
    """Where the data packs of an index file stand. Raises ValueError."""
    if not all(gap.isascii() and gap.isdigit() for gap in text.split(" ")):
        raise ValueError(f"what {name} names is malformed")
    places = tuple(accumulate(map(int, text.split(" "))))
    ascending = all(before < place for before, place in pairwise(places))
    if not ascending or places[-1] >= len(files) or any(files[place].kind is not FileKind.DATA for place in places):
        raise ValueError(f"what {name} names are not data packs of the seal")
    return places


def save_seal(path: Path, seal: Seal) -> None:
    """Write the seal durably; the staging is finished from then on."""
    durable.write_json(path, {**_document(seal), "digest": seal.digest})


def load_seal(path: Path) -> Seal:
    """Read a seal and check its digest. Raises NotFound, DataDamaged or FormatTooNew."""
    try:
        document = durable.read_json(path, limit_bytes=_SIZE_LIMIT_BYTES)
    except NotFound:
        raise NotFound(
            f"the staging is not sealed: {path} does not exist", hint="give the same `diskprep stage` command again"
        ) from None
    if document.pop("format", None) != FORMAT:
        raise DataDamaged(f"{path} is not a seal")
    if document.pop("version", None) != VERSION:
        raise FormatTooNew(f"{path} was written by a newer diskprep", hint="upgrade diskprep on this computer")
    digest = document.pop("digest", None)
    try:
        files = tuple(SealedFile(**{**entry, "kind": FileKind(entry["kind"])}) for entry in document.pop("files"))
        indexes = document.pop("indexes", None)
        if indexes is not None:
            indexes = {name: _parse_places(text, name, files) for name, text in indexes.items()}
            if not indexes.keys() <= {file.name for file in files if file.kind is FileKind.INDEX}:
                raise ValueError("it says what files name that it does not list as index files")
        seal = Seal(files=files, indexes=indexes, **document)
        if seal.digest != digest:
            raise ValueError("its digest does not match")
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DataDamaged(f"{path} is damaged: {error}") from None
    for file in seal.files:
        check_name(file.name)
    return seal
