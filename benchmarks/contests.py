"""The contests of the benchmark of disks: who writes onto a file system in turns, and the tables that come of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import diskruns
import report
import seeds
from diskruns import Run, scratch
from harness import GIB, Bench, Failed, filesystem, roomy_tmpfs, say, turns

SEED_BYTES = 6 * GIB  # so that source and image fit into the memory of a usual computer
HAND_BYTES = 256 << 20  # by hand is slow
_LIMIT = 0.85  # what is used so far is called the limit

ONE, TWO, DD, TWO_DD, HAND = "disk prepare", "disk prepare, two disks", "dd", "two dd at once", "by hand"


@dataclass(slots=True, kw_only=True)
class Contest:
    """All runs onto one file system from one kind of source."""

    title: str
    medium: str
    folder: Path
    cold: bool
    runs: dict[str, list[Run]] = field(default_factory=dict)

    def rates(self, name: str, phase: str = "") -> list[float]:
        """Bytes a second, a value a run; of one phase where one is named. Empty for what did not take part."""
        return [run.size / (run.phases[phase].wall_s if phase else run.wall_s) for run in self.runs.get(name, [])]

    def raw_rates(self) -> list[float]:
        return [run.raw_bytes / run.raw_s for run in self.runs.get(ONE, []) if run.raw_s]


_Side = Callable[[Contest], list[float]]


def run_all(bench: Bench, contests: list[Contest], failures: list[str]) -> str:
    """The tables of all contests, which are added to `contests`. What fails is named in `failures`. Raises Failed.

    A contest that fails does not hinder the next.
    """
    size = int(SEED_BYTES * bench.scale)
    with ExitStack() as stack:
        home = stack.enter_context(scratch(bench.work))
        seed = seeds.stage(bench, home, size)
        whole = home / "packs"  # the packs' bytes as one file: dd has no pipe and no folder to mind
        with whole.open("wb") as file:
            for pack in seed.packs:
                with pack.open("rb") as source:
                    shutil.copyfileobj(source, file, 4 << 20)
        disk = stack.enter_context(scratch(bench.repository or bench.work))
        kind = filesystem(disk)
        contests.append(Contest(title=f"{kind}, source in the page cache", medium="the disk", folder=disk, cold=False))
        contests.append(Contest(title=f"{kind}, source not cached", medium="the disk", folder=disk, cold=True))
        memory = roomy_tmpfs(size)
        if memory is None:
            failures.append("tmpfs")
            say(f"FAILED: no tmpfs has room for {size / 1e9:.1f} GB while as much is in the page cache")
        else:
            room = stack.enter_context(scratch(memory))
            contests.append(Contest(title="tmpfs, source in the page cache", medium="memory", folder=room, cold=False))
        for contest in contests:
            bench.written_to.add(filesystem(contest.folder))
            try:
                _contest(bench, contest, seed, whole)
            except Failed as error:
                failures.append(contest.title)
                say(f"FAILED: {contest.title}: {error}")
        return "\n\n".join(_table(contest, seed) for contest in contests if contest.runs)


def summary(contests: Sequence[Contest]) -> str:
    """The ratios that were asked for; of the medians, where both sides took part."""

    def ratio(contest: Contest, ours: _Side, theirs: _Side) -> str:
        one, other = ours(contest), theirs(contest)
        return f"{median(one) / median(other):.2f}" if one and other else ""

    asked: list[tuple[str, str, _Side, _Side]] = [
        ("fill, where dd is 1", "0.90", lambda c: c.rates(ONE, "fill"), lambda c: c.rates(DD)),
        ("read-back, where a raw read is 1", "0.90", lambda c: c.rates(ONE, "read-back"), Contest.raw_rates),
        ("fill, where by hand is 1", "8.00", lambda c: c.rates(ONE, "fill"), lambda c: c.rates(HAND)),
        ("two disks' fill, where two dd are 1", "", lambda c: c.rates(TWO, "fill"), lambda c: c.rates(TWO_DD)),
        ("two disks' fill, where one is 1", "", lambda c: c.rates(TWO, "fill"), lambda c: c.rates(ONE, "fill")),
    ]
    rows = [
        (what, least, *(ratio(contest, ours, theirs) for contest in contests)) for what, least, ours, theirs in asked
    ]
    rows = [row for row in rows if any(row[2:])]
    return report.table(("rates", "asked", *(contest.title for contest in contests)), rows) if rows else ""


def _contest(bench: Bench, contest: Contest, seed: seeds.Seed, whole: Path) -> None:
    """Raises Failed."""
    few = seed.packs[: max(1, int(HAND_BYTES * bench.scale) * len(seed.packs) // seed.size)]
    ways: dict[str, tuple[Callable[[], Run], Sequence[Path]]] = {}
    if {"write", "two"} & {*bench.tools}:
        ways[ONE] = lambda: diskruns.prepare(bench, seed, contest.folder), seed.packs
        ways[DD] = lambda: diskruns.dd(bench, whole, contest.folder), [whole]
    if "two" in bench.tools:
        ways[TWO] = lambda: diskruns.prepare(bench, seed, contest.folder, disks=2), seed.packs
        ways[TWO_DD] = lambda: diskruns.dd(bench, whole, contest.folder, copies=2), [whole]
    if "hand" in bench.tools and not contest.cold:
        ways[HAND] = lambda: diskruns.by_hand(bench, few, contest.folder), few
        ways.setdefault(ONE, (lambda: diskruns.prepare(bench, seed, contest.folder), seed.packs))
    for name in turns(bench.runs, list(ways)):
        run, sources = ways[name]
        if contest.cold:
            diskruns.forget(sources)
        else:
            for source in sources:
                _warm(source)
        os.sync()  # nobody pays for what was written before
        done = run()
        contest.runs.setdefault(name, []).append(done)
        fill = f", fill {done.size / 1e6 / done.phases['fill'].wall_s:,.0f} MB/s" if done.phases else ""
        say(f"{contest.title}: {name:24} {done.wall_s:8.2f} s, {done.size / 1e6 / done.wall_s:,.0f} MB/s{fill}")


def _table(contest: Contest, seed: seeds.Seed) -> str:
    rows: list[tuple[str, ...]] = []

    def row(name: str, walls: Sequence[float], rates: Sequence[float], cpu: Sequence[float] = ()) -> None:
        busy = [used / wall for used, wall in zip(cpu, walls, strict=True)] if cpu else []
        rows.append(
            (
                name,
                report.spread(walls),
                report.spread([rate / 1e6 for rate in rates]) if rates else "",
                report.figure(median(cpu)) if cpu else "",
                report.figure(median(busy)) if busy else "",
            )
        )

    for name in (DD, ONE, TWO_DD, TWO, HAND):
        runs = contest.runs.get(name)
        if not runs:
            continue
        cpu = [run.cpu_s for run in runs] if name != HAND else []
        row(name, [run.wall_s for run in runs], contest.rates(name) if not runs[0].phases else [], cpu)
        for phase in diskruns.PHASES.values() if runs[0].phases else ():
            times = [run.phases[phase] for run in runs]
            rates = contest.rates(name, phase) if phase in ("fill", "read-back") else []
            row(f"- {phase}", [time.wall_s for time in times], rates, [time.cpu_s for time in times])
        if any(run.raw_s for run in runs):
            row("raw read of its image", [run.raw_s for run in runs], contest.raw_rates())
    head = ("what", "wall s", "MB/s", "CPU s", "cores busy")
    text = f"**{contest.title}**: {len(seed.packs)} packs, {report.megabytes(seed.size)} MB"
    if hand := contest.runs.get(HAND):
        text += f"; by hand {report.megabytes(hand[0].size)} MB of them"
    return "\n\n".join(filter(None, [text, report.table(head, rows), _limit(contest)]))


def _limit(contest: Contest) -> str:
    """What held two disks back: said from how busy the processors were, and from what dd got."""
    runs = contest.runs.get(TWO)
    if not runs or not contest.runs.get(TWO_DD):
        return ""
    cores = os.cpu_count() or 1
    busy = median(run.phases["fill"].cpu_s / run.phases["fill"].wall_s for run in runs)
    share = median(contest.rates(TWO, "fill")) / median(contest.rates(TWO_DD))
    found = ["the processor"] if busy > _LIMIT * cores else []
    found += [contest.medium] if share > _LIMIT else []
    what = " and ".join(found) if found else "neither the processor nor the medium"
    return (
        f"Two disks at once: {what} was the limit. {busy:.2f} of {cores} cores were busy while they were filled, at "
        f"{share:.2f} of what two dd wrote together."
    )


def _warm(path: Path) -> None:
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
