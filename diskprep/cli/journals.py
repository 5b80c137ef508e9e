"""`diskprep journal ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import journal
from diskprep import durable
from diskprep.errors import JournalDamaged

app = typer.Typer(no_args_is_help=True, help="The journals of disks.")

JournalFile = Annotated[Path, typer.Argument(metavar="FILE", help="A disk's journal.")]


@app.command("dump")
def dump(file: JournalFile) -> None:
    """Print a journal, one JSON object a line."""
    print(journal.dump(_read(file)), end="")


@app.command("verify")
def verify(file: JournalFile) -> None:
    """Check every frame of a journal and the chain between them."""
    records = _read(file)
    print(f"{file}: {len(records)} records, whole; the last is {records[-1].type!r}")


def _read(file: Path) -> list[journal.Record]:
    try:
        return journal.read(file)
    except journal.JournalDamaged as error:
        raise JournalDamaged(str(error), hint="compare it with its mirror in the staging") from error
    except OSError as error:
        raise durable.storage_error(error, f"read {file}") from error
