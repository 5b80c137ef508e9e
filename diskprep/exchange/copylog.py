"""Copy logs: what the datacenter writes about a drive it has copied, in the classic form (`<DriveLog>`).

The verbose log holds every blob; the error log has the same shape without what succeeded, and exists only when
something failed. Statuses are the published ones; a reader keeps a status it does not know as text.
Source: the service's published "Import/Export service log file format".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from diskprep.errors import DataDamaged, NotBuilt
from diskprep.exchange import xml
from diskprep.exchange.manifest import Block, Disposition

VERSION = "2014-11-01"
SIZE_LIMIT_BYTES = 1 << 30


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
    """One blob. `blob_path` is the name it got, which differs from the manifest's when it was renamed."""

    status: BlobStatus | str
    blob_path: str
    file_path: str
    length_bytes: int
    disposition: Disposition | str
    disposition_status: DispositionStatus | str
    blocks: tuple[BlockLog, ...] = ()
    metadata_status: FileStatus | str = ""
    properties_status: FileStatus | str = ""

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
    out = ['<?xml version="1.0" encoding="UTF-8"?>\n', f"<DriveLog{xml.attribute('Version', VERSION)}>\n"]
    out.append(xml.element("DriveId", log.drive_id) + "\n")
    out.extend(_blob_xml(blob) for blob in log.blobs)
    out.append(xml.element("Status", log.status) + "\n</DriveLog>\n")
    return "".join(out).encode()


def parse_copy_log(data: bytes) -> DriveLog:
    """Read a log in the classic form. Raises DataDamaged; NotBuilt for the form that came with Data Box."""
    if b"<DriveLog" not in data and (b"<CopyLog" in data or b"<ErroredEntity" in data):
        raise NotBuilt("this copy log is in the later, Data Box form", hint="read it in the portal")
    reader = _Reader()
    xml.parse(data, "the copy log", reader.start, reader.end, limit_bytes=SIZE_LIMIT_BYTES)
    return reader.result()


def _blob_xml(blob: BlobLog) -> str:
    blocks = "".join(
        f'<Block Offset="{entry.block.offset}" Length="{entry.block.length}"'
        f"{xml.attribute('Id', entry.block.block_id)}{xml.attribute('Hash', entry.block.md5)}"
        f"{xml.attribute('Status', entry.status)}/>\n"
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
        f"<BlockList>\n{blocks}</BlockList>\n{extra}</Blob>\n"
    )


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
        elif path == "DriveLog/Blob/BlockList/Block":
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
        )


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
