"""The drive manifest: DriveManifest.xml at the root of a drive, format version 2014-11-01, block blobs only.

It says which file of the drive becomes which blob, in blocks with their MD5, and carries the credential for the
container. The job holds the MD5 of its bytes, so a written manifest is never changed.

Invariants of a value, checked when it is made: blocks lie in order without gaps and cover the blob; a block has at most
4 MiB, a blob at most 50,000 blocks; no path leaves the volume; no two entries name the same blob.

A large drive has a million blobs, so `stream_manifest` and `open_manifest` write and read one at a time: what they keep
is one blob, a portion of the file, and 24 to 48 bytes a blob to tell a name that comes twice.
Source: the service's published "Import/Export service manifest file format".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
import struct
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from html import escape

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged, NotBuilt
from diskprep.exchange import xml
from diskprep.secrets import Secret
from diskprep.seed import CONTAINER_NAME

VERSION = "2014-11-01"
BLOCK_BYTES = 4 << 20
BLOCKS_LIMIT = 50_000
SIZE_LIMIT_BYTES = 2 << 30  # 20 TB are 5 million blocks, of 150 bytes each with their share of a blob
_NAME_LIMIT_CHARS = 1024
_PATH_LIMIT_CHARS = 255
_IDS_OPTIONAL_BYTES = 64 << 20
_MD5 = re.compile(r"[0-9A-F]{32}")
_NUMBER = re.compile(r"[0-9]{1,18}")
_DRIVE_ID = re.compile(r"[!-~]{1,64}")
_FORBIDDEN = re.compile(r'[<>:"/|?*]')
_DEVICE_NAME = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9])(\..*)?", re.IGNORECASE)
_WHAT = "the drive manifest"
_TWICE = "the manifest names a blob twice"
_CHUNK_CHARS = 1 << 18
_PAIR = struct.Struct("QQ")
_ROOT = "DriveManifest"
_DRIVE = f"{_ROOT}/Drive"
_LIST = f"{_DRIVE}/BlobList"
_BLOB = f"{_LIST}/Blob"
_BLOCKS = f"{_BLOB}/BlockList"
_BLOCK = f"{_BLOCKS}/Block"


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
class ManifestBlob:
    """One file of the drive (`file_path`: back-slashes, from the root) and the blob it becomes (`container/name`)."""

    blob_path: str
    file_path: str
    length_bytes: int
    blocks: tuple[Block, ...]
    disposition: Disposition = Disposition.NO_OVERWRITE

    def __post_init__(self) -> None:
        split_blob_path(self.blob_path)
        check_file_path(self.file_path)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveManifest(ManifestHead):
    """What one drive carries, all of it in memory."""

    blobs: tuple[ManifestBlob, ...]

    def __post_init__(self) -> None:
        ManifestHead.__post_init__(self)
        if len({blob.blob_path for blob in self.blobs}) < len(self.blobs):
            raise DataDamaged(_TWICE)


def block_of(offset: int, data: Buffer) -> Block:
    """The entry of a block with this content."""
    return block_from_md5(offset, len(data), hashlib.md5(data, usedforsecurity=False).digest())


def block_from_md5(offset: int, length: int, digest: bytes) -> Block:
    """The entry of a block whose content has this MD5 (16 bytes). Its id is `MD5/` and the Base64 of the MD5, as in
    the original tool."""
    return Block(offset=offset, length=length, block_id=_block_id(digest), md5=digest.hex().upper())


def manifest_hash(data: bytes) -> str:
    """What the job records of the manifest file: MD5 of its bytes, 32 upper-case hexadecimal digits."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest().upper()


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


def write_manifest(manifest: DriveManifest) -> bytes:
    """The bytes of the manifest file. They hold the credential in clear, so they belong inside the encrypted volume."""
    return b"".join(stream_manifest(manifest, manifest.blobs))


def stream_manifest(head: ManifestHead, blobs: Iterable[ManifestBlob]) -> Iterator[bytes]:
    """The bytes of the manifest file in chunks of about 256 KiB; `blobs` is gone through once.

    Raises DataDamaged when a blob is named twice; what was given out by then is not a manifest.
    """
    parts, size = [], 0
    for part in _texts(head, blobs):
        parts.append(part)
        size += len(part)
        if size >= _CHUNK_CHARS:
            yield "".join(parts).encode()
            parts, size = [], 0
    yield "".join(parts).encode()


def parse_manifest(data: Buffer) -> DriveManifest:
    """Read a manifest of any version. Raises DataDamaged; NotBuilt for page blobs and metadata or property files."""
    stream = open_manifest((data,))
    return DriveManifest(
        drive_id=stream.drive_id,
        container_sas=stream.container_sas,
        account_key=stream.account_key,
        client_creator=stream.client_creator,
        blobs=tuple(stream),
    )


def open_manifest(chunks: Iterable[Buffer]) -> ManifestStream:
    """Read a manifest of any version, in chunks of any size, up to its first blob. Raises as `parse_manifest` does."""
    return ManifestStream(chunks)


class ManifestStream:
    """A manifest that is being read. Iterated once, it gives a blob at a time, and raises as `parse_manifest` does.

    A blob may be given before something later is found to break a rule: the manifest as a whole is acceptable when the
    iteration has ended. `size_bytes` and `hash` are of all bytes then, of those read so far before.
    """

    def __init__(self, chunks: Iterable[Buffer]) -> None:
        self.size_bytes = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._reader = _Reader()
        handlers = self._reader.start, self._reader.end
        self._portions = xml.read(self._counted(chunks), _WHAT, *handlers, limit_bytes=SIZE_LIMIT_BYTES)
        for _ in self._portions:
            if self._reader.head is not None:
                break
        if self._reader.head is None:
            raise DataDamaged(f"{_WHAT}: it describes no drive")
        self.head = self._reader.head

    @property
    def drive_id(self) -> str:
        return self.head.drive_id

    @property
    def container_sas(self) -> Secret[str] | None:
        return self.head.container_sas

    @property
    def account_key(self) -> Secret[str] | None:
        return self.head.account_key

    @property
    def client_creator(self) -> str:
        return self.head.client_creator

    @property
    def hash(self) -> str:
        """As `manifest_hash` has it."""
        return self._md5.hexdigest().upper()

    def __iter__(self) -> Iterator[ManifestBlob]:
        ready = self._reader.ready
        while ready:
            yield ready.popleft()
        for _ in self._portions:
            while ready:
                yield ready.popleft()

    def _counted(self, chunks: Iterable[Buffer]) -> Iterator[Buffer]:
        for chunk in chunks:
            self._md5.update(chunk)
            self.size_bytes += memoryview(chunk).nbytes
            yield chunk


def _texts(head: ManifestHead, blobs: Iterable[ManifestBlob]) -> Iterator[str]:
    yield f'<?xml version="1.0" encoding="UTF-8"?>\n<{_ROOT}{xml.attribute("Version", VERSION)}>\n<Drive>\n'
    yield xml.element("DriveId", head.drive_id) + "\n"
    if head.container_sas is not None:
        yield xml.element("ContainerSas", head.container_sas.reveal()) + "\n"
    if head.account_key is not None:
        yield xml.element("StorageAccountKey", head.account_key.reveal()) + "\n"
    yield xml.element("ClientCreator", xml.check_characters(head.client_creator, "the creator")) + "\n"
    names, begun = _Names(), False
    for blob in blobs:
        if not names.add(blob.blob_path):
            raise DataDamaged(_TWICE)
        yield from _blob_texts(blob, "" if begun else "<BlobList>\n")
        begun = True
    yield "</BlobList>\n" if begun else ""
    yield f"</Drive>\n</{_ROOT}>\n"


def _blob_texts(blob: ManifestBlob, before: str) -> Iterator[str]:
    yield (
        f"{before}<Blob>\n<BlobPath>{escape(blob.blob_path)}</BlobPath>\n<FilePath>{escape(blob.file_path)}</FilePath>\n"
        f"<Length>{blob.length_bytes}</Length>\n<ImportDisposition>{blob.disposition}</ImportDisposition>\n<BlockList>\n"
    )
    for block in blob.blocks:
        yield (
            f'<Block Offset="{block.offset}" Length="{block.length}" Id="{escape(block.block_id)}"'
            f' Hash="{block.md5}"/>\n'
        )
    yield "</BlockList>\n</Blob>\n"


class _Names:
    """Which names were there already. Each is kept as 127 bits of a hash with a random key, in a table with gaps.

    So a name takes 24 to 48 bytes (while the table grows, half more), and no document can be made up to be slow. That
    two different names agree is to be expected once in 10^19 names.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)
        self._count = 0
        self._table = _empty(1 << 10)

    def add(self, name: str) -> bool:
        """Whether the name is new."""
        first, second = _PAIR.unpack(hashlib.blake2b(name.encode(), digest_size=16, key=self._key).digest())
        if not _put(self._table, first, second | 1):  # no second half is 0: that marks a gap
            return False
        self._count += 1
        if self._count * 3 > len(self._table):  # two thirds of the places, each of which is two numbers
            self._grow()
        return True

    def _grow(self) -> None:
        old, self._table = self._table, _empty(len(self._table))
        for place in range(0, len(old), 2):
            if old[place + 1]:
                _put(self._table, old[place], old[place + 1])


def _empty(places: int) -> array[int]:
    return array("Q", (0,)) * (2 * places)


def _put(table: array[int], first: int, second: int) -> bool:
    """Whether the pair is new. It goes to the first gap from where its first half points; a power of two of places."""
    mask = len(table) - 1
    place = first * 2 & mask
    while held := table[place + 1]:
        if held == second and table[place] == first:
            return False
        place = place + 2 & mask
    table[place], table[place + 1] = first, second
    return True


class _Reader:
    """Collects a manifest from XML events. Elements it does not know are refused: they would change the meaning.

    `head` is there from the first BlobList on, or from the end of the drive; `ready` are the blobs not taken yet.
    """

    def __init__(self) -> None:
        self.head: ManifestHead | None = None
        self.ready: deque[ManifestBlob] = deque()
        self._names = _Names()
        self._drive: dict[str, str] = {}
        self._blob: dict[str, str] = {}
        self._blocks: list[dict[str, str]] = []

    def start(self, path: str, attributes: dict[str, str]) -> None:
        if path == _BLOCK:
            if len(self._blocks) == BLOCKS_LIMIT:
                raise DataDamaged(f"a blob has more than {BLOCKS_LIMIT} blocks")
            self._blocks.append(attributes)
        elif path == _BLOB:
            self._blob, self._blocks = {}, []
        elif path == _LIST:
            self._close_head()
        elif path == _DRIVE and self.head is not None:
            raise DataDamaged("it describes a second drive")
        elif path not in _KNOWN:
            tag = path.rpartition("/")[2]
            if tag in ("PageRangeList", "MetadataPath", "PropertiesPath"):
                raise NotBuilt(f"the drive manifest has a {tag}; only block blobs without property files are handled")
            raise DataDamaged(f"an element {tag!a} does not belong there")

    def end(self, path: str, text: str) -> None:
        if path == _BLOCK:
            return
        parent, _, tag = path.rpartition("/")
        if path == _BLOB:
            blob = _blob(self._blob, self._blocks)
            if not self._names.add(blob.blob_path):
                raise DataDamaged(_TWICE)
            self.ready.append(blob)
        elif path == _DRIVE:
            self._close_head()
        elif parent == _BLOB:
            self._set(self._blob, tag, text)
        elif parent == _DRIVE and path != _LIST:
            if self.head is not None:
                raise DataDamaged(f"{tag} stands behind a BlobList")
            self._set(self._drive, tag, text)

    def _close_head(self) -> None:
        """All values of the drive stand before its first BlobList."""
        if self.head is None:
            if "DriveId" not in self._drive:
                raise DataDamaged("no DriveId stands before the blobs")
            sas, key = self._drive.get("ContainerSas"), self._drive.get("StorageAccountKey")
            self.head = ManifestHead(
                drive_id=self._drive["DriveId"],
                container_sas=None if sas is None else Secret(sas),
                account_key=None if key is None else Secret(key),
                client_creator=self._drive.get("ClientCreator", ""),
            )

    @staticmethod
    def _set(values: dict[str, str], tag: str, text: str) -> None:
        if tag in values:
            raise DataDamaged(f"{tag} is given twice")
        values[tag] = text


_KNOWN = frozenset(
    {_ROOT, _DRIVE, _LIST, _BLOCKS}
    | {f"{_DRIVE}/{tag}" for tag in ("DriveId", "StorageAccountKey", "ContainerSas", "ClientCreator")}
    | {f"{_BLOB}/{tag}" for tag in ("BlobPath", "FilePath", "ClientData", "Length", "ImportDisposition")}
)


def _blob(fields: dict[str, str], blocks: list[dict[str, str]]) -> ManifestBlob:
    length = _number(fields.get("Length"))
    try:
        disposition = Disposition(fields.get("ImportDisposition", Disposition.RENAME))
    except ValueError:
        raise DataDamaged(f"{fields['ImportDisposition']!r} is not an import disposition") from None
    with_id = sum("Id" in block for block in blocks)
    if with_id not in (0, len(blocks)) or (not with_id and length > _IDS_OPTIONAL_BYTES):
        raise DataDamaged("some blocks have no id")
    return ManifestBlob(
        blob_path=fields.get("BlobPath", ""),
        file_path=fields.get("FilePath", ""),
        length_bytes=length,
        blocks=tuple(_block(block) for block in blocks),
        disposition=disposition,
    )


def _block(attributes: dict[str, str]) -> Block:
    md5 = attributes.get("Hash", "").strip().upper()  # one published sample has a space before the hash
    block_id = attributes.get("Id")
    if block_id is None:
        block_id = _block_id(bytes.fromhex(md5)) if _MD5.fullmatch(md5) else ""
    try:
        binascii.a2b_base64(block_id, strict_mode=True)
    except ValueError:
        raise DataDamaged(f"{block_id!a} is not a block id") from None
    return Block(
        offset=_number(attributes.get("Offset")), length=_number(attributes.get("Length")), block_id=block_id, md5=md5
    )


def _block_id(digest: bytes) -> str:
    return "MD5/" + base64.b64encode(digest).decode()


def _number(text: str | None) -> int:
    if text is None or not _NUMBER.fullmatch(text):
        raise DataDamaged(f"{text!a} is not a number of bytes")
    return int(text)
