"""Preparing disks, side by side: diskprep disk prepare, dd, raw reads, and copying by hand with dislocker and ntfs-3g.

`--tools` names the parts: `write` (one disk against dd, read-back against a raw read), `two` (two disks in one call
against two dd at once), `hand` (by hand; needs root and FUSE), `xts`, `memory`, `format`.

make bench-disks
make bench-disks BENCH='--scale 0.02 --runs 1 --tools write,hand'
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ciphers
import contests
import diskruns
import report
import seeds
import tools
from contests import ONE, Contest
from diskruns import Run, scratch
from harness import GIB, Bench, Failed, filesystem, options, roomy_tmpfs, say, turns

PARTS = "write,two,hand,xts,memory,format"
MANY_PACKS = (30_000, 100_000, 300_000)
SMALL_PACK_BYTES = 1024
TWENTY_TB_PACKS = 20 * 10**12 // (16 << 20)
DISK_TB = (1, 20)


def main() -> int:
    bench = options(__doc__, sets="big", tools=PARTS)
    failures: list[str] = []
    texts: list[str] = []

    def attempt(what: str, part: Callable[[], str]) -> None:
        try:
            texts.append(part())
        except Failed as error:
            failures.append(what)
            say(f"FAILED: {what}: {error}")

    bench.work.mkdir(parents=True, exist_ok=True)
    fought: list[Contest] = []
    if {"write", "two", "hand"} & {*bench.tools}:
        attempt("write", lambda: contests.run_all(bench, fought, failures))
    if "xts" in bench.tools:
        attempt("xts", lambda: f"**XTS alone**\n\n{ciphers.compared(bench.runs)}")
    if "memory" in bench.tools:
        attempt("memory", lambda: _memory(bench, fought))
    if "format" in bench.tools:
        attempt("format", lambda: _format(bench))
    head = report.conditions(bench, _versions(bench), sources="sources as the tables say")
    report.keep(
        bench, "disks", "\n\n".join(filter(None, [head, contests.summary(fought), *texts])), failed=bool(failures)
    )
    return bool(failures)


def _memory(bench: Bench, fought: Sequence[Contest]) -> str:
    """What the processes hold, by the number of packs; and what a disk of 20 TB comes to."""
    rows: list[tuple[str, ...]] = []

    def row(name: str, run: Run) -> None:
        phases = [run.phases[phase] for phase in ("fill", "manifest", "read-back")]
        held = [run.all_bytes, run.largest_bytes, *(phase.largest_bytes for phase in phases)]
        rows.append((name, f"{run.packs:,}", *map(report.memory, held), *(report.figure(p.wall_s) for p in phases)))

    for contest in fought:
        if runs := contest.runs.get(ONE):
            most = max(runs, key=lambda run: run.largest_bytes)
            row(f"{report.megabytes(most.size)} MB, {contest.title}", most)
    held: list[tuple[int, int]] = []
    with scratch(roomy_tmpfs(2 * GIB) or bench.work) as place:
        bench.written_to.add(filesystem(place))
        seed = seeds.stage(bench, place, 32 << 20)
        for number in MANY_PACKS:
            seed = seeds.multiply(seed, int(number * bench.scale), SMALL_PACK_BYTES)
            say(f"{len(seed.packs):,} packs")
            run = diskruns.prepare(bench, seed, place)
            held.append((run.packs, run.largest_bytes))
            row("packs of 1 KiB", run)
    (few, less), (many, more) = held[0], held[-1]
    each = (more - less) / (many - few)
    large = (more + each * (TWENTY_TB_PACKS - many)) / 1e6
    said = (
        f"From {few:,} packs to {many:,} the largest process grew by {each:,.0f} bytes a pack. A disk of 20 TB takes "
        f"{TWENTY_TB_PACKS:,} packs of 16 MiB; at that rate it comes to {large:,.0f} MB, where under 300 was asked."
    )
    phases = ("fill", "manifest", "read-back")
    head = ("memory in MB", "packs", "all processes", "largest", *phases, *(f"{phase} s" for phase in phases))
    return f"**Memory**\n\n{report.table(head, rows)}\n\n{said}"


def _format(bench: Bench) -> str:
    """A small seed onto sparse images of many TB; on a tmpfs, for ext4 takes no file above 16 TiB."""
    memory = roomy_tmpfs(2 * GIB)
    if memory is None:
        raise Failed("no tmpfs has room for what is written of a sparse image of 20 TB")
    rows = []
    with scratch(memory) as place:
        bench.written_to.add(filesystem(place))
        seed = seeds.stage(bench, place, 32 << 20)
        for terabytes in turns(bench.runs, DISK_TB):
            run = diskruns.prepare(bench, seed, place, disk_bytes=terabytes * 10**12)
            say(f"{terabytes} TB: format {run.phases['format'].wall_s:.2f} s of {run.wall_s:.2f} s")
            rows.append((terabytes, run))
    lines = []
    for terabytes in DISK_TB:
        runs = [run for size, run in rows if size == terabytes]
        walls = ([run.phases[phase].wall_s for run in runs] for phase in ("format", "fill", "read-back"))
        whole, largest = [run.wall_s for run in runs], max(run.largest_bytes for run in runs)
        lines.append((f"{terabytes} TB", *map(report.spread, [*walls, whole]), report.memory(largest)))
    head = ("a sparse image of", "format s", "fill s", "read-back s", "whole command s", "largest process MB")
    return f"**Format**: {report.megabytes(seed.size)} MB onto images in a tmpfs\n\n{report.table(head, lines)}"


def _versions(bench: Bench) -> list[str]:
    versions = [tools.diskprep_version(bench), f"dd {tools.first_line('dd', '--version').split()[-1]}"]
    if "hand" in bench.tools:
        dislocker = tools.first_line("dislocker-fuse", "-h")
        versions += [f"dislocker {dislocker.partition(', v')[2].split(' ')[0]}"]
        versions += [" ".join(tools.first_line("ntfs-3g", "--version").split()[:2])]
    if "xts" in bench.tools:
        versions.append(" ".join(tools.first_line("openssl", "version").split()[:2]))
    return versions


if __name__ == "__main__":
    raise SystemExit(main())
