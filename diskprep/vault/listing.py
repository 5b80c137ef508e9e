"""Listings: a tree blob, entry by entry, with no more made of a regular file than restoring it takes.

What `repository.tree.parse_tree` makes of a tree is complete and costs 20 microseconds and 1.5 KB an entry. Here an
entry is the JSON object it is in the tree; `file_of` makes a `File` of the usual ones, and `node_of` a `Node` of any.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged
from diskprep.repository.quoting import parse_time, unquote_name
from diskprep.repository.tree import Node, NodeType, parse_tree

_MINUTE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:)(\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")
_PERMISSIONS_AND_TYPE = (1 << 32) - 1
_SECOND_NS = 10**9
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, IndexError)

Document = dict[str, Any]


class File(NamedTuple):
    """A regular file with nothing unusual: no attributes, no other hard link, no set-id bits. Times are nanoseconds,
    `unix_mode` are the permission bits, `content` the ids of its chunks."""

    name: bytes
    uid: int
    gid: int
    unix_mode: int
    mtime: int
    atime: int
    size: int
    content: tuple[bytes, ...]
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


def documents(plaintext: Buffer) -> Iterator[tuple[bytes, Document]]:
    """Name and JSON object of each entry of a tree blob, in order. Raises DataDamaged, maybe after some entries: for a
    name that could lead out of the directory, one that is there twice, names out of order, and what is malformed."""
    try:
        text = str(plaintext, "utf-8")
        decode = json.JSONDecoder().raw_decode
        start = _NODES.match(text)
        if start is None:
            yield from _in_any_form(plaintext)
            return
        position = start.end()
        before = b""
        while text[position] == "{":
            document, position = decode(text, position)
            name = unquote_name(document["name"])
            if b"/" in name or b"\0" in name or name in (b"", b".", b".."):
                raise ValueError(f"an entry cannot have the name {name!r}")
            if name <= before:
                raise DataDamaged(
                    f"a tree names {name!r} twice" if name == before else f"a tree has {name!r} out of order"
                )
            before = name
            yield name, document
            position += text[position] == ","
        if text[position] != "]":
            raise ValueError("it does not end as a list does")
    except _MALFORMED as error:
        raise DataDamaged(f"a tree is malformed: {error}") from None


_NODES = re.compile(r'\s*\{"nodes":\[')


def _in_any_form(plaintext: Buffer) -> Iterator[tuple[bytes, Document]]:
    """A tree that another writer spelled differently, or that has no entries."""
    listed = json.loads(bytes(plaintext))["nodes"] or []
    checked = parse_tree(bytes(plaintext))
    named = {unquote_name(document["name"]): document for document in listed}
    yield from ((node.name, named[node.name]) for node in checked)


def file_of(name: bytes, document: Document) -> File | None:
    """The file that `document` is; None for all that wants more than a `File` tells. Raises DataDamaged."""
    get = document.get
    try:
        mode, links = get("mode", 0), get("links", 0)
        if document["type"] != "file" or "extended_attributes" in document or mode > 0o777 or mode < 0 or links > 1:
            return None
        mtime_text, atime_text = document["mtime"], document["atime"]
        mtime = time_ns(mtime_text)
        atime = mtime if atime_text == mtime_text else time_ns(atime_text)
        content = tuple([bytes.fromhex(text) for text in document["content"] or ()])
        uid, gid, size = get("uid", 0), get("gid", 0), get("size", 0)
        if not (0 <= uid < _PERMISSIONS_AND_TYPE and 0 <= gid < _PERMISSIONS_AND_TYPE and 0 <= size < 1 << 63):
            return None
        if any(len(blob) != 32 for blob in content):
            return None
    except _MALFORMED:
        return None  # the complete parser says what is wrong, if it is
    return File(name, uid, gid, mode, mtime, atime, size, content)


def node_of(document: Document) -> Node:
    """The entry as a `Node`, checked in everything. Raises DataDamaged."""
    (node,) = parse_tree(json.dumps({"nodes": [document]}).encode())
    return node


def kind_of(document: Document) -> NodeType:
    """Raises DataDamaged."""
    try:
        return NodeType(document["type"])
    except _MALFORMED as error:
        raise DataDamaged(f"a tree is malformed: {error}") from None


def time_ns(text: str) -> int:
    """What `parse_time` makes of `text`, quicker: files next to each other are often of one minute. Raises
    ValueError."""
    match = _MINUTE.fullmatch(text)
    if match is None:
        return parse_time(text)
    minute, second, fraction, zone = match.groups()
    time = _minute_ns(minute, zone) + int(second) * _SECOND_NS
    return time + int(fraction.ljust(9, "0")) if fraction else time


@lru_cache(maxsize=4096)
def _minute_ns(minute: str, zone: str) -> int:
    return parse_time(f"{minute}00{zone}")
