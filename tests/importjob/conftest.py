"""The client against the local stand-in of the service, with a clock that tests turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from copysite import Site
from support import TurnedClock

from diskprep.datacenter.server import Datacenter
from diskprep.importjob.client import AzureImportService
from diskprep.importjob.ledger import Ledger
from diskprep.importjob.model import Drive, ReturnAddress
from diskprep.secrets import Secret
from diskprep.seed import Seed, Staging, save_seed
from diskprep.store.directory import DirectoryAccount

SUBSCRIPTION = "00000000-0000-4000-8000-000000000001"
PASSWORD = "238810-662376-448998-450120-652806-203390-606320-483076"


@pytest.fixture
def datacenter(tmp_path: Path, test_clock: TurnedClock) -> Iterator[Datacenter]:
    account = DirectoryAccount("backups", tmp_path / "account", Secret(b"k" * 32))
    with Datacenter(tmp_path / "state.sqlite", account, token=Secret("the-token"), now=test_clock) as running:
        yield running


@pytest.fixture
def service(datacenter: Datacenter) -> AzureImportService:
    return AzureImportService(datacenter.base_url, Secret("the-token"), SUBSCRIPTION, "seeding", retries=0)


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    (tmp_path / "staging").mkdir()
    return Staging(tmp_path / "staging")


@pytest.fixture
def seed() -> Seed:
    return Seed(
        job_name="first-backup",
        storage_account="backups",
        container="backup",
        subscription_id=SUBSCRIPTION,
        resource_group="seeding",
        location="westeurope",
        hostname="server",
        sources=("/srv",),
        repository_id="ab" * 32,
        escrow_public_key="cd" * 32,
        created="2026-03-01T00:00:00Z",
    )


def make_drive(drive_id: str) -> Drive:
    return Drive(
        drive_id=drive_id,
        recovery_password=Secret(PASSWORD),
        manifest_file="\\DriveManifest.xml",
        manifest_hash="D863FE44F861AE0DA4DCEAEEFFCCCE68",
        opened=True,
    )


@pytest.fixture
def ledger(tmp_path: Path, staging: Staging, seed: Seed) -> Ledger:
    save_seed(staging, seed)
    return Ledger(tmp_path / "state" / "ledger.json")


@pytest.fixture
def drives() -> list[Drive]:
    return [make_drive("WD-1"), make_drive("WD-2")]


@pytest.fixture
def return_address() -> ReturnAddress:
    return ReturnAddress(
        recipient_name="Operator",
        street_address1="1 Street",
        city="Town",
        state_or_province="",
        postal_code="12345",
        country_or_region="Netherlands",
        phone="0123",
        email="operator@example.org",
    )


@pytest.fixture
def site(service: AzureImportService, ledger: Ledger, trip: tuple[Staging, Seed, list[Drive], ReturnAddress]) -> Site:
    place, seed, drives, address = trip
    return Site(service=service, place=place, seed=seed, drives=drives, ledger=ledger, address=address)


@pytest.fixture
def trip(
    staging: Staging, seed: Seed, drives: list[Drive], return_address: ReturnAddress
) -> tuple[Staging, Seed, list[Drive], ReturnAddress]:
    return staging, seed, drives, return_address


@pytest.fixture
def second(site: Site) -> Site:
    """Another staging on this computer, of another job over the same disks."""
    place = Staging(site.place.root / "second")
    place.root.mkdir()
    seed = replace(site.seed, job_name="second-backup")
    save_seed(place, seed)
    return replace(site, place=place, seed=seed)
