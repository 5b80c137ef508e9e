"""`diskprep vault list`, `find` and `diff`: what the recovery points hold, and how they differ."""

from __future__ import annotations

import base64
import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from diskprep import clock
from diskprep.cli import inputs, output
from diskprep.cli.stores import KeyFile, Vault, open_vault
from diskprep.errors import DataDamaged, DiskprepError, UsageError
from diskprep.repository.repository import Repository
from diskprep.repository.snapshot import Snapshot
from diskprep.repository.tree import Node
from diskprep.source.source import display, public_path
from diskprep.vault.difference import Changed, Difference, Summary
from diskprep.vault.find import Match, Query, Search
from diskprep.vault.points import Choice, Point, schedules, survey

_CHART_WIDTH = 40
_PROBLEMS_SHOWN = 50
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_S, _LAST_S = -62_100_000_000, 253_300_000_000  # in the years 2 and 9996
_SCHEDULES = {"synthetic_full": "synthetic full", "differential": "differential", "full": "full"}

Host = Annotated[
    list[str] | None, typer.Option("--host", "-H", metavar="HOST", help="Only points of this host; may be repeated.")
]
OfPath = Annotated[
    list[str] | None,
    typer.Option("--path", metavar="PATH", help="Only points of this source; repeated: that have all of them."),
]
Tag = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="TAG[,TAG...]", help="Only points with all these tags; repeated: or with these."),
]


def list_points(
    vault: Vault,
    host: Host = None,
    path: OfPath = None,
    tag: Tag = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Read no directories: no sizes, no chart, not what is restorable.")
    ] = False,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """The recovery points: size, growth, whether they can be restored, and what other schedules would have cost."""
    repository = open_vault(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    choice = _choice(host, path, tag)
    _prolong_holds(repository)
    if fast:
        _tell_fast([point for point in repository.snapshots() if choice.has(point)], json=json)
        return
    with output.screen(quiet=quiet) as screen:
        found = survey(repository, emit=screen.emit)
    points = [point for point in found.points if choice.has(point.snapshot)]
    if json:
        document = {"recovery_points": [_point_document(point) for point in points], "schedules": schedules(points)}
        output.print_json(document | {"problems": list(found.problems)})
    else:
        _tell_points(points)
    _refuse_problems(found.problems, json=json)


def find(
    patterns: Annotated[
        list[str], typer.Argument(metavar="PATTERN...", help="Names or absolute paths; *, ?, [...] and ** as restic's.")
    ],
    vault: Vault,
    snapshot: Annotated[
        list[str] | None,
        typer.Option("--snapshot", "-s", metavar="ID", help="Only this recovery point; may be repeated."),
    ] = None,
    host: Host = None,
    path: OfPath = None,
    tag: Tag = None,
    ignore_case: Annotated[bool, typer.Option("--ignore-case", "-i", help="Upper or lower case alike.")] = False,
    oldest: Annotated[
        str | None, typer.Option("--oldest", "-O", metavar="TIME", help="Only what was changed then or later.")
    ] = None,
    newest: Annotated[
        str | None, typer.Option("--newest", "-N", metavar="TIME", help="Only what was changed then or before.")
    ] = None,
    blob: Annotated[bool, typer.Option("--blob", help="PATTERN is the id of a blob: which files have it.")] = False,
    tree: Annotated[bool, typer.Option("--tree", help="PATTERN is the id of a directory's listing.")] = False,
    pack: Annotated[bool, typer.Option("--pack", help="PATTERN is the id of a pack: what is partly in it.")] = False,
    long: Annotated[bool, typer.Option("--long", "-l", help="Also mode and owner.")] = False,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
) -> None:
    """Find files and folders in the recovery points, each with the newest point that has it just so."""
    if blob + tree + pack > 1:
        raise UsageError("the ids are of blobs, of trees or of packs, not of two of them")
    ids = tuple(pattern.lower() for pattern in patterns)
    query = Query(
        patterns=() if blob or tree or pack else tuple(map(os.fsencode, patterns)),
        ignore_case=ignore_case,
        blobs=ids if blob else (),
        trees=ids if tree else (),
        packs=ids if pack else (),
        oldest_ns=None if oldest is None else _time_ns(oldest),
        newest_ns=None if newest is None else _time_ns(newest),
    )
    repository = open_vault(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    if snapshot:
        chosen = {point.id: point for point in map(repository.snapshot, snapshot)}
        points = sorted(chosen.values(), key=lambda point: (point.time, point.id))
    else:
        choice = _choice(host, path, tag)
        points = [point for point in repository.snapshots() if choice.has(point)]
    search = Search(repository, points, query)
    if json:
        matches = [_match_document(match) for match in search.run()]
        output.print_json({"matches": matches, "problems": search.problems})
    else:
        for match in search.run():
            print(_match_line(match, long=long))
    _refuse_problems(search.problems, json=json)


def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="The earlier recovery point, or how its id begins.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The later one; `latest` is the newest of all.")],
    vault: Vault,
    path: Annotated[
        str, typer.Argument(metavar="[PATH]", help="Only what lies at or below this absolute path.", show_default=False)
    ] = "/",
    metadata: Annotated[
        bool, typer.Option("--metadata", help="Also what changed in nothing but mode, owner, times or attributes.")
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Read equal folders too: what they store counts as neither new nor gone.")
    ] = False,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
) -> None:
    """What changed from recovery point A to B: + added, - removed, M content, U metadata, T type."""
    repository = open_vault(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    difference = Difference(
        repository,
        repository.snapshot(before),
        repository.snapshot(after),
        path=os.fsencode(path),
        metadata=metadata,
        exact=exact,
    )
    if json:
        changes = [_change_document(changed) for changed in difference.run()]
        summary = difference.summary()
        output.print_json({"changes": changes} | asdict(summary))
    else:
        for changed in difference.run():
            print(f"{changed.change:<5}{display(changed.path)}{'/' if changed.is_directory else ''}")
        summary = difference.summary()
        _tell_summary(summary)
    _refuse_problems(summary.problems, json=json)


# -- recovery points


def _tell_fast(points: list[Snapshot], *, json: bool) -> None:
    if json:
        output.print_json({"recovery_points": [_snapshot_document(point) for point in points]})
        return
    print(output.table(("id", "time", "host", "paths", "tags"), [_snapshot_cells(point) for point in points]))


def _tell_points(points: list[Point]) -> None:
    headings = ("id", "time", "host", "paths", "tags", "size", "growth", "restorable")
    rows = [
        (*_snapshot_cells(p.snapshot), output.size(p.size_bytes), output.size(p.growth_bytes), _restorable(p))
        for p in points
    ]
    print(output.table(headings, rows))
    if points:
        print(f"\nstored by schedule, for {'this point' if len(points) == 1 else f'these {len(points)} points'}")
        print("\n".join(_chart(schedules(points))))


def _restorable(point: Point) -> str:
    if point.lacks.is_whole:
        return "yes"
    if point.lacks.unknown_blobs:
        return "damaged"
    packs = len(point.lacks.missing_packs)
    return f"{packs} pack{'s' if packs > 1 else ''} missing, {output.size(point.lacks.missing_bytes)}"


def _chart(taken: dict[str, int]) -> list[str]:
    """A bar for each schedule; the longest is as wide as the chart."""
    largest = max(taken.values()) or 1
    width = max(map(len, _SCHEDULES.values()))
    return [
        f"{_SCHEDULES[name]:<{width}}  {output.size(count):>9}  {'#' * max(1, round(count / largest * _CHART_WIDTH))}"
        for name, count in taken.items()
    ]


def _snapshot_cells(point: Snapshot) -> tuple[str, ...]:
    when = point.time.astimezone().strftime("%Y-%m-%d %H:%M")
    texts = (point.hostname, ", ".join(point.paths), ", ".join(point.tags))
    return (point.id[:8], when, *map(output.escape, texts))


def _snapshot_document(point: Snapshot) -> dict[str, Any]:
    return {
        "id": point.id,
        "time": clock.rfc3339(point.time),
        "hostname": point.hostname,
        "paths": list(point.paths),
        "tags": list(point.tags),
    }


def _point_document(point: Point) -> dict[str, Any]:
    return _snapshot_document(point.snapshot) | {
        "size_bytes": point.size_bytes,
        "files": point.files,
        "directories": point.directories,
        "growth_bytes": point.growth_bytes,
        "full_bytes": point.full_bytes,
        "differential_bytes": point.differential_bytes,
        "restorable": point.lacks.is_whole,
        "missing_packs": list(point.lacks.missing_packs),
        "missing_bytes": point.lacks.missing_bytes,
        "unknown_blobs": point.lacks.unknown_blobs,
    }


def _prolong_holds(repository: Repository) -> None:
    """Who looks whether the disks have arrived still waits for them. A vault that may only be read is listed too."""
    for hold in repository.find_holds():
        with contextlib.suppress(DiskprepError):
            hold.refresh()


# -- entries


def _match_line(match: Match, *, long: bool) -> str:
    node, more = match.node, len(match.points) - 1
    point = f"{match.points[-1].id[:8]} {f'(+{more})' if more else ''}"
    rights = f"{stat.filemode(node.unix_mode)} {node.uid:>5} {node.gid:>5}  " if long else ""
    when = _time(node.mtime).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return f"{point:<15} {rights}{when} {output.size(node.size):>9}  {display(match.path)}"


def _match_document(match: Match) -> dict[str, Any]:
    node = match.node
    return _path_document(match.path) | {
        "type": str(node.type),
        "mode": f"{stat.S_IMODE(node.unix_mode):04o}",
        "size_bytes": node.size,
        "modified": clock.rfc3339(_time(node.mtime)),
        "uid": node.uid,
        "gid": node.gid,
        "user": node.user,
        "group": node.group,
        "points": [point.id for point in match.points],
    }


def _change_document(changed: Changed) -> dict[str, Any]:
    def known(node: Node | None) -> dict[str, Any] | None:
        return None if node is None else {"type": str(node.type), "size_bytes": node.size}

    document = {"change": str(changed.change), "before": known(changed.before), "after": known(changed.after)}
    return _path_document(changed.path) | document


def _path_document(path: bytes) -> dict[str, Any]:
    """A path as text, with U+FFFD for each byte that is not; then also its bytes, in base64."""
    text = public_path(path)
    return {"path": text} if text.encode() == path else {"path": text, "path_base64": base64.b64encode(path).decode()}


def _tell_summary(summary: Summary) -> None:
    added, removed = summary.added, summary.removed
    columns = ("", "added", "removed", "changed")
    rows = [
        ("files", str(added.files), str(removed.files), str(summary.changed_files)),
        ("folders", str(added.directories), str(removed.directories), ""),
        ("others", str(added.others), str(removed.others), ""),
        ("content", *(output.size(side.plaintext_bytes) for side in (added, removed)), ""),
        ("stored", *(output.size(side.stored_bytes) for side in (added, removed)), ""),
    ]
    print(f"\n{output.table(columns, rows)}")


# -- what the commands have in common


def _choice(hosts: list[str] | None, paths: list[str] | None, tags: list[str] | None) -> Choice:
    return Choice(
        hosts=tuple(hosts or ()),
        paths=tuple(public_path(os.path.normpath(os.fsencode(path))) for path in paths or ()),
        tags=tuple(tuple(text.split(",")) for text in tags or ()),
    )


def _time_ns(text: str) -> int:
    """A moment in nanoseconds since the epoch: a date, with a time of day or without, in this computer's zone unless
    it names one."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is no time", hint="write it as 2026-03-01 or '2026-03-01 14:30'") from None
    return (moment.astimezone() - _EPOCH) // timedelta(microseconds=1) * 1000


def _time(time_ns: int) -> datetime:
    """The moment; far from our time the nearest one that can be shown in every zone."""
    second, rest_ns = divmod(time_ns, 10**9)
    return _EPOCH + timedelta(seconds=min(max(second, _FIRST_S), _LAST_S), microseconds=rest_ns // 1000)


def _refuse_problems(problems: Sequence[str], *, json: bool) -> None:
    """Raise DataDamaged when there are any, after they were told."""
    if not problems:
        return
    for problem in problems[:_PROBLEMS_SHOWN] if not json else ():
        print(output.escape(problem))
    raise DataDamaged(
        f"{len(problems)} directories could not be read; what was told is not all there is",
        hint="diskprep vault check names what is damaged",
    )
