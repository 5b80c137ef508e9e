"""Copy logs: ours are read back; those of others are read, unknown words included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from diskprep.errors import DataDamaged
from diskprep.exchange import copylog as c
from diskprep.exchange.manifest import Disposition, block_of

FIXTURES = Path(__file__).parents[2] / "fixtures" / "manifests"


def blob(status: c.BlobStatus, disposition: c.DispositionStatus, *blocks: c.BlockStatus) -> c.BlobLog:
    return c.BlobLog(
        status=status,
        blob_path="backup/a&b",
        file_path="\\repository\\a&b",
        length_bytes=len(blocks),
        disposition=Disposition.NO_OVERWRITE,
        disposition_status=disposition,
        blocks=tuple(c.BlockLog(block=block_of(i, b"x"), status=status) for i, status in enumerate(blocks)),
    )


GOOD = blob(c.BlobStatus.COMPLETED, c.DispositionStatus.CREATED, c.BlockStatus.COMPLETED)
SKIPPED = blob(c.BlobStatus.COMPLETED, c.DispositionStatus.SKIPPED, c.BlockStatus.COMPLETED)
BAD = blob(
    c.BlobStatus.COMPLETED_WITH_ERRORS,
    c.DispositionStatus.CREATED,
    c.BlockStatus.UNCOMMITTED,
    c.BlockStatus.CORRUPTED,
    c.BlockStatus.COMPLETED,
)


def test_what_is_written_is_read_back() -> None:
    log = c.DriveLog(drive_id="WD-1", status=c.DriveStatus.COMPLETED_WITH_ERRORS, blobs=(GOOD, BAD))
    assert c.parse_copy_log(c.write_copy_log(log)) == log


def test_the_error_log_holds_what_failed_alone() -> None:
    log = c.DriveLog(drive_id="WD-1", status=c.DriveStatus.COMPLETED_WITH_ERRORS, blobs=(GOOD, BAD, SKIPPED))
    assert [len(blob.blocks) for blob in log.errors_only.blobs] == [2]
    assert log.errors_only.status == log.status


def test_a_drive_ends_as_its_worst_blob_did() -> None:
    assert c.overall_status([]) == "Completed"
    assert c.overall_status([GOOD, GOOD]) == "Completed"
    assert c.overall_status([GOOD, SKIPPED]) == "CompletedWithWarnings"
    assert c.overall_status([SKIPPED, BAD]) == "CompletedWithErrors"


def test_a_log_of_the_service_is_read_and_unknown_words_are_kept() -> None:
    log = c.parse_copy_log((FIXTURES / "copy-log.xml").read_bytes())
    assert log.status is c.DriveStatus.COMPLETED_WITH_ERRORS
    assert [blob.status for blob in log.blobs] == ["CompletedWithErrors", "Melted"]
    assert [block.status for block in log.blobs[0].blocks] == [c.BlockStatus.CORRUPTED, "Toasted"]
    assert log.blobs[0].metadata_status is c.FileStatus.COMPLETED
    assert log.blobs[0].disposition_status is c.DispositionStatus.OVERWRITTEN


def test_the_vocabularies_are_complete() -> None:
    sizes = [c.DriveStatus, c.BlobStatus, c.DispositionStatus, c.BlockStatus, c.FileStatus]
    assert [len(kind) for kind in sizes] == [23, 13, 5, 10, 12]


@pytest.mark.parametrize("data", [b"", b"<x/>", b"<DriveLog><Blob><Length>x</Length></Blob></DriveLog>", b"<DriveLog>"])
def test_what_is_no_log_is_refused(data: bytes) -> None:
    with pytest.raises(DataDamaged):
        c.parse_copy_log(data)


def test_a_log_can_be_written_a_blob_at_a_time() -> None:
    log = c.DriveLog(drive_id="WD-1", status=c.DriveStatus.COMPLETED_WITH_ERRORS, blobs=(GOOD, BAD))
    parts = [c.log_head("WD-1"), c.blob_element(GOOD), c.blob_element(BAD), c.log_tail(log.status)]
    assert "".join(parts).encode() == c.write_copy_log(log)


def test_page_blobs_have_page_ranges_without_ids() -> None:
    paged = replace(BAD, is_page_blob=True, metadata_status=c.FileStatus.XML_READ_FAILED)
    log = c.DriveLog(drive_id="WD-1", status=c.DriveStatus.COMPLETED_WITH_ERRORS, blobs=(paged, GOOD))
    data = c.write_copy_log(log)
    assert data.count(b"<PageRange ") == 3
    assert b"Id=" not in data[: data.index(b"<BlockList>")]
    read = c.parse_copy_log(data)
    assert read.blobs[0].is_page_blob
    assert not read.blobs[1].is_page_blob
    assert [part.status for part in read.blobs[0].blocks] == [part.status for part in paged.blocks]
    assert read.blobs[0].metadata_status is c.FileStatus.XML_READ_FAILED
