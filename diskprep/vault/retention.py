"""Retention: which recovery points a policy keeps, and why. Pure: nothing is read or deleted here.

The words and their meaning are restic's, so that one policy gives the same result with either program. Recovery points
are put into groups first; a policy is applied to each group alone. In a group, from the newest to the oldest: each
`daily` keeps the newest point of a day that has one until the count is used up, and so on; while a count is not used up
the oldest point of all is kept too; a `within` counts back from the newest point that is not in the future. What any
rule keeps is kept. Days, weeks (ISO) and so on are those of the zone that a recovery point's time was written in.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from diskprep import clock
from diskprep.errors import UsageError
from diskprep.repository.snapshot import Snapshot

UNLIMITED = -1
_DURATION = re.compile(r"(?:-?[0-9]{1,9}[ymdh])+")
_PART = re.compile(r"(-?[0-9]+)([ymdh])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """A length of time as the calendar has it. All zeros: none was said."""

    years: int = 0
    months: int = 0
    days: int = 0
    hours: int = 0

    def __bool__(self) -> bool:
        return any((self.years, self.months, self.days, self.hours))

    def __str__(self) -> str:
        parts = ((self.years, "y"), (self.months, "m"), (self.days, "d"), (self.hours, "h"))
        return "".join(f"{count}{unit}" for count, unit in parts if count)

    def before(self, moment: datetime) -> datetime | None:
        """The moment this long before, None when no calendar goes back so far. A day that its month does not have is
        so many days into the next one; a moment told in this computer's own zone keeps its time of day."""
        local = moment.astimezone()
        is_local = local.utcoffset() == moment.utcoffset()
        months = moment.year * 12 + moment.month - 1 - self.years * 12 - self.months
        try:
            first = moment.replace(year=months // 12, month=months % 12 + 1, day=1, tzinfo=None)
            there = first + timedelta(days=moment.day - 1 - self.days)
            found = there.astimezone() if is_local else there.replace(tzinfo=moment.tzinfo)
            return found.astimezone(UTC) - timedelta(hours=self.hours)
        except (ValueError, OverflowError):
            return None


def parse_duration(text: str) -> Duration:
    """`1y5m7d2h`: years, months, days, hours, each of them optional. Raises UsageError."""
    if not _DURATION.fullmatch(text):
        raise UsageError(f"{text!r} is not a length of time", hint="write it as 1y5m7d2h: years, months, days, hours")
    counts = {unit: int(number) for number, unit in _PART.findall(text)}
    return Duration(
        years=counts.get("y", 0), months=counts.get("m", 0), days=counts.get("d", 0), hours=counts.get("h", 0)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepPolicy:
    """What to keep of each group. Counts: 0 keeps nothing on this account, `UNLIMITED` every one of its kind.

    `tags`: recovery points that have all tags of one of these lists are kept; they use up no count. Raises UsageError
    for a count below `UNLIMITED`.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: Duration = field(default_factory=Duration)
    within_hourly: Duration = field(default_factory=Duration)
    within_daily: Duration = field(default_factory=Duration)
    within_weekly: Duration = field(default_factory=Duration)
    within_monthly: Duration = field(default_factory=Duration)
    within_yearly: Duration = field(default_factory=Duration)
    tags: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        for rule in _COUNTED:
            if getattr(self, rule) < UNLIMITED:
                raise UsageError(f"{getattr(self, rule)} recovery points cannot be kept", hint="give 0 or more")

    def __bool__(self) -> bool:
        """Whether it says anything; a policy that does not keeps everything."""
        return any(getattr(self, rule.name) for rule in fields(self))


_COUNTED = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
_Period = Callable[[datetime, int], object]
_PERIODS: Mapping[str, _Period] = {
    "last": lambda _, number: number,
    "hourly": lambda moment, _: (moment.year, moment.month, moment.day, moment.hour),
    "daily": lambda moment, _: (moment.year, moment.month, moment.day),
    "weekly": lambda moment, _: tuple(moment.isocalendar()[:2]),
    "monthly": lambda moment, _: (moment.year, moment.month),
    "yearly": lambda moment, _: moment.year,
}


class GroupBy(StrEnum):
    """What recovery points of one group have in common."""

    HOST = "host"
    PATHS = "paths"
    TAGS = "tags"


DEFAULT_GROUPING = (GroupBy.HOST, GroupBy.PATHS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which recovery points are looked at; the others are left alone. Empty: all. `hosts`: one of them; `paths`: every
    one of them; `tags`: all tags of one of the lists, an empty tag means that there is none."""

    hosts: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    tags: tuple[tuple[str, ...], ...] = ()

    def matches(self, point: Snapshot) -> bool:
        return (
            (not self.hosts or point.hostname in self.hosts)
            and set(self.paths) <= set(point.paths)
            and (not self.tags or any(has_tags(point, tags) for tags in self.tags))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A recovery point that stays. `reasons` is never empty."""

    point: Snapshot
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What a policy does to one group; both from the newest to the oldest. The fields that the group does not go by
    are empty."""

    host: str = ""
    paths: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    kept: tuple[Kept, ...] = ()
    removed: tuple[Snapshot, ...] = ()


def parse_grouping(text: str) -> tuple[GroupBy, ...]:
    """`host,paths`; nothing: all recovery points are one group. Raises UsageError."""
    # restic takes the singular of each as well
    words = {"host": GroupBy.HOST, "path": GroupBy.PATHS, "paths": GroupBy.PATHS, "tag": GroupBy.TAGS} | {
        "tags": GroupBy.TAGS
    }
    found = []
    for word in filter(None, text.split(",")):
        if word not in words:
            raise UsageError(f"recovery points cannot be grouped by {word!r}", hint="use host, paths and tags")
        found.append(words[word])
    return tuple(dict.fromkeys(found))


def parse_tags(text: str) -> tuple[str, ...]:
    """A list of tags, as `--tag a,b` has it; blanks beside the commas do not count."""
    return tuple(tag.strip() for tag in text.split(","))


def has_tags(point: Snapshot, tags: Iterable[str]) -> bool:
    """Whether the point has all of these tags; the empty tag is there when there is none at all."""
    for tag in tags:
        if not tag and not point.tags:
            return True
        if tag not in point.tags:
            return False
    return True


def apply(
    points: Iterable[Snapshot], policy: KeepPolicy, *, grouping: Sequence[GroupBy] = DEFAULT_GROUPING
) -> tuple[Group, ...]:
    """What the policy does to each group of these recovery points; groups are in the order of host, paths and tags."""
    members: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[Snapshot]] = {}
    for point in points:
        key = (
            point.hostname if GroupBy.HOST in grouping else "",
            tuple(sorted(point.paths)) if GroupBy.PATHS in grouping else (),
            tuple(sorted(point.tags)) if GroupBy.TAGS in grouping else (),
        )
        members.setdefault(key, []).append(point)
    groups = []
    for (host, paths, tags), group in sorted(members.items()):
        newest_first = sorted(group, key=lambda point: (point.time, point.id), reverse=True)
        reasons = _reasons(newest_first, policy)
        groups.append(
            Group(
                host=host,
                paths=paths,
                tags=tags,
                kept=tuple(
                    Kept(point=p, reasons=tuple(why)) for p, why in zip(newest_first, reasons, strict=True) if why
                ),
                removed=tuple(p for p, why in zip(newest_first, reasons, strict=True) if not why),
            )
        )
    return tuple(groups)


def _reasons(points: Sequence[Snapshot], policy: KeepPolicy) -> list[list[str]]:
    """Why each of the points, newest first, is kept; an empty list: it is not."""
    if not policy:
        return [["no policy was given"] for _ in points]
    rules: list[_Rule] = [_Count(name, getattr(policy, name)) for name in _COUNTED if getattr(policy, name)]
    now = clock.now()
    latest = max((point.time for point in points if point.time < now), default=None)
    for name, within in (
        ("", policy.within),
        ("hourly", policy.within_hourly),
        ("daily", policy.within_daily),
        ("weekly", policy.within_weekly),
        ("monthly", policy.within_monthly),
        ("yearly", policy.within_yearly),
    ):
        if within:
            rules.append(_Within(name, within, None if latest is None else within.before(latest)))
    reasons = []
    for number, point in enumerate(points):
        why = [f"has the tags {','.join(tags)}" for tags in policy.tags if has_tags(point, tags)]
        for rule in rules:
            why += rule.asked(point, number, is_oldest=number == len(points) - 1)
        reasons.append(why)
    return reasons


class _Rule(ABC):
    """One word of a policy, asked about the points of one group from the newest to the oldest."""

    def __init__(self, period: str) -> None:
        self._period = _PERIODS[period]
        self._last: object = None

    @abstractmethod
    def asked(self, point: Snapshot, number: int, *, is_oldest: bool) -> list[str]:
        """Why this point is kept, if it is."""

    def _is_new(self, point: Snapshot, number: int) -> bool:
        """Whether it is the first of its day, week and so on."""
        value = self._period(point.time, number)
        is_new, self._last = value != self._last, value
        return is_new


class _Count(_Rule):
    def __init__(self, name: str, count: int) -> None:
        super().__init__(name)
        self._name, self._left = name, count

    def asked(self, point: Snapshot, number: int, *, is_oldest: bool) -> list[str]:
        if not self._left:
            return []
        is_new = self._is_new(point, number)
        if not is_new and not is_oldest:
            return []
        self._left -= self._left > 0
        return [f"{self._name}" if is_new else f"oldest, {self._name}"]


class _Within(_Rule):
    """`since` None: from the beginning of time."""

    def __init__(self, name: str, within: Duration, since: datetime | None) -> None:
        super().__init__(name or "last")
        self._reason = f"{name} within {within}".strip()
        self._since = since

    def asked(self, point: Snapshot, number: int, *, is_oldest: bool) -> list[str]:
        if self._since is not None and point.time <= self._since:
            return []
        is_new = self._is_new(point, number)
        if not is_new and not is_oldest:
            return []
        return [self._reason if is_new else f"oldest, {self._reason}"]
