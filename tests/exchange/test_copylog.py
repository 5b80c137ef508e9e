"""All published generations of copy logs are read as a stream; what is hostile or broken off is refused."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from manifests import page_range_of

from diskprep.datacenter.intake_log import BlobEntry, DriveLogs
from diskprep.errors import DataDamaged
from diskprep.exchange import copylog as c
from diskprep.exchange import logsummary
from diskprep.exchange import manifest as m
from diskprep.exchange.databoxlog import RENAMED, Category
from diskprep.exchange.logsummary import FileOutcome, LogForm, LogSummary

FIXTURES = Path(__file__).parents[2] / "fixtures" / "manifests"

BLOBS = """
 <Blob Status="Completed"><BlobPath>c/fine</BlobPath><FilePath>\\fine</FilePath><Length>1</Length>
  <ImportDisposition Status="Created">rename</ImportDisposition>
  <BlockList><Block Offset="0" Length="1" Status="Completed"/></BlockList></Blob>
 <Blob Status="CompletedWithErrors"><BlobPath>c/bad</BlobPath><FilePath>\\d\\bad</FilePath><Length>9</Length>
  <ImportDisposition Status="Created">no-overwrite</ImportDisposition>
  <BlockList><Block Offset="0" Length="4" Status="Corrupted"/><Block Offset="4" Length="4" Status="Corrupted"/>
  <Block Offset="8" Length="1" Status="Uncommitted"/></BlockList></Blob>
 <Blob Status="FileNotFound"><BlobPath>c/gone</BlobPath><FilePath>\\gone</FilePath><Length>512</Length>
  <ImportDisposition Status="Cancelled">rename</ImportDisposition>
  <PageRangeList><PageRange Offset="0" Length="512" Status="Cancelled"/></PageRangeList></Blob>
 <Blob Status="Completed"><BlobPath>c/x (2)</BlobPath><FilePath>\\x</FilePath><Length>2</Length>
  <ImportDisposition Status="Renamed">rename</ImportDisposition><BlockList/></Blob>
 <Blob Status="Completed"><BlobPath>c/y</BlobPath><FilePath>\\y</FilePath><Length>2</Length>
  <ImportDisposition Status="Skipped">no-overwrite</ImportDisposition></Blob>
 <Blob Status="Completed"><BlobPath>c/z</BlobPath><FilePath>\\z</FilePath><Length>2</Length>
  <ImportDisposition Status="Created">rename</ImportDisposition><BlockList/>
  <Metadata Status="XmlReadFailed"><Path Hash="00">\\m</Path></Metadata></Blob>
"""
FILE_ENTRY = """<File Status="Completed"><FileStoragePath>share/f</FileStoragePath><FilePath>\\f</FilePath>
 <Length>2</Length><ImportDisposition Status="Created">rename</ImportDisposition>
 <FileRangeList><FileRange Offset="0" Length="2" Status="Completed"/></FileRangeList></File>"""
DATA_BOX = """<ErroredEntity CloudFormat="BlockBlob" Path="c/data/bad">
  <Category>UploadErrorWin32</Category><ErrorCode>1117</ErrorCode><ErrorMessage>I/O device error</ErrorMessage>
  <Type>File</Type>
</ErroredEntity><ErroredEntity Path="CON">
  <Category>ContainerRenamed</Category><ErrorCode>1</ErrorCode><ErrorMessage>to: databox-1 :from: CON</ErrorMessage>
  <Type>Container</Type>
</ErroredEntity>
<CopyLog Summary="Summary">
  <DriveLogVersion>2021-08-01</DriveLogVersion><DriveId>guid-of-the-drive</DriveId><Status>Failed</Status>
  <TotalFiles_Blobs>60</TotalFiles_Blobs><FilesErrored>1</FilesErrored>
  <Summary><ValidationErrors><None Count="3"/></ValidationErrors>
  <CopyErrors><UploadErrorWin32 Count="1" Description="d"/></CopyErrors></Summary>
</CopyLog>
"""


def classic(body: str, version: str = ' Version="2014-11-01"') -> bytes:
    status = "<Status>CompletedWithErrors</Status>"
    head = '<?xml version="1.0" encoding="utf-8"?>\n'
    return f"{head}<DriveLog{version}><DriveId>WD-1</DriveId>{body}{status}</DriveLog>".encode()


def read(data: bytes, chunk: int = 7) -> LogSummary:
    return c.read_log(data[at : at + chunk] for at in range(0, len(data), chunk))


@pytest.mark.parametrize("version", ["", ' Version="2014-11-01"', ' Version="2018-10-01"', ' Version="2040-01-01"'])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_the_classic_form_is_read_with_any_version_and_without(version: str, chunk: int) -> None:
    log = read(classic(BLOBS + FILE_ENTRY, version), chunk)
    assert (log.form, log.drive_id, log.status, log.files) == (LogForm.CLASSIC, "WD-1", "CompletedWithErrors", 7)
    assert [(file.status, file.blob_path, file.file_path, file.length_bytes) for file in log.failed] == [
        ("CompletedWithErrors", "c/bad", "\\d\\bad", 9),
        ("FileNotFound", "c/gone", "\\gone", 512),
    ]
    assert [file.parts for file in log.failed] == [(("Corrupted", 2), ("Uncommitted", 1)), (("Cancelled", 1),)]
    assert [file.blob_path for file in log.told] == ["c/x (2)", "c/y", "c/z"]
    assert log.told[2].metadata == "XmlReadFailed"
    assert log.told_counts == {"Renamed": 1, "Skipped": 1, "Extras": 1}
    assert log.unlisted == 0


def test_a_log_of_the_service_is_read_and_unknown_words_are_kept() -> None:
    log = read((FIXTURES / "copy-log.xml").read_bytes())
    assert (log.drive_id, log.status) == ("WD-WMATV123456", c.DriveStatus.COMPLETED_WITH_ERRORS)
    assert log.failed == (
        FileOutcome(
            status="CompletedWithErrors",
            blob_path="pictures/bob/wild/desert.jpg",
            file_path="\\pictures\\bob\\wild\\desert.jpg",
            length_bytes=30310,
            disposition="Overwritten",
            parts=(("Corrupted", 1), ("Toasted", 1)),
            metadata="Completed",
        ),
        FileOutcome(status="Melted", blob_path="pictures/x", file_path="\\pictures\\x", disposition="Cancelled"),
    )


def test_what_the_stand_in_writes_is_read() -> None:
    lost = m.ManifestBlob(
        blob_path="backup/a&b",
        file_path="\\a&b",
        length_bytes=1024,
        pages=(page_range_of(0, bytes(512)), page_range_of(512, bytes(512))),
    )
    logs = DriveLogs("WD-1")
    for status in (c.BlobStatus.COMPLETED, c.BlobStatus.IO_FAILED):
        parts = (c.BlockStatus.COMPLETED, c.BlockStatus.CORRUPTED)
        disposition = c.DispositionStatus.CREATED
        entry = BlobEntry(blob=lost, status=status, disposition=disposition, blob_path=lost.blob_path, parts=parts)
        logs.add(replace(entry, metadata=c.FileStatus.COMPLETED))
    logs.end()
    for spool, files in ((logs.verbose, 2), (logs.errors, 1)):
        log = c.read_log(spool.chunks())
        assert (log.drive_id, log.status, log.files) == ("WD-1", "CompletedWithErrors", files)
        assert log.failed == (
            FileOutcome(
                status="IOFailed",
                blob_path="backup/a&b",
                file_path="\\a&b",
                length_bytes=1024,
                disposition="Created",
                parts=(("Corrupted", 1),),
                metadata="Completed",
            ),
        )


def test_a_renamed_container_of_2018_is_told_with_its_original_path() -> None:
    entry = (
        '<Summary><CopyErrors><ContainerRenamed Count="1"/></CopyErrors></Summary><Blob Status="ContainerRenamed">'
        "<BlobPath>databox-1/a</BlobPath><OriginalFilePath>\\x\\a</OriginalFilePath><SizeInBytes>7</SizeInBytes></Blob>"
    )
    log = read(classic(entry, ' Version="2018-10-01"'))
    assert not log.failed
    assert log.told == (
        FileOutcome(status="ContainerRenamed", blob_path="databox-1/a", file_path="\\x\\a", length_bytes=7),
    )


@pytest.mark.parametrize("head", ["", '<?xml version="1.0" encoding="utf-8"?>\n', "\ufeff", "\n\n"])
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_the_data_box_form_is_read_though_it_is_no_document(head: str, chunk: int) -> None:
    log = read((head + DATA_BOX).encode(), chunk)
    assert (log.form, log.drive_id, log.status) == (LogForm.DATA_BOX, "guid-of-the-drive", "Failed")
    assert log.failed == (
        FileOutcome(status="UploadErrorWin32", blob_path="c/data/bad", code="1117", message="I/O device error"),
    )
    assert [file.blob_path for file in log.told] == ["CON"]
    assert log.told_counts == {"ContainerRenamed": 1}
    assert log.unlisted == 0


def test_a_data_box_log_that_counts_more_failures_than_it_lists_says_so() -> None:
    log = read(DATA_BOX.replace("<FilesErrored>1<", "<FilesErrored>6<").encode())
    assert (len(log.failed), log.unlisted) == (1, 5)


def test_a_verbose_data_box_log_has_no_summary() -> None:
    one = '<File CloudFormat="BlockBlob" Path="c\\a" Size="1024" crc64="14179624636173788226">\n</File>'
    log = read((one * 3).encode())
    assert (log.form, log.files, log.drive_id, log.status, log.failed) == (LogForm.DATA_BOX, 3, "", "", ())


def test_the_vocabularies_are_complete() -> None:
    sizes = [c.DriveStatus, c.BlobStatus, c.DispositionStatus, c.BlockStatus, c.FileStatus]
    assert [len(kind) for kind in sizes] == [23, 13, 5, 10, 12]


def test_the_categories_are_complete() -> None:
    assert len(Category) == 13
    assert len(RENAMED) == 5


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<x/>",
        b"no log at all",
        classic(BLOBS)[:-20],
        DATA_BOX.encode()[:-20],
        classic('<Blob Status="IOFailed"><Length>x</Length></Blob>'),
        classic(BLOBS) + classic(BLOBS),
        b'<!DOCTYPE DriveLog [<!ENTITY a "aaaa">]><DriveLog>&a;</DriveLog>',
        b"<DriveLog>" + b"<a>" * 40,
        b"<ErroredEntity><Category>" + b"x" * (3 << 20) + b"</Category></ErroredEntity>",
        b'<ErroredEntity Path="' + b"x" * (3 << 20) + b'"></ErroredEntity>',
        b"".join(b"<ErroredEntity a%d=''/>" % number for number in range(2000)),
        b"</log><log>" + DATA_BOX.encode(),
        DATA_BOX.encode() + b"</log><ErroredEntity/><log>",
        b"<DriveLog><Status>a\x00b</Status></DriveLog>",
    ],
    ids=lambda data: data[:24].decode("ascii", "replace"),
)
def test_what_is_no_log_or_not_whole_is_refused(data: bytes) -> None:
    with pytest.raises(DataDamaged):
        read(data, 1 << 16)


def test_of_many_failures_a_number_is_kept_and_the_rest_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logsummary, "FAILED_LIMIT", 10)
    monkeypatch.setattr(logsummary, "TOLD_LIMIT", 3)
    log = read(classic(BLOBS * 20), 1 << 16)
    assert (len(log.failed), log.unlisted, len(log.told)) == (10, 30, 3)
    assert log.told_counts == {"Renamed": 20, "Skipped": 20, "Extras": 20}
    assert log.files == 120


def test_a_long_verbose_log_takes_no_memory_to_speak_of() -> None:
    good = BLOBS[: BLOBS.index("</Blob>") + len("</Blob>")].encode() * 100

    def chunks() -> Iterator[bytes]:
        yield b"<DriveLog><DriveId>WD-1</DriveId>"
        for _ in range(600):
            yield good
        yield b"<Status>Completed</Status></DriveLog>"

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    log = c.read_log(chunks())
    assert log.files == 60_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10
