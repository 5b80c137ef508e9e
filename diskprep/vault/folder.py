"""A directory's listing, packed: about 250 bytes an entry, so that a directory of a million files can be browsed.

What a tree blob says of each entry is kept as one record in a table, its name, and one value whose meaning its type
tells: a file's blob ids joined, a directory's tree, a link's target.

Invariants: names are in the order of their bytes, none comes twice, and none could lead out of its directory.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import stat
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from diskprep.errors import DataDamaged
from diskprep.repository.quoting import parse_time, unquote_name
from diskprep.repository.tree import Node, NodeType

_RECORD = struct.Struct("<IIIIQqQQqIqIqI")
_SECOND_NS = 10**9
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:)([0-5]\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", re.ASCII)
_WHOLE_BYTES = 4 << 20  # of longer listings no document is made as a whole: it would take ten times as much memory

Xattrs = Mapping[bytes, bytes]
NO_XATTRS: Xattrs = {}


class Status(NamedTuple):
    """What stat tells of an entry, but for the inode number that a file system gives it. `mode` is an st_mode; times
    are seconds and nanoseconds since the epoch; `inode` and `device_id` are those of the source."""

    mode: int
    links: int
    uid: int
    gid: int
    device: int
    size: int
    inode: int
    device_id: int
    mtime_s: int
    mtime_ns: int
    atime_s: int
    atime_ns: int
    ctime_s: int
    ctime_ns: int


class Listing:
    """The entries of a directory, numbered in the order of their names."""

    __slots__ = ("__weakref__", "_table", "_values", "_xattrs", "names")

    def __init__(self, entries: Iterable[tuple[bytes, Status, bytes, Xattrs]]) -> None:
        """`entries`: name, status, value, extended attributes; in any order. Raises DataDamaged for a name twice."""
        self.names: list[bytes] = []
        self._table = bytearray()
        self._values: list[bytes] = []
        self._xattrs: dict[bytes, Xattrs] = {}
        for name, status, value, xattrs in entries:
            self.names.append(name)
            self._table += _RECORD.pack(*status)
            self._values.append(value)
            if xattrs:
                self._xattrs[name] = xattrs
        if any(one >= other for one, other in itertools.pairwise(self.names)):
            self._sort()

    def __len__(self) -> int:
        return len(self.names)

    def find(self, name: bytes) -> int | None:
        """The number of the entry with this name."""
        number = bisect_left(self.names, name)
        return number if number < len(self.names) and self.names[number] == name else None

    def status(self, number: int) -> Status:
        return Status._make(_RECORD.unpack_from(self._table, number * _RECORD.size))

    def value(self, number: int) -> bytes:
        """A file's blob ids joined, a directory's tree (empty when it has none), a link's target."""
        return self._values[number]

    def xattrs(self, number: int) -> Xattrs:
        return self._xattrs.get(self.names[number], NO_XATTRS)

    def _sort(self) -> None:
        order = sorted(range(len(self.names)), key=self.names.__getitem__)
        size = _RECORD.size
        self._table = bytearray(b"".join([self._table[number * size : number * size + size] for number in order]))
        self._values = [self._values[number] for number in order]
        self.names = [self.names[number] for number in order]
        for one, other in itertools.pairwise(self.names):
            if one == other:
                raise DataDamaged(f"a tree names {one!r} twice")


def read_listing(plaintext: bytes) -> Listing:
    """The listing in a tree blob. Raises DataDamaged."""
    try:
        documents = _documents(plaintext)
        del plaintext  # hundreds of megabytes, perhaps
        return Listing(map(_parse, documents))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError, struct.error) as error:
        raise DataDamaged(f"a tree is malformed: {error}") from None


def _documents(plaintext: bytes) -> Iterable[dict[str, Any]]:
    if len(plaintext) < _WHOLE_BYTES:
        documents: list[dict[str, Any]] | None = json.loads(plaintext)["nodes"]
        return documents or ()
    return _one_by_one(plaintext.decode())


def _one_by_one(text: str) -> Iterator[dict[str, Any]]:
    decode = json.JSONDecoder().raw_decode
    position = text.index("[") + 1
    while text[position] == "{":
        document, position = decode(text, position)
        yield document
        position += text[position] == ","
    if text[position] != "]":
        raise ValueError("it ends before its end")


def _parse(document: dict[str, Any]) -> tuple[bytes, Status, bytes, Xattrs]:
    get = document.get
    name, kind = unquote_name(document["name"]), document["type"]
    if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise ValueError(f"an entry cannot have the name {name!r}")
    value, size = b"", 0
    if kind == "file":
        ids = document["content"] or ()
        value, size = bytes.fromhex("".join(ids)), get("size", 0)
        if len(value) != 32 * len(ids):
            raise ValueError("an id of the wrong length")
    elif kind == "dir":
        value = bytes.fromhex(get("subtree") or "")
        if value and len(value) != 32:
            raise ValueError("an id of the wrong length")
    elif kind == "symlink":
        raw = get("linktarget_raw")
        value = base64.b64decode(raw) if raw else get("linktarget", "").encode()
        size = len(value)
    mtime_text = document["mtime"]
    mtime = _moment(mtime_text)
    status = Status(
        _unix_mode(kind, get("mode", 0)),
        get("links", 1) or 1,
        get("uid", 0),
        get("gid", 0),
        get("device", 0),
        size,
        get("inode", 0),
        get("device_id", 0),
        *mtime,
        *(mtime if document["atime"] == mtime_text else _moment(document["atime"])),
        *(mtime if document["ctime"] == mtime_text else _moment(document["ctime"])),
    )
    attributes = get("extended_attributes")
    if not attributes:
        return name, status, value, NO_XATTRS
    xattrs = {one["name"].encode(): base64.b64decode(one["value"] or "") for one in attributes}
    return name, status, value, xattrs


def _moment(text: str) -> tuple[int, int]:
    """Seconds and nanoseconds since the epoch. A directory's times are often of one minute, whose beginning is kept."""
    match = _TIME.fullmatch(text)
    if match is None:
        return divmod(parse_time(text), _SECOND_NS)
    minute, second, fraction, zone = match.groups()
    return _minute_s(minute + zone) + int(second), int(fraction.ljust(9, "0")) if fraction else 0


@lru_cache(maxsize=1024)
def _minute_s(text: str) -> int:
    return parse_time(f"{text[:17]}00{text[17:]}") // _SECOND_NS


@lru_cache(maxsize=1024)
def _unix_mode(kind: str, go_mode: int) -> int:
    return Node(name=b"-", type=NodeType(kind), mode=go_mode, mtime=0, atime=0, ctime=0).unix_mode


def folder_status(*, mode: int = stat.S_IFDIR | 0o555, uid: int, gid: int, time_ns: int, size: int = 0) -> Status:
    """The status of something that is in no recovery point: a directory above them, or a link there."""
    moment = divmod(time_ns, _SECOND_NS)
    return Status(mode, 1, uid, gid, 0, size, 0, 0, *moment, *moment, *moment)
