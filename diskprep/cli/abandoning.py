"""`diskprep vault give-up`: a job that can never be certified holds the vault no longer."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from diskprep.cli import inputs, output
from diskprep.cli.mending import document_of_lost, document_of_pack, line_of_lost
from diskprep.cli.stores import KeyFile, Vault, open_vault
from diskprep.errors import JobConflict, NotFound, UsageError
from diskprep.repair import placements
from diskprep.repository.repository import Repository
from diskprep.seed import Staging, load_seed, parse_staging
from diskprep.store.directory import DirectoryStore
from diskprep.vault import online
from diskprep.vault.lost import LostEntry
from diskprep.vault.repair import BadPack, find_bad_packs, find_lost

_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loss:
    """What is not in the vault. `disks`: object name of a pack -> serial of its disk; `staged`: how many of the packs
    the staging still has, by name and size."""

    job_name: str
    packs: Sequence[BadPack]
    lost: Sequence[LostEntry]
    disks: Mapping[str, str]
    staged: int


def give_up(
    vault: Vault,
    staging: Annotated[
        str | None, typer.Argument(help="The staging location, which knows the job and what was on which disk.")
    ] = None,
    job: Annotated[
        str | None,
        typer.Option("--job", metavar="NAME", help="The job, when the staging is gone too.", show_default=False),
    ] = None,
    confirm: Annotated[
        str | None,
        typer.Option("--confirm", metavar="NAME", help="The job's name, for scripts: do not ask.", show_default=False),
    ] = None,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """End the hold of a job whose disks will never all come. First it is told what is lost; nothing is certified.

    The job's name is asked for, or given with --confirm. Afterwards forget, prune, and restic's check and prune run
    again; cleanup stays refused.
    """
    place = None if staging is None else parse_staging(staging).first
    repository = open_vault(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    if place is not None:
        seed = load_seed(place)
        if seed.repository_id != repository.id:
            raise UsageError(f"{place.root} is the staging of another repository, {seed.repository_id[:8]}")
        if job not in (None, seed.job_name):
            raise UsageError(f"{place.root} is the staging of {seed.job_name}, not of {job}")
        job = seed.job_name
    name = _held(repository, job)
    with output.screen(quiet=quiet) as screen:
        bad = find_bad_packs(repository, emit=screen.emit)
        lost = find_lost(repository, bad)
    loss = _Loss(job_name=name, packs=bad, lost=lost, disks=_disks(place), staged=_staged(place, bad))
    for line in _lines(loss, vault, staging):
        print(line, file=sys.stderr)
    _confirm(name, confirm)
    ended = online.end_hold(repository, name)
    if json:
        output.print_json(_document(loss, ended))
    else:
        print(f"{output.escape(name)} is given up: the vault is held for it no longer, and nothing certifies it")
    if bad:
        output.next_step(f"diskprep vault repair --vault {output.word(vault)} --drop-lost")


def _held(repository: Repository, job: str | None) -> str:
    """The job whose hold is to end. Raises NotFound, JobConflict, UsageError."""
    held = sorted({hold.label for hold in repository.find_holds()})
    if not held:
        raise NotFound(f"{repository.store.location} is held for no job", hint="there is nothing to give up")
    if job is None and len(held) > 1:
        raise UsageError(f"the vault is held for several jobs: {', '.join(held)}", hint="name one with --job NAME")
    name = job or held[0]
    if name not in held:
        raise NotFound(f"the vault is not held for {name}", hint=f"it is held for {', '.join(held)}")
    if online.is_certified(repository.store, name):
        raise JobConflict(
            f"{name} was ingested whole: it has its certificate",
            hint="its hold is a left-over, which the next `diskprep vault backup` takes away",
        )
    return name


def _confirm(name: str, given: str | None) -> None:
    """Make sure that somebody means this job: its name, typed or given. One try, no default."""
    if given is None:
        if not os.isatty(0):
            raise UsageError(
                f"giving up {name} was not confirmed",
                hint=f"add --confirm {output.word(name)} if this is what you mean",
            )
        given = str(typer.prompt("type the job's name to give it up", default="", show_default=False, err=True))
    if given != name:
        raise UsageError(f"that is not the job's name, which is {name}", hint="nothing was changed")


def _disks(place: Staging | None) -> Mapping[str, str]:
    if place is not None:
        with contextlib.suppress(NotFound):
            return placements(place)
    return {}


def _staged(place: Staging | None, bad: Sequence[BadPack]) -> int:
    if place is None:
        return 0
    store = DirectoryStore(place.repository)
    found = ((store.stat(pack.name), pack.size_bytes) for pack in bad)
    return sum(there is not None and there.size_bytes == size_bytes for there, size_bytes in found)


def _lines(loss: _Loss, vault: str, staging: str | None) -> list[str]:
    name = output.escape(loss.job_name)
    counts = Counter((loss.disks.get(pack.name, ""), pack.flaw) for pack in loss.packs)
    lines = [
        f"{count} packs {flaw}{f', on disk {output.escape(serial)}' if serial else ''}"
        for (serial, flaw), count in sorted(counts.items())
    ]
    if loss.staged:
        again = f"diskprep vault repair {output.word(staging)} --vault {output.word(vault)} --all"
        lines.append(f"{loss.staged} of them the staging still has: `{again}` sends them")
    lines += [line_of_lost(entry) for entry in loss.lost[:_SHOWN]]
    if len(loss.lost) > _SHOWN:
        lines.append(f"lost: {len(loss.lost) - _SHOWN} more; --json lists all")
    points = {point for entry in loss.lost for point in entry.points}
    if loss.lost:
        lines.append(f"{len(loss.lost)} files or directories of {len(points)} recovery points are lost with {name}")
    else:
        lines.append("every recovery point can be restored: `diskprep vault ingest` may certify the job instead")
    lines.append(f"once {name} is given up nobody waits for its disks, and no cleanup is allowed by a certificate")
    return lines


def _document(loss: _Loss, ended: int) -> dict[str, Any]:
    return {
        "job_name": loss.job_name,
        "holds_ended": ended,
        "packs": [document_of_pack(pack, loss.disks) for pack in loss.packs],
        "in_staging": loss.staged,
        "lost": [document_of_lost(entry) for entry in loss.lost],
    }
