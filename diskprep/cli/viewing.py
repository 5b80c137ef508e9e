"""Options of the commands that read sources: how these are kept still meanwhile."""

from __future__ import annotations

from typing import Annotated

import typer

from diskprep.view.model import ViewKind

SnapshotOption = Annotated[
    ViewKind,
    typer.Option(
        "--snapshot", help="Read the sources from a snapshot; auto: where their file systems can take one, else none."
    ),
]
PreHook = Annotated[
    str,
    typer.Option("--pre-hook", metavar="COMMAND", help="Run this before the snapshot is taken.", show_default=False),
]
PostHook = Annotated[
    str,
    typer.Option(
        "--post-hook", metavar="COMMAND", help="Run this when the snapshot is taken, or it failed.", show_default=False
    ),
]
