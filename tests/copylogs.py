"""Copy logs as values, for tests: all of a log in the classic form, read with the standard library's parser."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree as ET


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobLog:
    """One blob; `parts` are the statuses of its blocks or page ranges. What is not there is empty."""

    status: str
    blob_path: str
    file_path: str
    disposition_status: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveLog:
    """One drive."""

    drive_id: str
    status: str
    blobs: tuple[BlobLog, ...]


def parse_copy_log(data: bytes) -> DriveLog:
    root = ET.fromstring(data)
    assert root.tag == "DriveLog"
    return DriveLog(
        drive_id=root.findtext("DriveId", ""),
        status=root.findtext("Status", ""),
        blobs=tuple(_blob(blob) for blob in root.findall("Blob")),
    )


def _blob(blob: ET.Element) -> BlobLog:
    disposition = blob.find("ImportDisposition")
    assert disposition is not None
    return BlobLog(
        status=blob.attrib["Status"],
        blob_path=blob.findtext("BlobPath", ""),
        file_path=blob.findtext("FilePath", ""),
        disposition_status=disposition.attrib["Status"],
        parts=tuple(part.attrib["Status"] for tag in ("Block", "PageRange") for part in blob.iter(tag)),
    )
