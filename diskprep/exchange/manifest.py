"""The drive manifest: DriveManifest.xml at the root of a drive, format version 2014-11-01, block blobs only.

It says which file of the drive becomes which blob, in blocks with their MD5, and carries the credential for the
container. The job holds the MD5 of its bytes, so a written manifest is never changed.

Invariants of a value, checked when it is made: blocks lie in order without gaps and cover the blob; a block has at most
4 MiB, a blob at most 50,000 blocks; no path leaves the volume; no two entries name the same blob.
Source: the service's published "Import/Export service manifest file format".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged, NotBuilt
from diskprep.exchange import xml
from diskprep.secrets import Secret
from diskprep.seed import CONTAINER_NAME

VERSION = "2014-11-01"
BLOCK_BYTES = 4 << 20
BLOCKS_LIMIT = 50_000
SIZE_LIMIT_BYTES = 1 << 30
_NAME_LIMIT_CHARS = 1024
_PATH_LIMIT_CHARS = 255
_IDS_OPTIONAL_BYTES = 64 << 20
_MD5 = re.compile(r"[0-9A-F]{32}")
_NUMBER = re.compile(r"[0-9]{1,18}")
_DRIVE_ID = re.compile(r"[!-~]{1,64}")
_FORBIDDEN = re.compile(r'[<>:"/|?*]')
_DEVICE_NAME = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9])(\..*)?", re.IGNORECASE)
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
class DriveManifest:
    """What one drive carries. Exactly one credential is given; it is for the whole drive."""

    drive_id: str
    container_sas: Secret[str] | None
    account_key: Secret[str] | None = None
    client_creator: str = ""
    blobs: tuple[ManifestBlob, ...]

    def __post_init__(self) -> None:
        check_drive_id(self.drive_id)
        if (self.container_sas is None) == (self.account_key is None):
            raise DataDamaged("a manifest has a container's signature or an account key, not both or neither")
        if len({blob.blob_path for blob in self.blobs}) < len(self.blobs):
            raise DataDamaged("the manifest names a blob twice")


def block_of(offset: int, data: Buffer) -> Block:
    """The entry of a block with this content. Its id is `MD5/` and the Base64 of its MD5, as in the original tool."""
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    return Block(offset=offset, length=len(data), block_id=_block_id(digest), md5=digest.hex().upper())


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
    out = ['<?xml version="1.0" encoding="UTF-8"?>\n', f"<{_ROOT}{xml.attribute('Version', VERSION)}>\n<Drive>\n"]
    out.append(xml.element("DriveId", manifest.drive_id) + "\n")
    if manifest.container_sas is not None:
        out.append(xml.element("ContainerSas", manifest.container_sas.reveal()) + "\n")
    if manifest.account_key is not None:
        out.append(xml.element("StorageAccountKey", manifest.account_key.reveal()) + "\n")
    out.append(xml.element("ClientCreator", xml.check_characters(manifest.client_creator, "the creator")) + "\n")
    if manifest.blobs:
        out.append("<BlobList>\n")
        out.extend(_blob_xml(blob) for blob in manifest.blobs)
        out.append("</BlobList>\n")
    out.append(f"</Drive>\n</{_ROOT}>\n")
    return "".join(out).encode()


def parse_manifest(data: bytes) -> DriveManifest:
    """Read a manifest of any version. Raises DataDamaged; NotBuilt for page blobs and metadata or property files."""
    reader = _Reader()
    xml.parse(data, "the drive manifest", reader.start, reader.end, limit_bytes=SIZE_LIMIT_BYTES)
    return reader.result()


def _blob_xml(blob: ManifestBlob) -> str:
    blocks = "".join(
        f'<Block Offset="{block.offset}" Length="{block.length}"{xml.attribute("Id", block.block_id)}'
        f' Hash="{block.md5}"/>\n'
        for block in blob.blocks
    )
    return (
        f"<Blob>\n{xml.element('BlobPath', blob.blob_path)}\n{xml.element('FilePath', blob.file_path)}\n"
        f"<Length>{blob.length_bytes}</Length>\n<ImportDisposition>{blob.disposition}</ImportDisposition>\n"
        f"<BlockList>\n{blocks}</BlockList>\n</Blob>\n"
    )


class _Reader:
    """Collects a manifest from XML events. Elements it does not know are refused: they would change the meaning."""

    def __init__(self) -> None:
        self._drive: dict[str, str] = {}
        self._blob: dict[str, str] = {}
        self._blocks: list[dict[str, str]] = []
        self._blobs: list[ManifestBlob] = []

    def start(self, path: str, attributes: dict[str, str]) -> None:
        if path == _BLOCK:
            if len(self._blocks) == BLOCKS_LIMIT:
                raise DataDamaged(f"a blob has more than {BLOCKS_LIMIT} blocks")
            self._blocks.append(attributes)
        elif path == _BLOB:
            self._blob, self._blocks = {}, []
        elif path == _LIST and "DriveId" not in self._drive:
            raise DataDamaged("a BlobList stands before the DriveId")
        elif path not in _KNOWN:
            tag = path.rpartition("/")[2]
            if tag in ("PageRangeList", "MetadataPath", "PropertiesPath"):
                raise NotBuilt(f"the drive manifest has a {tag}; only block blobs without property files are handled")
            raise DataDamaged(f"an element {tag!a} does not belong there")

    def end(self, path: str, text: str) -> None:
        parent, _, tag = path.rpartition("/")
        if path == _BLOB:
            self._blobs.append(_blob(self._blob, self._blocks))
        elif (values := {_DRIVE: self._drive, _BLOB: self._blob}.get(parent)) is not None and path != _LIST:
            if tag in values:
                raise DataDamaged(f"{tag} is given twice")
            values[tag] = text

    def result(self) -> DriveManifest:
        sas, key = self._drive.get("ContainerSas"), self._drive.get("StorageAccountKey")
        return DriveManifest(
            drive_id=self._drive.get("DriveId", ""),
            container_sas=None if sas is None else Secret(sas),
            account_key=None if key is None else Secret(key),
            client_creator=self._drive.get("ClientCreator", ""),
            blobs=tuple(self._blobs),
        )


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
        base64.b64decode(block_id, validate=True)
    except (binascii.Error, ValueError):
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
