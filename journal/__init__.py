"""journal: a crash-safe, append-only log of JSON records. Standard library only.

Promises, for a medium that obeys flush: a record whose number `append` returned survives any crash; reading back gives
exactly the records appended, in order, or JournalDamaged; a torn tail is told from damage; a second writer is refused.
The bytes, the write order and the crash analysis are in docs/formats/journal.md.

Errors are JournalDamaged, JournalLocked and JournalFailed (which is an OSError too), all of them JournalError.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from journal.files import Journal, JournalFailed, JournalLocked, read
from journal.frames import JournalDamaged, JournalError, Record

__all__ = [
    "Journal",
    "JournalDamaged",
    "JournalError",
    "JournalFailed",
    "JournalLocked",
    "Record",
    "dump",
    "read",
]


def dump(records: Iterable[Record]) -> str:
    """Records as text for a person: a line each, its number, its type, its fields as JSON."""
    return "".join(
        f"{record.sequence:6} {record.type:12} {json.dumps(dict(record.fields), sort_keys=True)}\n"
        for record in records
    )
