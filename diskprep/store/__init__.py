"""Stores: a flat name space of write-once objects, in a directory or a blob container.

The contract, which one test suite runs against every implementation:

- `write` and `commit_blocks` return only when the object is durable; an object is visible whole or not at all.
- Names are relative paths of letters, digits, `.`, `_` and `-` between `/`, and the ` (2)` that Import/Export puts into
  a name that was taken; `check_name` refuses all others.
- `list` yields each object once, in no particular order, and never an object that is being written.
- Errors: NotFound for a missing object, StorageFull, StorageUnavailable; nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged
from diskprep.secrets import Secret

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_NAME = re.compile(rf"(?=.{{1,1024}}\Z){_PART}(/{_PART})*( \([0-9]+\)[A-Za-z0-9._-]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object in a store: its name, size, and the MD5 the store keeps for it (None when it keeps none)."""

    name: str
    size_bytes: int
    md5: bytes | None = None


class Store(Protocol):
    """What a repository needs of its storage."""

    @property
    def location(self) -> str:
        """For messages: where this is, without credentials."""

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Objects whose name starts with `prefix` (a path prefix that ends with `/`, or empty)."""

    def stat(self, name: str) -> StoredObject | None:
        """The object, or None when there is none."""

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `offset` (to the end without it). A range past the end raises DataDamaged."""

    def write(self, name: str, parts: Sequence[Buffer]) -> None:
        """Store the concatenated parts under `name`; an object of that name is replaced."""

    def delete(self, name: str) -> None:
        """Remove an object; a missing one is no error."""


class BlobStore(Store, Protocol):
    """A store that takes an object in blocks, as Blob storage's Put Block and Put Block List do."""

    def stage_block(self, name: str, block_id: str, data: Buffer, md5: bytes) -> None:
        """Keep one block (at most 4 MiB) aside for `name`; the store checks `md5`."""

    def commit_blocks(self, name: str, block_ids: Sequence[str], *, md5: bytes | None = None) -> None:
        """Make the object `name` of the blocks staged under these ids; `md5` of the whole is kept with it."""

    def copy_from(self, source: Store, name: str) -> bool:
        """Copy `name` from `source` inside the service, without the bytes passing through here; False: not possible."""


class Account(Protocol):
    """A storage account: containers, and signatures that open one of them for a while."""

    @property
    def name(self) -> str: ...

    def container(self, name: str) -> BlobStore:
        """The container, created when missing."""

    def container_sas(self, name: str, expires: datetime) -> Secret[str]:
        """`container?signature` that lets its holder read, write, list and delete in that container until `expires`."""

    def open_sas(self, sas: Secret[str]) -> BlobStore:
        """The container that a signature opens. Raises NotSignedIn when it is forged or expired."""


def check_name(name: str) -> str:
    """Return `name` when it is legal; raise DataDamaged otherwise: such a name came from data, not from a person."""
    if not _NAME.fullmatch(name):
        raise DataDamaged(f"{name!r} is not a legal object name")
    return name
