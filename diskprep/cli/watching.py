"""`diskprep job watch`: a bar per drive, what changes, and an end when there is something to do."""

from __future__ import annotations

import re
import shlex
from datetime import timedelta
from typing import Annotated

import typer

from diskprep import clock, process
from diskprep.cli import inputs, output, places
from diskprep.cli.advising import tell_advice
from diskprep.cli.connecting import AuthOption, Endpoint, Tenant, TokenFile, open_service
from diskprep.cli.jobmaking import document
from diskprep.errors import DiskprepError, UsageError
from diskprep.events import Note
from diskprep.importjob import watch as watching
from diskprep.importjob.saved import load_job
from diskprep.seed import load_seed, parse_staging

_SPAN = re.compile(r"(\d{1,6})\s*([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LEAST = timedelta(seconds=1)
_HOOK_S = 300.0


def watch(
    staging: inputs.StagingArgument,
    every: Annotated[str, typer.Option(help="How often to look: 30s, 15m, 6h.")] = "15m",
    once: Annotated[bool, typer.Option("--once", help="Look once, for a timer: the exit code tells.")] = False,
    hook: Annotated[
        str | None,
        typer.Option(
            help="A program that is told when five, two and one days are left, when time is up, and when a drive did "
            "not arrive: it gets the job's name, the days or `trouble`, the moment, and a sentence as arguments.",
            show_default=False,
        ),
    ] = None,
    auth: AuthOption = None,
    tenant: Tenant = None,
    token_file: TokenFile = None,
    endpoint: Endpoint = None,
    state_folder: places.State = None,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Follow the job until there is something to do, and say what.

    Ends with 0 when all went well, with 43 when the job needs its tracking number within five days, with 44 when a
    drive did not arrive, or the job ended and a drive was not copied whole.
    """
    span, argv = duration(every), _program(hook)
    place = parse_staging(staging)
    seed = load_seed(place)
    service = open_service(seed, endpoint=endpoint, token_file=token_file, auth=auth, tenant=tenant)
    with output.screen(quiet=quiet) as screen:

        def stands(line: str) -> None:
            if not screen.standing:
                screen.emit(Note(stage=watching.STAGE, text=line))
            screen.standing = line

        advice = watching.watch(
            service,
            place,
            every=span,
            emit=screen.emit,
            wait=clock.sleep,
            hook=(lambda alarm: _pass_on(argv, alarm)) if argv else None,
            stands=stands,
            once=once,
            ledger=places.ledger(state_folder),
        )
    if json:
        output.print_json(document(load_job(place)))
    tell_advice(place, advice)


def duration(text: str) -> timedelta:
    """`30s`, `15m`, `6h`, `1d`. Raises UsageError."""
    match = _SPAN.fullmatch(text.strip())
    span = timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else timedelta()
    if span < _LEAST:
        raise UsageError(f"{text!r} is not a span of time", hint="write it as 30s, 15m, 6h or 1d")
    return span


def _program(line: str | None) -> list[str]:
    """The words of --hook; none without it. Raises UsageError when it cannot be split or there is no such program."""
    if line is None:
        return []
    try:
        argv = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"--hook {line!r} cannot be split into words: {error}") from None
    if not argv or process.find(argv[0]) is None:
        raise UsageError(f"--hook: there is no program {argv[0] if argv else line!r}", hint="give its absolute path")
    return argv


def _pass_on(argv: list[str], alarm: watching.Alarm) -> None:
    days = "trouble" if alarm.days_left is None else str(alarm.days_left)
    facts = [alarm.job_name, days, clock.rfc3339(alarm.until), alarm.text]
    try:
        process.run([*argv, *facts], timeout_s=_HOOK_S)
    except DiskprepError as error:
        raise DiskprepError(f"--hook: {error.message}", hint=error.hint) from None
