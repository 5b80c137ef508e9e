"""Copy logs: what the datacenter writes about a drive it has copied, in the classic form (`<DriveLog>`).

The verbose log holds every blob; the error log has the same shape without what succeeded, and exists only when
something failed. Statuses are the published ones; a reader keeps a status it does not know as text. Three generations
are read: this form with a version and without one, and the one that came with Data Box (`databoxlog`).

`parse_copy_log` keeps all of a log. `read_log` reads any form as a stream and keeps what did not simply arrive; so may
a log of a million blobs be read. Source: the service's published "Import/Export service log file format".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged
from diskprep.exchange import databoxlog, xml
from diskprep.exchange.logsummary import Collector, FileOutcome, LogForm, LogSummary, cut
from diskprep.exchange.manifest import Block, Disposition

VERSION = "2014-11-01"
SIZE_LIMIT_BYTES = 1 << 30
STREAM_LIMIT_BYTES = 16 << 30
_PEEK_BYTES = 1 << 16
_FIRST = re.compile(r"<([A-Za-z]+)")


class DriveStatus(StrEnum):
    """How a drive ended."""

    COMPLETED = "Completed"
    COMPLETED_WITH_WARNINGS = "CompletedWithWarnings"
    COMPLETED_WITH_ERRORS = "CompletedWithErrors"
    DISK_NOT_FOUND = "DiskNotFound"
    VOLUME_NOT_NTFS = "VolumeNotNtfs"
    DISK_OPERATION_FAILED = "DiskOperationFailed"
    BITLOCKER_VOLUME_NOT_FOUND = "BitLockerVolumeNotFound"
    BITLOCKER_NOT_ACTIVATED = "BitLockerNotActivated"
    BITLOCKER_PROTECTOR_NOT_FOUND = "BitLockerProtectorNotFound"
    BITLOCKER_KEY_INVALID = "BitLockerKeyInvalid"
    BITLOCKER_UNLOCK_VOLUME_FAILED = "BitLockerUnlockVolumeFailed"
    BITLOCKER_FAILED = "BitLockerFailed"
    MANIFEST_NAME_INVALID = "ManifestNameInvalid"
    MANIFEST_NAME_TOO_LONG = "ManifestNameTooLong"
    MANIFEST_NOT_FOUND = "ManifestNotFound"
    MANIFEST_ACCESS_DENIED = "ManifestAccessDenied"
    MANIFEST_CORRUPTED = "ManifestCorrupted"
    MANIFEST_FORMAT_INVALID = "ManifestFormatInvalid"
    MANIFEST_DRIVE_ID_MISMATCH = "ManifestDriveIdMismatch"
    READ_MANIFEST_FAILED = "ReadManifestFailed"
    BLOB_LIST_FORMAT_INVALID = "BlobListFormatInvalid"
    BLOB_REQUEST_FORBIDDEN = "BlobRequestForbidden"
    INTERNAL_ERROR = "InternalError"


class BlobStatus(StrEnum):
    """How a blob ended."""

    COMPLETED = "Completed"
    COMPLETED_WITH_ERRORS = "CompletedWithErrors"
    FILE_NAME_INVALID = "FileNameInvalid"
    FILE_NAME_TOO_LONG = "FileNameTooLong"
    FILE_NOT_FOUND = "FileNotFound"
    FILE_ACCESS_DENIED = "FileAccessDenied"
    BLOB_REQUEST_FAILED = "BlobRequestFailed"
    BLOB_REQUEST_FORBIDDEN = "BlobRequestForbidden"
    RENAME_FAILED = "RenameFailed"
    BLOB_UNEXPECTED_CHANGE = "BlobUnexpectedChange"
    LEASE_PRESENT = "LeasePresent"
    IO_FAILED = "IOFailed"
    FAILED = "Failed"


class DispositionStatus(StrEnum):
    """What was done about a blob of the same name."""

    CREATED = "Created"
    RENAMED = "Renamed"
    SKIPPED = "Skipped"
    OVERWRITTEN = "Overwritten"
    CANCELLED = "Cancelled"


class BlockStatus(StrEnum):
    """How a block or page range ended."""

    COMPLETED = "Completed"
    COMMITTED = "Committed"
    UNCOMMITTED = "Uncommitted"
    CORRUPTED = "Corrupted"
    FILE_UNEXPECTED_END = "FileUnexpectedEnd"
    BLOB_UNEXPECTED_END = "BlobUnexpectedEnd"
    BLOB_REQUEST_FAILED = "BlobRequestFailed"
    IO_FAILED = "IOFailed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class FileStatus(StrEnum):
    """How a blob's metadata or properties ended."""

    COMPLETED = "Completed"
    FILE_NAME_INVALID = "FileNameInvalid"
    FILE_NAME_TOO_LONG = "FileNameTooLong"
    FILE_NOT_FOUND = "FileNotFound"
    FILE_ACCESS_DENIED = "FileAccessDenied"
    CORRUPTED = "Corrupted"
    XML_READ_FAILED = "XmlReadFailed"
    XML_WRITE_FAILED = "XmlWriteFailed"
    BLOB_REQUEST_FAILED = "BlobRequestFailed"
    IO_FAILED = "IOFailed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLog:
    """One block, as the manifest has it, and how it ended."""

    block: Block
    status: BlockStatus | str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobLog:
    """One blob. `blob_path` is the name it got, which differs from the manifest's when it was renamed.

    `is_page_blob`: its `blocks` are page ranges, which have no ids.
    """

    status: BlobStatus | str
    blob_path: str
    file_path: str
    length_bytes: int
    disposition: Disposition | str
    disposition_status: DispositionStatus | str
    blocks: tuple[BlockLog, ...] = ()
    metadata_status: FileStatus | str = ""
    properties_status: FileStatus | str = ""
    is_page_blob: bool = False

    @property
    def failed(self) -> bool:
        return self.status != BlobStatus.COMPLETED


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveLog:
    """One drive."""

    drive_id: str
    status: DriveStatus | str
    blobs: tuple[BlobLog, ...] = ()

    @property
    def errors_only(self) -> DriveLog:
        """The error log: failed blobs alone, with the blocks that did not succeed."""
        good = (BlockStatus.COMPLETED, BlockStatus.COMMITTED)
        return replace(
            self,
            blobs=tuple(
                replace(blob, blocks=tuple(block for block in blob.blocks if block.status not in good))
                for blob in self.blobs
                if blob.failed
            ),
        )


def overall_status(blobs: Iterable[BlobLog]) -> DriveStatus:
    """A drive's status from its blobs: errors, else warnings (skipped or renamed ones), else Completed."""
    status = DriveStatus.COMPLETED
    for blob in blobs:
        if blob.failed:
            return DriveStatus.COMPLETED_WITH_ERRORS
        if blob.disposition_status in (DispositionStatus.SKIPPED, DispositionStatus.RENAMED):
            status = DriveStatus.COMPLETED_WITH_WARNINGS
    return status


def write_copy_log(log: DriveLog) -> bytes:
    """The bytes of a log; give `log.errors_only` for the error log."""
    return "".join([log_head(log.drive_id), *map(blob_element, log.blobs), log_tail(log.status)]).encode()


def log_head(drive_id: str) -> str:
    """What a log begins with; its blobs follow, then `log_tail`."""
    opening = f"<DriveLog{xml.attribute('Version', VERSION)}>\n"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{opening}{xml.element("DriveId", drive_id)}\n'


def log_tail(status: str) -> str:
    """What a log ends with."""
    return xml.element("Status", status) + "\n</DriveLog>\n"


def blob_element(blob: BlobLog) -> str:
    """One blob of a log."""
    outer, inner = ("PageRangeList", "PageRange") if blob.is_page_blob else ("BlockList", "Block")
    blocks = "".join(
        f'<{inner} Offset="{entry.block.offset}" Length="{entry.block.length}"'
        f"{'' if blob.is_page_blob else xml.attribute('Id', entry.block.block_id)}"
        f"{xml.attribute('Hash', entry.block.md5)}{xml.attribute('Status', entry.status)}/>\n"
        for entry in blob.blocks
    )
    disposition = xml.element("ImportDisposition", blob.disposition, xml.attribute("Status", blob.disposition_status))
    extra = "".join(
        f"<{tag}{xml.attribute('Status', status)}/>\n"
        for tag, status in (("Metadata", blob.metadata_status), ("Properties", blob.properties_status))
        if status
    )
    return (
        f"<Blob{xml.attribute('Status', blob.status)}>\n{xml.element('BlobPath', blob.blob_path)}\n"
        f"{xml.element('FilePath', blob.file_path)}\n<Length>{blob.length_bytes}</Length>\n{disposition}\n"
        f"<{outer}>\n{blocks}</{outer}>\n{extra}</Blob>\n"
    )


def parse_copy_log(data: bytes) -> DriveLog:
    """Read a log in the classic form, all of it. Raises DataDamaged; `read_log` reads the other forms too."""
    reader = _Reader()
    xml.parse(data, "the copy log", reader.start, reader.end, limit_bytes=SIZE_LIMIT_BYTES)
    return reader.result()


def read_log(chunks: Iterable[Buffer]) -> LogSummary:
    """Read a log of any published form, in chunks of any size. Raises DataDamaged for what is none or is not whole."""
    first, chunks = _peek(chunks)
    if first == "DriveLog":
        reader = _SummaryReader()
        limit = STREAM_LIMIT_BYTES
        for _ in xml.read(chunks, "the copy log", reader.start, reader.end, limit_bytes=limit):
            pass
        return reader.result()
    if first in ("ErroredEntity", "File", "CopyLog"):
        return databoxlog.read(chunks, limit_bytes=STREAM_LIMIT_BYTES)
    raise DataDamaged(
        "this is no copy log", hint="name a file that ends in _error.xml, _verbose.xml or _CopyLog_...xml"
    )


def _peek(chunks: Iterable[Buffer]) -> tuple[str, Iterator[Buffer]]:
    """The tag of the first element, and all of the chunks."""
    source = iter(chunks)
    head = bytearray()
    while len(head) < _PEEK_BYTES and (chunk := next(source, None)) is not None:
        head += chunk
    wide = "utf-16" if bytes(head[:2]) in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    found = _FIRST.search(head[:_PEEK_BYTES].decode(wide, "replace"))

    def whole() -> Iterator[Buffer]:
        yield bytes(head)
        yield from source

    return found[1] if found else "", whole()


_BLOBS = frozenset({"DriveLog/Blob", "DriveLog/File"})
_STATUSES = frozenset(f"{blob}/{tag}" for blob in _BLOBS for tag in ("ImportDisposition", "Metadata", "Properties"))
_PARTS = frozenset(
    {
        "DriveLog/Blob/BlockList/Block",
        "DriveLog/Blob/PageRangeList/PageRange",
        "DriveLog/File/FileRangeList/FileRange",
    }
)
#: Dispositions that somebody should hear of though the blob is fine.
_TELLING = frozenset({DispositionStatus.RENAMED, DispositionStatus.SKIPPED, DispositionStatus.CANCELLED})


class _Reader:
    """Collects a log from XML events; elements it does not know are passed over."""

    def __init__(self) -> None:
        self._drive: dict[str, str] = {}
        self._blob: dict[str, str] = {}
        self._blocks: list[BlockLog] = []
        self._blobs: list[BlobLog] = []

    def start(self, path: str, attributes: dict[str, str]) -> None:
        parent, _, tag = path.rpartition("/")
        if not parent and tag != "DriveLog":
            raise DataDamaged(f"it begins with {tag!a}")
        if path == "DriveLog/Blob":
            self._blob, self._blocks = {"Status": attributes.get("Status", "")}, []
        elif path in _PARTS:
            self._blob["Part"] = tag
            self._blocks.append(_block_log(attributes))
        elif parent == "DriveLog/Blob" and tag in ("ImportDisposition", "Metadata", "Properties"):
            self._blob[f"{tag}/Status"] = attributes.get("Status", "")

    def end(self, path: str, text: str) -> None:
        parent, _, tag = path.rpartition("/")
        if path == "DriveLog/Blob":
            self._blobs.append(self._blob_log())
        elif parent == "DriveLog/Blob":
            self._blob[tag] = text
        elif parent == "DriveLog":
            self._drive[tag] = text

    def result(self) -> DriveLog:
        return DriveLog(
            drive_id=self._drive.get("DriveId", ""),
            status=_known(DriveStatus, self._drive.get("Status", "")),
            blobs=tuple(self._blobs),
        )

    def _blob_log(self) -> BlobLog:
        field = self._blob.get
        return BlobLog(
            status=_known(BlobStatus, field("Status", "")),
            blob_path=field("BlobPath", ""),
            file_path=field("FilePath", ""),
            length_bytes=_number(field("Length", "0")),
            disposition=_known(Disposition, field("ImportDisposition", "")),
            disposition_status=_known(DispositionStatus, field("ImportDisposition/Status", "")),
            blocks=tuple(self._blocks),
            metadata_status=_known(FileStatus, field("Metadata/Status", "")),
            properties_status=_known(FileStatus, field("Properties/Status", "")),
            is_page_blob=field("Part", "") == "PageRange",
        )


class _SummaryReader:
    """Collects a summary from XML events. `File` is what the log of an import into file shares has for `Blob`."""

    def __init__(self) -> None:
        self._collector = Collector()
        self._drive: dict[str, str] = {}
        self._blob: dict[str, str] = {}
        self._parts: Counter[str] = Counter()

    def start(self, path: str, attributes: dict[str, str]) -> None:
        if path in _BLOBS:
            self._blob = {"Status": attributes.get("Status", "")}
            self._parts = Counter()
        elif path in _PARTS:
            status = attributes.get("Status", "")
            if status not in (BlockStatus.COMPLETED, BlockStatus.COMMITTED):
                self._parts[status] += 1
        elif path in _STATUSES:
            self._blob[f"{path.rpartition('/')[2]}/Status"] = attributes.get("Status", "")

    def end(self, path: str, text: str) -> None:
        parent, _, tag = path.rpartition("/")
        if path in _BLOBS:
            self._add()
        elif parent in _BLOBS:
            self._blob[tag] = cut(text)
        elif parent == "DriveLog":
            self._drive[tag] = cut(text)

    def result(self) -> LogSummary:
        return self._collector.result(LogForm.CLASSIC, self._drive.get("DriveId", ""), self._drive.get("Status", ""))

    def _add(self) -> None:
        field = self._blob.get
        status, disposition = field("Status", ""), field("ImportDisposition/Status", "")
        length = field("Length", "") or field("SizeInBytes", "") or "0"
        extras = field("Metadata/Status", ""), field("Properties/Status", "")
        fine = all(extra in ("", FileStatus.COMPLETED) for extra in extras)
        if status == BlobStatus.COMPLETED and disposition not in _TELLING and fine:
            self._collector.add_good()
            return
        file = FileOutcome(
            status=status,
            blob_path=field("BlobPath", "") or field("FileStoragePath", ""),
            file_path=field("FilePath", "") or field("OriginalFilePath", ""),
            length_bytes=_number(length),
            disposition=disposition,
            parts=tuple(sorted(self._parts.items())),
            metadata=extras[0],
            properties=extras[1],
        )
        if status == BlobStatus.COMPLETED:
            self._collector.add_told(file, disposition if disposition in _TELLING else "Extras")
        elif status in databoxlog.RENAMED or status == DispositionStatus.RENAMED:
            self._collector.add_told(file, status)
        else:
            self._collector.add_failed(file)


def _block_log(attributes: dict[str, str]) -> BlockLog:
    return BlockLog(
        block=Block(
            offset=_number(attributes.get("Offset", "")),
            length=_number(attributes.get("Length", "")),
            block_id=attributes.get("Id", ""),
            md5=attributes.get("Hash", "").strip().upper(),
        ),
        status=_known(BlockStatus, attributes.get("Status", "")),
    )


_Status = TypeVar("_Status", bound=StrEnum)


def _known(statuses: type[_Status], text: str) -> _Status | str:
    return next((status for status in statuses if status == text), text)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise DataDamaged(f"{text!a} is not a number of bytes")
    return int(text)
