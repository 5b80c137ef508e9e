"""WAImportExport's papers: what we write is what the samples show; what others wrote is read as far as it is whole."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_the_drives_own_file_is_read_back_with_the_password() -> None:
    data = w.write_drive_info(INFO)
    assert w.parse_drive_info(data) == INFO
    root = ET.fromstring(data)
    assert (root.tag, root.attrib) == ("Drive", {})
    assert [(child.tag, child.text) for child in root] == [
        ("DriveId", "WD-WMATV123456"),
        ("BitLockerKey", PASSWORD),
        ("ManifestFile", "\\DriveManifest.xml"),
        ("ManifestHash", "D863FE44F861AE0DA4DCEAEEFFCCCE68"),
    ]


def test_the_journal_is_read_back_without_the_password() -> None:
    data = journal()
    assert w.parse_journal(data) == replace(INFO, bitlocker_key=None)
    assert PASSWORD.encode() not in data
    assert data.count(b"*******") == 1


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


def test_times_are_written_in_utc() -> None:
    east = MOMENT.astimezone(timezone(timedelta(hours=9)))
    assert w.write_journal(INFO, created=east, finished=east) == w.write_journal(INFO, created=MOMENT, finished=MOMENT)


def test_a_published_sample_is_read() -> None:
    found = w.parse_journal(SAMPLE)
    assert (found.drive_id, found.bitlocker_key) == ("drive-id", None)
    assert w.parse_journal(b"\xef\xbb\xbf" + SAMPLE.replace(b"\n", b"\r\n")) == found


def test_the_last_complete_record_counts() -> None:
    other = replace(INFO, drive_id="OTHER")
    assert w.parse_journal(journal() + journal(other)).drive_id == "OTHER"
    assert w.parse_journal(journal(other) + journal()).drive_id == INFO.drive_id


def test_wherever_a_crash_cut_the_last_record_the_one_before_it_counts() -> None:
    first, second = journal(), journal(replace(INFO, drive_id="OTHER"))
    whole = len(first + second) - len(b"\r\n")
    for end in range(len(first), whole):
        assert w.parse_journal((first + second)[:end]).drive_id == INFO.drive_id, end
    assert w.parse_journal((first + second)[:whole]).drive_id == "OTHER"


def test_a_torn_record_in_the_middle_is_passed_over() -> None:
    first, second = journal(), journal(replace(INFO, drive_id="OTHER"))
    for end in range(len(second) - len(b"[EndUpdateRecord]\r\n")):
        assert w.parse_journal(first + second[:end] + b"\r\n" + first).drive_id == INFO.drive_id
        if end < len(second) - 100:
            assert w.parse_journal(first + second[:end]).drive_id == INFO.drive_id


def test_every_beginning_of_a_journal_is_no_journal_or_the_drive() -> None:
    data = journal()
    for end in range(len(data) - 2):
        with pytest.raises(DataDamaged, match="complete"):
            w.parse_journal(data[:end])


def test_the_password_is_never_shown() -> None:
    assert PASSWORD not in repr(INFO) + str(INFO)
    data = w.write_drive_info(INFO)
    for old, new in ((b"238810", b"23881"), (b"-662376", b"-x-662376"), (b"</Drive>", b"</Wrong>"), (b"</Bit", b"</x")):
        assert old in data
        with pytest.raises(DataDamaged) as caught:
            w.parse_drive_info(data.replace(old, new))
        assert "662376" not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"WD-WMATV123456", b""),
        (b"WD-WMATV123456", b"WD WMATV123456"),
        (b"WD-WMATV123456", b"a&#27;[2J"),
        (b"\\DriveManifest.xml", b"\\..\\..\\x"),
        (b"\\DriveManifest.xml", b"C:\\x"),
        (b"D863FE44F861AE0DA4DCEAEEFFCCCE68", b"D863"),
        (b"<DriveId>WD-WMATV123456</DriveId>", b""),
        (b"<BitLockerKey>" + PASSWORD.encode() + b"</BitLockerKey>", b""),
        (PASSWORD.encode(), b""),
        (PASSWORD.encode(), PASSWORD.replace("-", "").encode()),
        (b"<Drive>", b"<Drive><DriveId>A</DriveId>"),
        (b"<Drive>", b"<Other>"),
        (b"</Drive>", b""),
        (b"<Drive>", b'<!DOCTYPE x [<!ENTITY a "b">]><Drive>'),
        (b"UTF-8", b"UTF-99"),
    ],
)
def test_what_breaks_a_rule_is_refused(old: bytes, new: bytes) -> None:
    data = w.write_drive_info(INFO)
    assert old in data
    with pytest.raises(DataDamaged):
        w.parse_drive_info(data.replace(old, new, 1))


def test_elements_of_a_newer_tool_are_passed_over() -> None:
    data = w.write_drive_info(INFO).replace(b"</Drive>", b"<DriveHeaderHash/><New><DriveId>x</DriveId></New></Drive>")
    assert w.parse_drive_info(data) == INFO


def test_a_hash_in_small_letters_is_the_same() -> None:
    data = w.write_drive_info(INFO)
    assert w.parse_drive_info(data.replace(b"D863FE44", b"d863fe44")) == INFO


def test_a_value_may_hold_what_looks_like_a_field() -> None:
    trick = SAMPLE.replace(b"<Drive>\n", b"<Drive>\nActivityId: Other\n")
    assert w.parse_journal(trick).drive_id == "drive-id"


HOSTILE = {
    "empty": b"",
    "zeros": bytes(1 << 20),
    "one line": b"x" * (15 << 20),
    "one name": b"[BeginUpdateRecord]\n" + b":" * (15 << 20) + b"\n[EndUpdateRecord]\n",
    "lines": b"\n" * (2 << 20),
    "records": b"[BeginUpdateRecord]\nActivityId: DriveInfo\n[EndUpdateRecord]\n" * 50_000,
    "open values": b"[BeginUpdateRecord]\nDriveState: [BeginValue]\n" * 100_000,
    "deep": SAMPLE.replace(b"<Drive>\n", b"<Drive>" * 100_000),
    "too long": bytes(w.SIZE_LIMIT_BYTES + 1),
    "not text": SAMPLE.replace(b"drive-id", b"\xff\xfe\xff"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_journals_are_refused_in_reasonable_time(name: str) -> None:
    started = time.process_time()
    with pytest.raises(DataDamaged):
        w.parse_journal(HOSTILE[name])
    assert time.process_time() - started < 2


@given(st.binary(max_size=200), st.integers(0, 1100), st.integers(0, 40))
def test_any_change_gives_a_drive_or_damage(noise: bytes, offset: int, cut: int) -> None:
    changed = SAMPLE[:offset] + noise + SAMPLE[offset + cut :]
    try:
        found = w.parse_journal(changed)
    except DataDamaged:
        return
    assert found.manifest_hash
