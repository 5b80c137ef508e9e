"""Taking a seed into the vault, side by side: diskprep vault ingest, and plain copying of the same packs.

make bench-ingest
make bench-ingest BENCH='--scale 0.1 --runs 1'

Container and vault are in a blob server on loopback, which is as new in each round. A round is one run of each way.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import azurite
import report
import seeds
import tools
from diskruns import scratch
from harness import Bench, Failed, Reading, filesystem, metered, options, roomy_tmpfs, say, turns
from report import figure
from seeds import Seed

from diskprep.disk import plan as plans
from diskprep.secrets import Secret
from diskprep.seed import Staging
from diskprep.store.azure import AzureAccount, AzureStore

SEED_BYTES = 512 << 20
_COPIES = 6  # of the seed, at one time: the staging, two containers, and three vaults that were written by clients
_IMPORTED = "seed"

INGEST, TRUST, THROUGH = "ingest", "ingest --trust-md5", "ingest between accounts"
SERVICE, PASSED = "copy by the service", "copy through here"
_OURS, _SDK, _RCLONE = "diskprep", "sdk", "rclone"
Way = tuple[str, str]
WAYS: tuple[Way, ...] = (
    (_OURS, INGEST),
    (_OURS, TRUST),
    (_OURS, THROUGH),
    (_SDK, SERVICE),
    (_SDK, PASSED),
    (_RCLONE, SERVICE),
    (_RCLONE, PASSED),
)
_AGAINST = {INGEST: SERVICE, TRUST: SERVICE, THROUGH: PASSED}
_Command = tuple[list[str], Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A command of a way, and what the server used of the processors meanwhile. `reads`: it came after the copy."""

    way: Way
    reads: bool
    reading: Reading
    server_s: float

    def then(self, other: Step) -> Step:
        one, two = self.reading, other.reading
        both = Reading(
            wall_s=one.wall_s + two.wall_s,
            cpu_s=one.cpu_s + two.cpu_s,
            pss_bytes=max(one.pss_bytes, two.pss_bytes),
            rss_bytes=max(one.rss_bytes, two.rss_bytes),
        )
        return replace(self, reading=both, server_s=self.server_s + other.server_s)


_Steps = dict[Way, list[Step]]


def main() -> int:
    bench = options(__doc__, sets="big", tools=f"{_OURS},{_SDK},{_RCLONE}")
    versions = [tools.diskprep_version(bench), azurite.version(), _sdk()]
    if _RCLONE in bench.tools:
        versions.append(tools.first_line("rclone", "version"))
    size = int(SEED_BYTES * bench.scale)
    copied: _Steps = defaultdict(list)
    read: _Steps = defaultdict(list)
    failed = False
    seed = None
    bench.work.mkdir(parents=True, exist_ok=True)
    where = bench.repository or roomy_tmpfs(_COPIES * size) or bench.work
    with scratch(where) as folder:
        bench.written_to.add(filesystem(folder))
        try:
            seed = _seed(bench, folder, size)
            ways = [way for way in WAYS if way[0] in bench.tools]
            in_turns = list(turns(bench.runs, ways))
            for start in range(0, len(in_turns), len(ways)):
                for step in _round(bench, seed, folder, in_turns[start : start + len(ways)]):
                    (read if step.reads else copied)[step.way].append(step)
        except Failed as error:
            failed = True
            say(f"FAILED: {error}")
    text = [report.conditions(bench, versions, sources="the container's blobs in the page cache")]
    if seed is not None and copied:
        text += [_ratios(copied, read), _table(seed, copied, read)]
    report.keep(bench, "ingest", "\n\n".join(filter(None, text)), failed=failed)
    return failed


def _seed(bench: Bench, folder: Path, size: int) -> Seed:
    """A staging with a plan, without which nothing is ingested. Raises Failed."""
    seed = seeds.stage(bench, folder, size)
    plan = plans.make_plan(seed.seal, [plans.Offer(serial="BENCH-1", size_bytes=seed.disk_bytes(1))])
    plans.save_plan(Staging(seed.staging).plan_file, plan)
    return seed


def _round(bench: Bench, seed: Seed, folder: Path, ways: Sequence[Way]) -> Iterator[Step]:
    """Each way once, into a vault of its own. Raises Failed."""
    with scratch(folder) as place, azurite.serving(place / "server") as server:
        _fill(server, seed)
        for number, way in enumerate(ways):
            one = _Trip(bench, seed, folder, server, way, f"vault{number}")
            yield one.run(one.copy())
            if way[0] != _OURS:
                yield one.run(one.read(), reads=True)


def _fill(server: azurite.Server, seed: Seed) -> None:
    """Put the data packs into a container of each account, as the datacenter does: with their MD5."""
    repository = seed.staging / "repository"
    for url in (server.url, server.other_url):
        container = _account(url).container(_IMPORTED)

        def put(pack: Path, container: AzureStore = container) -> None:
            container.write(pack.relative_to(repository).as_posix(), [pack.read_bytes()])

        with ThreadPoolExecutor(4) as pool:
            for _ in pool.map(put, seed.packs):
                pass


def _account(url: str) -> AzureAccount:
    return AzureAccount(url, Secret(azurite.KEY), api_version=azurite.API_VERSION)


@dataclass(frozen=True, slots=True)
class _Trip:
    """The commands of one way, into the container `vault`."""

    bench: Bench
    seed: Seed
    folder: Path
    server: azurite.Server
    way: Way
    vault: str

    def run(self, command: _Command, *, reads: bool = False) -> Step:
        """Raises Failed."""
        before = self.server.cpu_s()
        reading = metered(command[0], environment=command[1], limit_s=self.bench.limit_s)
        step = Step(way=self.way, reads=reads, reading=reading, server_s=self.server.cpu_s() - before)
        used = f"{reading.cpu_s:8.2f} s CPU {step.server_s:8.2f} s of the server"
        say(f"{self.way[0]:9} {'and a read' if reads else self.way[1]:22} {reading.wall_s:8.2f} s {used}")
        return step

    def copy(self) -> _Command:
        """What brings the packs into the vault, which is made ready for it. Raises Failed."""
        tool, what = self.way
        if tool == _OURS:
            return self._ingest(what)
        _account(self.server.url).container(self.vault)
        if tool == _SDK:
            return self._plain("service" if what == SERVICE else "through", "--from", _IMPORTED, "--to", self.vault), {}
        through = ["--disable", "copy"] if what == PASSED else []
        return ["rclone", "copy", f"az:{_IMPORTED}", f"az:{self.vault}", *through], self.server.rclone

    def read(self) -> _Command:
        """What reads the vault once, and compares it: by the MD5s that the service keeps, or with the staging."""
        if self.way[0] == _SDK:
            return self._plain("read", "--from", self.vault), {}
        names = self.folder / "names"
        repository = self.seed.staging / "repository"
        names.write_text("".join(f"{pack.relative_to(repository).as_posix()}\n" for pack in self.seed.packs))
        chosen = ["--files-from-raw", str(names), "--one-way", "--download"]
        return ["rclone", "check", str(repository), f"az:{self.vault}", *chosen], self.server.rclone

    def _ingest(self, what: str) -> _Command:
        url = f"{self.server.url}/{self.vault}"
        opened = ["--account-key-file", str(self.server.key_file), "--quiet"]
        opened += ["--passphrase-file", str(self.folder / "passphrase")]
        ours, staging, environment = [str(self.bench.diskprep), "vault"], str(self.seed.staging), _state(self.folder)
        publish = [*ours, "publish", staging, "--vault", url, *opened]
        metered(publish, environment=environment, limit_s=self.bench.limit_s)
        account = self.server.other_url if what == THROUGH else self.server.url
        more = ["--trust-md5"] if what == TRUST else []
        more += ["--no-backup", "--certificate", str(self.folder / f"{self.vault}.json")]
        return [*ours, "ingest", staging, "--vault", url, "--container", f"{account}/{_IMPORTED}", *more, *opened], (
            environment
        )

    def _plain(self, what: str, *more: str) -> list[str]:
        script = str(Path(__file__).with_name("plaincopy.py"))
        opened = ["--account", self.server.url, "--key-file", str(self.server.key_file)]
        return [sys.executable, script, what, *opened, "--api-version", azurite.API_VERSION, *more]


def _state(folder: Path) -> Mapping[str, str]:
    """Nothing is left among the jobs of whoever runs this."""
    return {"DISKPREP_STATE": str(folder / "state")}


def _sdk() -> str:
    from importlib.metadata import version  # noqa: PLC0415

    return f"azure-storage-blob {version('azure-storage-blob')}"


# --- tables ----------------------------------------------------------------------------------------------------------


def _median(steps: Sequence[Step]) -> Step:
    servers = sorted(step.server_s for step in steps)
    return replace(
        steps[0], reading=report.median([step.reading for step in steps]), server_s=servers[len(servers) // 2]
    )


def _both(copied: _Steps, read: _Steps, way: Way) -> list[Step]:
    """Copying and reading as one, run by run."""
    return [one.then(two) for one, two in zip(copied[way], read[way], strict=True)]


def _ratios(copied: _Steps, read: _Steps) -> str:
    """diskprep's time in multiples of the others'; empty when it took no part, or nobody else did."""
    rows = []
    peers = [tool for tool in (_SDK, _RCLONE) if any(way[0] == tool for way in copied)]
    for what, against in _AGAINST.items():
        if peers and (_OURS, what) in copied:
            ours = _median(copied[_OURS, what]).reading.wall_s
            row = [what]
            for tool in peers:
                row.append(f"{ours / _median(copied[tool, against]).reading.wall_s:.2f}")
                row.append(f"{ours / _median(_both(copied, read, (tool, against))).reading.wall_s:.2f}")
            rows.append(row)
    heads = [head for tool in peers for head in (f"{tool} copy", f"{tool} copy + read")]
    return report.table(("time, where the other is 1", *heads), rows) if rows else ""


def _table(seed: Seed, copied: _Steps, read: _Steps) -> str:
    rows = []
    for way in WAYS:
        if way not in copied:
            continue
        rows.append(_row(seed, " ".join(way), copied[way]))
        if way in read:
            rows.append(_row(seed, f"{' '.join(way)}, and read", _both(copied, read, way)))
    head = ("tool", "wall s", "MB/s", "CPU s", "server CPU s", "server's cores", "memory MB", "largest MB")
    return f"**{len(seed.packs)} packs, {report.megabytes(seed.size)} MB**\n\n{report.table(head, rows)}"


def _row(seed: Seed, name: str, steps: Sequence[Step]) -> tuple[str, ...]:
    step = _median(steps)
    reading = step.reading
    return (
        name,
        report.spread([one.reading.wall_s for one in steps]),
        figure(seed.size / 1e6 / reading.wall_s),
        figure(reading.cpu_s),
        figure(step.server_s),
        figure(step.server_s / reading.wall_s),
        report.memory(reading.pss_bytes),
        report.memory(reading.rss_bytes),
    )


if __name__ == "__main__":
    raise SystemExit(main())
