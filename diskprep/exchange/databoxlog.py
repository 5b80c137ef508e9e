"""Copy logs of the Data Box era (2021-08-01): a run of elements that is no document, then a summary.

A copy log has an `ErroredEntity` for each file that failed or was renamed and ends with `CopyLog`; a verbose log has a
`File` for each that arrived, and no summary. Source: "Use logs to troubleshoot imports and exports via Azure
Import/Export", and the samples there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import StrEnum

from diskprep.durable import Buffer
from diskprep.exchange import xml
from diskprep.exchange.logsummary import Collector, FileOutcome, LogForm, LogSummary, cut

_ROOT = "log"
_ENTITY = f"{_ROOT}/ErroredEntity"
_SUMMARY = f"{_ROOT}/CopyLog"
_HEAD_BYTES = 1 << 12
_DECLARATION = re.compile(rb"\A(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*\?>)?")


class Category(StrEnum):
    """Why a file is told of."""

    WIN32 = "UploadErrorWin32"
    CLOUD_HTTP = "UploadErrorCloudHttp"
    DATA_VALIDATION = "UploadErrorDataValidationError"
    FILE_PROPERTY = "UploadErrorFilePropertyError"
    MANAGED_CONVERSION = "UploadErrorManagedConversionError"
    UNKNOWN = "UploadErrorUnknownType"
    CONTAINER_RENAMED = "ContainerRenamed"
    SHARE_RENAMED = "ShareRenamed"
    BLOB_RENAMED = "BlobRenamed"
    FILE_RENAMED = "FileRenamed"
    DISK_RENAMED = "DiskRenamed"
    TRAILING_SLASH = "FileNameTrailsWithSlash"
    EXPORT_CLOUD_HTTP = "ExportCloudHttp"


#: What was copied all the same, under another name.
RENAMED = frozenset(
    {
        Category.CONTAINER_RENAMED,
        Category.SHARE_RENAMED,
        Category.BLOB_RENAMED,
        Category.FILE_RENAMED,
        Category.DISK_RENAMED,
    }
)


class Reader:
    """Collects a summary from XML events; elements it does not know are passed over."""

    def __init__(self) -> None:
        self._collector = Collector()
        self._entity: dict[str, str] = {}
        self._summary: dict[str, str] = {}

    def start(self, path: str, attributes: dict[str, str]) -> None:
        if path == _ENTITY:
            self._entity = {"Path": attributes.get("Path", "")}
        elif path == f"{_ROOT}/File":
            self._collector.add_good()

    def end(self, path: str, text: str) -> None:
        parent, _, tag = path.rpartition("/")
        if path == _ENTITY:
            self._add()
        elif parent == _ENTITY:
            self._entity[tag] = cut(text)
        elif parent == _SUMMARY and tag in ("DriveId", "Status", "FilesErrored"):
            self._summary[tag] = cut(text)

    def result(self) -> LogSummary:
        errored = self._summary.get("FilesErrored", "")
        return self._collector.result(
            LogForm.DATA_BOX,
            self._summary.get("DriveId", ""),
            self._summary.get("Status", ""),
            errored=int(errored) if errored.isascii() and errored.isdigit() and len(errored) < 12 else 0,
        )

    def _add(self) -> None:
        field = self._entity.get
        file = FileOutcome(
            status=field("Category", ""),
            blob_path=cut(field("Path", "")),
            code=field("ErrorCode", ""),
            message=field("ErrorMessage", ""),
        )
        if file.status in RENAMED:
            self._collector.add_told(file, file.status)
        else:
            self._collector.add_failed(file)


def read(chunks: Iterable[Buffer], *, limit_bytes: int) -> LogSummary:
    """Read such a log as a stream. Raises DataDamaged; one that breaks off in the middle of an element is damaged."""
    reader = Reader()
    for _ in xml.read(_wrapped(chunks), "the copy log", reader.start, reader.end, limit_bytes=limit_bytes):
        pass
    return reader.result()


def _wrapped(chunks: Iterable[Buffer]) -> Iterator[Buffer]:
    """The run of elements as one document: a root around it, its own declaration taken off."""
    yield f"<{_ROOT}>".encode()
    head, whole = b"", False
    for chunk in chunks:
        if whole:
            yield chunk
            continue
        head += bytes(chunk)
        if len(head) >= _HEAD_BYTES:
            whole = True
            yield _DECLARATION.sub(b"", head, count=1)
    if not whole:
        yield _DECLARATION.sub(b"", head, count=1)
    yield f"</{_ROOT}>".encode()
