"""Copy logs: what the datacenter writes about a drive it has copied, in the classic form (`<DriveLog>`).

The verbose log holds every blob; the error log has the same shape without what succeeded, and exists only when
something failed. Statuses are the published ones; a status that is not known is kept as text. Three generations are
read: this form with a version and without one, and the one that came with Data Box (`databoxlog`).

A log is read as a stream, and what did not simply arrive is kept; so may a log of a million blobs be read.
Source: the service's published "Import/Export service log file format".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged
from diskprep.exchange import databoxlog, xml
from diskprep.exchange.logsummary import Collector, FileOutcome, LogForm, LogSummary, cut

VERSION = "2014-11-01"
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


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise DataDamaged(f"{text!a} is not a number of bytes")
    return int(text)
