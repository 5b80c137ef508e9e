"""What WAImportExport leaves beside a drive: the journal (.jrn) and the drive's own file, which the portal asks for.

For people whose process needs them; diskprep itself needs neither. The journal is a text of update records, and its
last complete `DriveInfo` record describes the drive. Only samples of it are published, without a grammar: we write what
they show. In a journal, secrets stand as `*******`; the drive's file holds the recovery password in clear.
Source: the samples in the service's published description of the tool.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from diskprep.errors import DataDamaged
from diskprep.exchange import xml
from diskprep.exchange.manifest import check_drive_id, check_file_path
from diskprep.secrets import Secret

VOCABULARY_VERSION = "2013-02-01"
MASKED = "*******"
_LINE_END = "\r\n"
_MD5 = re.compile(r"[0-9A-F]{32}")
_RECOVERY_PASSWORD = re.compile(r"[0-9]{6}(?:-[0-9]{6}){7}")
_BEGIN = b"[BeginUpdateRecord]"
_END = b"[EndUpdateRecord]"
_BEGIN_VALUE = "[BeginValue]"
_END_VALUE = "[EndValue]"
_FIELDS = ("DriveId", "BitLockerKey", "ManifestFile", "ManifestHash")


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveInfo:
    """The four things a job wants to know of a drive. `bitlocker_key` is None where it is masked."""

    drive_id: str
    bitlocker_key: Secret[str] | None
    manifest_file: str
    manifest_hash: str

    def __post_init__(self) -> None:
        check_drive_id(self.drive_id)
        check_file_path(self.manifest_file)
        if not _MD5.fullmatch(self.manifest_hash):
            raise DataDamaged(f"{self.manifest_hash!a} is not a manifest's hash")
        if self.bitlocker_key is not None and not _RECOVERY_PASSWORD.fullmatch(self.bitlocker_key.reveal()):
            raise DataDamaged("the BitLockerKey is not a recovery password")


def file_names(serial: str) -> tuple[str, str]:
    """The names of a drive's journal and of its own file: `SERIAL.jrn`, `SERIAL_DriveInfo_SERIAL.xml`."""
    return f"{serial}.jrn", f"{serial}_DriveInfo_{serial}.xml"


def write_drive_info(info: DriveInfo) -> bytes:
    """The drive's own file, which holds the recovery password in clear."""
    key = MASKED if info.bitlocker_key is None else info.bitlocker_key.reveal()
    return _drive_xml(info, key).encode()


def write_journal(info: DriveInfo, *, created: datetime, finished: datetime) -> bytes:
    """The journal of a drive that was prepared in one session. Times are written in UTC. It holds no secret."""
    records = (
        _record(created, "NewJournalFile", [f"VocabularyVersion: {VOCABULARY_VERSION}"]),
        _record(
            finished,
            "ActivityRecord",
            [
                "ActivityId: DriveInfo",
                f"DriveState: {_BEGIN_VALUE}",
                _drive_xml(info, MASKED).removesuffix(_LINE_END),
                _END_VALUE,
                "SaveCommandOutput: Completed",
            ],
        ),
    )
    return "".join(records).encode()


def _drive_xml(info: DriveInfo, key: str) -> str:
    values = zip(_FIELDS, (info.drive_id, key, info.manifest_file, info.manifest_hash), strict=True)
    lines = [f"   {xml.element(tag, value)}" for tag, value in values]
    return _LINE_END.join(['<?xml version="1.0" encoding="UTF-8"?>', "<Drive>", *lines, "</Drive>", ""])


def _record(moment: datetime, kind: str, lines: list[str]) -> str:
    stamp = f"{moment.astimezone(UTC):%Y/%m/%d %H:%M:%S.%f}"[:-3]
    return _LINE_END.join([f"{_BEGIN.decode()}[{stamp}][Type:{kind}]", *lines, _END.decode(), ""])
