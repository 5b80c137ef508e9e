"""Restoring and checking, side by side: diskprep vault restore and check, against restic, from one repository.

make bench-vault
make bench-vault BENCH='--sets tiny --runs 1 --scale 0.1'

The repository is made by diskprep stage, off the clock. What diskprep restored is compared with the source once.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import report
import tools
from harness import Bench, Failed, Place, Reading, Tree, heat, metered, options, say, turns, warm

from diskprep.compare import differences, fingerprint

RESTORE, VERIFY, CHECK = "restore", "restore --verify", "check --read-data"
_Runs = dict[tuple[str, str], list[Reading]]


def main() -> int:
    bench = options(__doc__, sets="big,vm,usr,tiny", tools="diskprep,restic")
    peer = tools.restic(bench)
    versions = [tools.diskprep_version(bench), peer.version()]
    failed = False
    compared: list[tuple[Tree, _Runs]] = []
    for name in bench.sets:
        tree = bench.tree(name)
        try:
            compared.append((tree, _compare(bench, tree)))
            say(_table(*compared[-1]))
        except Failed as error:
            failed = True
            say(f"FAILED: {tree.name}: {error}")
    sources = "the repository in the page cache"
    parts = [
        report.conditions(bench, versions, sources=sources),
        _summary(compared),
        *(_table(*one) for one in compared),
    ]
    report.keep(bench, "vault", "\n\n".join(filter(None, parts)), failed=failed)
    return failed


def _compare(bench: Bench, tree: Tree) -> _Runs:
    """Raises Failed."""
    runs: _Runs = defaultdict(list)
    with bench.place(tree, "vault") as place:
        warm(tree.path)
        tools.stage(bench).backup(place, tree.path, limit_s=bench.limit_s)
        repository = place.repository / "repository"
        target = place.repository / "restored"
        ways = _ways(bench, place, repository, target)
        proven = False
        for tool, what in turns(bench.runs, list(ways)):
            warm(repository)
            heat(place.repository, tree.size)
            command, environment = ways[tool, what]
            reading = metered(command, environment=environment, limit_s=bench.limit_s)
            say(f"{tree.name:>6} {tool:9} {what:18} {reading.wall_s:8.2f} s {reading.cpu_s:8.2f} s CPU")
            runs[tool, what].append(reading)
            if (tool, what) == ("diskprep", RESTORE) and not proven:
                _prove(tree.path, target / tree.path.relative_to("/"))
                proven = True
            shutil.rmtree(target, ignore_errors=True)
    return runs


def _ways(
    bench: Bench, place: Place, repository: Path, target: Path
) -> dict[tuple[str, str], tuple[list[str], Mapping[str, str]]]:
    """What is timed: a command and its environment for each tool and word."""
    ours = [str(bench.diskprep), "vault"]
    where = ["--vault", str(repository), "--passphrase-file", str(place.passphrase_file), "--quiet"]
    job = tools.restic(bench).job(place, repository)
    environment = {**job.environment, "RESTIC_REPOSITORY": str(repository)}
    theirs = [job.command[0], "--quiet"]
    known: dict[tuple[str, str], tuple[list[str], Mapping[str, str]]] = {
        ("diskprep", RESTORE): ([*ours, "restore", str(target), *where], {}),
        ("restic", RESTORE): ([*theirs, "restore", "latest", "--target", str(target)], environment),
        ("diskprep", VERIFY): ([*ours, "restore", str(target), "--verify", *where], {}),
        ("restic", VERIFY): ([*theirs, "restore", "latest", "--verify", "--target", str(target)], environment),
        ("diskprep", CHECK): ([*ours, "check", "--read-data", *where], {}),
        ("restic", CHECK): ([*theirs, "check", "--read-data"], environment),
    }
    return {key: way for key, way in known.items() if key[0] in bench.tools}


def _prove(source: Path, restored: Path) -> None:
    """Raises Failed unless what was restored is the source."""
    found = differences(fingerprint(source), fingerprint(restored), limit=3)
    if found:
        raise Failed(f"what was restored differs: {'; '.join(found)}")


def _table(tree: Tree, runs: _Runs) -> str:
    rows = []
    for (tool, what), readings in sorted(runs.items(), key=lambda one: (one[0][1] == CHECK, one[0][1], one[0][0])):
        ours = report.median(readings)
        theirs = report.median(runs["restic", what]) if ("restic", what) in runs else None
        rows.append(
            (
                f"{tool} {what}",
                report.spread([reading.wall_s for reading in readings]),
                report.figure(tree.size / 1e6 / ours.wall_s),
                f"{tree.files / ours.wall_s:,.0f}",
                report.figure(ours.cpu_s),
                report.memory(ours.pss_bytes),
                report.memory(ours.rss_bytes),
                f"{theirs.wall_s / ours.wall_s:.2f}" if theirs else "",
                f"{ours.cpu_s / theirs.cpu_s:.2f}" if theirs else "",
            )
        )
    head = ("tool", "wall s", "MB/s", "files/s", "CPU s", "memory MB", "largest MB", "speed", "CPU")
    return f"**{tree.name}**: {tree.files:,} files, {report.megabytes(tree.size)} MB\n\n{report.table(head, rows)}"


def _summary(compared: list[tuple[Tree, _Runs]]) -> str:
    """diskprep's speed in multiples of restic's; empty unless both took part."""
    rows = []
    for tree, runs in compared:
        medians = {key: report.median(readings) for key, readings in runs.items()}
        if ("restic", RESTORE) in medians and ("diskprep", RESTORE) in medians:
            speeds = [
                medians["restic", what].wall_s / medians["diskprep", what].wall_s for what in (RESTORE, VERIFY, CHECK)
            ]
            rows.append((tree.name, *(f"{speed:.2f}" for speed in speeds)))
    return report.table(("speed, where restic is 1", RESTORE, VERIFY, CHECK), rows) if rows else ""


if __name__ == "__main__":
    raise SystemExit(main())
