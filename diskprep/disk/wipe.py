"""Wiping: the old content of a disk gone, so that it does not travel in the free space of the new volume."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diskprep.disk.work import Meter, Wipe, Work

_MIB = 1 << 20
_CHUNK_BYTES = 4 * _MIB
#: What is looked for at the beginning and at the end of a disk or partition: tables, file systems, RAID members.
_EDGE_BYTES = 2 * _MIB


def wipe(work: Work) -> dict[str, Any]:
    """Discard everything, and write zeros over a disk's old structures; with FULL, over all of it.

    Returns the fields of the journal's record. Raises DiskFailed.
    """
    device, serial = work.device, work.order.serial
    discarded = device.discard()
    size = device.size_bytes
    if work.order.wipe is Wipe.FULL and device.is_block_device:
        meter = Meter(work, "wipe", total_bytes=size)
        zeros = bytes(_CHUNK_BYTES)
        for offset in range(0, size, _CHUNK_BYTES):
            count = min(_CHUNK_BYTES, size - offset)
            device.pwrite(zeros[:count], offset)
            meter.add(count)
        device.sync()
    elif not discarded or device.is_block_device:  # what a disk shows after a discard is its own affair
        for offset, length in _edges(size, _partitions(device.number)):
            device.pwrite(bytes(length), offset)
        device.sync()
    if not discarded and work.order.wipe is not Wipe.FULL:
        work.note(f"disk {serial} cannot discard: its free space keeps its old content; `--wipe full` overwrites it")
    return {"discarded": discarded, "how": str(work.order.wipe)}


def _edges(size: int, partitions: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(offset, length) of the beginning and the end of the disk and of each old partition."""
    for start, length in [(0, size), *partitions]:
        end = min(start + length, size)
        if start < end:
            count = min(_EDGE_BYTES, end - start)
            yield start, count
            yield end - count, count


def _partitions(number: int) -> Iterator[tuple[int, int]]:
    """(start, length) in bytes of each partition that the kernel knows of the disk with this device number."""
    base = Path("/sys/dev/block") / f"{os.major(number)}:{os.minor(number)}"
    for start in sorted(base.glob("*/start")):
        with contextlib.suppress(OSError, ValueError):
            yield int(start.read_text()) * 512, int((start.parent / "size").read_text()) * 512
