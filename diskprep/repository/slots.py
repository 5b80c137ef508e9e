"""Slots: the key files of an opened repository. Each holds the same data key under a passphrase of its own.

Invariants: no data is read or written; a repository that could be opened before a change can be opened after it,
wherever that was cut off; who opened it keeps their slot until another one is known to open. Write order of a change:
the new key file; read it back and open it with the new passphrase; delete the old one. Locks are those of restic:
shared to add, exclusive to change and to remove. These two tolerate holds: no pack is missed for want of a key file,
and a passphrase that leaked while disks travel cannot wait until they arrive.

A slot that was removed does not open the repository any more. It is no new data key: who copied a key file before, and
knows its passphrase, has the data key for good.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
from dataclasses import dataclass
from datetime import UTC, datetime

from diskprep.errors import DataDamaged, JobConflict, NotFound, StorageUnavailable, UsageError, WrongPassphrase
from diskprep.repository import keys
from diskprep.repository import lock as locks
from diskprep.repository.repository import Repository, hash_names
from diskprep.secrets import Secret, check_new_passphrase
from diskprep.seed import Staging
from diskprep.store import Store
from diskprep.store.directory import DirectoryStore

MAX_SLOTS = 20  # restic tries no more key files than that
_PREFIX = "keys/"
_PROBE = b"the same data key"
_NO_TIME = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A key file. `id` is its name, 64 hexadecimal digits; `current`: it opened the repository.

    `damaged` says what is wrong with it, or is empty. A damaged slot may still open: see its `file`.
    """

    id: str
    current: bool
    damaged: str
    file: keys.KeyFile | None


class Slots:
    """The slots of a repository that was opened with one of them."""

    def __init__(self, repository: Repository) -> None:
        self._repository, self._store = repository, repository.store

    @property
    def current(self) -> str:
        """The id of the slot that opens the repository for this process."""
        return self._repository.slot

    def all(self) -> list[Slot]:
        """All slots, oldest first. Damaged ones are among them and raise nothing."""
        found = []
        for name in hash_names(self._store, _PREFIX):
            try:
                found.append(self._slot(name))
            except NotFound:  # removed between listing and reading
                continue
        return sorted(found, key=lambda slot: ((slot.file and slot.file.created) or _NO_TIME, slot.id))

    def add(self, passphrase: Secret[str], *, cost: keys.ScryptCost = keys.DEFAULT_COST) -> Slot:
        """Make one more passphrase open the repository.

        Raises UsageError when it is too short, opens a slot already, or would be one more than restic tries; Locked;
        JobConflict in a sealed staging; DataDamaged when the new file does not come back as it was written.
        """
        check_new_passphrase(passphrase)
        self.refuse_sealed()
        with self._repository.lock():
            found = self.all()
            if len(found) >= MAX_SLOTS:
                raise UsageError(
                    f"{self._store.location} has {len(found)} passphrases; restic would not try one more",
                    hint="remove one first: diskprep vault passphrase list shows them",
                )
            same = self._opened_by(passphrase, found)
            if same is not None:
                raise UsageError(f"slot {same.id[:8]} opens with this passphrase already", hint="nothing was changed")
            return self._slot(self._write(passphrase, cost))

    def change(self, passphrase: Secret[str], *, cost: keys.ScryptCost = keys.DEFAULT_COST) -> Slot:
        """Put a slot with a new passphrase in place of the one that opened the repository; return the new one.

        Given again after it was cut off, it finishes. Raises UsageError when the passphrase is too short or the one
        that is to be changed; Locked; NotFound when that slot is gone; JobConflict in a sealed staging; DataDamaged
        when the new file does not come back as it was written: the old one is then kept.
        """
        check_new_passphrase(passphrase)
        self.refuse_sealed()
        with self._alone() as lock:
            found = self._all_with_current()
            same = self._opened_by(passphrase, found)
            if same is not None and same.current:
                raise UsageError("the new passphrase is the old one", hint="nothing was changed")
            fresh = same.id if same is not None else self._write(passphrase, cost)
            lock.require_held()
            self._store.delete(_PREFIX + self._repository.slot)
            self._repository.slot = fresh
            return self._slot(fresh)

    def remove(self, prefix: str) -> Slot:
        """Remove the only slot whose id starts with `prefix`, also a damaged one; return what it was.

        Raises NotFound; UsageError when several start so, for the slot that opened the repository, and when no whole
        slot would be left; Locked; JobConflict in a sealed staging.
        """
        self.refuse_sealed()
        with self._alone() as lock:
            found = self._all_with_current()
            slot = _only(found, prefix, self._store.location)
            others = [other for other in found if other.id != slot.id]
            if not others:
                raise UsageError(
                    f"slot {slot.id[:8]} is the only one; without it nobody could open the repository again",
                    hint="diskprep vault passphrase change puts another in its place",
                )
            if slot.current:
                raise UsageError(
                    f"slot {slot.id[:8]} is the one that was just opened",
                    hint="give the passphrase of another slot, or use diskprep vault passphrase change",
                )
            if all(other.damaged for other in others):
                raise UsageError(
                    f"slot {slot.id[:8]} is the only whole one",
                    hint="diskprep vault passphrase change first, to put a whole slot in place of the damaged one",
                )
            lock.require_held()
            self._store.delete(_PREFIX + slot.id)
            return slot

    def refuse_sealed(self) -> None:
        """Raise JobConflict for the repository of a sealed staging: the seal lists its key files with their digests."""
        if not isinstance(self._store, DirectoryStore):
            return
        root = self._store.root.resolve()
        staging = Staging(root.parent)
        if staging.seal_file.exists() and staging.repository.resolve() == root:
            raise JobConflict(
                f"the staging {staging.root} is sealed; with other key files it would not be what was sealed",
                hint="publish it, then change the passphrase of the vault",
            )

    def _alone(self) -> contextlib.AbstractContextManager[locks.Lock]:
        directory = locks.LockDirectory(self._store, self._repository.key)
        return locks.locked(directory, exclusive=True, tolerate_holds=True)

    def _slot(self, name: str) -> Slot:
        """Raises NotFound."""
        file, damaged = _look(self._store, name)
        return Slot(id=name, current=name == self._repository.slot, damaged=damaged, file=file)

    def _all_with_current(self) -> list[Slot]:
        """All slots, for who holds the exclusive lock. Somebody else may have removed ours before we had it."""
        found = self.all()
        if not any(slot.current for slot in found):
            raise NotFound(
                f"slot {self._repository.slot[:8]} of {self._store.location} was removed meanwhile",
                hint="nothing was changed; diskprep vault passphrase list shows what there is",
            )
        return found

    def _opened_by(self, passphrase: Secret[str], found: list[Slot]) -> Slot | None:
        """The whole slot that opens with a passphrase."""
        for slot in found:
            if slot.file is not None and not slot.damaged and self._opens(slot.file, passphrase):
                return slot
        return None

    def _opens(self, file: keys.KeyFile, passphrase: Secret[str]) -> bool:
        try:  # not a comparison: restic rewrites the bits of a key that count for nothing
            return file.unwrap(passphrase).open(self._repository.key.seal(_PROBE)) == _PROBE
        except (WrongPassphrase, DataDamaged):
            return False

    def _write(self, passphrase: Secret[str], cost: keys.ScryptCost) -> str:
        content = keys.wrap(self._repository.key, passphrase, socket.gethostname(), cost)
        name = hashlib.sha256(content).hexdigest()
        self._store.write(_PREFIX + name, [content])
        slot = self._slot(name)
        if slot.file is None or slot.damaged or not self._opens(slot.file, passphrase):
            self._store.delete(_PREFIX + name)
            raise DataDamaged(
                f"the new key file came back from {self._store.location} otherwise than it was written",
                hint="the passphrases are as they were",
            )
        return name


def has_whole_slot(store: Store) -> bool:
    """Whether one of a repository's key files is what its name says. That takes no passphrase, and proves none."""
    for name in hash_names(store, _PREFIX):
        with contextlib.suppress(NotFound):
            if not _look(store, name)[1]:
                return True
    return False


def _look(store: Store, name: str) -> tuple[keys.KeyFile | None, str]:
    """A key file, and what is wrong with it or nothing. Raises NotFound."""
    try:
        content = store.read(_PREFIX + name)
        file = keys.parse(content)
    except (DataDamaged, StorageUnavailable) as error:
        return None, error.message
    return file, "" if hashlib.sha256(content).hexdigest() == name else "its hash is not its name"


def _only(found: list[Slot], prefix: str, location: str) -> Slot:
    matching = [slot for slot in found if prefix and slot.id.startswith(prefix.lower())]
    if not matching:
        raise NotFound(f"{location} has no slot {prefix!r}", hint="diskprep vault passphrase list shows them")
    if len(matching) > 1:
        raise UsageError(f"{len(matching)} slots start with {prefix!r}", hint="give more digits")
    return matching[0]
