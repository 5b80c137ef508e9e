"""NTFS inside a BitLocker volume: filled without a mount, read without a mount."""

from diskprep.volume.ntfs.filler import SOURCE_BLOCK_BYTES, Filler, SourceFile
from diskprep.volume.ntfs.names import NameNotAllowed
from diskprep.volume.ntfs.reader import Entry, Reader
from diskprep.volume.ntfs.records import NotNtfs

__all__ = ["SOURCE_BLOCK_BYTES", "Entry", "Filler", "NameNotAllowed", "NotNtfs", "Reader", "SourceFile"]
