"""`diskprep vault mount`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diskprep.cli import inputs, output
from diskprep.cli.stores import KeyFile, Vault, open_vault
from diskprep.vault.browse import CACHE_BYTES
from diskprep.vault.mount import MountOptions
from diskprep.vault.mount import mount as serve


def mount(
    mountpoint: Annotated[Path, typer.Argument(metavar="FOLDER", help="An empty folder to show them in.")],
    vault: Vault,
    allow_other: Annotated[bool, typer.Option("--allow-other", help="Other users of this computer may look.")] = False,
    no_permissions: Annotated[
        bool, typer.Option("--no-default-permissions", help="With --allow-other: whatever the files' modes say.")
    ] = False,
    no_lock: Annotated[bool, typer.Option("--no-lock", help="For a vault that cannot be written to.")] = False,
    cache_size: Annotated[
        str, typer.Option(metavar="SIZE", help="How much of what was read is kept in memory.")
    ] = f"{CACHE_BYTES >> 20}MiB",
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    quiet: inputs.Quiet = False,
) -> None:
    """Show the recovery points as folders, read-only, until Ctrl-C or umount."""
    repository = open_vault(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    options = MountOptions(
        allow_other=allow_other,
        check_permissions=not no_permissions,
        lock=not no_lock,
        cache_bytes=inputs.size_bytes(cache_size),
    )
    folder = mountpoint.absolute()

    def ready(points: int) -> None:
        print(f"{points} recovery points are shown in {output.escape(str(folder))}", flush=True)
        if not quiet:
            output.next_step(f"umount {output.escape(str(folder))}, or Ctrl-C here")

    with output.screen(quiet=quiet) as screen:
        serve(repository, folder, options, ready=ready, emit=screen.emit)
