"""Objects of a directory, moved aside for a while before they are deleted.

    ROOT/.removed/20260131T120000Z/NAME        what may be deleted from that moment on (UTC)

No store lists what begins with a dot, so to all readers the objects are gone; moving one back is a rename. A crash
leaves each object in the one place or the other, and both are right: so nothing is synced before the end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from diskprep import durable
from diskprep.errors import JobConflict
from diskprep.store import StoredObject, check_name
from diskprep.store.directory import DirectoryStore

FOLDER = ".removed"
_FORM = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What was moved aside to be deleted from `until` on."""

    until: datetime
    files: tuple[StoredObject, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class Aside:
    """What of a store's directory was moved aside. Raises StorageUnavailable where that cannot be told or done."""

    def __init__(self, root: Path) -> None:
        self._root, self._folder = root, root / FOLDER

    def batches(self) -> list[Batch]:
        """All that is there, what is due first; folders with other names are left alone."""
        try:
            names = [entry.name for entry in os.scandir(self._folder) if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise durable.storage_error(error, f"list {self._folder}") from error
        found = []
        for name in sorted(names):
            with contextlib.suppress(ValueError):
                until = datetime.strptime(name, _FORM).replace(tzinfo=UTC)
                found.append(Batch(until=until, files=tuple(DirectoryStore(self._folder / name).list())))
        return found

    def move(self, name: str, until: datetime) -> None:
        """Move an object aside."""
        target = self._batch(until) / check_name(name)
        durable.make_directory(target.parent)
        self._rename(self._root / name, target, f"move {name} aside")

    def bring_back(self, name: str, until: datetime) -> None:
        """Move an object back to where it was. Raises JobConflict when there is another of its name."""
        target = self._root / check_name(name)
        if durable.exists(target):
            raise JobConflict(f"there is another {name} in {self._root}; what was moved aside stays there")
        durable.make_directory(target.parent)
        self._rename(self._batch(until) / name, target, f"bring {name} back")

    def delete(self, batch: Batch, deleted: Callable[[StoredObject], None]) -> None:
        """Delete a batch for good; `deleted` hears of each object."""
        store = DirectoryStore(self._batch(batch.until))
        for file in batch.files:
            store.delete(file.name)
            deleted(file)
        self.tidy()

    def tidy(self) -> None:
        """Make moves durable, and remove folders that have become empty."""
        for directory, _, _ in os.walk(self._folder, topdown=False):
            with contextlib.suppress(OSError):  # not empty, or gone
                Path(directory).rmdir()
        try:
            for directory, _, _ in os.walk(self._root):
                durable.fsync_directory(Path(directory))
        except OSError as error:
            raise durable.storage_error(error, f"sync {self._root}") from error

    def _batch(self, until: datetime) -> Path:
        return self._folder / until.astimezone(UTC).strftime(_FORM)

    def _rename(self, source: Path, target: Path, doing: str) -> None:
        try:
            source.rename(target)
        except OSError as error:
            raise durable.storage_error(error, doing) from error
