"""What to do next about an import job, as a command to type; or the exit code that tells it."""

from __future__ import annotations

import sys

from diskprep import clock
from diskprep.cli import output
from diskprep.importjob.advice import Advice, advise
from diskprep.importjob.saved import SavedJob
from diskprep.seed import Staging


def end(place: Staging, saved: SavedJob) -> None:
    """Say what to do next; raise it where the exit code must tell."""
    tell_advice(place, advise(saved, clock.now()))


def tell_advice(place: Staging, advice: Advice) -> None:
    """The same for an advice at hand."""
    if advice.error is not None:
        sys.stdout.flush()
        raise advice.error
    print(output.escape(advice.text), file=sys.stderr)
    if advice.command:
        output.next_step(next_command(place, advice))


def next_command(place: Staging, advice: Advice) -> str:
    """What to type next. Ingestion is always of the first staging, whose repairs fill the same container."""
    if advice.command == "vault ingest":
        return f"diskprep vault ingest {output.word(place.first.root)} --container STORE --vault STORE"
    if advice.command == "job ship":
        return ship_command(place)
    return f"diskprep {advice.command or 'job show'} {output.word(place.root)}"


def ship_command(place: Staging) -> str:
    return f"diskprep job ship {output.word(place.root)} --carrier NAME --tracking-number NUMBER ..."
