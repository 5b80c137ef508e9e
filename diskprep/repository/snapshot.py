"""Snapshots: recovery points. A sealed file says when, of which host and paths, and which tree."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from diskprep import clock
from diskprep.errors import DataDamaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A recovery point. `id` and `parent` are 64 hexadecimal digits, `tree` is the root tree's 32-byte id; `paths` are
    absolute, with U+FFFD for each byte that is not UTF-8."""

    id: str
    time: datetime
    tree: bytes
    paths: tuple[str, ...]
    hostname: str = ""
    username: str = ""
    uid: int = 0
    gid: int = 0
    parent: str | None = None
    excludes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


def snapshot_document(snapshot: Snapshot) -> dict[str, Any]:
    """The JSON of a snapshot file; its id is not in it."""
    document: dict[str, Any] = {"time": clock.rfc3339(snapshot.time)}
    if snapshot.parent is not None:
        document["parent"] = snapshot.parent
    document |= {
        "tree": snapshot.tree.hex(),
        "paths": list(snapshot.paths),
        "hostname": snapshot.hostname,
        "username": snapshot.username,
    }
    optional = {
        "uid": snapshot.uid,
        "gid": snapshot.gid,
        "excludes": list(snapshot.excludes),
        "tags": list(snapshot.tags),
    }
    return document | {name: value for name, value in optional.items() if value}


def parse_snapshot(snapshot_id: str, document: dict[str, Any]) -> Snapshot:
    """The snapshot in a file. Raises DataDamaged."""
    try:
        tree = bytes.fromhex(document["tree"])
        if len(tree) != 32:
            raise ValueError("not an id")
        return Snapshot(
            id=snapshot_id,
            time=clock.parse_rfc3339(document["time"]),
            tree=tree,
            paths=tuple(str(path) for path in document["paths"] or ()),
            hostname=str(document.get("hostname", "")),
            username=str(document.get("username", "")),
            uid=int(document.get("uid", 0)),
            gid=int(document.get("gid", 0)),
            parent=document.get("parent"),
            excludes=tuple(document.get("excludes") or ()),
            tags=tuple(document.get("tags") or ()),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataDamaged(f"snapshot {snapshot_id} is malformed") from None
