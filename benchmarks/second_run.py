"""A backup when nothing has changed: diskprep vault backup with a base, against restic with a parent.

A million small files and /usr are backed up once, off the clock, by each tool into a repository of its own. What is
timed is the same command again.

    .venv/bin/python benchmarks/second_run.py --document docs/performance.md
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import report
import tools
from harness import Bench, Failed, Reading, Tree, options, say, stored, turns, warm

SCALES = {"tiny": 5.0}  # a million files


def main() -> int:
    bench = options(__doc__, sets="tiny,usr", tools="diskprep,restic")
    contestants = tools.second_backup(bench)
    peer = tools.restic(bench)
    trees = [bench.tree(name, scale=SCALES.get(name, 1.0)) for name in bench.sets]
    rows: list[tuple[str, ...]] = []
    failed = False
    for tree in trees:
        try:
            rows += _compare(bench, tree, contestants, peer)
        except Failed as error:
            failed = True
            say(f"FAILED: {tree.name}: {error}")
    head = ("source", "tool", "wall s", "files/s", "CPU s", "stored MB a run", "memory MB", "speed", "CPU")
    text = f"{report.circumstances(bench, contestants)}\n\n{report.table(head, rows)}"
    report.keep(bench, "second run", text, failed=failed)
    return failed


def _compare(bench: Bench, tree: Tree, contestants: list[tools.Tool], peer: tools.Tool) -> list[tuple[str, ...]]:
    """A row a tool. Raises Failed."""
    readings: dict[str, list[Reading]] = {tool.name: [] for tool in contestants}
    with ExitStack() as stack:
        places = {tool.name: stack.enter_context(bench.place(tree, tool.name)) for tool in contestants}
        warm(tree.path)
        for tool in contestants:
            tool.prepare(places[tool.name], tree.path)
            first = tool.backup(places[tool.name], tree.path, limit_s=bench.limit_s)
            say(f"{tree.name:>6} {tool.name:9} first {first.wall_s:8.2f} s")
        before = {name: stored(place.repository) for name, place in places.items()}
        for tool in turns(bench.runs, contestants):
            reading = tool.backup(places[tool.name], tree.path, limit_s=bench.limit_s)
            readings[tool.name].append(reading)
            say(f"{tree.name:>6} {tool.name:9} again {reading.wall_s:8.2f} s {reading.cpu_s:8.2f} s CPU")
        for place in places.values():
            tools.check(peer, place, place.repository)
        grown = {name: (stored(place.repository) - before[name]) / bench.runs for name, place in places.items()}
    return [_row(tree, tool.name, readings, grown[tool.name]) for tool in contestants]


def _row(tree: Tree, name: str, readings: dict[str, list[Reading]], grown: float) -> tuple[str, ...]:
    ours = report.median(readings[name])
    theirs = report.median(readings["restic"]) if "restic" in readings else None
    return (
        f"{Path(tree.name).name}, {tree.files:,} files",
        name,
        report.spread([reading.wall_s for reading in readings[name]]),
        f"{tree.files / ours.wall_s:,.0f}",
        report.figure(ours.cpu_s),
        f"{grown / 1e6:.2f}",
        report.memory(ours.pss_bytes),
        f"{theirs.wall_s / ours.wall_s:.2f}" if theirs else "",
        f"{ours.cpu_s / theirs.cpu_s:.2f}" if theirs else "",
    )


if __name__ == "__main__":
    raise SystemExit(main())
