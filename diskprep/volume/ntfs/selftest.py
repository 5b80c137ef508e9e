"""Which libntfs-3g is used: the version that is known, or another that passes a test in memory."""

from __future__ import annotations

import ctypes
from typing import Final

from diskprep import interrupts, process
from diskprep.errors import DataDamaged
from diskprep.volume.device import open_memory
from diskprep.volume.ntfs import libntfs
from diskprep.volume.ntfs.libntfs import Mount
from diskprep.volume.ntfs.planner import Tree, overlay_on, plan_data, write_small
from diskprep.volume.ntfs.reader import Reader

_VOLUME_BYTES: Final = 16 * 1024 * 1024


def library() -> ctypes.CDLL:
    """The library, loaded once. Raises ToolMissing."""
    return libntfs.library(run)


def run(candidate: ctypes.CDLL) -> None:
    """Make a small volume in memory, plan files on it, and read them back. Raises a DiskprepError when that fails."""
    small, large = b"self test\n", bytes(range(256)) * 1024 + b"end"
    with open_memory(_VOLUME_BYTES) as memory:
        argv = ["mkntfs", "-F", "-Q", "-q", "-s", "512", "-p", "0", "-H", "255", "-S", "63"]
        process.run([*argv, f"/proc/self/fd/{memory.descriptor}"], pass_fds=[memory.descriptor])
        with Reader(memory) as reader:
            cluster_bytes = reader.geometry.cluster_bytes
        with overlay_on(memory, cluster_bytes) as overlay:
            with interrupts.held(), Mount(candidate, overlay) as mount, Tree(mount) as tree:
                with tree.file("folder/small") as inode:
                    write_small(mount, inode, small)
                with tree.file("folder/large") as inode:
                    extents = plan_data(mount, overlay, inode, len(large))
            changes = list(overlay.changes())
        for extent in extents:
            part = large[extent.file_offset : extent.file_offset + extent.length]
            memory.pwrite(part, extent.volume_offset)
        for offset, data in changes:
            memory.pwrite(data, offset)
        with Reader(memory) as reader:
            found = [b"".join(reader.stream(f"folder/{name}")) for name in ("small", "large")]
        if found != [small, large]:
            raise DataDamaged("files written through it do not read back")
