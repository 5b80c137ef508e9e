"""`diskprep datacenter ...`: the local stand-in of the Import/Export service, to practise with."""

from __future__ import annotations

import secrets
import signal
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from diskprep import clock, durable
from diskprep.cli import output
from diskprep.cli.inputs import read_secret
from diskprep.datacenter.server import Datacenter
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryAccount

app = typer.Typer(no_args_is_help=True, help="A local stand-in of the import service, on loopback, to practise with.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Where its state, its token and its containers are kept.")]


@app.command("serve")
def serve(folder: Folder, port: Annotated[int, typer.Option(help="0: a free one.")] = 0) -> None:
    """Answer the import service's management calls on loopback until stopped. The token is in DIR/token."""
    with _open(folder, port) as datacenter:
        print(f"endpoint: {datacenter.base_url}")
        print(f"token file: {folder / 'token'}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


@app.command("receive")
def receive(
    folder: Folder,
    job: Annotated[str, typer.Argument(metavar="JOB")],
    disks: Annotated[list[str], typer.Argument(metavar="SERIAL=IMAGE...", help="The disks in the package.")],
) -> None:
    """Open a package, copy its disks into the container, and send them back."""
    drives = {serial: Path(path) for serial, _, path in (disk.partition("=") for disk in disks)}
    with output.screen() as screen, _open(folder, 0) as datacenter:
        datacenter.receive(job, drives, screen.emit)
        datacenter.process(job, screen.emit)
        summary = datacenter.ship_back(job)
    print(f"import job {summary.job_name}: {summary.state}")


@app.command("sas")
def sas(
    folder: Folder,
    container: Annotated[str, typer.Argument(metavar="CONTAINER")],
    days: Annotated[int, typer.Option(help="How long it opens the container.")] = 30,
) -> None:
    """Write a container's signature, which goes into the disks' manifests, to DIR/CONTAINER.sas."""
    account = _account(folder)
    account.container(container)
    path = folder / f"{container}.sas"
    durable.write_file(path, account.container_sas(container, clock.now() + timedelta(days=days)).reveal().encode())
    print(f"signature file: {path}")


def _open(folder: Path, port: int) -> Datacenter:
    account = _account(folder)
    path = folder / "token"
    if not path.exists():
        durable.write_file(path, secrets.token_hex(16).encode() + b"\n")
    return Datacenter(folder / "datacenter.sqlite", account, token=read_secret(path), port=port)


def _account(folder: Path) -> DirectoryAccount:
    durable.make_directory(folder)
    key = folder / "account.key"
    if not key.exists():
        durable.write_file(key, secrets.token_hex(32).encode() + b"\n")
    return DirectoryAccount("practice", folder / "containers", Secret(bytes.fromhex(read_secret(key).reveal())))
