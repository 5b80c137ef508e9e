"""A STORE on the command line: a folder, or a blob container by its address."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diskprep.cli.inputs import read_secret
from diskprep.errors import UsageError
from diskprep.store import BlobStore
from diskprep.store.azure import AzureAccount
from diskprep.store.directory import DirectoryStore

KeyFile = Annotated[
    Path | None,
    typer.Option("--account-key-file", help="A file with the storage account's key.", show_default=False),
]
Vault = Annotated[
    str,
    typer.Option(
        "--vault", metavar="STORE", help="The vault: a folder, or https://ACCOUNT.blob.core.windows.net/NAME."
    ),
]
Container = Annotated[
    str, typer.Option("--container", metavar="STORE", help="The import's container: a folder, or its https address.")
]


def open_store(argument: str, key_file: Path | None) -> BlobStore:
    """The store an argument names."""
    if not argument.startswith(("https://", "http://")):
        return DirectoryStore(Path(argument).absolute())
    if key_file is None:
        raise UsageError(f"{argument} needs the account's key", hint="add --account-key-file FILE")
    account, _, container = argument.rstrip("/").rpartition("/")
    return AzureAccount(account, read_secret(key_file)).container(container)
