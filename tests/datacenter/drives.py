"""Drives for tests: images that are prepared as `disk prepare` prepares disks, with files of a test's choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from manifests import block_of, page_range_of

from diskprep.durable import Buffer
from diskprep.exchange import manifest as m
from diskprep.volume.bitlocker import Method, generate_recovery_password
from diskprep.volume.device import create_image, open_for_writing
from diskprep.volume.format import format_disk, open_disk
from diskprep.volume.ntfs import Filler, SourceFile

SERIAL = "WD-1"
MIB = 1 << 20
PASSWORD = generate_recovery_password()


def file_path(name: str) -> str:
    return "\\repository\\" + name.replace("/", "\\")


def block_blob(name: str, data: bytes, **fields: Any) -> m.ManifestBlob:
    step = m.BLOCK_BYTES
    values: dict[str, Any] = {
        "blob_path": f"backup/{name}",
        "file_path": file_path(name),
        "length_bytes": len(data),
        "blocks": tuple(block_of(offset, data[offset : offset + step]) for offset in range(0, len(data), step)),
    }
    return m.ManifestBlob(**(values | fields))


def page_blob(name: str, data: bytes, ranges: list[tuple[int, int]], **fields: Any) -> m.ManifestBlob:
    values: dict[str, Any] = {
        "blob_path": f"backup/{name}",
        "file_path": file_path(name),
        "length_bytes": len(data),
        "pages": tuple(page_range_of(offset, data[offset : offset + length]) for offset, length in ranges),
    }
    return m.ManifestBlob(**(values | fields))


def source(path: str, data: bytes) -> SourceFile:
    def blocks() -> Iterator[Buffer]:
        for offset in range(0, len(data), m.BLOCK_BYTES):
            yield data[offset : offset + m.BLOCK_BYTES]

    return SourceFile(path=path, size_bytes=len(data), blocks=blocks)


def make_drive(path: Path, files: Mapping[str, bytes], size_bytes: int = 96 * MIB) -> Path:
    """A formatted drive with `files` under `\\repository` and no manifest."""
    create_image(path, size_bytes)
    with open_for_writing(path) as device:
        format_disk(
            device,
            method=Method.XTS_AES_256,
            label="first-backup",
            description="test",
            recovery_password=PASSWORD,
            created=datetime(2026, 3, 1, tzinfo=UTC),
        )
        Filler(open_disk(device, PASSWORD)).write([source(f"repository/{name}", data) for name, data in files.items()])
    return path


def add_manifest(path: Path, data: bytes) -> None:
    with open_for_writing(path) as device:
        Filler(open_disk(device, PASSWORD)).write([source("DriveManifest.xml", data)])
