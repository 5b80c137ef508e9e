"""Where this computer keeps what belongs to no staging: journals of disks, and the ledger of import jobs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from diskprep.importjob.ledger import Ledger

State = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="DIR",
        envvar="DISKPREP_STATE",
        help="Where this computer keeps its ledger of tracking numbers and drives, and the disks' journals.",
        show_default=False,
    ),
]


def state_folder() -> Path:
    """Where things are kept on this computer unless an option says otherwise."""
    if said := os.environ.get("DISKPREP_STATE"):
        return Path(said)
    if os.geteuid() == 0:
        return Path("/var/lib/diskprep")
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(home) / "diskprep"


def journal_folder(state: Path | None) -> Path:
    """Where journals of disks are kept."""
    return (state or state_folder()) / "journals"


def ledger(state: Path | None) -> Ledger:
    """The ledger of import jobs that were made from here."""
    return Ledger((state or state_folder()).absolute() / "ledger.json")
