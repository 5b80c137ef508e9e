"""What a directory container keeps beside an object: its kind, properties and metadata, in files that `list` skips.

A file a name under `.properties/`, and not extended attributes: not every file system has those, and ext4 has no room
for the 8 KiB of metadata that a blob may have. A file that fits no object as it is now says nothing: it names the inode
and the size that it is of. So an object can be replaced without a thought of its sidecar, also by a crash in between.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diskprep import durable
from diskprep.errors import DataDamaged, NotFound
from diskprep.store import NO_PROPERTIES, ContentProperties

FOLDER = ".properties"
_LIMIT_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What is kept beside one object."""

    is_page_blob: bool = False
    leased: bool = False
    properties: ContentProperties = NO_PROPERTIES
    metadata: Mapping[str, str] = field(default_factory=dict)


NOTHING = Beside()


class Sidecars:
    """The sidecars of one container. Threads may change different names; the last change of one name counts."""

    def __init__(self, root: Path) -> None:
        self._folder = root / FOLDER

    def get(self, name: str, status: os.stat_result) -> Beside:
        """What is kept beside the object with this status; NOTHING when nothing is, or it is of an earlier object."""
        try:
            document = durable.read_json(self._path(name), limit_bytes=_LIMIT_BYTES)
            return _read(document) if document["object"] == _identity(status) else NOTHING
        except NotFound:
            return NOTHING
        except (KeyError, TypeError, ValueError):
            raise DataDamaged(f"{self._path(name)} is damaged", hint="remove it: the object itself is whole") from None

    def put(self, name: str, status: os.stat_result, beside: Beside) -> None:
        durable.make_directory(self._folder)
        durable.write_json(self._path(name), {"object": _identity(status), "name": name, **_write(beside)})

    def forget(self, name: str) -> None:
        """Before an object is replaced or removed. Nothing there is no error; raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self._path(name).unlink()

    def _path(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()}.json"


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_ino, status.st_size]


def _write(beside: Beside) -> dict[str, Any]:
    properties = beside.properties
    md5 = properties.content_md5
    return {
        "is_page_blob": beside.is_page_blob,
        "leased": beside.leased,
        "metadata": dict(beside.metadata),
        "content_type": properties.content_type,
        "content_md5": None if md5 is None else base64.b64encode(md5).decode(),
        "content_encoding": properties.content_encoding,
        "content_language": properties.content_language,
        "cache_control": properties.cache_control,
    }


def _read(document: dict[str, Any]) -> Beside:
    md5 = document["content_md5"]
    texts = ("content_type", "content_encoding", "content_language", "cache_control")
    return Beside(
        is_page_blob=bool(document["is_page_blob"]),
        leased=bool(document["leased"]),
        metadata={str(name): str(value) for name, value in document["metadata"].items()},
        properties=ContentProperties(
            content_md5=None if md5 is None else base64.b64decode(md5),
            **{text: str(document[text]) for text in texts},
        ),
    )
