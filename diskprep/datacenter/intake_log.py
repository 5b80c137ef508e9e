"""What is written about a drive while it is copied: its two copy logs and the copy of its manifest.

A drive has up to a million blobs, so the logs are written blob by blob into spools: in memory while they are small,
then in files without a name. Form: the classic one, version 2014-11-01.
Source: the service's published "Import/Export service log file format".
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from diskprep import durable
from diskprep.durable import Buffer
from diskprep.exchange import xml
from diskprep.exchange.copylog import (
    VERSION,
    BlobStatus,
    BlockStatus,
    DispositionStatus,
    DriveStatus,
    FileStatus,
)
from diskprep.exchange.manifest import ManifestBlob, SideFile
from diskprep.store import BlobStore

_MEMORY_BYTES = 8 << 20
_BLOCK_BYTES = 4 << 20
_GOOD = (BlockStatus.COMPLETED, BlockStatus.COMMITTED)
_CREDENTIAL = re.compile(rb"(<(ContainerSas|StorageAccountKey)[^<>]*>)[^<]*(</\2\s*>)")


class Spool:
    """A document of any size that is being written. Raises StorageFull or StorageUnavailable of the temporary files."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES)  # noqa: SIM115  lives as long as this does
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise durable.storage_error(error, "write a temporary file") from error
        self.size_bytes += len(data)

    def chunks(self) -> Iterator[bytes]:
        """All of it, in chunks of 4 MiB."""
        try:
            self._file.seek(0)
            while chunk := self._file.read(_BLOCK_BYTES):
                yield chunk
        except OSError as error:
            raise durable.storage_error(error, "read a temporary file") from error

    def read(self) -> bytes:
        return b"".join(self.chunks())

    def store(self, container: BlobStore, name: str) -> None:
        """Write it to `name` in `container`, in blocks when it is large. Raises as the store does."""
        if self.size_bytes <= _BLOCK_BYTES:
            container.write(name, [self.read()])
            return
        block_ids, whole = [], hashlib.md5(usedforsecurity=False)
        for chunk in self.chunks():
            whole.update(chunk)
            block_ids.append(uuid.uuid4().hex)
            container.stage_block(name, block_ids[-1], chunk, hashlib.md5(chunk, usedforsecurity=False).digest())
        container.commit_blocks(name, block_ids, md5=whole.digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobEntry:
    """How one blob ended. `blob_path` is the name it got; `parts` are its blocks or page ranges, in their order.

    `parts` is empty for a blob that was skipped; a side file's status is None when the blob has no such file.
    """

    blob: ManifestBlob
    status: BlobStatus
    disposition: DispositionStatus
    blob_path: str
    parts: tuple[BlockStatus, ...] = ()
    metadata: FileStatus | None = None
    properties: FileStatus | None = None

    @property
    def failed(self) -> bool:
        return self.status is not BlobStatus.COMPLETED


class DriveLogs:
    """The verbose log and the error log of one drive: `begin`, `add` each blob, `end`."""

    def __init__(self, drive_id: str) -> None:
        self.verbose, self.errors = Spool(), Spool()
        self.bytes_succeeded = 0
        self._failed = self._unusual = False
        head = f'<?xml version="1.0" encoding="UTF-8"?>\n<DriveLog{xml.attribute("Version", VERSION)}>\n'
        self._write((self.verbose, self.errors), head + xml.element("DriveId", drive_id) + "\n")

    def add(self, entry: BlobEntry) -> None:
        """The error log gets failed blobs alone, with the blocks that did not succeed."""
        self._write((self.verbose,), _entry_xml(entry, errors_only=False))
        if entry.failed:
            self._failed = True
            self._write((self.errors,), _entry_xml(entry, errors_only=True))
            return
        self.bytes_succeeded += entry.blob.length_bytes
        if entry.disposition in (DispositionStatus.SKIPPED, DispositionStatus.RENAMED):
            self._unusual = True

    def end(self, status: DriveStatus | None = None) -> DriveStatus:
        """Close both logs with the drive's status: `status`, or the one that its blobs make."""
        if status is None and self._failed:
            status = DriveStatus.COMPLETED_WITH_ERRORS
        elif status is None:
            status = DriveStatus.COMPLETED_WITH_WARNINGS if self._unusual else DriveStatus.COMPLETED
        self._write((self.verbose, self.errors), xml.element("Status", status) + "\n</DriveLog>\n")
        return status

    @staticmethod
    def _write(spools: Iterable[Spool], text: str) -> None:
        for spool in spools:
            spool.write(text.encode())


def without_credential(head: Buffer) -> bytes | None:
    """The first part of a manifest with its credential blotted out; None when none is found there."""
    found, count = _CREDENTIAL.subn(rb"\1*******\3", bytes(head))
    return found if count else None


def _entry_xml(entry: BlobEntry, *, errors_only: bool) -> str:
    blob = entry.blob
    disposition = xml.element("ImportDisposition", blob.disposition, xml.attribute("Status", entry.disposition))
    return (
        f"<Blob{xml.attribute('Status', entry.status)}>\n{xml.element('BlobPath', entry.blob_path)}\n"
        f"{xml.element('FilePath', blob.file_path)}\n<Length>{blob.length_bytes}</Length>\n{disposition}\n"
        f"{''.join(_parts_xml(entry, errors_only=errors_only))}"
        f"{_side_xml('Metadata', entry.metadata, blob.defaults.metadata, blob.extras.metadata)}"
        f"{_side_xml('Properties', entry.properties, blob.defaults.properties, blob.extras.properties)}</Blob>\n"
    )


def _parts_xml(entry: BlobEntry, *, errors_only: bool) -> Iterator[str]:
    blob = entry.blob
    kind = "BlockList" if blob.pages is None else "PageRangeList"
    yield f"<{kind}>\n"
    if entry.parts and blob.pages is None:
        for block, status in zip(blob.blocks, entry.parts, strict=True):
            if not (errors_only and status in _GOOD):
                yield (
                    f'<Block Offset="{block.offset}" Length="{block.length}"{xml.attribute("Id", block.block_id)}'
                    f' Hash="{block.md5}" Status="{status}"/>\n'
                )
    if entry.parts and blob.pages is not None:
        for pages, status in zip(blob.pages, entry.parts, strict=True):
            if not (errors_only and status in _GOOD):
                yield (
                    f'<PageRange Offset="{pages.offset}" Length="{pages.length}" Hash="{pages.md5}"'
                    f' Status="{status}"/>\n'
                )
    yield f"</{kind}>\n"


def _side_xml(tag: str, status: FileStatus | None, common: SideFile | None, own: SideFile | None) -> str:
    if status is None:
        return ""
    paths = "".join(
        xml.element(name, file.path, xml.attribute("Hash", file.md5))
        for name, file in (("GlobalPath", common), ("Path", own))
        if file is not None
    )
    return f"<{tag}{xml.attribute('Status', status)}>{paths}</{tag}>\n"
