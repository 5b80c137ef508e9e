"""WAImportExport's papers: what we write is what the published samples show."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from diskprep.errors import DataDamaged
from diskprep.exchange import waimportexport as w
from diskprep.secrets import Secret

PASSWORD = "238810-662376-448998-450120-652806-203390-606320-483076"
INFO = w.DriveInfo(
    drive_id="WD-WMATV123456",
    bitlocker_key=Secret(PASSWORD),
    manifest_file="\\DriveManifest.xml",
    manifest_hash="D863FE44F861AE0DA4DCEAEEFFCCCE68",
)
MOMENT = datetime(2026, 3, 1, 12, 30, 59, 7999, tzinfo=UTC)

#: As the published samples are put together, here with Unix line ends.
SAMPLE = b"""[BeginUpdateRecord][2016/11/02 18:24:14.735][Type:NewJournalFile]
VocabularyVersion: 2013-02-01
[EndUpdateRecord]
[BeginUpdateRecord][2016/11/02 18:24:14.749][Type:ActivityRecord]
ActivityId: PrepImportDriveCommandContext
LogDirectory: F:\\logs
[EndUpdateRecord]
[BeginUpdateRecord][2016/11/02 18:24:14.754][Type:ActivityRecord]
ActivityId: PrepImportDriveCommandContext
StorageAccountKey: *******
[EndUpdateRecord]
[BeginUpdateRecord][2016/11/01 21:22:25.379][Type:ActivityRecord]
ActivityId: DriveInfo
DriveState: [BeginValue]
<?xml version="1.0" encoding="UTF-8"?>
<Drive>
   <DriveId>drive-id</DriveId>
   <BitLockerKey>*******</BitLockerKey>
   <ManifestFile>\\DriveManifest.xml</ManifestFile>
   <ManifestHash>D863FE44F861AE0DA4DCEAEEFFCCCE68</ManifestHash>
</Drive>
[EndValue]
SaveCommandOutput: Completed
[EndUpdateRecord]
"""


def journal(info: w.DriveInfo = INFO) -> bytes:
    return w.write_journal(info, created=MOMENT, finished=MOMENT + timedelta(hours=3))


def test_the_drives_own_file_has_the_four_things_with_the_password() -> None:
    root = ET.fromstring(w.write_drive_info(INFO))
    assert (root.tag, root.attrib) == ("Drive", {})
    assert [(child.tag, child.text) for child in root] == [
        ("DriveId", "WD-WMATV123456"),
        ("BitLockerKey", PASSWORD),
        ("ManifestFile", "\\DriveManifest.xml"),
        ("ManifestHash", "D863FE44F861AE0DA4DCEAEEFFCCCE68"),
    ]


def test_the_journal_looks_like_the_published_samples() -> None:
    lines = journal().decode().split("\r\n")
    assert lines[:3] == [
        "[BeginUpdateRecord][2026/03/01 12:30:59.007][Type:NewJournalFile]",
        "VocabularyVersion: 2013-02-01",
        "[EndUpdateRecord]",
    ]
    sample = SAMPLE.decode().split("\n")[11:]
    sample[0] = "[BeginUpdateRecord][2026/03/01 15:30:59.007][Type:ActivityRecord]"
    sample[5] = sample[5].replace("drive-id", "WD-WMATV123456")
    assert lines[3:] == sample
    assert PASSWORD not in journal().decode()


def test_times_are_written_in_utc() -> None:
    east = MOMENT.astimezone(timezone(timedelta(hours=9)))
    assert w.write_journal(INFO, created=east, finished=east) == w.write_journal(INFO, created=MOMENT, finished=MOMENT)


def test_the_password_is_never_shown() -> None:
    assert PASSWORD not in repr(INFO) + str(INFO)
    for wrong in (PASSWORD[:-1], PASSWORD.replace("-", ""), PASSWORD.replace("238810", "x")):
        with pytest.raises(DataDamaged) as caught:
            replace(INFO, bitlocker_key=Secret(wrong))
        assert "662376" not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "fields",
    [
        {"drive_id": ""},
        {"drive_id": "WD WMATV123456"},
        {"drive_id": "a\x1b[2J"},
        {"manifest_file": "\\..\\..\\x"},
        {"manifest_file": "C:\\x"},
        {"manifest_hash": "D863"},
        {"bitlocker_key": Secret("")},
    ],
)
def test_what_breaks_a_rule_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(DataDamaged):
        replace(INFO, **fields)
