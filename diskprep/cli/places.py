"""Where this computer keeps what belongs to no staging: journals of disks, and the ledger of import jobs.

And where a staging keeps the copy of its certificate of ingestion, which `status` goes by.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from diskprep.errors import StorageUnavailable
from diskprep.importjob.ledger import Ledger
from diskprep.seed import Staging

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
    return _usable(state) / "journals"


def ledger(state: Path | None) -> Ledger:
    """The ledger of import jobs that were made from here."""
    return Ledger(_usable(state).absolute() / "ledger.json")


def ingested_file(staging: Staging) -> Path:
    """The copy of the certificate in the first staging, of which repairs are parts."""
    return staging.first.root / "certificate.json"


def _usable(state: Path | None) -> Path:
    """The state folder. It need not be there yet. Raises StorageUnavailable when it can never be."""
    folder = state or state_folder()
    for place in (folder, *folder.parents):
        try:
            is_there, is_folder = place.exists(), place.is_dir()
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            if is_folder:
                return folder
            if not is_there:
                continue
            reason = f"{place} is not a folder"
        raise StorageUnavailable(
            f"the state folder {folder} cannot be used: {reason}",
            hint="name one that can be written to: --state DIR, or DISKPREP_STATE in the environment",
        )
    return folder
