"""Stores: a flat name space of write-once objects, in a directory or a blob container.

The contract, which one test suite runs against every implementation:

- `write` and `commit_blocks` return only when the object is durable; an object is visible whole or not at all.
- Names are relative paths of letters, digits, `.`, `_` and `-` between `/`, and the ` (2)` that Import/Export puts into
  a name that was taken, again when that is taken too; `check_name` refuses all others.
- `list` yields each object once, in no particular order, and never an object that is being written.
- Errors: NotFound for a missing object, StorageFull, StorageUnavailable; nothing else.

`ImportTarget` is what the datacenter needs on top of that; repositories do not see it. A page blob is the one object
that is visible before it is whole: from its creation on. `TieredStore` is what a store has whose objects lie in tiers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol, runtime_checkable

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged
from diskprep.secrets import Secret

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
METADATA_LIMIT_BYTES = 8 << 10
_HEADER_LIMIT_CHARS = 1 << 10
_METADATA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_HEADER = re.compile(r"([!-~]([ -~]*[!-~])?)?")
_NAME = re.compile(rf"(?=.{{1,1024}}\Z){_PART}(/{_PART})*( \([0-9]+\)[A-Za-z0-9._-]*)*")


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


class AccessTier(StrEnum):
    """What an object costs to keep and to read; DEFAULT: what the account says. Archive is not among them: what lies
    there cannot be read."""

    DEFAULT = "default"
    HOT = "hot"
    COOL = "cool"
    COLD = "cold"


#: Says for a name, and the parts that are written (none: it is copied), where the object is to lie.
ChooseTier = Callable[[str, Sequence[Buffer]], AccessTier]


@runtime_checkable
class TieredStore(Protocol):
    """A store whose objects lie in tiers."""

    def choose_tiers(self, choose: ChooseTier) -> None:
        """From now on `choose` says where what `write` and `copy_from` make is to lie."""

    def cool(self, name: str, tier: AccessTier) -> None:
        """Move an object to this tier, unless it lies there or in a cooler one: out of those it costs much to move.
        Raises NotFound, and StorageUnavailable for what is in the Archive tier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentProperties:
    """What a blob says of its content, as HTTP has it; empty or None: nothing. `content_md5` is of the whole."""

    content_type: str = ""
    content_md5: bytes | None = None
    content_encoding: str = ""
    content_language: str = ""
    cache_control: str = ""


NO_PROPERTIES = ContentProperties()


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobState:
    """A blob as an import finds it. `version` is another when its content is; `leased`: somebody holds a lease."""

    size_bytes: int
    version: str
    is_page_blob: bool = False
    leased: bool = False
    properties: ContentProperties = NO_PROPERTIES
    metadata: Mapping[str, str] = field(default_factory=dict)


class ImportTarget(BlobStore, Protocol):
    """A container as the import service writes to it: page blobs, metadata and properties."""

    def inspect(self, name: str) -> BlobState | None:
        """What is known of the blob, or None when there is none."""

    def create_pages(self, name: str, size_bytes: int, metadata: Mapping[str, str]) -> None:
        """Make `name` a page blob of zeros, a multiple of 512 bytes long. What had the name is replaced."""

    def write_pages(self, name: str, offset: int, data: Buffer, md5: bytes) -> None:
        """Write whole pages of 512 bytes, at most 4 MiB; the store checks `md5`. Durable when it returns."""

    def set_metadata(self, name: str, metadata: Mapping[str, str]) -> None:
        """Make this all of a blob's metadata. Raises DataDamaged for names and values that HTTP headers do not take."""

    def set_properties(self, name: str, properties: ContentProperties) -> None:
        """Make these a blob's properties; without a `content_md5` the one that it has stays."""


class Account(Protocol):
    """A storage account: containers, and signatures that open one of them for a while."""

    @property
    def name(self) -> str: ...

    def container(self, name: str) -> ImportTarget:
        """The container, created when missing."""

    def container_sas(self, name: str, expires: datetime) -> Secret[str]:
        """`container?signature` that lets its holder read, write, list and delete in that container until `expires`."""

    def open_sas(self, sas: Secret[str]) -> ImportTarget:
        """The container that a signature opens. Raises NotSignedIn when it is forged or expired."""

    def open_key(self, key: Secret[str]) -> Account:
        """This account, by a key (Base64) that was brought. Raises NotSignedIn when it is not the account's."""


def check_name(name: str) -> str:
    """Return `name` when it is legal; raise DataDamaged otherwise: such a name came from data, not from a person."""
    if not _NAME.fullmatch(name):
        raise DataDamaged(f"{name!r} is not a legal object name")
    return name


def check_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """Return `metadata`: names are identifiers, values printable ASCII, all of it at most 8 KiB. Raises DataDamaged.

    Source: the Blob service's "Setting and retrieving properties and metadata".
    """
    for name, value in metadata.items():
        if not _METADATA_NAME.fullmatch(name):
            raise DataDamaged(f"{name!a} is not a name of metadata")
        if not _HEADER.fullmatch(value):
            raise DataDamaged(f"the value of the metadata {name} has a character that does not belong there")
    if len({name.lower() for name in metadata}) < len(metadata):
        raise DataDamaged("two names of metadata differ in case only")
    if sum(len(name) + len(value) for name, value in metadata.items()) > METADATA_LIMIT_BYTES:
        raise DataDamaged(f"a blob's metadata has at most {METADATA_LIMIT_BYTES} bytes")
    return metadata


def check_properties(properties: ContentProperties) -> ContentProperties:
    """Return `properties`: what HTTP headers take, 1 KiB each; an MD5 has 16 bytes. Raises DataDamaged."""
    texts = {
        "Content-Type": properties.content_type,
        "Content-Encoding": properties.content_encoding,
        "Content-Language": properties.content_language,
        "Cache-Control": properties.cache_control,
    }
    for name, text in texts.items():
        if not _HEADER.fullmatch(text) or len(text) > _HEADER_LIMIT_CHARS:
            raise DataDamaged(f"{name} has a character that does not belong there, or is too long")
    if properties.content_md5 is not None and len(properties.content_md5) != 16:
        raise DataDamaged("Content-MD5 does not have 16 bytes")
    return properties
