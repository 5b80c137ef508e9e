"""What a file and a byte cost as the source grows tenfold: 20, 60 and 200 thousand files; 0.4, 1.3 and 4.3 GB.

A cost that grows with the tree shows in the last column: what each further file or byte costs, from row to row, without
what starting up costs.

    .venv/bin/python benchmarks/curve.py --document docs/performance.md
"""

from __future__ import annotations

from collections import defaultdict

import report
import tools
from harness import Bench, Failed, Reading, Tree, options, say, turns, warm

STEPS = (0.1, 0.3, 1.0)


def main() -> int:
    bench = options(__doc__, sets="tiny,big", tools="diskprep,restic")
    contestants = tools.first_backup(bench)
    parts: list[str] = []
    failed = False
    for name in bench.sets:
        trees = [bench.tree(name, scale=step) for step in STEPS]
        try:
            parts.append(_curve(bench, trees, contestants))
        except Failed as error:
            failed = True
            say(f"FAILED: {name}: {error}")
    text = "\n\n".join([report.circumstances(bench, contestants), *parts])
    report.keep(bench, "curve", text, failed=failed)
    return failed


def _curve(bench: Bench, trees: list[Tree], contestants: list[tools.Tool]) -> str:
    """A table, a row a tool and size. Raises Failed."""
    readings: dict[tuple[str, int], list[Reading]] = defaultdict(list)
    for tree, tool in turns(bench.runs, [(tree, tool) for tree in trees for tool in contestants]):
        with bench.place(tree, tool.name) as place:
            warm(tree.path)
            tool.prepare(place, tree.path)
            reading = tool.backup(place, tree.path, limit_s=bench.limit_s)
        readings[tool.name, tree.size].append(reading)
        say(f"{tree.name:>6} {tree.size:>14,} {tool.name:9} {reading.wall_s:8.2f} s {reading.cpu_s:8.2f} s CPU")
    by_file = trees[-1].size / trees[-1].files < 1e6  # small files cost by the file, large ones by the byte
    rows = []
    for tool in contestants:
        before = (0.0, 0.0)
        for tree in trees:
            runs = readings[tool.name, tree.size]
            middle = report.median(runs)
            amount = tree.files / 1000 if by_file else tree.size / 1e9
            further = (middle.wall_s - before[1]) / (amount - before[0]) if before[0] else None
            before = (amount, middle.wall_s)
            rows.append(
                (
                    tool.name,
                    f"{tree.files:,}",
                    report.megabytes(tree.size),
                    report.spread([reading.wall_s for reading in runs]),
                    report.figure(middle.cpu_s / amount),
                    report.figure(middle.wall_s / amount),
                    report.figure(further) if further is not None else "",
                    report.memory(middle.pss_bytes),
                )
            )
    unit = "1000 files" if by_file else "GB"
    head = ("tool", "files", "MB", "wall s", f"CPU s / {unit}", f"s / {unit}", f"s / further {unit}", "memory MB")
    return report.table(head, rows)


if __name__ == "__main__":
    raise SystemExit(main())
