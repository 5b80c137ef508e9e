"""The application: every command under its noun. Only the noun that is asked for is loaded, so that help is quick."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Annotated

import typer
from typer.exceptions import TyperException

from diskprep import __version__, interrupts
from diskprep.errors import UsageError

#: word on the command line -> module of this package, and what of it: a command, or the group `app`; in help's order
COMMANDS = {
    "rehearse": ("rehearse", "rehearse"),
    "stage": ("staging", "stage"),
    "status": ("status", "status"),
    "plan": ("disk", "plan"),
    "disk": ("disk", "app"),
    "job": ("job", "app"),
    "vault": ("vault", "app"),
    "cleanup": ("cleanup", "app"),
    "journal": ("journals", "app"),
    "datacenter": ("datacenter", "app"),
    "doctor": ("doctor", "doctor"),
}


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit code or raises a DiskprepError."""
    asked = arguments[0] if arguments else ""
    if asked == "--version":
        print(f"diskprep {__version__}")
        return 0
    with interrupts.held():  # an import that is broken off can leave a library half there
        application = build([asked] if asked in COMMANDS else COMMANDS)
    command = typer.main.get_command(application)
    try:  # not the library's own main: it would turn interrupts and errors of output into exit codes of its own
        with command.make_context("diskprep", arguments) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except TyperException as error:
        if not error.format_message():  # a noun alone: its help was printed
            return UsageError.exit_code
        raise UsageError(error.format_message(), hint="diskprep COMMAND --help shows what there is") from None
    return 0


def build(words: Iterable[str]) -> typer.Typer:
    """The application with these commands."""
    application = typer.Typer(
        name="diskprep",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,  # they would print the values of variables
        callback=_options,
    )
    for word in words:
        module, name = COMMANDS[word]
        found = getattr(importlib.import_module(f"diskprep.cli.{module}"), name)
        if isinstance(found, typer.Typer):
            application.add_typer(found, name=word)
        else:
            application.command(word)(found)
    return application


def _options(_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Offline seeding: a first full backup goes to the vault on encrypted disks, changes follow online."""
