"""The copy process: real disks, prepared as `disk prepare` prepares them, read as the datacenter reads them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from copylogs import DriveLog, parse_copy_log
from drives import MIB, PASSWORD, SERIAL, add_manifest, block_blob, make_drive
from manifests import DriveManifest, write_manifest

from diskprep import clock
from diskprep.datacenter.server import Datacenter, Summary
from diskprep.events import Event, Note, Progress
from diskprep.exchange import manifest as m
from diskprep.importjob.client import AzureImportService
from diskprep.importjob.model import Drive, Job, JobRequest, LogLevel, Package, ReturnAddress
from diskprep.secrets import Secret
from diskprep.store import BlobStore
from diskprep.store.directory import DirectoryAccount
from diskprep.volume.bitlocker import generate_recovery_password

SUBSCRIPTION = "00000000-0000-4000-8000-000000000001"
FILES = {
    "data/aa/one": os.urandom(9 * MIB + 5),
    "data/bb/two": os.urandom(3),
    "data/bb/three": os.urandom(5 * MIB),
    "four.jpg": os.urandom(70_000),
    "empty": b"",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A disk and what the job must say of it."""

    path: Path
    manifest: bytes

    @property
    def drive(self) -> Drive:
        return Drive(
            drive_id=SERIAL,
            recovery_password=PASSWORD,
            manifest_file="\\DriveManifest.xml",
            manifest_hash=m.manifest_hash(self.manifest),
            opened=True,
        )


def entry(name: str, data: bytes, disposition: m.Disposition = m.Disposition.NO_OVERWRITE) -> m.ManifestBlob:
    return block_blob(name, data, disposition=disposition)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A formatted disk with the files on it and no manifest: each test copies it and adds its own."""
    return make_drive(tmp_path_factory.mktemp("disk") / "base.img", FILES)


@pytest.fixture
def prepare(base: Path, tmp_path: Path, account: DirectoryAccount) -> Callable[..., Prepared]:
    def make(
        blobs: Sequence[m.ManifestBlob] | None = None,
        change: Callable[[bytes], bytes] = lambda data: data,
        drive_id: str = SERIAL,
        **fields: Any,
    ) -> Prepared:
        blobs = [entry(name, data) for name, data in FILES.items()] if blobs is None else blobs
        sas = account.container_sas("backup", clock.now() + timedelta(days=1))
        value = DriveManifest(drive_id=drive_id, container_sas=sas, client_creator="test", blobs=tuple(blobs))
        data = change(write_manifest(replace(value, **fields)))
        path = tmp_path / "disk.img"
        with base.open("rb") as origin, path.open("wb") as target:
            while os.copy_file_range(origin.fileno(), target.fileno(), 1 << 30):
                pass
        add_manifest(path, data)
        return Prepared(path=path, manifest=data)

    return make


@pytest.fixture
def service(datacenter: Datacenter) -> AzureImportService:
    return AzureImportService(datacenter.base_url, Secret("the-token"), SUBSCRIPTION, "seeding", retries=0)


@pytest.fixture
def container(account: DirectoryAccount) -> BlobStore:
    return account.container("backup")


RETURN = ReturnAddress(
    recipient_name="Operator",
    street_address1="1 Street",
    city="Town",
    postal_code="12345",
    country_or_region="Netherlands",
    phone="0123",
    email="operator@example.org",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What came of a job."""

    summary: Summary
    job: Job
    log: DriveLog
    error_log: DriveLog | None
    events: list[Event]


@pytest.fixture
def run(datacenter: Datacenter, service: AzureImportService, account: DirectoryAccount) -> Callable[..., Done]:
    """Create and ship a job with the real client, then do the staff's work."""

    def log(uri: str) -> DriveLog | None:
        if not uri:
            return None
        prefix = "https://backups.blob.core.windows.net/"
        assert uri.startswith(prefix)
        name, _, blob = uri.removeprefix(prefix).partition("/")
        assert blob.startswith(f"waies/first-backup_{SERIAL}_20260301-120000-000_")
        return parse_copy_log(account.container(name).read(blob))

    def go(disk: Prepared, *, drive: Drive | None = None, serial: str = SERIAL, **request: Any) -> Done:
        events: list[Event] = []
        drive = drive or disk.drive
        service.create(
            JobRequest(
                name="first-backup",
                location="westeurope",
                storage_account_id="/x/storageAccounts/backups",
                drives=(drive,),
                return_address=RETURN,
                **request,
            )
        )
        package = Package(carrier="DHL", tracking_number="T-1", drive_count=1, ship_date=date(2026, 3, 2))
        service.ship("first-backup", package)
        assert datacenter.receive("first-backup", {serial: disk.path}, events.append).state == "Received"
        summary = datacenter.process("first-backup", events.append)
        assert summary.state == "Packaging"
        assert datacenter.process("first-backup") == summary
        assert service.get("first-backup").percent_complete == 100
        summary = datacenter.ship_back("first-backup")
        job = service.get("first-backup")
        assert {drive.state for drive in job.drives} == {"ShippedBack"}
        assert job.return_package is not None
        found = log(job.drives[0].verbose_log_uri) or log(job.drives[0].error_log_uri)
        assert found is not None
        return Done(summary=summary, job=job, log=found, error_log=log(job.drives[0].error_log_uri), events=events)

    return go


def test_a_good_drive_arrives_whole(prepare: Any, run: Any, container: BlobStore) -> None:
    done = run(prepare(), backup_drive_manifest=True)
    assert {name: container.read(name) for name in FILES} == FILES
    assert (done.summary.state, done.job.state) == ("Completed", "Completed")
    assert done.log.status == "Completed"
    assert [blob.status for blob in done.log.blobs] == ["Completed"] * 5
    assert {blob.disposition_status for blob in done.log.blobs} == {"Created"}
    assert done.error_log is None
    assert done.job.drives[0].copy_status == "Completed"
    assert done.job.drives[0].bytes_succeeded == sum(len(data) for data in FILES.values())
    assert done.job.drives[0].manifest_uri.endswith("_manifest.xml")
    bars = [event for event in done.events if isinstance(event, Progress)]
    assert {(bar.stage, bar.item) for bar in bars} == {("datacenter", SERIAL)}
    assert [bar.done_bytes for bar in bars] == sorted(bar.done_bytes for bar in bars)
    assert bars[-1].done_bytes == bars[-1].total_bytes == done.job.drives[0].bytes_succeeded


def test_damage_loss_and_collision_are_told_apart(prepare: Any, run: Any, container: BlobStore) -> None:
    damaged = entry("data/aa/one", FILES["data/aa/one"])
    wrong = replace(damaged.blocks[1], md5="0" * 32)
    damaged = replace(damaged, blocks=(damaged.blocks[0], wrong, damaged.blocks[2]))
    missing = replace(entry("data/bb/two", FILES["data/bb/two"]), file_path="\\repository\\data\\bb\\gone")
    longer = entry("data/bb/three", FILES["data/bb/three"] + b"tail")
    renamed = entry("four.jpg", FILES["four.jpg"], m.Disposition.RENAME)
    foreign = replace(entry("empty", b""), blob_path="elsewhere/empty")
    container.write("four.jpg", [b"old"])
    done = run(prepare([damaged, missing, longer, renamed, foreign]), log_level=LogLevel.VERBOSE)
    found = {blob.file_path: blob for blob in done.log.blobs}

    def told(blob: m.ManifestBlob) -> tuple[str, str, list[str]]:
        seen = found[blob.file_path]
        return seen.status, seen.disposition_status, list(seen.parts)

    assert told(damaged) == ("CompletedWithErrors", "Created", ["Uncommitted", "Corrupted", "Uncommitted"])
    assert told(missing) == ("FileNotFound", "Cancelled", ["Cancelled"])
    assert told(longer) == ("CompletedWithErrors", "Created", ["Uncommitted", "FileUnexpectedEnd"])
    assert told(renamed) == ("Completed", "Renamed", ["Completed"])
    assert told(foreign) == ("BlobRequestForbidden", "Cancelled", [])
    assert found[renamed.file_path].blob_path == "backup/four (2).jpg"
    names = {item.name for item in container.list() if not item.name.startswith("waies/")}
    assert names == {"four.jpg", "four (2).jpg"}
    assert container.read("four.jpg") == b"old"
    assert (done.log.status, done.job.state) == ("CompletedWithErrors", "Closed")
    assert done.error_log is not None
    assert [len(blob.parts) for blob in done.error_log.blobs] == [3, 1, 2, 0]
    assert done.job.drives[0].bytes_succeeded == 70_000


def test_no_overwrite_leaves_and_overwrite_replaces(prepare: Any, run: Any, container: BlobStore) -> None:
    container.write("four.jpg", [b"old"])
    container.write("data/bb/two", [b"old"])
    kept = entry("four.jpg", FILES["four.jpg"])
    replaced = entry("data/bb/two", FILES["data/bb/two"], m.Disposition.OVERWRITE)
    done = run(prepare([kept, replaced]))
    assert container.read("four.jpg") == b"old"
    assert container.read("data/bb/two") == FILES["data/bb/two"]
    assert [blob.disposition_status for blob in done.log.blobs] == ["Skipped", "Overwritten"]
    assert (done.log.status, done.job.state) == ("CompletedWithWarnings", "Completed")


def forged(_data: bytes) -> bytes:
    return b"<DriveManifest><Drive/></DriveManifest>"


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (lambda disk: replace(disk.drive, manifest_hash="0" * 32), "ManifestCorrupted"),
        (lambda disk: replace(disk.drive, recovery_password=generate_recovery_password()), "BitLockerKeyInvalid"),
        (lambda disk: replace(disk.drive, manifest_file="\\Other.xml"), "ManifestNotFound"),
        (lambda disk: replace(disk.drive, manifest_file="\\..\\x"), "ManifestNameInvalid"),
        (lambda disk: replace(disk.drive, manifest_file="\\repository"), "ManifestAccessDenied"),
    ],
)
def test_a_job_that_does_not_fit_its_drive_ends_with_the_published_status(
    prepare: Any, run: Any, container: BlobStore, make: Any, status: str
) -> None:
    disk = prepare()
    done = run(disk, drive=make(disk))
    assert (done.log.status, done.job.drives[0].copy_status) == (status, status)
    assert done.job.state == "Closed"
    assert done.job.drives[0].bytes_succeeded == 0
    assert done.job.drives[0].verbose_log_uri.split("/")[3] == "waimportexport"
    assert list(container.list()) == []


@pytest.mark.parametrize(
    ("kwargs", "status"),
    [
        ({"drive_id": "WD-2"}, "ManifestDriveIdMismatch"),
        ({"change": forged}, "ManifestFormatInvalid"),
        ({"container_sas": Secret("backup?se=2030-01-01T00:00:00Z&sig=00")}, "BlobRequestForbidden"),
        ({"container_sas": None, "account_key": Secret("a2V5")}, "BlobRequestForbidden"),
    ],
)
def test_a_manifest_that_breaks_the_rules_ends_the_drive(
    prepare: Any, run: Any, kwargs: dict[str, Any], status: str
) -> None:
    done = run(prepare(**kwargs))
    assert (done.log.status, done.job.state) == (status, "Closed")


@pytest.mark.parametrize(
    ("damage", "status"),
    [
        (lambda path: path.unlink(), "DiskNotFound"),
        (lambda path: path.write_bytes(b""), "BitLockerVolumeNotFound"),
        (lambda path: path.write_bytes(os.urandom(MIB)), "BitLockerVolumeNotFound"),
        (lambda path: os.truncate(path, 2 * MIB), "DiskOperationFailed"),
    ],
)
def test_a_disk_that_is_none_ends_with_the_published_status(
    prepare: Any, run: Any, damage: Callable[[Path], object], status: str
) -> None:
    disk = prepare()
    damage(disk.path)
    found = run(disk).log.status
    assert found == status or (status == "DiskOperationFailed" and found.startswith("BitLocker"))


def test_a_drive_that_never_came_and_one_that_is_not_ours(
    prepare: Any, datacenter: Datacenter, service: AzureImportService, container: BlobStore
) -> None:
    disk = prepare()
    other = replace(disk.drive, drive_id="WD-2")
    service.create(
        JobRequest(
            name="first-backup",
            location="westeurope",
            storage_account_id="/x/storageAccounts/backups",
            drives=(disk.drive, other),
            return_address=RETURN,
        )
    )
    service.ship("first-backup", Package(carrier="DHL", tracking_number="T", drive_count=2, ship_date=date(2026, 3, 2)))
    events: list[Event] = []
    summary = datacenter.receive("first-backup", {SERIAL: disk.path, "WD-3": disk.path}, events.append)
    assert [drive.state for drive in summary.drives] == ["Received", "NeverReceived"]
    assert summary.state == "Shipping"
    texts = [event.text for event in events if isinstance(event, Note)]
    assert any("WD-3 is not in job" in text for text in texts)
    assert any("WD-2 of job first-backup was not in the package" in text for text in texts)
    assert datacenter.receive("first-backup", {"WD-2": disk.path}).state == "Received"
    summary = datacenter.process("first-backup")
    assert [drive.status for drive in summary.drives] == ["Completed", "ManifestDriveIdMismatch"]
    assert datacenter.ship_back("first-backup").state == "Closed"
    assert hashlib.md5(container.read("data/aa/one")).digest() == hashlib.md5(FILES["data/aa/one"]).digest()


def test_a_stand_in_that_was_killed_reads_the_drive_again(
    prepare: Any, datacenter: Datacenter, service: AzureImportService, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = prepare()
    request = JobRequest(
        name="first-backup",
        location="westeurope",
        storage_account_id="/x/storageAccounts/backups",
        drives=(disk.drive,),
        return_address=RETURN,
    )
    service.create(request)
    service.ship("first-backup", Package(carrier="DHL", tracking_number="T", drive_count=1, ship_date=date(2026, 3, 2)))
    datacenter.receive("first-backup", {SERIAL: disk.path})

    def killed(*_args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(datacenter, "_write_logs", killed)
        with pytest.raises(KeyboardInterrupt):
            datacenter.process("first-backup")
    assert service.get("first-backup").state == "Transferring"
    summary = datacenter.process("first-backup")
    assert [drive.status for drive in summary.drives] == ["Completed"]  # all there already, and its own
    assert datacenter.ship_back("first-backup").state == "Completed"
