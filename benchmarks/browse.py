"""Looking around in a vault, side by side: diskprep vault mount, list and find, and restic's mount, snapshots and ls.

make bench-browse
make bench-browse BENCH='--scale 0.01 --runs 3'

A million small files in one recovery point, which diskprep stage makes off the clock. Mounting needs FUSE.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mounts
import report
import tools
from harness import Bench, Failed, Place, Reading, Tree, metered, options, say, turns, warm
from mounts import Mounted
from report import figure

SCALE = 5.0  # of tiny: a million files
READ_FILES = 2000
_SEED = 20240917

#: What is listed -> what restic calls it; `vault list` counts what `stats` counts and more.
LISTS = {
    "list --fast": "snapshots",
    "list": "stats --mode raw-data",
    "find FOLDER": "ls",
    "find NAME": "find NAME",
}
PHASES = ("mount", "first walk", "second walk", f"reading {READ_FILES:,} files")
_Lists = dict[tuple[str, str], list[Reading]]
_Command = tuple[list[str], Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """What one mount took: by phase seconds, and CPU seconds of its processes; and their memory, highest, in bytes."""

    wall_s: Mapping[str, float]
    cpu_s: Mapping[str, float]
    pss_bytes: int
    walked_bytes: int  # when it had been walked once


_Visits = dict[str, list[Visit]]


def main() -> int:
    bench = options(__doc__, sets="tiny", tools="diskprep,restic")
    peer = tools.restic(bench)
    versions = [tools.diskprep_version(bench), peer.version()]
    failed = False
    texts: list[str] = []
    for name in bench.sets:
        tree = bench.tree(name, scale=SCALE)
        try:
            texts.append(_compare(bench, tree))
        except Failed as error:
            failed = True
            say(f"FAILED: {tree.name}: {error}")
    head = report.conditions(bench, versions, sources="the repository in the page cache")
    report.keep(bench, "browse", "\n\n".join([head, *texts]), failed=failed)
    return failed


def _compare(bench: Bench, tree: Tree) -> str:
    """The tables of one tree. Raises Failed."""
    lists: _Lists = defaultdict(list)
    visits: _Visits = defaultdict(list)
    with bench.place(tree, "browse") as place:
        tools.stage(bench).backup(place, tree.path, limit_s=bench.limit_s)
        sample = _sample(tree)
        repository = place.repository / "repository"
        for tool, what in turns(bench.runs, [(tool, what) for what in LISTS for tool in bench.tools]):
            warm(repository)
            command, environment = _list(bench, place, (tool, what), folder=tree.path, name=Path(sample[0]).name)
            reading = metered(command, environment=environment, limit_s=bench.limit_s)
            said = what if tool == "diskprep" else LISTS[what]
            say(f"{tree.name:>6} {tool:9} {said:24} {reading.wall_s:8.2f} s {reading.cpu_s:8.2f} s CPU")
            lists[tool, what].append(reading)
        for tool in turns(bench.runs, bench.tools):
            warm(repository)
            visits[tool].append(_visit(bench, place, tree, tool, sample))
    return "\n\n".join(
        [f"**{tree.name}**: {tree.files:,} files", _visit_table(visits, bench), _list_table(lists, bench)]
    )


def _sample(tree: Tree) -> list[str]:
    """Files here and there, the same ones each time, as paths below the tree."""
    names = [os.path.join(folder, name) for folder, _, files in os.walk(tree.path) for name in files]  # noqa: PTH118
    chosen = random.Random(_SEED).sample(sorted(names), min(READ_FILES, len(names)))
    return [os.path.relpath(name, tree.path) for name in chosen]


def _list(bench: Bench, place: Place, way: tuple[str, str], *, folder: Path, name: str) -> _Command:
    """The command of a tool, and what it is in diskprep's words."""
    tool, what = way
    if tool == "diskprep":
        words = [{"FOLDER": str(folder), "NAME": name}.get(word, word) for word in what.split(" ")]
        repository = ["--vault", str(place.repository / "repository"), "--passphrase-file", str(place.passphrase_file)]
        return [str(bench.diskprep), "vault", *words, *repository], {}
    program, environment = _restic(bench, place)
    words = [name if word == "NAME" else word for word in LISTS[what].split(" ")]
    return [program, *words, *(["latest"] if what in {"list", "find FOLDER"} else [])], environment


def _restic(bench: Bench, place: Place) -> tuple[str, Mapping[str, str]]:
    repository = place.repository / "repository"
    job = tools.restic(bench).job(place, repository)
    return job.command[0], {**job.environment, "RESTIC_REPOSITORY": str(repository)}


# --- mounts ----------------------------------------------------------------------------------------------------------


def _visit(bench: Bench, place: Place, tree: Tree, tool: str, sample: Sequence[str]) -> Visit:
    """Mount, walk twice, and read. Raises Failed."""
    point = place.home / f"mount-{tool}"
    repository = place.repository / "repository"
    environment: Mapping[str, str] = {}
    if tool == "diskprep":
        command = [str(bench.diskprep), "vault", "mount", str(point), "--vault", str(repository), "--quiet"]
        command += ["--passphrase-file", str(place.passphrase_file)]
    else:
        program, environment = _restic(bench, place)
        command = [program, "mount", "--quiet", str(point)]
    moments = [time.time()]
    with mounts.mounted(command, point, environment=environment, limit_s=bench.limit_s) as mount:
        latest = Path(f"{point}/snapshots/latest") / tree.path.relative_to("/")
        moments.append(time.time())
        for _ in range(2):
            _walk(latest, tree.files, mount)
            moments.append(time.time())
        _read(latest, tree.path, sample)
        moments.append(time.time())
        time.sleep(2 * mounts.SAMPLE_S)  # for a last look at its memory
    spans = [mount.family.phase(*span) for span in itertools.pairwise(moments)]
    visit = Visit(
        wall_s={phase: span.wall_s for phase, span in zip(PHASES, spans, strict=True)},
        cpu_s={phase: span.cpu_s for phase, span in zip(PHASES, spans, strict=True)},
        pss_bytes=mount.family.all_bytes,
        walked_bytes=spans[1].largest_bytes,
    )
    told = ", ".join(f"{phase} {visit.wall_s[phase]:.2f} s" for phase in PHASES)
    say(f"{tree.name:>6} {tool:9} {told}; {report.memory(visit.pss_bytes)} MB")
    return visit


def _walk(folder: Path, files: int, mount: Mounted) -> None:
    """Ask for everything's size with find, as `ls -lR` or a backup program does. Raises Failed unless all is there."""
    command = ["find", f"{folder}/", "!", "-type", "d", "-printf", "%s\n"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            seen = 0
            while chunk := process.stdout.read(1 << 16):
                seen += chunk.count(b"\n")
        finally:
            process.kill()  # after Ctrl-C: else it would be in the way of the end of the mount
    if seen != files:
        raise Failed(f"find saw {seen:,} of {files:,} files; {mount.what()}")


def _read(latest: Path, source: Path, sample: Sequence[str]) -> None:
    """Read the files one after the other, and compare them. Raises Failed."""
    for name in sample:
        if (latest / name).read_bytes() != (source / name).read_bytes():
            raise Failed(f"{name} is not as it was backed up")


# --- tables ----------------------------------------------------------------------------------------------------------


def _visit_table(visits: _Visits, bench: Bench) -> str:
    rows = []
    medians = {
        (tool, phase): sorted(visit.wall_s[phase] for visit in visits[tool])[len(visits[tool]) // 2]
        for tool in bench.tools
        for phase in PHASES
    }
    for phase in PHASES:
        for tool in bench.tools:
            cpu_s = sorted(visit.cpu_s[phase] for visit in visits[tool])[len(visits[tool]) // 2]
            speed = medians["restic", phase] / medians[tool, phase] if ("restic", phase) in medians else None
            wall_s = report.spread([visit.wall_s[phase] for visit in visits[tool]])
            rows.append((f"{tool}, {phase}", wall_s, figure(cpu_s), f"{speed:.2f}" if speed else ""))
    used = "; ".join(
        f"{tool} {report.memory(max(visit.pss_bytes for visit in visits[tool]))} MB, "
        f"{report.memory(max(visit.walked_bytes for visit in visits[tool]))} MB of it in the first walk"
        for tool in bench.tools
    )
    return f"{report.table(('what', 'wall s', 'CPU s', 'speed'), rows)}\n\nMemory: {used}."


def _list_table(lists: _Lists, bench: Bench) -> str:
    rows = []
    for what, theirs in LISTS.items():
        for tool in bench.tools:
            one = report.median(lists[tool, what])
            peer = report.median(lists["restic", what]) if ("restic", what) in lists else None
            rows.append(
                (
                    f"{tool} {what if tool == 'diskprep' else theirs}",
                    report.spread([reading.wall_s for reading in lists[tool, what]]),
                    figure(one.cpu_s),
                    report.memory(one.pss_bytes),
                    f"{peer.wall_s / one.wall_s:.2f}" if peer else "",
                )
            )
    return report.table(("what", "wall s", "CPU s", "memory MB", "speed"), rows)


if __name__ == "__main__":
    raise SystemExit(main())
