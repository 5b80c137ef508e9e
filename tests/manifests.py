"""Drive manifests as values, for tests: all of one in memory, and the entries of contents that are at hand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from diskprep.durable import Buffer
from diskprep.exchange import manifest as m


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveManifest(m.ManifestHead):
    """What one drive carries."""

    blobs: tuple[m.ManifestBlob, ...]


def write_manifest(manifest: DriveManifest) -> bytes:
    return b"".join(m.stream_manifest(manifest, manifest.blobs))


def parse_manifest(data: Buffer) -> DriveManifest:
    stream = m.open_manifest([data])
    return DriveManifest(
        drive_id=stream.head.drive_id,
        container_sas=stream.head.container_sas,
        account_key=stream.head.account_key,
        client_creator=stream.head.client_creator,
        blobs=tuple(stream),
    )


def block_of(offset: int, data: Buffer) -> m.Block:
    """The entry of a block with this content."""
    return m.block_from_md5(offset, len(data), hashlib.md5(data, usedforsecurity=False).digest())


def page_range_of(offset: int, data: Buffer) -> m.PageRange:
    """The entry of a page range with this content."""
    return m.PageRange(offset=offset, length=len(data), md5=m.manifest_hash(data))


def side_file_of(path: str, data: Buffer) -> m.SideFile:
    """The entry of a file with metadata or properties."""
    return m.SideFile(path=path, md5=m.manifest_hash(data))
