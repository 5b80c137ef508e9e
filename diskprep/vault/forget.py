"""Forgetting recovery points: a plan that says what stays and why, and its execution. No data goes; prune does that.

Under an exclusive lock the recovery points are read, planned for and deleted one by one; no other object is touched. So
a run that is cut off has forgotten some of them, and the same command goes on. Locked out by a backup, a restore, and
by the hold that stands while disks travel: the first recovery point has to be there when they are ingested.

Invariants: a policy leaves each group at least one recovery point. What a certificate names is not forgotten before
the cleanup that it allows is settled: it would cover nothing any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from diskprep import clock
from diskprep.errors import CleanupRefused, DataDamaged, Locked, UsageError
from diskprep.events import Emit, Note, silent
from diskprep.repository.repository import Repository
from diskprep.repository.snapshot import Snapshot
from diskprep.vault.outstanding import give_up, outstanding
from diskprep.vault.retention import DEFAULT_GROUPING, Filter, Group, GroupBy, KeepPolicy, Kept, apply

_STAGE = "forget"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be forgotten: the recovery points with these ids (or beginnings of one, or `latest`), or else what the
    policy does not keep among those that match the filter."""

    ids: tuple[str, ...] = ()
    policy: KeepPolicy = field(default_factory=KeepPolicy)
    only: Filter = field(default_factory=Filter)
    grouping: Sequence[GroupBy] = DEFAULT_GROUPING

    def __post_init__(self) -> None:
        if self.ids and (self.policy or self.only != Filter()):
            raise UsageError("recovery points are named, or chosen by a policy; not both")
        if not self.ids and not self.policy:
            raise UsageError(
                "nothing says what to keep, so nothing is forgotten",
                hint="give --keep-daily 7 or the like, or the ids of recovery points",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetPlan:
    """What stays and what goes; recovery points that the filter left out are in no group."""

    groups: tuple[Group, ...]

    @property
    def removed(self) -> tuple[Snapshot, ...]:
        return tuple(point for group in self.groups for point in group.removed)

    @property
    def kept(self) -> tuple[Kept, ...]:
        return tuple(kept for group in self.groups for kept in group.kept)


def forget(
    repository: Repository,
    wish: Wish,
    *,
    dry_run: bool = False,
    before_cleanup: bool = False,
    tell: Callable[[ForgetPlan], None] = lambda _: None,
    emit: Emit = silent,
) -> ForgetPlan:
    """Delete the recovery points that the plan, given to `tell` first, removes. `dry_run`: only plan, without a lock.
    `before_cleanup`: also those that a certificate names, whose cleanup is then given up.

    Raises Locked, UsageError, NotFound, CleanupRefused, DataDamaged when a snapshot file cannot be read; nothing was
    deleted then, but for Locked: the lock may be lost on the way.
    """
    if dry_run:
        plan = plan_forgetting(repository, wish, before_cleanup=before_cleanup)
        tell(plan)
        return plan
    refuse_hold(repository)
    repository.remove_stale_locks()  # of a run that was killed
    with repository.lock(exclusive=True) as lock:
        plan = plan_forgetting(repository, wish, before_cleanup=before_cleanup)
        tell(plan)
        if before_cleanup:
            give_up(repository.store)
        for point in plan.removed:
            lock.require_held()
            repository.store.delete(f"snapshots/{point.id}")
    emit(Note(stage=_STAGE, text=f"{len(plan.removed)} recovery points are gone, {len(plan.kept)} stay"))
    return plan


def plan_forgetting(repository: Repository, wish: Wish, *, before_cleanup: bool = False) -> ForgetPlan:
    """What `forget` would do now. Raises UsageError, NotFound, CleanupRefused, DataDamaged."""
    points = repository.snapshots()
    certified = {} if before_cleanup else _certified(repository)
    if wish.ids:
        return _plan_named(points, wish.ids, certified)
    groups = apply((point for point in points if wish.only.matches(point)), wish.policy, grouping=wish.grouping)
    for group in groups:
        if not group.kept:
            raise UsageError(
                f"the policy would keep no recovery point of {_described(group)}",
                hint="nothing was forgotten; add --keep-last 1, or name the recovery points that shall go",
            )
    return ForgetPlan(groups=tuple(_without(group, certified) for group in groups))


def refuse_hold(repository: Repository) -> None:
    """Raise Locked when there is a hold, even one that nobody has renewed in time: disks may travel still."""
    for hold in repository.find_holds():
        expired = ", though it has expired" if hold.expires < clock.now() else ""
        raise Locked(
            f"{repository.store.location} is held for {hold.label!r} while its disks travel{expired}",
            hint="ingest the disks first; the hold is released then. When they will never all come: `diskprep vault "
            "give-up`",
        )


def _certified(repository: Repository) -> dict[str, str]:
    """Id of each recovery point that must stay for a cleanup, and of which job. Raises DataDamaged."""
    found: dict[str, str] = {}
    for job_name, certificate in outstanding(repository.store).items():
        if certificate is None:
            raise DataDamaged(
                f"the certificate of job {job_name} in {repository.store.location} cannot be read: what it names is "
                "unknown, so nothing is forgotten",
                hint="ingest again, which writes a new one; or add --before-cleanup when there is nothing to clean up",
            )
        found |= dict.fromkeys(certificate.snapshots, job_name)
    return found


def _plan_named(points: Sequence[Snapshot], ids: Iterable[str], certified: dict[str, str]) -> ForgetPlan:
    chosen = {point.id: point for point in (_named(points, name) for name in ids)}
    for point_id in chosen:
        if point_id in certified:
            raise CleanupRefused(
                f"the certificate of job {certified[point_id]} names the recovery point {point_id[:8]}; without it the "
                "staging and the container of the job could not be cleaned up",
                hint="nothing was forgotten; run `diskprep cleanup` first. When there is nothing to clean up, or you "
                "will do that yourself, add --before-cleanup",
            )
    kept = [Kept(point=point, reasons=("not named",)) for point in reversed(points) if point.id not in chosen]
    removed = tuple(point for point in reversed(points) if point.id in chosen)
    return ForgetPlan(groups=(Group(kept=tuple(kept), removed=removed),))


def _named(points: Sequence[Snapshot], name: str) -> Snapshot:
    found = list(points[-1:]) if name == "latest" else [p for p in points if name and p.id.startswith(name)]
    if len(found) != 1:
        what = "no recovery point has" if not found else f"{len(found)} recovery points have"
        raise UsageError(
            f"{what} an id that starts with {name!r}", hint="nothing was forgotten; `diskprep vault list` shows the ids"
        )
    return found[0]


def _without(group: Group, certified: dict[str, str]) -> Group:
    """The group, with what is certified among what stays."""
    held = [
        Kept(point=point, reasons=(f"certified for job {certified[point.id]}, which is not cleaned up yet",))
        for point in group.removed
        if point.id in certified
    ]
    if not held:
        return group
    kept = sorted([*group.kept, *held], key=lambda kept: (kept.point.time, kept.point.id), reverse=True)
    removed = tuple(point for point in group.removed if point.id not in certified)
    return replace(group, kept=tuple(kept), removed=removed)


def _described(group: Group) -> str:
    parts = [f"host {group.host}" * bool(group.host), ", ".join(group.paths), ", ".join(group.tags)]
    return "; ".join(filter(None, parts)) or "all"
