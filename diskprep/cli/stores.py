"""A STORE on the command line: a folder, or a blob container by its address."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diskprep import interrupts
from diskprep.cli import inputs
from diskprep.errors import UsageError
from diskprep.secrets import Secret
from diskprep.store import Account, BlobStore
from diskprep.store.directory import DirectoryStore

if TYPE_CHECKING:
    from diskprep.repository.repository import Repository

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
    return azure_account(account, inputs.read_secret(key_file)).container(container)


def azure_account(url: str, key: Secret[str]) -> Account:
    """The storage account at an address."""
    with interrupts.held():  # an import that is broken off can leave a library half there
        from diskprep.store.azure import AzureAccount  # noqa: PLC0415 - its library takes longer than all of ours

    return AzureAccount(url, key)


def open_vault(
    vault: str,
    key_file: Path | None,
    passphrase_file: Path | None,
    passphrase_fd: int | None,
    passphrase_command: str | None,
) -> Repository:
    """The repository of a vault that an argument names. The passphrase is asked for once the store is known."""
    with interrupts.held():
        from diskprep.repository.repository import open_repository  # noqa: PLC0415 - numpy: `status` seldom needs it

    store = open_store(vault, key_file)
    return open_repository(store, inputs.passphrase(passphrase_file, passphrase_fd, passphrase_command))
