"""Which files are better cut in blocks of one size: those that are written to in place, in pages at fixed offsets.

Content-defined chunks of one and a half megabytes on average store such a file's scattered changes twelvefold; blocks
of 256 KiB store them threefold, for six times as many entries in the index. The price: nothing that was inserted or
shifted is found again, and restic, when it meets a changed file of this kind, stores it once more as a whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from diskprep.errors import UsageError
from diskprep.staging.cutting import BlockCutter

#: Block sizes on offer, in bytes: powers of two. Smaller ones cost more index than they save.
LEAST_BYTES, MOST_BYTES = 16 << 10, 4 << 20
#: Shorter files are cut by content: they are read and stored again soon enough.
MIN_FILE_BYTES = 8 << 20
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"QFI\xfb", "a QEMU disk image"),
    (0, b"KDMV", "a VMware disk image"),
    (0, b"COWD", "a VMware disk image"),
    (0, b"vhdxfile", "a Hyper-V disk image"),
    (0, b"conectix", "a Hyper-V disk image"),
    (64, b"\x7f\x10\xda\xbe", "a VirtualBox disk image"),
    (0, b"SQLite format 3\0", "an SQLite database"),
    (0, b"LUKS\xba\xbe", "an encrypted volume"),
    (3, b"-FVE-FS-", "an encrypted volume"),
    (3, b"NTFS    ", "a file system image"),
    (0, b"XFSB", "a file system image"),
    (1080, b"\x53\xef", "a file system image"),
    (65600, b"_BHRfS_M", "a file system image"),
    (512, b"LABELONE", "a volume's image"),
    (512, b"EFI PART", "a disk image"),
    (4096, b"EFI PART", "a disk image"),
    (4, b"\xef\xcd\xab\x89", "an ESE database"),
)
_BOOT = (510, b"\x55\xaa", "a disk image")
_SUFFIXES = {
    b".ibd": "an InnoDB table",
    b".mdf": "an SQL Server database",
    b".ndf": "an SQL Server database",
    b".dbf": "a database file",
    b".edb": "an ESE database",
    b".vmdk": "a VMware disk image",
    b".vhd": "a Hyper-V disk image",
    b".vdi": "a VirtualBox disk image",
    b".img": "a disk image",
    b".raw": "a disk image",
}
_POSTGRES = re.compile(rb"/(?:base/\d+|global|pg_tblspc/\d+/[^/]+/\d+)/\d+(?:\.\d+)?\Z")
_INNODB_SYSTEM = re.compile(rb"/(?:ibdata\d+|undo_\d+)\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a file is cut, and why."""

    cutter: BlockCutter
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRule:
    """`block_bytes`: a power of two from 16 KiB to 4 MiB. Raises UsageError."""

    HEAD_BYTES: ClassVar[int] = 65608

    block_bytes: int

    def __post_init__(self) -> None:
        size = self.block_bytes
        if not LEAST_BYTES <= size <= MOST_BYTES or size & (size - 1):
            raise UsageError(
                f"blocks of {size} bytes cannot be had", hint="a power of two from 16k to 4M; 256k suits most images"
            )

    def choose(self, path: bytes, size_bytes: int, head: bytes) -> Choice | None:
        """What to do with the file at `path`, of which `head` has the first bytes; None: cut it by content."""
        if size_bytes < MIN_FILE_BYTES:
            return None
        kind = _kind(path, head)
        if kind is None:
            return None
        text = f"{self.block_bytes >> 10} KiB" if self.block_bytes < 1 << 20 else f"{self.block_bytes >> 20} MiB"
        return Choice(cutter=BlockCutter(self.block_bytes), reason=f"cut in blocks of {text}: it is {kind}")


def _kind(path: bytes, head: bytes) -> str | None:
    for offset, magic, kind in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return kind
    offset, magic, kind = _BOOT
    # A boot sector's mark alone is two bytes; a partition's flag is 0 or 128 in each of the four entries.
    if head[offset : offset + 2] == magic and all(head[entry] & 0x7F == 0 for entry in range(446, 510, 16)):
        return kind
    if _POSTGRES.search(path):
        return "a PostgreSQL table"
    if _INNODB_SYSTEM.search(path):
        return "an InnoDB tablespace"
    dot = path.rfind(b".", path.rfind(b"/") + 1)
    return _SUFFIXES.get(path[dot:].lower()) if dot >= 0 else None
