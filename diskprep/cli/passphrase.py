"""`diskprep vault passphrase ...`: who may open a repository. A slot is one key file, opened by one passphrase."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from diskprep import clock
from diskprep.cli import inputs, output
from diskprep.cli.stores import KeyFile, Vault, open_store
from diskprep.errors import NotFound
from diskprep.repository.repository import open_repository
from diskprep.repository.slots import MAX_SLOTS, Slot, Slots
from diskprep.seed import Staging
from diskprep.store import Store
from diskprep.store.directory import DirectoryStore

app = typer.Typer(no_args_is_help=True, help="The passphrases that open the vault.")


@app.command("list")
def list_slots(
    vault: Vault,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
) -> None:
    """The slots: who made them, when, and which one was opened now."""
    found = _open(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command).all()
    if json:
        output.print_json({"slots": [_document(slot) for slot in found]})
    else:
        print(output.table(("slot", "created", "user", "host", "scrypt", "state"), [_row(slot) for slot in found]))
    _warn(found)


@app.command("add")
def add(
    vault: Vault,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    new_passphrase_file: inputs.NewPassphraseFile = None,
    new_passphrase_fd: inputs.NewPassphraseFd = None,
    new_passphrase_command: inputs.NewPassphraseCommand = None,
    generate: inputs.GenerateNew = False,
) -> None:
    """Let one more passphrase open the vault. Those that open it now still do."""
    slots = _open(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    slots.refuse_sealed()  # before a passphrase is made and shown
    slot = slots.add(
        inputs.new_passphrase(new_passphrase_file, new_passphrase_fd, new_passphrase_command, generate=generate)
    )
    print(f"slot {slot.id[:8]} was added")
    _warn(slots.all())
    output.next_step(f"diskprep vault passphrase list --vault {output.word(vault)}")


@app.command("change")
def change(
    vault: Vault,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    new_passphrase_file: inputs.NewPassphraseFile = None,
    new_passphrase_fd: inputs.NewPassphraseFd = None,
    new_passphrase_command: inputs.NewPassphraseCommand = None,
    generate: inputs.GenerateNew = False,
) -> None:
    """Put a new passphrase in place of the one that opens the vault now. No data is touched.

    Who copied the old key file before, and knows the old passphrase, can still read data with it.
    """
    slots = _open(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    slots.refuse_sealed()
    old = slots.current
    slot = slots.change(
        inputs.new_passphrase(new_passphrase_file, new_passphrase_fd, new_passphrase_command, generate=generate)
    )
    print(f"slot {slot.id[:8]} is in place of slot {old[:8]}, which was removed")
    _warn(slots.all())
    output.next_step(f"diskprep vault passphrase list --vault {output.word(vault)}")


@app.command("remove")
def remove(
    slot: Annotated[str, typer.Argument(metavar="SLOT", help="The beginning of a slot's id, as `list` shows it.")],
    vault: Vault,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
) -> None:
    """Let a passphrase open the vault no longer. You open it with another one. No data is touched.

    Who copied the key file before, and knows its passphrase, can still read data with it.
    """
    slots = _open(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    removed = slots.remove(slot)
    print(f"slot {removed.id[:8]} was removed")
    _warn(slots.all())
    output.next_step(f"diskprep vault passphrase list --vault {output.word(vault)}")


def _open(vault: str, key_file: Path | None, file: Path | None, descriptor: int | None, command: str | None) -> Slots:
    store = open_store(vault, key_file)
    _refuse_staging(store)
    return Slots(open_repository(store, inputs.passphrase(file, descriptor, command)))


def _refuse_staging(store: Store) -> None:
    """Raise NotFound for a staging that was named where the repository in it is meant."""
    if not isinstance(store, DirectoryStore) or store.stat("config") is not None:
        return
    repository = DirectoryStore(Staging(store.root).repository)
    if repository.stat("config") is not None:
        raise NotFound(
            f"there is no repository in {store.location} itself: it has no config",
            hint=f"name the repository in it: --vault {repository.location}",
        )


def _document(slot: Slot) -> dict[str, Any]:
    file = slot.file
    return {
        "id": slot.id,
        "current": slot.current,
        "damaged": slot.damaged,
        "created": clock.rfc3339(file.created) if file and file.created else None,
        "username": file.username if file else "",
        "hostname": file.hostname if file else "",
        "scrypt": {"n": file.cost.n, "r": file.cost.r, "p": file.cost.p} if file else None,
    }


def _row(slot: Slot) -> tuple[str, ...]:
    file = slot.file
    state = "damaged" if slot.damaged else "current" if slot.current else ""
    if file is None:
        return slot.id[:8], "", "", "", "", state
    return (
        slot.id[:8],
        f"{file.created.astimezone():%Y-%m-%d %H:%M}" if file.created else "",
        output.escape(file.username),
        output.escape(file.hostname),
        f"N={file.cost.n} r={file.cost.r} p={file.cost.p}, {file.cost.memory_bytes >> 20} MiB",
        state,
    )


def _warn(found: list[Slot]) -> None:
    sys.stdout.flush()
    for slot in found:
        if slot.damaged:
            remedy = "change its passphrase" if slot.current else f"diskprep vault passphrase remove {slot.id[:8]}"
            print(f"warning: slot {slot.id[:8]}: {output.escape(slot.damaged)}: {remedy}", file=sys.stderr)
    if len(found) > MAX_SLOTS:
        print(f"warning: {len(found)} slots; restic tries {MAX_SLOTS} of them and no more", file=sys.stderr)
