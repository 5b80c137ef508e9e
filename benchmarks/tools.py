"""The tools that are compared, each as it comes: what is set up off the clock, and the command that is timed."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from debian import newest_restic
from harness import ROOT, Bench, Failed, Place, Reading, metered


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`command` is timed; `prepare` runs before it, where there is something to prepare."""

    command: list[str]
    prepare: list[str] = field(default_factory=list)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tool:
    """`job` says how to back up a folder into a place."""

    name: str
    job: Callable[[Place, Path], Job]
    version: Callable[[], str]

    def prepare(self, place: Place, source: Path) -> None:
        """Raises Failed."""
        job = self.job(place, source)
        if job.prepare:
            _run(job.prepare, job.environment)

    def backup(self, place: Place, source: Path, *, limit_s: float) -> Reading:
        """One timed run. Raises Failed."""
        job = self.job(place, source)
        return metered(job.command, environment=job.environment, limit_s=limit_s)


def first_backup(bench: Bench) -> list[Tool]:
    """The chosen tools, each making its first backup into something new."""
    known = {"diskprep": stage, "restic": restic, "borg": borg, "tar": tar, "cp": copy}
    return [known[name](bench) for name in bench.tools]


def second_backup(bench: Bench) -> list[Tool]:
    """The chosen tools, backing up into a repository that restic made, on top of what they find there."""
    known = {"diskprep": vault, "restic": restic}
    return [known[name](bench) for name in bench.tools]


def check(peer: Tool, place: Place, repository: Path) -> None:
    """`restic check` of a repository that another tool wrote. Raises Failed unless it finds no errors."""
    job = peer.job(place, repository)
    said = _run([job.command[0], "check"], {**job.environment, "RESTIC_REPOSITORY": str(repository)})
    if "no errors were found" not in said:
        raise Failed(f"restic check: {said[-2000:]}")


# --- the contestants -------------------------------------------------------------------------------------------------


def stage(bench: Bench) -> Tool:
    """diskprep's first backup: it makes the repository on the clock, and seals it."""
    account = ["--storage-account", "benchaccount", "--container", "seed", "--resource-group", "rg"]
    trip = ["--job", "bench", *account, "--subscription", "00000000-0000-0000-0000-000000000000"]

    def job(place: Place, source: Path) -> Job:
        where = ["--staging", str(place.repository), "--passphrase-file", str(place.passphrase_file)]
        command = [str(bench.diskprep), "stage", str(source), *where, *trip]
        return Job(command=command, environment={"DISKPREP_STATE": str(place.home / "state")})

    return Tool("diskprep", job, lambda: diskprep_version(bench))


def vault(bench: Bench) -> Tool:
    """diskprep's backup into a vault."""
    peer = restic(bench)

    def job(place: Place, source: Path) -> Job:
        made = peer.job(place, source)
        where = ["--vault", str(place.repository), "--passphrase-file", str(place.passphrase_file)]
        command = [str(bench.diskprep), "vault", "backup", str(source), *where]
        return Job(prepare=made.prepare, command=command, environment=made.environment)

    return Tool("diskprep", job, lambda: diskprep_version(bench))


def restic(bench: Bench) -> Tool:
    program = str(newest_restic(bench.work / "debian"))

    def job(place: Place, source: Path) -> Job:
        environment = {
            "RESTIC_REPOSITORY": str(place.repository),
            "RESTIC_PASSWORD_FILE": str(place.passphrase_file),
            "RESTIC_CACHE_DIR": str(place.home / "cache"),
        }
        return Job(prepare=[program, "init"], command=[program, "backup", str(source)], environment=environment)

    return Tool("restic", job, lambda: " ".join(first_line(program, "version").split()[:2]))


def borg(_: Bench) -> Tool:
    def job(place: Place, source: Path) -> Job:
        return Job(
            prepare=["borg", "init", "-e", "repokey", str(place.repository)],
            command=["borg", "create", "--compression", "zstd,3", f"{place.repository}::bench", str(source)],
            environment={
                "BORG_BASE_DIR": str(place.home),
                "BORG_PASSCOMMAND": f"cat {shlex.quote(str(place.passphrase_file))}",
            },
        )

    return Tool("borg", job, lambda: first_line("borg", "--version"))


def tar(_: Bench) -> Tool:
    """A pipe of the standard tools: nothing is deduplicated, and a second backup costs as much as the first."""

    def job(place: Place, source: Path) -> Job:
        parent, name, secret = (shlex.quote(str(path)) for path in (source.parent, source.name, place.passphrase_file))
        encrypt = f"openssl enc -aes-256-ctr -pbkdf2 -pass file:{secret}"
        target = shlex.quote(str(place.repository / "backup.tar.zst.enc"))
        pipe = f"tar -C {parent} -cf - ./{name} | zstd -q -3 -T2 | {encrypt} >{target}"
        return Job(prepare=["mkdir", str(place.repository)], command=["bash", "-o", "pipefail", "-c", pipe])

    def version() -> str:
        zstd = next(word for word in first_line("zstd", "--version").split() if word.startswith("v")).strip("v,")
        tar, openssl = first_line("tar", "--version").split()[-1], first_line("openssl", "version").split()[1]
        return f"tar {tar}, zstd {zstd}, openssl {openssl}"

    return Tool("tar, zstd, openssl", job, version)


def copy(_: Bench) -> Tool:
    """What reading and writing alone cost."""

    def job(place: Place, source: Path) -> Job:
        return Job(command=["cp", "-a", str(source), str(place.repository)])

    return Tool("cp -a", job, lambda: f"cp {first_line('cp', '--version').split()[-1]}")


def diskprep_version(bench: Bench) -> str:
    """Of the diskprep under test, with the state of the working tree when it is the one here."""
    version = first_line(str(bench.diskprep), "--version")
    if not bench.diskprep.is_relative_to(ROOT):
        return version
    return f"{version} ({first_line('git', '-C', str(ROOT), 'describe', '--always', '--dirty')})"


def _run(command: list[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failed(f"{' '.join(command[:2])}: exit status {done.returncode}: {done.stdout.strip()[-2000:]}")
    return done.stdout


def first_line(*command: str) -> str:
    """The first line a program prints about itself."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError:
        raise SystemExit(f"{command[0]} is missing; `.ci/prepare bench` installs what the benchmarks need") from None
    return (done.stdout.strip() or done.stderr.strip() or "unknown").splitlines()[0]
