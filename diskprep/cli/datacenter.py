"""`diskprep datacenter ...`: the local stand-in of the Import/Export service, to practise with."""

from __future__ import annotations

import re
import secrets
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diskprep import clock, durable, interrupts
from diskprep.cli import inputs, output
from diskprep.cli.inputs import read_secret
from diskprep.cli.stores import azure_account
from diskprep.datacenter.bodies import Mode
from diskprep.datacenter.faults import DriveFault, DriveFaults, ServiceFault
from diskprep.datacenter.orders import Order
from diskprep.errors import NotFound, UsageError
from diskprep.secrets import Secret
from diskprep.store import Account
from diskprep.store.directory import DirectoryAccount

if TYPE_CHECKING:
    from diskprep.datacenter.server import Datacenter, Summary

app = typer.Typer(no_args_is_help=True, help="A local stand-in of the import service, on loopback, to practise with.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Where its state, its token and its containers are kept.")]
BlobEndpoint = Annotated[
    str,
    typer.Option(
        "--blob-endpoint",
        metavar="URL",
        help="A storage account to copy into, instead of folders below DIR: https://ACCOUNT.blob.core.windows.net, or "
        "that of an emulator.",
        show_default=False,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--account-key-file", help="A file with the key of that storage account.", show_default=False),
]

_TOKEN, _STATE, _KEY = "token", "datacenter.sqlite", "account.key"
_STEP = re.compile(r"(\d{1,5})([dhms])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_STRIKES_LIMIT = 1_000_000


@app.command("serve")
def serve(
    folder: Folder,
    port: Annotated[int, typer.Option(help="0: a free one.")] = 0,
    mode: Annotated[
        Mode, typer.Option(help="strict: the published rules. wire: all that real services were seen to take.")
    ] = Mode.STRICT,
    blob_endpoint: BlobEndpoint = "",
    account_key_file: KeyFile = None,
) -> None:
    """Answer the import service's management calls on loopback until stopped. The token is in DIR/token."""
    with _open(folder, _account(folder, blob_endpoint, account_key_file), port, mode) as datacenter:
        datacenter.start()
        print(f"endpoint: {datacenter.base_url}")
        print(f"token file: {folder / _TOKEN}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


@app.command("receive")
def receive(
    folder: Folder,
    job: Annotated[str, typer.Argument(metavar="JOB")],
    disks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SERIAL=DISK]...", help="The disks in the package: images or block devices.", show_default=False
        ),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            "--fault",
            metavar="SERIAL=FAULT[:N]",
            help=f"What is wrong with a disk, N blocks or files of it: {', '.join(DriveFault)}. May be repeated.",
            show_default=False,
        ),
    ] = None,
    blob_endpoint: BlobEndpoint = "",
    account_key_file: KeyFile = None,
    quiet: inputs.Quiet = False,
    json: inputs.Json = False,
) -> None:
    """Open a package, copy its disks into the container, and send them back. Broken off, the same command goes on."""
    drives, faults = _drives(disks or []), _drive_faults(fault or [])
    _require_made(folder)
    account = _account(folder, blob_endpoint, account_key_file)
    with output.screen(quiet=quiet) as screen, _open(folder, account) as datacenter:
        summary = None
        if drives or faults:
            datacenter.check_package(job, drives, faults)
            summary = datacenter.receive(job, drives, screen.emit, faults=faults)
        if summary is None:
            summary = datacenter.look(job)
            if summary.state in ("Creating", "Shipping"):
                raise UsageError("there is no disk in the package", hint="give SERIAL=DISK for each")
        copying = summary.state in ("Received", "Transferring", "Faulted")
        if copying or any(drive.state == "Received" for drive in summary.drives):
            summary = datacenter.process(job, screen.emit)
        if summary.state == "Packaging":
            summary = datacenter.ship_back(job)
    _tell(summary, as_json=json)


@app.command("clock")
def show_clock(
    folder: Folder,
    advance: Annotated[
        str, typer.Option(metavar="TIME", help="Move it forward: 3d, 12h, 30m, 5s.", show_default=False)
    ] = "",
    json: inputs.Json = False,
) -> None:
    """Show the stand-in's own clock, or move it forward. The computer's clock is not touched."""
    step = _step(advance)
    _require_made(folder)
    with _open(folder, _account(folder)) as datacenter:
        now = datacenter.advance(step)
    if json:
        output.print_json({"now": clock.rfc3339(now)})
    else:
        print(f"the stand-in's clock: {now:%Y-%m-%d %H:%M:%S} UTC")


@app.command("fault")
def fault(
    folder: Folder,
    fault: Annotated[
        ServiceFault | None, typer.Argument(metavar="[FAULT]", help=", ".join(ServiceFault), show_default=False)
    ] = None,
    times: Annotated[int, typer.Option(help="How many requests it strikes.")] = 1,
    method: Annotated[str, typer.Option(help="Only requests of this method: GET, PUT...", show_default=False)] = "",
    retry_after: Annotated[int, typer.Option(metavar="SECONDS", help="What a throttled client is told.")] = 1,
    clear: Annotated[bool, typer.Option("--clear", help="Forget what was ordered before.")] = False,
    json: inputs.Json = False,
) -> None:
    """Let something go wrong with the next management calls, or show what was ordered."""
    _require_made(folder)
    with _open(folder, _account(folder)) as datacenter:
        if clear:
            datacenter.clear_faults()
        if fault is not None:
            datacenter.order_fault(fault, times=times, method=method.upper(), retry_after_s=retry_after)
        orders = datacenter.ordered_faults()
    if json:
        output.print_json({"faults": [asdict(order) for order in orders]})
        return
    for order in orders:
        print(_describe(order))
    if not orders:
        print("nothing goes wrong")


@app.command("sas")
def sas(
    folder: Folder,
    container: Annotated[str, typer.Argument(metavar="CONTAINER")],
    days: Annotated[int, typer.Option(help="How long it opens the container.")] = 60,
    blob_endpoint: BlobEndpoint = "",
    account_key_file: KeyFile = None,
) -> None:
    """Write a container's signature, which goes into the disks' manifests, to DIR/CONTAINER.sas."""
    account = _account(folder, blob_endpoint, account_key_file)
    _token(folder)
    account.container(container)
    path = folder / f"{container}.sas"
    durable.write_file(path, account.container_sas(container, clock.now() + timedelta(days=days)).reveal().encode())
    print(f"signature file: {path}")


@contextmanager
def _open(folder: Path, account: Account, port: int = 0, mode: Mode = Mode.STRICT) -> Iterator[Datacenter]:
    with interrupts.held():  # an import that is broken off can leave a library half there
        from diskprep.datacenter.server import Datacenter  # noqa: PLC0415 - it reads disks, which help need not load

    path = folder / _STATE
    datacenter = Datacenter(path, account, token=_token(folder), port=port, mode=mode)
    try:
        yield datacenter
    finally:
        datacenter.stop()


def _require_made(folder: Path) -> None:
    """Raise NotFound where no stand-in was made: a mistyped folder is not made one."""
    if not any(durable.exists(folder / name) for name in (_TOKEN, _STATE, _KEY)):
        raise NotFound(
            f"there is no stand-in in {folder}", hint=f"`diskprep datacenter serve {output.word(folder)}` makes one"
        )


def _token(folder: Path) -> Secret[str]:
    """What clients show. The folder is a stand-in's from then on."""
    path = folder / _TOKEN
    if not durable.exists(path):
        durable.write_file(path, secrets.token_hex(16).encode() + b"\n")
    return read_secret(path)


def _account(folder: Path, blob_endpoint: str = "", key_file: Path | None = None) -> Account:
    durable.make_directory(folder)
    if blob_endpoint or key_file is not None:
        if not blob_endpoint.startswith(("https://", "http://")) or key_file is None:
            raise UsageError("a storage account is given by --blob-endpoint URL and --account-key-file FILE together")
        return azure_account(blob_endpoint, read_secret(key_file))
    key = folder / _KEY
    if not key.exists():
        durable.write_file(key, secrets.token_hex(32).encode() + b"\n")
    return DirectoryAccount("practice", folder / "containers", Secret(bytes.fromhex(read_secret(key).reveal())))


def _drives(disks: Sequence[str]) -> dict[str, Path]:
    drives: dict[str, Path] = {}
    for disk in disks:
        serial, found, path = disk.partition("=")
        if not found or not serial or not path:
            raise UsageError(f"{disk!r} is no disk of a package", hint="give SERIAL=IMAGE, or SERIAL=/dev/...")
        if serial in drives:
            raise UsageError(f"disk {serial} is given twice")
        if not durable.exists(Path(path)):
            raise NotFound(f"there is no {path}", hint="a disk that gets lost is given as --fault SERIAL=lost")
        drives[serial] = Path(path).absolute()
    return drives


def _drive_faults(given: Sequence[str]) -> dict[str, DriveFaults]:
    found: dict[str, DriveFaults] = {}
    for text in given:
        serial, _, word = text.partition("=")
        name, colon, number = word.partition(":")
        if not serial or name not in set(DriveFault) or (colon and not (number.isascii() and number.isdigit())):
            raise UsageError(f"{text!r} is no fault of a disk", hint=f"SERIAL=FAULT, of {', '.join(DriveFault)}")
        strikes = int(number or "1")
        if not 1 <= strikes <= _STRIKES_LIMIT:
            raise UsageError(f"a fault strikes 1 to {_STRIKES_LIMIT} blocks or files")
        before = found.get(serial, DriveFaults())
        found[serial] = DriveFaults(
            faults=before.faults | {DriveFault(name)},
            blocks=strikes if name == DriveFault.BLOCKS_DAMAGED else before.blocks,
            files=strikes if name == DriveFault.FILE_MISSING else before.files,
        )
    return found


def _step(text: str) -> timedelta:
    if not text:
        return timedelta()
    match = _STEP.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no length of time", hint="give a number and d, h, m or s: 3d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _tell(summary: Summary, *, as_json: bool) -> None:
    if as_json:
        output.print_json(asdict(summary))
        return
    for drive in summary.drives:
        status = f", {drive.status}" if drive.status else ""
        print(f"drive {output.escape(drive.drive_id)}: {drive.state}{status}")
    print(f"import job {summary.job_name}: {summary.state}")
    if summary.late:
        late = ", ".join(output.escape(serial) for serial in summary.late)
        print(f"the job waits for {late}: give `datacenter receive` again with what came")


def _describe(order: Order) -> str:
    if order.fault is ServiceFault.UNREGISTERED:
        return f"{order.fault}: until the provider is registered"
    return f"{order.fault}: the next {order.times} {order.method or 'calls of any method'}"
