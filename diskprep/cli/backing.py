"""What `stage` and `vault backup` share: how the sources are read, and what is said of a backup that was taken."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from diskprep.cli import inputs, output
from diskprep.errors import SourceIncomplete
from diskprep.source import Source
from diskprep.staging.blocks import BlockRule
from diskprep.staging.writer import BackupResult

_SHOWN = 20

Sources = Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Folders or files to back up.")]
FixedBlocks = Annotated[
    int | None,
    typer.Option(
        "--fixed-blocks",
        metavar="SIZE",
        parser=inputs.size_bytes,
        help="Cut disk images and databases in blocks of this size (256k suits most); others as restic does.",
        show_default=False,
    ),
]


def sources(paths: Sequence[Path]) -> list[Source]:
    return [Source(os.fsencode(path.absolute())) for path in paths]


def block_rule(block_bytes: int | None) -> BlockRule | None:
    return None if block_bytes is None else BlockRule(block_bytes=block_bytes)


def document(result: BackupResult) -> dict[str, Any]:
    """A backup for --json."""
    names = [field.name for field in fields(BackupResult)]
    found = {name: getattr(result, name) for name in names}
    return found | {
        "unreadable": [{"path": path, "reason": reason} for path, reason in result.unreadable],
        "fixed_blocks": [{"path": path, "reason": reason} for path, reason in result.fixed_blocks],
        "changed": list(result.changed),
    }


def tell(result: BackupResult) -> None:
    """Print what was backed up, and what was not."""
    print(
        f"snapshot {result.snapshot[:8]}: {result.files} files, {output.size(result.bytes_processed)}; "
        f"{result.files_unmodified} unchanged, {output.size(result.bytes_stored)} stored"
    )
    for count, what in (
        (result.left_out, "entries left out, as asked"),
        (result.skipped_sockets, "sockets skipped: they have no content"),
        (len(result.fixed_blocks), "files cut in blocks of one size"),
    ):
        if count:
            print(f"{count} {what}")
    for name, reason in result.unreadable[:_SHOWN]:
        print(f"not stored: {output.escape(name)}: {reason}")
    for name in result.changed[:_SHOWN]:
        print(f"stored as it was read, but it changed meanwhile: {output.escape(name)}")


def refuse_incomplete(result: BackupResult) -> None:
    """Raise SourceIncomplete when something is missing, or was written to while it was read."""
    if result.unreadable or result.changed:
        raise SourceIncomplete(
            f"{len(result.unreadable)} source entries could not be read, {len(result.changed)} changed meanwhile; "
            "all else is stored",
            hint="a snapshot of the volume keeps files still: --snapshot auto" if result.changed else "",
        )
