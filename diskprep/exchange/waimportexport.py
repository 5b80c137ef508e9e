"""What WAImportExport leaves beside a drive: the journal (.jrn) and the drive's own file, which the portal asks for.

For people whose process needs them; diskprep itself needs neither. The journal is a text of update records, and its
last complete `DriveInfo` record describes the drive. Only samples of it are published, without a grammar: we write what
they show, and read what looks like it. In a journal, secrets stand as `*******`; the drive's file holds the recovery
password in clear. Source: the samples in the service's published description of the tool.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged
from diskprep.exchange import xml
from diskprep.exchange.manifest import check_drive_id, check_file_path
from diskprep.secrets import Secret

VOCABULARY_VERSION = "2013-02-01"
MASKED = "*******"
SIZE_LIMIT_BYTES = 16 << 20
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


def parse_drive_info(data: Buffer) -> DriveInfo:
    """Read a drive's own file. Elements it does not know are passed over. Raises DataDamaged, which repeats no key."""
    found: dict[str, str] = {}

    def start(path: str, _attributes: dict[str, str]) -> None:
        if path.partition("/")[0] != "Drive":
            raise DataDamaged(f"it begins with {path!a}")

    def end(path: str, text: str) -> None:
        parent, _, tag = path.rpartition("/")
        if parent == "Drive" and tag in _FIELDS:
            if tag in found:
                raise DataDamaged(f"{tag} is given twice")
            found[tag] = text

    xml.parse(data, "the drive's description", start, end, limit_bytes=SIZE_LIMIT_BYTES)
    if missing := [tag for tag in _FIELDS if tag not in found]:
        raise DataDamaged(f"the drive's description has no {' and no '.join(missing)}")
    key = found["BitLockerKey"]
    return DriveInfo(
        drive_id=found["DriveId"],
        bitlocker_key=None if set(key) == {"*"} else Secret(key),
        manifest_file=found["ManifestFile"],
        manifest_hash=found["ManifestHash"].upper(),
    )


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


def parse_journal(data: bytes) -> DriveInfo:
    """The drive as the last complete DriveInfo record of a journal has it; what a crash tore off is passed over.

    Raises DataDamaged when there is none, or when it breaks a rule.
    """
    if len(data) > SIZE_LIMIT_BYTES:
        raise DataDamaged(f"the journal has {len(data)} bytes; the limit is {SIZE_LIMIT_BYTES}")
    state = None
    for lines in _records(data):
        fields = _parse_fields(lines)
        if fields.get("ActivityId") == "DriveInfo" and "DriveState" in fields:
            state = fields["DriveState"]
    if state is None:
        raise DataDamaged("the journal has no complete DriveInfo record", hint="is it the .jrn file of a drive?")
    return parse_drive_info(state.strip().encode())


def _drive_xml(info: DriveInfo, key: str) -> str:
    values = zip(_FIELDS, (info.drive_id, key, info.manifest_file, info.manifest_hash), strict=True)
    lines = [f"   {xml.element(tag, value)}" for tag, value in values]
    return _LINE_END.join(['<?xml version="1.0" encoding="UTF-8"?>', "<Drive>", *lines, "</Drive>", ""])


def _record(moment: datetime, kind: str, lines: list[str]) -> str:
    stamp = f"{moment.astimezone(UTC):%Y/%m/%d %H:%M:%S.%f}"[:-3]
    return _LINE_END.join([f"{_BEGIN.decode()}[{stamp}][Type:{kind}]", *lines, _END.decode(), ""])


def _records(data: bytes) -> Iterator[list[bytes]]:
    """The lines of each complete record. A record that begins inside another shows that a crash tore that one off."""
    lines: list[bytes] | None = None
    for line in data.removeprefix(b"\xef\xbb\xbf").splitlines():
        if line.startswith(_BEGIN):
            lines = []
        elif line.strip() == _END:
            if lines is not None:
                yield lines
            lines = None
        elif lines is not None:
            lines.append(line)


def _parse_fields(lines: list[bytes]) -> dict[str, str]:
    """`Name: value` lines, and values of several lines between their marks. What is neither is passed over."""
    fields: dict[str, str] = {}
    name = ""
    value: list[str] | None = None
    for raw in lines:
        line = raw.decode("utf-8", "replace")
        if value is not None:
            if line.strip() == _END_VALUE:
                fields[name], value = "\n".join(value), None
            else:
                value.append(line)
            continue
        name, colon, rest = line.partition(":")
        if colon and rest.strip() == _BEGIN_VALUE:
            value = []
        elif colon:
            fields[name.strip()] = rest.strip()
    return fields
