"""Settings of a vault: how its storage is replicated, and how many recovery points are to be kept.

One object below `x-seed/`, which restic never looks at. It is sealed with the repository's data key: retention decides
what a later `forget` removes, so nobody shall change it who can write to the storage but has no passphrase. It says of
which repository it is, so that it counts in no other one.

Invariant: the redundancy, once said, is fixed as soon as there is a recovery point. Write order: one object, replaced
whole, while nobody else has a lock but holds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from diskprep.errors import DataDamaged, FormatTooNew, JobConflict, NotFound, UsageError
from diskprep.repository import codec
from diskprep.repository import lock as locks
from diskprep.repository.repository import Repository

OBJECT = "x-seed/settings"
FORMAT = "diskprep-settings"
VERSION = 1
_COUNT_MAX = 100_000


class Redundancy(StrEnum):
    """How the storage account replicates: in one datacenter, in two regions, in two regions that can both be read."""

    LRS = "LRS"
    GRS = "GRS"
    RA_GRS = "RA-GRS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How many days, weeks, months and years keep a recovery point each, the newest of it. All 0: nothing was said,
    and nothing may be forgotten on its account. Raises UsageError for what is no count."""

    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    def __post_init__(self) -> None:
        for period in fields(self):
            count = getattr(self, period.name)
            if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _COUNT_MAX:
                raise UsageError(f"{count!r} is not a {period.name} count", hint=f"give 0 to {_COUNT_MAX}")

    @property
    def is_set(self) -> bool:
        return any((self.daily, self.weekly, self.monthly, self.yearly))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`redundancy`: None where nobody has said it yet."""

    redundancy: Redundancy | None = None
    retention: Retention = field(default_factory=Retention)


def load_settings(repository: Repository) -> Settings:
    """The settings of a vault; those of a vault where nothing was set say nothing. Raises DataDamaged, FormatTooNew."""
    try:
        sealed = repository.store.read(OBJECT)
    except NotFound:
        return Settings()
    where = f"{OBJECT} in {repository.store.location}"
    try:
        document = codec.decode_json(repository.key.open(sealed))
    except DataDamaged as error:
        raise DataDamaged(f"{where}: {error.message}", hint="delete it, then set them again") from None
    return _parse(document, repository.id, where)


def change_settings(
    repository: Repository,
    *,
    redundancy: Redundancy | None = None,
    daily: int | None = None,
    weekly: int | None = None,
    monthly: int | None = None,
    yearly: int | None = None,
) -> Settings:
    """Set what is given and leave the rest; return what holds then. Nothing is written when nothing changes.

    Raises JobConflict when the redundancy is another than was said, and there is a recovery point; Locked when somebody
    works in the vault; UsageError.
    """
    given = {"daily": daily, "weekly": weekly, "monthly": monthly, "yearly": yearly}
    wanted: dict[str, Any] = {name: count for name, count in given.items() if count is not None}
    replace(Retention(), **wanted)  # what is no count is refused before anything is asked
    found = load_settings(repository)
    if _changed(found, redundancy, wanted) == found:
        return found
    directory = locks.LockDirectory(repository.store, repository.key)
    with locks.locked(directory, exclusive=True, tolerate_holds=True):
        found = load_settings(repository)  # again: somebody may have been faster
        changed = _changed(found, redundancy, wanted)
        if found.redundancy not in (None, changed.redundancy) and repository.snapshots():
            raise JobConflict(
                f"the redundancy of {repository.store.location} is {found.redundancy}, and it has recovery points",
                hint="it is fixed with the first of them; another redundancy needs another vault",
            )
        _save(repository, changed)
    return changed


def _changed(found: Settings, redundancy: Redundancy | None, retention: dict[str, Any]) -> Settings:
    return Settings(redundancy=redundancy or found.redundancy, retention=replace(found.retention, **retention))


def _save(repository: Repository, settings: Settings) -> None:
    document = {"format": FORMAT, "version": VERSION, "repository": repository.id, **asdict(settings)}
    repository.store.write(OBJECT, [repository.key.seal(codec.encode_json(document))])


def _parse(document: dict[str, Any], repository_id: str, where: str) -> Settings:
    if document.get("format") != FORMAT or document.get("repository") != repository_id:
        raise DataDamaged(f"{where} is not of this vault", hint="delete it, then set them again")
    if document.get("version") != VERSION:
        raise FormatTooNew(f"{where} was written by a newer diskprep", hint="upgrade diskprep on this computer")
    try:
        redundancy = document["redundancy"]
        return Settings(
            redundancy=None if redundancy is None else Redundancy(redundancy),
            retention=Retention(**document["retention"]),
        )
    except (KeyError, TypeError, ValueError, UsageError):
        raise DataDamaged(f"{where} is damaged", hint="delete it, then set them again") from None
