"""Settings of a vault: how its storage is replicated, in what tier its data lies, how many recovery points are kept.

One object below `x-seed/`, which restic never looks at. It is sealed with the repository's data key: retention decides
what a later `forget` removes, so nobody shall change it who can write to the storage but has no passphrase. It says of
which repository it is, so that it counts in no other one.

Invariant: the redundancy, once said, is fixed as soon as there is a recovery point. Write order: one object, replaced
whole, while nobody else has a lock but holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged, FormatTooNew, JobConflict, NotFound, UsageError
from diskprep.events import Emit, Note
from diskprep.repository import codec
from diskprep.repository import lock as locks
from diskprep.repository.pack import BlobKind, read_entry
from diskprep.repository.repository import Repository
from diskprep.store import AccessTier, TieredStore

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
    """`redundancy`: None where nobody has said it yet. `access_tier`: of data packs; all else lies in the account's."""

    redundancy: Redundancy | None = None
    retention: Retention = field(default_factory=Retention)
    access_tier: AccessTier = AccessTier.DEFAULT


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
    access_tier: AccessTier | None = None,
    daily: int | None = None,
    weekly: int | None = None,
    monthly: int | None = None,
    yearly: int | None = None,
) -> Settings:
    """Set what is given and leave the rest; return what holds then. Nothing is written when nothing changes.

    Raises JobConflict when the redundancy is another than was said, and there is a recovery point; Locked when somebody
    works in the vault; UsageError, also for a tier where the store has none.
    """
    if access_tier not in (None, AccessTier.DEFAULT) and not isinstance(repository.store, TieredStore):
        raise UsageError(f"{repository.store.location} is a folder: it has no access tiers")
    given = {"daily": daily, "weekly": weekly, "monthly": monthly, "yearly": yearly}
    wanted: dict[str, Any] = {name: count for name, count in given.items() if count is not None}
    replace(Retention(), **wanted)  # what is no count is refused before anything is asked
    found = load_settings(repository)
    if _changed(found, redundancy, access_tier, wanted) == found:
        return found
    directory = locks.LockDirectory(repository.store, repository.key)
    with locks.locked(directory, exclusive=True, tolerate_holds=True):
        found = load_settings(repository)  # again: somebody may have been faster
        changed = _changed(found, redundancy, access_tier, wanted)
        if found.redundancy not in (None, changed.redundancy) and repository.snapshots():
            raise JobConflict(
                f"the redundancy of {repository.store.location} is {found.redundancy}, and it has recovery points",
                hint="it is fixed with the first of them; another redundancy needs another vault",
            )
        _save(repository, changed)
    return changed


def parse_access_tier(text: str) -> AccessTier:
    """The tier that somebody named. Raises UsageError."""
    name = text.lower()
    if name == "archive":
        raise UsageError(
            "data packs cannot lie in the Archive tier: nothing there can be read, so no backup could be restored, "
            "checked or ingested without days of rehydration",
            hint="the coolest tier that can be read is cold",
        )
    try:
        return AccessTier(name)
    except ValueError:
        raise UsageError(f"{text!r} is not an access tier", hint=f"give {', '.join(AccessTier)}") from None


def data_tier(repository: Repository, emit: Emit) -> AccessTier:
    """Where the vault's data packs are to lie; DEFAULT, and a note, when its settings cannot be read: no backup is
    worth less than its tier."""
    if not isinstance(repository.store, TieredStore):
        return AccessTier.DEFAULT
    try:
        return load_settings(repository).access_tier
    except (DataDamaged, FormatTooNew) as error:
        emit(Note(stage="settings", text=f"data packs are written to the account's own tier: {error.message}"))
        return AccessTier.DEFAULT


def write_in_tier(repository: Repository, emit: Emit) -> None:
    """From now on data packs that are written to the vault lie in its tier; tree packs, and all else, in the
    account's own. What a pack holds is told by its header, since the names are alike."""
    tier, store, key = data_tier(repository, emit), repository.store, repository.key

    def choose(name: str, parts: Sequence[Buffer]) -> AccessTier:
        if tier is AccessTier.DEFAULT or not parts or not name.startswith("data/"):
            return AccessTier.DEFAULT
        try:
            entry = read_entry(name.rpartition("/")[2], parts[0] if len(parts) == 1 else b"".join(parts), key)
        except DataDamaged:
            return AccessTier.DEFAULT
        return tier if entry.kind is BlobKind.DATA else AccessTier.DEFAULT

    if isinstance(store, TieredStore):
        store.choose_tiers(choose)


def _changed(
    found: Settings, redundancy: Redundancy | None, access_tier: AccessTier | None, retention: dict[str, Any]
) -> Settings:
    return Settings(
        redundancy=redundancy or found.redundancy,
        retention=replace(found.retention, **retention),
        access_tier=access_tier or found.access_tier,
    )


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
            access_tier=AccessTier(document.get("access_tier", AccessTier.DEFAULT)),  # earlier ones say nothing of it
        )
    except (KeyError, TypeError, ValueError, UsageError):
        raise DataDamaged(f"{where} is damaged", hint="delete it, then set them again") from None
