"""Copying: a share onto the disk's volume, a batch at a time, and the manifest at the end.

Order of a batch: data on the disk and synced; the MD5s of its blocks durable (blocks.py); the file system's own changes
durable beside the journal (volume/redo.py), then in place and synced; the journal's `batch` record; the redo record
removed. So a batch that was broken off either left the file system as it was, or is completed from the redo record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from diskprep.disk import verify
from diskprep.disk.blocks import MD5_BYTES, BlockDigests, count_blocks
from diskprep.disk.plan import BLOCK_BYTES
from diskprep.disk.work import Meter, Work
from diskprep.durable import Buffer
from diskprep.errors import DataDamaged, ReadBackFailed, StorageUnavailable
from diskprep.exchange import md5
from diskprep.exchange.manifest import Block, Disposition, ManifestBlob, ManifestHead, block_from_md5, stream_manifest
from diskprep.seal import FileKind, SealedFile
from diskprep.secrets import Secret
from diskprep.volume.bitlocker.xts import Xts
from diskprep.volume.ntfs import Filler, SourceFile

FOLDER = "repository"
MANIFEST_FILE = f"\\{verify.MANIFEST_PATH}"
_BATCH_FILES = 64
_BATCH_BYTES = 4 << 30
_WINDOW_BYTES = 4 * BLOCK_BYTES  # of each thread; a usual pack
_CROSS_CHECK_BYTES = 1 << 20
_SECTOR_BYTES = 512
_CLIENT = "diskprep"


class _StagingDamaged(DataDamaged):
    """A file of the staging is not what the seal says."""


def warm_up() -> None:
    """Have the compiled loops in memory, so that processes which are forked then need not each compile or load them."""
    md5.digests(np.zeros(8, np.uint8), [(0, 4), (4, 4)])
    sectors = bytearray(_SECTOR_BYTES)
    Xts(Secret(bytes(range(64))), _SECTOR_BYTES).encrypt(sectors, memoryview(sectors), 0)


def fill(work: Work) -> dict[str, Any]:
    """Copy what is not on the disk yet. Each file is checked against the seal as it is read from the staging.

    Raises DataDamaged for the staging, ReadBackFailed when the disk's file system is damaged, DiskFailed, StorageFull.
    """
    done_bytes = sum(file.size_bytes for _number, file in zip(range(work.files), work.order.files(), strict=False))
    meter = Meter(work, "disk", done_bytes=done_bytes, total_bytes=work.order.share.payload_bytes)
    with _distrusting(work), BlockDigests(work.blocks_path, work.blocks) as digests:
        filler = Filler(work.opened, redo=work.redo)
        for batch in _batches(work.order.files(work.files)):
            _copy_batch(work, filler, digests, batch, meter)
    return {"files": work.files}


def finish_batch(work: Work, fields: dict[str, Any]) -> None:
    """Record a batch that is on the disk as a whole; `fields` are those that `_copy_batch` noted."""
    work.files, work.blocks = int(fields["first"]) + int(fields["files"]), int(fields["blocks"])
    work.record("batch", **fields)


def write_manifest(work: Work) -> dict[str, Any]:
    """Write DriveManifest.xml, in two passes: how long it is must be known before. Raises as `fill`."""
    with _distrusting(work), BlockDigests(work.blocks_path, work.blocks) as digests:
        size, whole = 0, hashlib.md5(usedforsecurity=False)
        for chunk in _manifest(work, digests):
            size += len(chunk)
            whole.update(chunk)
        work.manifest_hash = whole.hexdigest().upper()
        fields = {"file": MANIFEST_FILE, "hash": work.manifest_hash, "size_bytes": size}
        source = SourceFile(
            path=verify.MANIFEST_PATH, size_bytes=size, blocks=lambda: _blocks_of(_manifest(work, digests))
        )
        filler = Filler(work.opened, redo=work.redo)
        filler.write([source], tag=lambda: json.dumps({"step": "manifest", **fields}).encode())
    return fields


@contextlib.contextmanager
def _distrusting(work: Work) -> Iterator[None]:
    """Damage that is not the staging's is the disk's: it cannot be gone on with, so the next run starts it over."""
    try:
        yield
    except _StagingDamaged as error:
        raise DataDamaged(error.message, hint=error.hint) from None
    except DataDamaged as error:
        work.distrust(error.message)
        raise ReadBackFailed(
            f"disk {work.order.serial}: {error.message}", hint="give the same command again: the disk is started over"
        ) from error


def _copy_batch(work: Work, filler: Filler, digests: BlockDigests, batch: list[SealedFile], meter: Meter) -> None:
    found: dict[str, bytes] = {}
    sources = [
        SourceFile(path=f"{FOLDER}/{file.name}", size_bytes=file.size_bytes, blocks=_reader(work, file, found))
        for file in batch
    ]
    fields: dict[str, Any] = {
        "first": work.files,
        "files": len(batch),
        "size_bytes": sum(file.size_bytes for file in batch),
    }

    def tag() -> bytes:
        fields["digest"] = digests.append(b"".join(found[file.name] for file in batch))
        fields["blocks"] = digests.count
        return json.dumps({"step": "batch", **fields}).encode()

    filler.write(sources, on_bytes=meter.add, tag=tag)
    finish_batch(work, fields)
    work.redo.clear()


class _Window(threading.local):
    """A thread's buffer for the blocks that are hashed together."""

    def __init__(self) -> None:
        self.array = np.empty(_WINDOW_BYTES, np.uint8)
        self.view = memoryview(self.array.data).cast("B")


_window = _Window()


def _reader(work: Work, file: SealedFile, found: dict[str, bytes]) -> Callable[[], Iterator[Buffer]]:
    """Blocks of a file for the filler. At the end it has proven the file's SHA-256 and has left its MD5s in `found`."""

    def blocks() -> Iterator[Buffer]:
        path = work.order.staging.repository / file.name
        damaged = _StagingDamaged(
            f"{path} in the staging is not what the seal says",
            hint="stage again: the staging was changed or damaged",
        )
        whole, length, md5s = hashlib.sha256(), 0, bytearray()
        array, view = _window.array, _window.view
        try:
            with path.open("rb", buffering=0) as stream:
                while count := _read_full(stream.readinto, view):
                    if count != min(_WINDOW_BYTES, file.size_bytes - length):
                        raise damaged
                    spans = [(at, min(BLOCK_BYTES, count - at)) for at in range(0, count, BLOCK_BYTES)]
                    whole.update(view[:count])
                    md5s += b"".join(md5.digests(array, spans))
                    length += count
                    for at, size in spans:
                        yield view[at : at + size]
        except OSError as error:
            raise StorageUnavailable(f"cannot read {path} in the staging: {error.strerror}") from error
        if whole.hexdigest() != file.sha256 or length != file.size_bytes:
            raise damaged
        if md5s:
            _cross_check(view[at : at + size], file, md5s)
        found[file.name] = bytes(md5s)

    return blocks


def _cross_check(last: memoryview, file: SealedFile, md5s: Buffer) -> None:
    """Hash the last block of some files with the library too: in every run the two ways to an MD5 are compared."""
    if file.size_bytes <= _CROSS_CHECK_BYTES or file.sha256.startswith("0"):
        digest = hashlib.md5(last, usedforsecurity=False).digest()
        assert digest == bytes(md5s[-len(digest) :]), "two ways of making an MD5 differ"


def _read_full(read_into: Callable[[memoryview], int | None], buffer: memoryview) -> int:
    """Fill the buffer as far as there is something; how many bytes it then has."""
    count = 0
    while count < len(buffer) and (more := read_into(buffer[count:])):
        count += more
    return count


def _batches(files: Iterable[SealedFile]) -> Iterator[list[SealedFile]]:
    batch: list[SealedFile] = []
    size = 0
    for file in files:
        if batch and (len(batch) == _BATCH_FILES or size + file.size_bytes > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size_bytes
    if batch:
        yield batch


def _manifest(work: Work, digests: BlockDigests) -> Iterator[bytes]:
    order = work.order
    head = ManifestHead(
        drive_id=order.serial, container_sas=order.container_sas, account_key=None, client_creator=_CLIENT
    )
    return stream_manifest(head, _blobs(work, digests))


def _blobs(work: Work, digests: BlockDigests) -> Iterator[ManifestBlob]:
    first = 0
    for file in work.order.files():
        count = count_blocks(file.size_bytes)
        md5s = digests.read(first, count)
        first += count
        yield ManifestBlob(
            blob_path=f"{work.order.seed.container}/{file.name}",
            file_path=f"\\{FOLDER}\\" + file.name.replace("/", "\\"),
            length_bytes=file.size_bytes,
            blocks=tuple(_blocks(file, md5s)),
            # An index file may be on several disks, and in the container already: its name is its content's hash.
            disposition=Disposition.OVERWRITE if file.kind is FileKind.INDEX else Disposition.NO_OVERWRITE,
        )


def _blocks(file: SealedFile, md5s: bytes) -> Iterator[Block]:
    for number in range(len(md5s) // MD5_BYTES):
        offset = number * BLOCK_BYTES
        length = min(BLOCK_BYTES, file.size_bytes - offset)
        yield block_from_md5(offset, length, md5s[number * MD5_BYTES : (number + 1) * MD5_BYTES])


def _blocks_of(chunks: Iterable[bytes]) -> Iterator[Buffer]:
    """The chunks' bytes in blocks as the filler wants them."""
    pending = bytearray()
    for chunk in chunks:
        pending += chunk
        while len(pending) >= BLOCK_BYTES:
            yield bytes(pending[:BLOCK_BYTES])
            del pending[:BLOCK_BYTES]
    if pending:
        yield bytes(pending)
