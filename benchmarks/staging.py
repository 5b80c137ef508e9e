"""The first full backup, side by side: diskprep stage, restic, borg, a pipe of standard tools, and a mere copy.

make bench
make bench BENCH='--sets tiny --tools diskprep,restic --runs 1 --scale 0.1'
"""

from __future__ import annotations

from dataclasses import dataclass, field

import report
import tools
from harness import Bench, Failed, Reading, Tree, options, say, stored, turns, warm


@dataclass(slots=True)
class Result:
    """What a tool's runs on one data set took."""

    readings: list[Reading] = field(default_factory=list)
    stored: int = 0
    checked: bool = False
    failed: bool = False


def main() -> int:
    bench = options(__doc__, sets="big,vm,usr,tiny", tools="diskprep,restic,borg,tar,cp")
    contestants = tools.first_backup(bench)
    peer = tools.restic(bench)
    say("; ".join(tool.version() for tool in contestants))  # all are there, and were loaded once
    compared: list[tuple[Tree, dict[str, Result]]] = []
    for name in bench.sets:
        tree = bench.tree(name)
        compared.append((tree, _compare(bench, tree, contestants, peer)))
        say(_table(*compared[-1]))
    parts = [report.circumstances(bench, contestants), _summary(compared), *(_table(*one) for one in compared)]
    failed = any(result.failed for _, results in compared for result in results.values())
    report.keep(bench, "staging", "\n\n".join(filter(None, parts)), failed=failed)
    return failed


def _compare(bench: Bench, tree: Tree, contestants: list[tools.Tool], peer: tools.Tool) -> dict[str, Result]:
    results = {tool.name: Result() for tool in contestants}
    for tool in turns(bench.runs, contestants):
        try:
            _one(bench, tree, tool, peer, results[tool.name])
        except Failed as error:
            results[tool.name].failed = True
            say(f"FAILED: {tool.name} on {tree.name}: {error}")
    return results


def _one(bench: Bench, tree: Tree, tool: tools.Tool, peer: tools.Tool, result: Result) -> None:
    with bench.place(tree, tool.name) as place:
        warm(tree.path)
        tool.prepare(place, tree.path)
        reading = tool.backup(place, tree.path, limit_s=bench.limit_s)
        say(f"{tree.name:>6} {tool.name:18} {reading.wall_s:8.2f} s {reading.cpu_s:8.2f} s CPU")
        if tool.name == "diskprep" and not result.checked:
            tools.check(peer, place, place.repository / "repository")
            result.checked = True
        result.readings.append(reading)
        result.stored = stored(place.repository)


def _table(tree: Tree, results: dict[str, Result]) -> str:
    theirs = _median(results.get("restic"))
    rows: list[tuple[str, ...]] = []
    for name, result in results.items():
        ours = _median(result)
        if ours is None:
            rows.append((name, "failed", *[""] * 8))
            continue
        rows.append(
            (
                name,
                report.spread([reading.wall_s for reading in result.readings]) + (" failed" if result.failed else ""),
                report.figure(tree.size / 1e6 / ours.wall_s),
                f"{tree.files / ours.wall_s:,.0f}",
                report.figure(ours.cpu_s),
                report.megabytes(result.stored),
                report.memory(ours.pss_bytes),
                report.memory(ours.rss_bytes),
                f"{theirs.wall_s / ours.wall_s:.2f}" if theirs else "",
                f"{ours.cpu_s / theirs.cpu_s:.2f}" if theirs else "",
            )
        )
    head = ("tool", "wall s", "MB/s", "files/s", "CPU s", "stored MB", "memory MB", "largest MB", "speed", "CPU")
    text = f"**{tree.name}**: {tree.files:,} files, {report.megabytes(tree.size)} MB\n\n{report.table(head, rows)}"
    if any(result.checked for result in results.values()):
        text += "\n\n`restic check` of diskprep's repository: no errors were found."
    return text


def _summary(compared: list[tuple[Tree, dict[str, Result]]]) -> str:
    """diskprep in multiples of restic, a row a data set; empty unless both took part."""
    rows = []
    for tree, results in compared:
        ours, theirs = _median(results.get("diskprep")), _median(results.get("restic"))
        if ours and theirs:
            figures = (
                theirs.wall_s / ours.wall_s,
                ours.cpu_s / theirs.cpu_s,
                results["diskprep"].stored / results["restic"].stored,
                ours.pss_bytes / max(theirs.pss_bytes, 1),
            )
            rows.append((tree.name, *(f"{figure:.2f}" for figure in figures)))
    return report.table(("diskprep, where restic is 1", "speed", "CPU time", "stored", "memory"), rows) if rows else ""


def _median(result: Result | None) -> Reading | None:
    return report.median(result.readings) if result and result.readings else None


if __name__ == "__main__":
    raise SystemExit(main())
