"""The drive manifest: DriveManifest.xml at the root of a drive, format version 2014-11-01.

It says which file of the drive becomes which blob, in blocks or page ranges with their MD5, where metadata and
properties of blobs are, and carries the credential. The job holds the MD5 of its bytes, so a written manifest is never
changed. The values and their rules are in `entries`; here they are read and written. No two entries name one blob.

A large drive has a million blobs, so `stream_manifest` and `open_manifest` write and read one at a time: what they keep
is one blob, a portion of the file, and 24 to 48 bytes a blob to tell a name that comes twice.
Source: the service's published "Import/Export service manifest file format".
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections import deque
from collections.abc import Iterable, Iterator
from html import escape

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged
from diskprep.exchange import xml
from diskprep.exchange.distinct import Names
from diskprep.exchange.entries import (
    BLOCK_BYTES,
    BLOCKS_LIMIT,
    NO_EXTRAS,
    PAGE_RANGES_LIMIT,
    Block,
    Disposition,
    Extras,
    ManifestBlob,
    ManifestHead,
    PageRange,
    SideFile,
    block_from_md5,
    block_id_of,
    check_drive_id,
    check_file_path,
    is_md5,
    manifest_hash,
    split_blob_path,
)
from diskprep.secrets import Secret

__all__ = [
    "BLOCKS_LIMIT",
    "BLOCK_BYTES",
    "NO_EXTRAS",
    "PAGE_RANGES_LIMIT",
    "SIZE_LIMIT_BYTES",
    "VERSION",
    "Block",
    "Disposition",
    "Extras",
    "ManifestBlob",
    "ManifestHead",
    "ManifestStream",
    "PageRange",
    "SideFile",
    "block_from_md5",
    "check_drive_id",
    "check_file_path",
    "manifest_hash",
    "open_manifest",
    "split_blob_path",
    "stream_manifest",
]

VERSION = "2014-11-01"
SIZE_LIMIT_BYTES = 2 << 30  # 20 TB are 5 million blocks, of 150 bytes each with their share of a blob
_IDS_OPTIONAL_BYTES = 64 << 20
_NUMBER = re.compile(r"[0-9]{1,18}")
_WHAT = "the drive manifest"
_TWICE = "the manifest names a blob twice"
_CHUNK_CHARS = 1 << 18
_ROOT = "DriveManifest"
_DRIVE = f"{_ROOT}/Drive"
_LIST = f"{_DRIVE}/BlobList"
_BLOB = f"{_LIST}/Blob"
_BLOCKS = f"{_BLOB}/BlockList"
_BLOCK = f"{_BLOCKS}/Block"
_PAGES = f"{_BLOB}/PageRangeList"
_PAGE = f"{_PAGES}/PageRange"
_SIDES = ("MetadataPath", "PropertiesPath")


def stream_manifest(head: ManifestHead, blobs: Iterable[ManifestBlob]) -> Iterator[bytes]:
    """The bytes of the manifest file in chunks of about 256 KiB; `blobs` is gone through once.

    They hold the credential in clear, so they belong inside the encrypted volume. Raises DataDamaged when a blob is
    named twice; what was given out by then is not a manifest.
    """
    parts, size = [], 0
    for part in _texts(head, blobs):
        parts.append(part)
        size += len(part)
        if size >= _CHUNK_CHARS:
            yield "".join(parts).encode()
            parts, size = [], 0
    yield "".join(parts).encode()


def open_manifest(chunks: Iterable[Buffer]) -> ManifestStream:
    """Read a manifest of any version, in chunks of any size, up to its first blob. Raises DataDamaged."""
    return ManifestStream(chunks)


class ManifestStream:
    """A manifest that is being read. Iterated once, it gives a blob at a time, and raises DataDamaged.

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
    names = Names()
    defaults: Extras | None = None  # of the list that is open
    for blob in blobs:
        if not names.add(blob.blob_path):
            raise DataDamaged(_TWICE)
        before = ""
        if blob.defaults != defaults:
            before = ("" if defaults is None else "</BlobList>\n") + "<BlobList>\n" + _side_texts(blob.defaults)
            defaults = blob.defaults
        yield from _blob_texts(blob, before)
    yield "" if defaults is None else "</BlobList>\n"
    yield f"</Drive>\n</{_ROOT}>\n"


def _blob_texts(blob: ManifestBlob, before: str) -> Iterator[str]:
    kind = "BlockList" if blob.pages is None else "PageRangeList"
    yield (
        f"{before}<Blob>\n<BlobPath>{escape(blob.blob_path)}</BlobPath>\n<FilePath>{escape(blob.file_path)}</FilePath>\n"
        f"<Length>{blob.length_bytes}</Length>\n<ImportDisposition>{blob.disposition}</ImportDisposition>\n<{kind}>\n"
    )
    for block in blob.blocks:
        yield (
            f'<Block Offset="{block.offset}" Length="{block.length}" Id="{escape(block.block_id)}"'
            f' Hash="{block.md5}"/>\n'
        )
    for pages in blob.pages or ():
        yield f'<PageRange Offset="{pages.offset}" Length="{pages.length}" Hash="{pages.md5}"/>\n'
    yield f"</{kind}>\n{_side_texts(blob.extras)}</Blob>\n"


def _side_texts(extras: Extras) -> str:
    if extras is NO_EXTRAS:
        return ""
    return "".join(
        xml.element(tag, file.path, xml.attribute("Hash", file.md5)) + "\n"
        for tag, file in zip(_SIDES, (extras.metadata, extras.properties), strict=True)
        if file is not None
    )


class _Reader:
    """Collects a manifest from XML events. Elements it does not know are refused: they would change the meaning.

    `head` is there from the first BlobList on, or from the end of the drive; `ready` are the blobs not taken yet.
    """

    def __init__(self) -> None:
        self.head: ManifestHead | None = None
        self.ready: deque[ManifestBlob] = deque()
        self._names = Names()
        self._drive: dict[str, str] = {}
        self._blob: dict[str, str] = {}
        self._blocks: list[dict[str, str]] = []
        self._pages: list[PageRange] | None = None
        self._extras: dict[str, SideFile] = {}
        self._defaults: dict[str, SideFile] = {}
        self._list_extras = NO_EXTRAS
        self._blob_seen = False
        self._side: tuple[dict[str, SideFile], str] | None = None  # where the open one goes, and its hash

    def start(self, path: str, attributes: dict[str, str]) -> None:
        if path == _BLOCK:
            if len(self._blocks) == BLOCKS_LIMIT:
                raise DataDamaged(f"a blob has more than {BLOCKS_LIMIT} blocks")
            self._blocks.append(attributes)
        elif path == _BLOB:
            if not self._blob_seen:
                self._list_extras, self._blob_seen = _extras(self._defaults), True
            self._blob, self._blocks, self._pages = {}, [], None
            if self._extras:
                self._extras = {}
        elif path == _PAGE:
            self._add_pages(attributes)
        elif path == _LIST:
            self._close_head()
            self._defaults, self._blob_seen = {}, False
        elif path == _DRIVE and self.head is not None:
            raise DataDamaged("it describes a second drive")
        elif path in _BLOB_SIDES or path in _LIST_SIDES:
            self._open_side(path, attributes)
        elif path in (_PAGES, _BLOCKS):
            self._set(self._blob, "blocks or page ranges", path)
            self._pages = [] if path == _PAGES else None
        elif path not in _KNOWN:
            raise DataDamaged(f"an element {path.rpartition('/')[2]!a} does not belong there")

    def end(self, path: str, text: str) -> None:
        if path == _BLOCK:
            return
        parent, _, tag = path.rpartition("/")
        if path == _BLOB:
            extras = _extras(self._extras) if self._extras else NO_EXTRAS
            blob = _blob(self._blob, self._blocks, self._pages, extras, self._list_extras)
            if not self._names.add(blob.blob_path):
                raise DataDamaged(_TWICE)
            self.ready.append(blob)
        elif path == _DRIVE:
            self._close_head()
        elif self._side is not None:
            files, md5 = self._side
            files[tag], self._side = SideFile(path=text, md5=md5), None
        elif parent == _BLOB:
            if path not in (_BLOCKS, _PAGES):
                self._set(self._blob, tag, text)
        elif parent == _DRIVE and path != _LIST:
            if self.head is not None:
                raise DataDamaged(f"{tag} stands behind a BlobList")
            self._set(self._drive, tag, text)

    def _add_pages(self, attributes: dict[str, str]) -> None:
        assert self._pages is not None, "its parent was opened"
        if len(self._pages) == PAGE_RANGES_LIMIT:
            raise DataDamaged(f"a blob has more than {PAGE_RANGES_LIMIT} page ranges")
        self._pages.append(
            PageRange(
                offset=_number(attributes.get("Offset")),
                length=_number(attributes.get("Length")),
                md5=_md5(attributes),
            )
        )

    def _open_side(self, path: str, attributes: dict[str, str]) -> None:
        tag = path.rpartition("/")[2]
        if path in _LIST_SIDES and self._blob_seen:
            raise DataDamaged(f"{tag} of a BlobList stands behind its blobs")
        files = self._defaults if path in _LIST_SIDES else self._extras
        if tag in files:
            raise DataDamaged(f"{tag} is given twice")
        self._side = files, _md5(attributes)

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
    {_ROOT, _DRIVE}
    | {f"{_DRIVE}/{tag}" for tag in ("DriveId", "StorageAccountKey", "ContainerSas", "ClientCreator")}
    | {f"{_BLOB}/{tag}" for tag in ("BlobPath", "FilePath", "ClientData", "Length", "ImportDisposition")}
)


_BLOB_SIDES = frozenset(f"{_BLOB}/{tag}" for tag in _SIDES)
_LIST_SIDES = frozenset(f"{_LIST}/{tag}" for tag in _SIDES)


def _extras(files: dict[str, SideFile]) -> Extras:
    if not files:
        return NO_EXTRAS
    return Extras(metadata=files.get("MetadataPath"), properties=files.get("PropertiesPath"))


def _blob(
    fields: dict[str, str],
    blocks: list[dict[str, str]],
    pages: list[PageRange] | None,
    extras: Extras,
    defaults: Extras,
) -> ManifestBlob:
    length = _number(fields.get("Length"))
    try:
        disposition = Disposition(fields.get("ImportDisposition", Disposition.RENAME))
    except ValueError:
        raise DataDamaged(f"{fields['ImportDisposition']!r} is not an import disposition") from None
    with_id = sum("Id" in block for block in blocks)
    if with_id not in (0, len(blocks)) or (not with_id and length > _IDS_OPTIONAL_BYTES and pages is None):
        raise DataDamaged("some blocks have no id")
    return ManifestBlob(
        blob_path=fields.get("BlobPath", ""),
        file_path=fields.get("FilePath", ""),
        length_bytes=length,
        blocks=tuple(_block(block) for block in blocks),
        disposition=disposition,
        pages=None if pages is None else tuple(pages),
        extras=extras,
        defaults=defaults,
    )


def _block(attributes: dict[str, str]) -> Block:
    md5 = attributes.get("Hash", "").strip().upper()  # one published sample has a space before the hash
    block_id = attributes.get("Id")
    if block_id is None:
        block_id = block_id_of(bytes.fromhex(md5)) if is_md5(md5) else ""
    try:
        binascii.a2b_base64(block_id, strict_mode=True)
    except ValueError:
        raise DataDamaged(f"{block_id!a} is not a block id") from None
    return Block(
        offset=_number(attributes.get("Offset")), length=_number(attributes.get("Length")), block_id=block_id, md5=md5
    )


def _md5(attributes: dict[str, str]) -> str:
    return attributes.get("Hash", "").strip().upper()


def _number(text: str | None) -> int:
    if text is None or not _NUMBER.fullmatch(text):
        raise DataDamaged(f"{text!a} is not a number of bytes")
    return int(text)
