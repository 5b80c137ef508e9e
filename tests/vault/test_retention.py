"""A policy keeps what restic keeps."""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from support import TurnedClock, need, run

from diskprep import clock
from diskprep.errors import UsageError
from diskprep.repository import codec
from diskprep.repository.keys import ScryptCost
from diskprep.repository.pack import BlobKind
from diskprep.repository.packwriter import PackWriter
from diskprep.repository.repository import Repository, create
from diskprep.repository.snapshot import Snapshot
from diskprep.repository.tree import encode_tree
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryStore
from diskprep.vault.retention import (
    UNLIMITED,
    Duration,
    Filter,
    GroupBy,
    KeepPolicy,
    apply,
    parse_duration,
    parse_grouping,
    parse_tags,
)

PASSPHRASE = "a passphrase of the tests"
HISTORIES = 30
#: Policies in both languages.
POLICIES = (
    (KeepPolicy(last=3), "--keep-last 3"),
    (KeepPolicy(hourly=5), "--keep-hourly 5"),
    (KeepPolicy(daily=4), "--keep-daily 4"),
    (KeepPolicy(weekly=3), "--keep-weekly 3"),
    (KeepPolicy(monthly=5), "--keep-monthly 5"),
    (KeepPolicy(yearly=100), "--keep-yearly 100"),
    (KeepPolicy(daily=7, weekly=5, monthly=12, yearly=3), "-d 7 -w 5 -m 12 -y 3"),
    (KeepPolicy(daily=UNLIMITED, last=2), "--keep-daily unlimited --keep-last 2"),
    (KeepPolicy(within=Duration(days=30)), "--keep-within 30d"),
    (KeepPolicy(within=Duration(years=1, months=5, days=7, hours=2)), "--keep-within 1y5m7d2h"),
    (
        KeepPolicy(within_daily=Duration(months=1), within_monthly=Duration(years=1)),
        "--keep-within-daily 1m --keep-within-monthly 1y",
    ),
    (
        KeepPolicy(
            within_hourly=Duration(days=2), within_weekly=Duration(days=40), within_yearly=Duration(years=5), daily=1
        ),
        "--keep-within-hourly 2d --keep-within-weekly 40d --keep-within-yearly 5y --keep-daily 1",
    ),
    (KeepPolicy(tags=(("red",), ("blue", "green")), last=1), "--keep-tag red --keep-tag blue,green --keep-last 1"),
)


def test_the_same_recovery_points_stay_as_with_restic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    repository = _with_histories(tmp_path / "repository")
    points = repository.snapshots()
    assert len({point.hostname for point in points}) == HISTORIES
    is_old = _keeps_no_oldest(newest_restic())
    for policy, words in POLICIES:
        if is_old and "unlimited" in words:
            continue
        kept, removed = _asked_of_restic(repository, tmp_path, *words.split())
        ours = {k.point.id: k.reasons for group in apply(points, policy) for k in group.kept}
        if is_old:
            ours = {i: why for i, why in ours.items() if not all(w.startswith("oldest") for w in why)}
        assert ours.keys() == kept, words
        assert {point.id for point in points} - ours.keys() == removed, words
        assert removed


@pytest.mark.parametrize("grouping", ["", "host", "tags", "paths,tags"])
def test_groups_are_those_of_restic(tmp_path: Path, grouping: str) -> None:
    repository = _with_histories(tmp_path / "repository", histories=4)
    kept, _ = _asked_of_restic(repository, tmp_path, "--keep-last", "2", "--group-by", grouping)
    groups = apply(repository.snapshots(), KeepPolicy(last=2), grouping=parse_grouping(grouping))
    assert {k.point.id for group in groups for k in group.kept} == kept


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Filter(hosts=("host 1", "host 2")), ("--host", "host 1", "--host", "host 2")),
        (Filter(paths=("/b",)), ("--path", "/b")),
        (Filter(paths=("/b", "/a")), ("--path", "/b", "--path", "/a")),
        (Filter(tags=(("red", "blue"), ("green",))), ("--tag", "red,blue", "--tag", "green")),
        (Filter(tags=(parse_tags(""),)), ("--tag", "")),
    ],
)
def test_filters_are_those_of_restic(tmp_path: Path, wanted: Filter, words: tuple[str, ...]) -> None:
    repository = _with_histories(tmp_path / "repository", histories=4)
    kept, removed = _asked_of_restic(repository, tmp_path, "--keep-last", "2", *words)
    points = [point for point in repository.snapshots() if wanted.matches(point)]
    groups = apply(points, KeepPolicy(last=2))
    assert {k.point.id for group in groups for k in group.kept} == kept
    assert {point.id for group in groups for point in group.removed} == removed
    assert kept


def newest_restic() -> str:
    """Debian's restic, or the newer one that the benchmarks unpacked."""
    newer = Path(__file__).parents[2] / ".cache/bench/debian/restic/usr/bin/restic"
    return str(newer) if newer.exists() else need("restic")


def _keeps_no_oldest(restic: str) -> bool:
    """Before 0.16 the oldest recovery point was not kept for a count that is not used up, and `unlimited` not known."""
    found = re.match(r"restic 0\.(\d+)", run(restic, "version"))
    return found is not None and int(found[1]) < 16


def _with_histories(folder: Path, *, histories: int = HISTORIES) -> Repository:
    """A repository of an empty tree, with recovery points at all kinds of times."""
    folder.mkdir()
    repository = create(DirectoryStore(folder), Secret(PASSPHRASE), cost=ScryptCost(n=16, r=1, p=1))
    plaintext = encode_tree([])
    tree = hashlib.sha256(plaintext).digest()
    writer = PackWriter(BlobKind.TREE, repository.key)
    writer.add(tree, plaintext)
    finished = writer.finish()
    repository.save_pack(finished.entry, finished.data)
    repository.save_index([finished.entry])
    (folder / "snapshots").mkdir()
    rng = random.Random(11)
    for number in range(histories):
        step = timedelta(minutes=rng.choice((10, 90, 60 * 24, 60 * 24 * 3, 60 * 24 * 50)))
        moment = datetime(2025, 11, 30, 23, 50, tzinfo=UTC) - timedelta(days=rng.randrange(800))
        if not number % 10:
            moment = datetime(2199, 1, 1, tzinfo=UTC)  # by a clock that is wrong
        zones = [timezone(timedelta(minutes=rng.choice((-480, 0, 60, 120, 345)))) for _ in range(3)]
        for _ in range(rng.randrange(1, 30)):
            moment -= step * rng.choice((0.25, 1, 1, 1, 2)) + timedelta(seconds=rng.randrange(1, 90))
            document = {
                "time": moment.astimezone(rng.choice(zones)).isoformat(),
                "tree": tree.hex(),
                "paths": rng.choice((["/a"], ["/a"], ["/b", "/a"], ["/a", "/b"])),
                "hostname": f"host {number}",
                "username": "root",
                "tags": rng.sample(("red", "green", "blue"), rng.randrange(3)),
            }
            sealed = repository.key.seal(codec.encode_json(document))
            (folder / "snapshots" / hashlib.sha256(sealed).hexdigest()).write_bytes(sealed)
    return repository


def _asked_of_restic(repository: Repository, folder: Path, *words: str) -> tuple[set[str], set[str]]:
    """The ids that `restic forget --dry-run` keeps, and those it would remove."""
    (folder / "passphrase").write_text(PASSPHRASE)
    options = ("--no-cache", "--json", "--password-file", folder / "passphrase", "-r", repository.store.location)
    said = run(newest_restic(), *options, "forget", "--dry-run", *words)
    groups = json.loads(next(line for line in said.splitlines() if line.startswith("[")))
    kept, removed = ({point["id"] for group in groups for point in group[side] or ()} for side in ("keep", "remove"))
    return kept, removed


# -- without restic


def point(moment: str, **fields: object) -> Snapshot:
    time = clock.parse_rfc3339(moment)
    base = Snapshot(id=hashlib.sha256(moment.encode()).hexdigest(), time=time, tree=bytes(32), paths=("/",))
    return replace(base, **fields)  # type: ignore[arg-type]


def test_a_policy_that_says_nothing_keeps_everything() -> None:
    (group,) = apply([point("2026-01-01T00:00:00Z"), point("2026-01-02T00:00:00Z")], KeepPolicy())
    assert [kept.reasons for kept in group.kept] == [("no policy was given",)] * 2
    assert group.removed == ()
    assert not KeepPolicy(within=Duration())
    assert KeepPolicy(yearly=UNLIMITED)


def test_every_reason_is_told_from_the_newest_to_the_oldest() -> None:
    points = [point(f"2026-01-0{day}T0{hour}:00:00Z") for day in (1, 2, 3) for hour in (1, 5)]
    (group,) = apply(points, KeepPolicy(last=1, daily=2, weekly=2))
    assert [(str(kept.point.time)[:13], kept.reasons) for kept in group.kept] == [
        ("2026-01-03 05", ("last", "daily", "weekly")),
        ("2026-01-02 05", ("daily",)),
        ("2026-01-01 01", ("oldest, weekly",)),
    ]
    assert len(group.removed) == 3


def test_a_day_is_one_of_the_zone_that_the_time_was_written_in() -> None:
    points = [point("2026-01-01T23:30:00-05:00"), point("2026-01-01T22:30:00-05:00"), point("2026-01-03T00:00:00Z")]
    (group,) = apply(points, KeepPolicy(daily=2))
    assert [str(removed.time)[:19] for removed in group.removed] == ["2026-01-01 22:30:00"]


def test_a_point_of_the_future_does_not_move_the_window(
    test_clock: TurnedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "now", test_clock)  # in March 2026
    points = [point("2030-01-01T00:00:00Z"), point("2026-02-20T00:00:00Z"), point("2026-02-01T00:00:00Z")]
    (group,) = apply(points, KeepPolicy(within=Duration(days=10)))
    assert [kept.point.time.year for kept in group.kept] == [2030, 2026]
    assert [removed.time.day for removed in group.removed] == [1]
    (group,) = apply(points[:1], KeepPolicy(within=Duration(days=10)))
    assert group.removed == ()


def test_lengths_of_time_are_those_of_the_calendar() -> None:
    assert parse_duration("1y5m7d2h") == Duration(years=1, months=5, days=7, hours=2)
    assert str(parse_duration("2h1y")) == "1y2h"
    end_of_march = datetime(2026, 3, 31, 12, tzinfo=UTC)
    assert Duration(months=1).before(end_of_march) == datetime(2026, 3, 3, 12, tzinfo=UTC)
    assert Duration(years=2, days=31).before(end_of_march) == datetime(2024, 2, 29, 12, tzinfo=UTC)
    assert Duration(years=9000).before(end_of_march) is None
    for wrong in ("", "5", "d", "5w", "1.5d", "5 d", "9999999999d"):
        with pytest.raises(UsageError):
            parse_duration(wrong)


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError):
        KeepPolicy(daily=-2)
    with pytest.raises(UsageError):
        parse_grouping("host,user")
    assert parse_grouping("tag,host,tags") == (GroupBy.TAGS, GroupBy.HOST)
