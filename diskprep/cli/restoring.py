"""`diskprep vault restore` and `diskprep vault check`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from diskprep.cli import inputs, output
from diskprep.cli.selecting import patterns
from diskprep.cli.stores import KeyFile, Vault, open_vault
from diskprep.errors import DataDamaged, UsageError
from diskprep.vault import check as checks
from diskprep.vault import restore as restoring
from diskprep.vault import withdrawal
from diskprep.vault.choice import Choice
from diskprep.vault.forget import refuse_hold
from diskprep.vault.online import is_certified
from diskprep.vault.target import Overwrite

_SHOWN = 20
_PROBLEMS_SHOWN = 50

Patterns = list[str] | None
Files = list[Path] | None


def restore(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new or empty folder; any with --overwrite.")],
    vault: Vault,
    snapshot: Annotated[str, typer.Option(help="A recovery point, or the beginning of its id.")] = "latest",
    path: Annotated[
        list[Path] | None, typer.Option(help="Only what lies at or below this absolute path; may be repeated.")
    ] = None,
    include: Annotated[
        Patterns, typer.Option("--include", "-i", metavar="PATTERN", help="Only what matches; may be repeated.")
    ] = None,
    iinclude: Annotated[
        Patterns, typer.Option("--iinclude", metavar="PATTERN", help="The same, upper or lower case alike.")
    ] = None,
    include_file: Annotated[
        Files, typer.Option("--include-file", metavar="FILE", help="Patterns from a file, one a line.")
    ] = None,
    exclude: Annotated[
        Patterns, typer.Option("--exclude", "-e", metavar="PATTERN", help="Not what matches; may be repeated.")
    ] = None,
    iexclude: Annotated[
        Patterns, typer.Option("--iexclude", metavar="PATTERN", help="The same, upper or lower case alike.")
    ] = None,
    exclude_file: Annotated[
        Files, typer.Option("--exclude-file", metavar="FILE", help="Patterns from a file, one a line.")
    ] = None,
    overwrite: Annotated[
        Overwrite | None,
        typer.Option(help="What becomes of what is there; without it TARGET must be empty.", show_default=False),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read everything back from TARGET, and compare.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Say what would be restored; write nothing.")
    ] = False,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Restore a recovery point, or a part of it, below TARGET, under the original absolute paths."""
    choice = Choice(
        paths=tuple(os.fsencode(one) for one in path or ()),
        include=patterns("--include", include, include_file),
        iinclude=patterns("--iinclude", iinclude, None),
        exclude=patterns("--exclude", exclude, exclude_file),
        iexclude=patterns("--iexclude", iexclude, None),
    )
    repository = open_vault(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    with output.screen(quiet=quiet) as screen:
        result = restoring.restore(
            repository,
            snapshot,
            target.absolute(),
            emit=screen.emit,
            choice=choice,
            overwrite=overwrite,
            verify=verify,
            dry_run=dry_run,
        )
    if json:
        output.print_json(
            {
                "bytes": result.bytes_restored,
                "directories": result.directories,
                "dry_run": dry_run,
                "files": result.files,
                "kept": result.kept,
                "others": result.others,
                "replaced": result.replaced,
                "verified": result.verified,
                "warnings": list(result.warnings),
            }
        )
        return
    for warning in result.warnings[:_SHOWN]:
        print(f"warning: {output.escape(warning)}")
    if len(result.warnings) > _SHOWN:
        print(f"and {len(result.warnings) - _SHOWN} more warnings; --json has up to a thousand")
    done = "would be restored" if dry_run else "restored"
    print(f"{done} below {output.escape(str(target))}: {result.files} files, {output.size(result.bytes_restored)}")
    for count, what in (
        (result.others, "links, devices and FIFOs"),
        (result.replaced, "in the place of what was there"),
        (result.kept, "kept as they were"),
        (result.verified, "files read back: all are what is stored"),
    ):
        if count:
            print(f"{count} {what}")


def check(
    vault: Vault,
    read_data: Annotated[bool, typer.Option("--read-data", help="Read every pack, open every blob.")] = False,
    read_data_subset: Annotated[
        str | None,
        typer.Option(
            "--read-data-subset",
            metavar="N/T|X%|SIZE",
            help="Read the Nth of T parts, or packs at random: a share of them, or so many bytes.",
            show_default=False,
        ),
    ] = None,
    no_lock: Annotated[
        bool, typer.Option("--no-lock", help="Also while disks travel: their packs are told as missing.")
    ] = False,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Check that the vault is whole. Refused while disks travel, as it cannot be then.

    Nothing is written; but when it is not whole, a certificate that a cleanup may still go by is withdrawn.
    """
    if read_data and read_data_subset is not None:
        raise UsageError("--read-data reads everything", hint="give it, or --read-data-subset, not both")
    subset = None if read_data_subset is None else checks.parse_subset(read_data_subset, _size(read_data_subset))
    repository = open_vault(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    if not no_lock and any(not is_certified(repository.store, hold.label) for hold in repository.find_holds()):
        refuse_hold(repository)
    with output.screen(quiet=quiet) as screen:
        result = checks.check(repository, read_data=read_data, subset=subset, emit=screen.emit)
    done = withdrawal.withdraw_unsettled(repository) if result.problems else ()
    if json:
        output.print_json(
            {
                "directories": result.directories,
                "files": result.files,
                "pack_bytes": result.pack_bytes,
                "packs": result.packs,
                "problems": list(result.problems),
                "read_bytes": result.read_bytes,
                "read_packs": result.read_packs,
                "snapshots": list(result.snapshots),
                "withdrawn": withdrawal.documents(done),
            }
        )
    else:
        for problem in result.problems[:_PROBLEMS_SHOWN]:
            print(output.escape(problem))
        if len(result.problems) > _PROBLEMS_SHOWN:
            print(f"and {len(result.problems) - _PROBLEMS_SHOWN} more problems; --json has all")
    if result.problems:
        raise DataDamaged(
            "; ".join((f"{len(result.problems)} problems were found", *(each.words for each in done))),
            hint=f"do not remove the staging; `diskprep vault repair{' --read-data' if result.read_packs else ''}`"
            + ("; then `diskprep vault ingest` proves the vault again" if done else ""),
        )
    if not json:
        read = f"; {result.read_packs} of them read, {output.size(result.read_bytes)}" if result.read_packs else ""
        print(f"{len(result.snapshots)} recovery points, {result.files} files, {result.packs} packs{read}")
        print("no problems were found")


def _size(text: str) -> int | None:
    """A size, where `text` is none of a subset's other forms."""
    return None if "/" in text or text.endswith("%") else inputs.size_bytes(text)
