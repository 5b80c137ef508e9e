"""Disks that are quickly made, and jobs for them that are on their way."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from manifests import DriveManifest, block_of, write_manifest

from diskprep import clock
from diskprep.durable import Buffer
from diskprep.exchange import manifest as drive_manifest
from diskprep.store import Account
from diskprep.volume.bitlocker import Method, generate_recovery_password
from diskprep.volume.device import create_image, open_for_writing
from diskprep.volume.format import format_disk, open_disk
from diskprep.volume.ntfs import Filler, SourceFile

MIB = 1 << 20
SUBSCRIPTION = "00000000-0000-4000-8000-000000000001"
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/seeding/providers/Microsoft.ImportExport"
VERSION_QUERY = "?api-version=2016-11-01"
PASSWORD = "238810-662376-448998-450120-652806-203390-606320-483076"
ADDRESS = {
    "recipientName": "Operator",
    "streetAddress1": "1 Street",
    "city": "Town",
    "postalCode": "12345",
    "countryOrRegion": "Netherlands",
    "phone": "0123",
    "email": "operator@example.org",
}
DRIVE = {
    "driveId": "WD-1",
    "bitLockerKey": PASSWORD,
    "manifestFile": "\\DriveManifest.xml",
    "manifestHash": "D863FE44F861AE0DA4DCEAEEFFCCCE68",
}
BODY: dict[str, Any] = {
    "location": "westeurope",
    "properties": {
        "storageAccountId": f"/subscriptions/{SUBSCRIPTION}/resourceGroups/seeding/providers/Microsoft.Storage"
        "/storageAccounts/backups",
        "jobType": "Import",
        "returnAddress": ADDRESS,
        "logLevel": "Verbose",
        "driveList": [DRIVE],
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeDisk:
    """A prepared disk: what the job says of it (`drive`), and what must arrive (blobs by name)."""

    path: Path
    drive: dict[str, str]
    blobs: dict[str, bytes]

    @property
    def serial(self) -> str:
        return self.drive["driveId"]


def url(name: str = "first-backup") -> str:
    return f"{GROUP}/jobs/{name}{VERSION_QUERY}"


def ship(http_call: Any, *disks: MadeDisk, name: str = "first-backup") -> None:
    """A job of these disks, on its way."""
    body = deepcopy(BODY)
    body["properties"]["driveList"] = [disk.drive for disk in disks] or [DRIVE]
    assert http_call("PUT", url(name), body)[0] == 201
    package = {"carrierName": "DHL", "trackingNumber": f"T-{name}"}
    assert http_call("PATCH", url(name), {"properties": {"state": "Shipping", "deliveryPackage": package}})[0] == 200


def make_disk(folder: Path, serial: str, account: Account, container: str = "backup", files: int = 5) -> MadeDisk:
    """A disk of `files` blobs of about a MiB each, whose manifest opens `container`."""
    rng = random.Random(serial)
    blobs = {f"data/{serial}/{number}": rng.randbytes(MIB + number) for number in range(files)}
    path, password = folder / f"{serial}.img", generate_recovery_password()
    create_image(path, 64 * MIB)
    manifest = write_manifest(
        DriveManifest(
            drive_id=serial,
            container_sas=account.container_sas(container, clock.now() + timedelta(days=1)),
            client_creator="test",
            blobs=tuple(_entry(f"{container}/{name}", data) for name, data in blobs.items()),
        )
    )
    with open_for_writing(path) as device:
        format_disk(
            device,
            method=Method.XTS_AES_256,
            label="practice",
            description="test",
            recovery_password=password,
            created=datetime(2026, 3, 1, tzinfo=UTC),
        )
        on_disk = {**blobs, "DriveManifest.xml": manifest}
        Filler(open_disk(device, password)).write([_source(name, data) for name, data in on_disk.items()])
    drive = {
        "driveId": serial,
        "bitLockerKey": password.reveal(),
        "manifestFile": "\\DriveManifest.xml",
        "manifestHash": hashlib.md5(manifest, usedforsecurity=False).hexdigest().upper(),
    }
    return MadeDisk(path=path, drive=drive, blobs=blobs)


def _entry(name: str, data: bytes) -> drive_manifest.ManifestBlob:
    step = drive_manifest.BLOCK_BYTES
    return drive_manifest.ManifestBlob(
        blob_path=name,
        file_path="\\" + name.partition("/")[2].replace("/", "\\"),
        length_bytes=len(data),
        blocks=tuple(block_of(at, data[at : at + step]) for at in range(0, len(data), step)),
        disposition=drive_manifest.Disposition.NO_OVERWRITE,
    )


def _source(path: str, data: bytes) -> SourceFile:
    def blocks() -> Iterator[Buffer]:
        for offset in range(0, len(data), drive_manifest.BLOCK_BYTES):
            yield data[offset : offset + drive_manifest.BLOCK_BYTES]

    return SourceFile(path=path, size_bytes=len(data), blocks=blocks)


def check_arrived(account: Account, *disks: MadeDisk, container: str = "backup") -> None:
    """Everything is in the container, once."""
    store = account.container(container)
    for disk in disks:
        for name, data in disk.blobs.items():
            assert store.read(name) == data
    assert not [found.name for found in store.list("data/") if "(" in found.name]
