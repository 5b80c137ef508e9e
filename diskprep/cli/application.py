"""The application: every command under its noun."""

from __future__ import annotations

from typing import Annotated

import typer
from typer.exceptions import TyperException

from diskprep import __version__
from diskprep.cli import cleanup, datacenter, disk, doctor, job, journals, rehearse, staging, vault
from diskprep.errors import UsageError

app = typer.Typer(
    name="diskprep",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they would print the values of variables
    help="Offline seeding: a first full backup goes to the vault on encrypted disks, increments follow online.",
)
app.command("rehearse")(rehearse.rehearse)
app.command("stage")(staging.stage)
app.command("status")(staging.status)
app.command("plan")(disk.plan)
app.add_typer(disk.app, name="disk")
app.add_typer(job.app, name="job")
app.add_typer(vault.app, name="vault")
app.add_typer(cleanup.app, name="cleanup")
app.add_typer(journals.app, name="journal")
app.add_typer(datacenter.app, name="datacenter")
app.command("doctor")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"diskprep {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that stand before the command."""


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit code or raises a DiskprepError."""
    try:
        result: object = typer.main.get_command(app).main(arguments, "diskprep", standalone_mode=False)
    except typer.Exit as done:
        return done.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except TyperException as error:
        raise UsageError(error.format_message(), hint="diskprep COMMAND --help shows what there is") from None
    return result if isinstance(result, int) else 0
