"""What a drive manifest says, as values: which file of the drive becomes which blob.

Invariants, checked when a value is made: the blocks of a block blob lie in order without gaps and cover it; the page
ranges of a page blob lie in order, in whole pages, inside it, and leave out what is zeros; no path leaves the volume.
Source: the service's published "Import/Export service manifest file format".
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged
from diskprep.exchange import xml
from diskprep.secrets import Secret
from diskprep.seed import CONTAINER_NAME

BLOCK_BYTES = 4 << 20
BLOCKS_LIMIT = 50_000
PAGE_BYTES = 512
PAGE_BLOB_LIMIT_BYTES = 1 << 40
PAGE_RANGES_LIMIT = PAGE_BLOB_LIMIT_BYTES // BLOCK_BYTES
_NAME_LIMIT_CHARS = 1024
_PATH_LIMIT_CHARS = 255
_MD5 = re.compile(r"[0-9A-F]{32}")
_DRIVE_ID = re.compile(r"[!-~]{1,64}")
_FORBIDDEN = re.compile(r'[<>:"/|?*]')
_DEVICE_NAME = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9])(\..*)?", re.IGNORECASE)


class Disposition(StrEnum):
    """What happens when the blob exists already."""

    RENAME = "rename"
    NO_OVERWRITE = "no-overwrite"
    OVERWRITE = "overwrite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """`length` bytes from `offset` of a file; `md5` is 32 upper-case hexadecimal digits, `block_id` is Base64."""

    offset: int
    length: int
    block_id: str
    md5: str

    def __post_init__(self) -> None:
        if not 0 < self.length <= BLOCK_BYTES or self.offset < 0:
            raise DataDamaged(f"a block of {self.length} bytes at {self.offset}; 1 to {BLOCK_BYTES} are allowed")
        if not _MD5.fullmatch(self.md5):
            raise DataDamaged(f"{self.md5!r} is not an MD5")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRange:
    """`length` bytes from `offset` of a file, both multiples of 512; `md5` as a block has it."""

    offset: int
    length: int
    md5: str

    def __post_init__(self) -> None:
        if self.offset < 0 or self.offset % PAGE_BYTES or self.length % PAGE_BYTES:
            raise DataDamaged(f"a page range of {self.length} bytes at {self.offset} is not in pages of {PAGE_BYTES}")
        if not 0 < self.length <= BLOCK_BYTES:
            raise DataDamaged(f"a page range of {self.length} bytes; {PAGE_BYTES} to {BLOCK_BYTES} are allowed")
        if not _MD5.fullmatch(self.md5):
            raise DataDamaged(f"{self.md5!r} is not an MD5")


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFile:
    """A file of the drive that holds metadata or properties of blobs, and the MD5 of its bytes (as a block has it)."""

    path: str
    md5: str

    def __post_init__(self) -> None:
        check_file_path(self.path)
        if not _MD5.fullmatch(self.md5):
            raise DataDamaged(f"{self.md5!r} is not an MD5")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """The files with a blob's metadata and properties, or those of all blobs of a list that have none of their own."""

    metadata: SideFile | None = None
    properties: SideFile | None = None


NO_EXTRAS = Extras()


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestBlob:
    """One file of the drive (`file_path`: back-slashes, from the root) and the blob it becomes (`container/name`).

    With `pages` it is a page blob and has no blocks. `extras` are its own, `defaults` those of the list it stands in.
    """

    blob_path: str
    file_path: str
    length_bytes: int
    blocks: tuple[Block, ...] = ()
    disposition: Disposition = Disposition.NO_OVERWRITE
    pages: tuple[PageRange, ...] | None = None
    extras: Extras = NO_EXTRAS
    defaults: Extras = NO_EXTRAS

    def __post_init__(self) -> None:
        split_blob_path(self.blob_path)
        check_file_path(self.file_path)
        if self.pages is None:
            self._check_blocks()
        else:
            self._check_pages(self.pages)

    @property
    def metadata(self) -> SideFile | None:
        """The file that counts."""
        return self.extras.metadata or self.defaults.metadata

    @property
    def properties(self) -> SideFile | None:
        """The file that counts."""
        return self.extras.properties or self.defaults.properties

    def _check_blocks(self) -> None:
        end = 0
        for block in self.blocks:
            if block.offset != end:
                raise DataDamaged(f"the blocks of {self.blob_path} have a gap or overlap at byte {end}")
            end += block.length
        if end != self.length_bytes:
            raise DataDamaged(f"the blocks of {self.blob_path} cover {end} of {self.length_bytes} bytes")
        if len(self.blocks) > BLOCKS_LIMIT:
            raise DataDamaged(f"{self.blob_path} has {len(self.blocks)} blocks; the limit is {BLOCKS_LIMIT}")
        if len({len(block.block_id) for block in self.blocks}) > 1:
            raise DataDamaged(f"the block ids of {self.blob_path} differ in length")

    def _check_pages(self, pages: tuple[PageRange, ...]) -> None:
        if self.blocks:
            raise DataDamaged(f"{self.blob_path} has blocks and page ranges")
        if not 0 <= self.length_bytes <= PAGE_BLOB_LIMIT_BYTES or self.length_bytes % PAGE_BYTES:
            raise DataDamaged(
                f"a page blob has whole pages, up to 1 TB; {self.blob_path} has {self.length_bytes} bytes"
            )
        end = 0
        for pages_range in pages:
            if pages_range.offset < end:
                raise DataDamaged(f"the page ranges of {self.blob_path} overlap at byte {pages_range.offset}")
            end = pages_range.offset + pages_range.length
        if end > self.length_bytes:
            raise DataDamaged(f"the page ranges of {self.blob_path} end at {end}, beyond its {self.length_bytes} bytes")
        if len(pages) > PAGE_RANGES_LIMIT:
            raise DataDamaged(f"{self.blob_path} has {len(pages)} page ranges; the limit is {PAGE_RANGES_LIMIT}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestHead:
    """What stands before the blobs. Exactly one credential is given; it is for the whole drive."""

    drive_id: str
    container_sas: Secret[str] | None
    account_key: Secret[str] | None = None
    client_creator: str = ""

    def __post_init__(self) -> None:
        check_drive_id(self.drive_id)
        if (self.container_sas is None) == (self.account_key is None):
            raise DataDamaged("a manifest has a container's signature or an account key, not both or neither")


def block_from_md5(offset: int, length: int, digest: bytes) -> Block:
    """The entry of a block whose content has this MD5 (16 bytes). Its id is `MD5/` and the Base64 of the MD5, as in
    the original tool."""
    return Block(offset=offset, length=length, block_id=block_id_of(digest), md5=digest.hex().upper())


def block_id_of(digest: bytes) -> str:
    """The id that a block with this MD5 (16 bytes) gets."""
    return "MD5/" + base64.b64encode(digest).decode()


def manifest_hash(data: Buffer) -> str:
    """What the job records of the manifest file: MD5 of its bytes, 32 upper-case hexadecimal digits."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest().upper()


def is_md5(text: str) -> bool:
    """Whether this is an MD5 as manifests have it."""
    return _MD5.fullmatch(text) is not None


def check_drive_id(text: str) -> str:
    """Return a drive id: the serial number without spaces, as printed on the label. Raises DataDamaged."""
    if not _DRIVE_ID.fullmatch(text):
        raise DataDamaged(f"{text!a} is not a drive id: 1 to 64 printable signs without spaces")
    return text


def split_blob_path(path: str) -> tuple[str, str]:
    """`container/name` as container and name. Raises DataDamaged."""
    container, _, name = xml.check_characters(path, "a blob path").partition("/")
    parts = name.split("/")
    legal = 0 < len(name) <= _NAME_LIMIT_CHARS and not any(part in ("", ".", "..") for part in parts)
    if not legal or name.endswith(".") or not (CONTAINER_NAME.fullmatch(container) or container == "$root"):
        raise DataDamaged(f"{path!r} does not name a blob")
    return container, name


def check_file_path(path: str) -> str:
    r"""Return the path of a file on the volume (`\folder\file`). Raises DataDamaged when it is none, or leaves it."""
    parts = xml.check_characters(path, "a file path").split("\\")
    legal = len(path) <= _PATH_LIMIT_CHARS and len(parts) > 1 and not parts[0] and not _FORBIDDEN.search(path)
    if not legal or any(part.endswith((".", " ")) or not part or _DEVICE_NAME.fullmatch(part) for part in parts[1:]):
        raise DataDamaged(f"{path!r} does not name a file on the drive")
    return path
