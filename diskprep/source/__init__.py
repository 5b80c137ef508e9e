"""Sources: directory trees and files to back up, read without side effects.

All paths and names are bytes as the kernel has them; `display` makes them fit for people. Nothing but regular files and
directories is ever opened, for opening a device can act.
"""

from __future__ import annotations

from diskprep.source.reader import (
    Entry,
    EntryUnreadable,
    Item,
    OpenDirectory,
    OpenFile,
    SmallFile,
    ancestor,
    describe,
    group_name,
    user_name,
)
from diskprep.source.selection import Selection
from diskprep.source.source import Measure, Source, check_sources, display, measure, public_path

__all__ = [
    "Entry",
    "EntryUnreadable",
    "Item",
    "Measure",
    "OpenDirectory",
    "OpenFile",
    "Selection",
    "SmallFile",
    "Source",
    "ancestor",
    "check_sources",
    "describe",
    "display",
    "group_name",
    "measure",
    "public_path",
    "user_name",
]
