"""`diskprep disk ...` and `diskprep plan`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from diskprep.cli import inputs, output
from diskprep.disk import guard, inventory, keys, prepare, target, verify
from diskprep.disk import plan as plans
from diskprep.disk.record import recorded, recorded_disk
from diskprep.errors import DiskRefused, JobConflict, NotFound
from diskprep.events import Progress
from diskprep.seal import Seal, load_seal
from diskprep.secrets import Secret
from diskprep.seed import Staging, load_seed, parse_staging
from diskprep.staging.stage import open_staged, unlock_escrow
from diskprep.volume.bitlocker import Method
from diskprep.volume.device import open_for_reading

app = typer.Typer(no_args_is_help=True, help="Disks: found, prepared, verified.")

Disks = Annotated[
    list[str], typer.Argument(metavar="DISK...", help="A block device, or an image file; PATH,serial=NUMBER names it.")
]
Journals = Annotated[
    Path | None, typer.Option("--journals", metavar="DIR", help="Where the disks' journals are kept on this computer.")
]


@app.command("list")
def list_disks(json: inputs.Json = False) -> None:
    """The disks of this computer, and why one may not be erased."""
    disks = inventory.list_disks()
    reasons = {disk.name: guard.refusals(disk, all_disks=disks) for disk in disks}
    if json:
        entries = [{**asdict(disk), "node": str(disk.node), "refusals": reasons[disk.name]} for disk in disks]
        output.print_json({"disks": entries})
        return
    rows = [
        (
            str(disk.node),
            disk.serial or "-",
            output.escape(disk.model) or "-",
            output.size(disk.size_bytes),
            disk.bus or "-",
            "; ".join(reasons[disk.name]) or "may be erased",
        )
        for disk in disks
    ]
    print(output.table(("node", "serial", "model", "size", "bus", "use"), rows))


def plan(
    staging: inputs.StagingArgument,
    disk_size: Annotated[str, typer.Option("--disk-size", metavar="SIZE", help="Size of the disks at hand.")],
    count: Annotated[int, typer.Option("--disks", metavar="N", help="How many there are.")] = plans.MAX_DRIVES,
    json: inputs.Json = False,
) -> None:
    """How many disks of a size the seed takes, and what goes where. Nothing is written."""
    seal = load_seal(parse_staging(staging).seal_file)
    size = inputs.size_bytes(disk_size)
    offers = [plans.Offer(serial=f"disk-{number}", size_bytes=size) for number in range(1, count + 1)]
    made = plans.make_plan(seal, offers)
    if json:
        disks = [{"disk": d.serial, "packs": len(d.packs), "bytes": d.payload_bytes} for d in made.disks]
        output.print_json({"job_name": made.job_name, "bytes": made.payload_bytes, "disks": disks})
        return
    rows = [(d.serial, str(len(d.packs)), output.size(d.payload_bytes)) for d in made.disks]
    print(output.table(("disk", "packs", "bytes"), rows))
    output.next_step(f"diskprep disk prepare {staging} DISK...")


@app.command("prepare")
def prepare_disks(
    staging: inputs.StagingArgument,
    disks: Disks,
    container_sas_file: Annotated[
        Path, typer.Option(help="A file with the container's signature, CONTAINER?sv=...&sig=..., for the manifest.")
    ],
    confirm_serial: Annotated[
        list[str] | None, typer.Option(help="The serial of a disk to erase, for unattended runs.", show_default=False)
    ] = None,
    image_size: Annotated[str | None, typer.Option(help="Create missing image files of this size.")] = None,
    method: Annotated[Method, typer.Option(help="BitLocker's encryption method.")] = Method.XTS_AES_256,
    wipe: Annotated[prepare.Wipe, typer.Option(help="The old content: discarded, or all of it overwritten too.")] = (
        prepare.Wipe.DISCARD
    ),
    journals: Journals = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the steps; write nothing.")] = False,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Erase disks, encrypt them with BitLocker, copy the seed onto them, and read everything back.

    A disk is erased only after its serial number was typed, or given with --confirm-serial.
    """
    place = parse_staging(staging)
    seed, seal = load_seed(place), load_seal(place.seal_file)
    size = inputs.size_bytes(image_size) if image_size and not dry_run else None
    folder = (journals or _journal_folder()).absolute()
    sas = inputs.container_signature(container_sas_file, seed.container)
    targets = target.parse_all(disks, image_bytes=size, protected=(place.root, folder, *map(Path, seed.sources)))
    made = plans.make_plan(seal, [t.offer for t in targets.values()])
    _refuse_lost_disks(place, seal, made, targets)
    for share in made.disks:
        print(
            f"disk {share.serial} ({targets[share.serial].path}): {len(share.packs)} packs, "
            f"{output.size(share.payload_bytes)} of {output.size(share.size_bytes)}",
            file=sys.stderr,
        )
    if dry_run:
        for step in prepare.STEPS:
            print(f"{step.name}: {step.says}")
        return
    for share in made.disks:
        _confirm(targets[share.serial], confirm_serial or [])
    plans.save_plan(place.plan_file, made)
    done = []
    with output.screen(quiet=quiet) as screen:
        for share in made.disks:
            order = prepare.Order(
                target=targets[share.serial],
                share=share,
                staging=place,
                seed=seed,
                seal_digest=seal.digest,
                container_sas=sas,
                journal_path=folder / f"{share.serial}.journal",
                method=method,
                wipe=wipe,
            )
            done.append(prepare.prepare_disk(order, screen.emit))
    if json:
        fields = ("serial", "path", "size_bytes", "payload_bytes", "files", "manifest_hash", "volume_guid")
        output.print_json({"disks": [{name: str(getattr(d, name)) for name in fields} for d in done]})
    else:
        print(f"disks prepared: {', '.join(disk.serial for disk in done)}")
    output.next_step(f"diskprep job create {place.root} --endpoint URL --token-file FILE --passphrase-file FILE")


@app.command("verify")
def verify_disk(
    disk: Annotated[str, typer.Argument(metavar="DISK", help="The disk or image, as given to prepare.")],
    staging: inputs.StagingOption,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    quiet: inputs.Quiet = False,
) -> None:
    """Read a prepared disk back with its recovery password and compare every file."""
    place = parse_staging(staging)
    path, found = target.identify(disk)
    record = recorded_disk(place, found)
    password = recovery_password(place, found, inputs.passphrase(passphrase_file, passphrase_fd, passphrase_command))
    total = record.payload_bytes
    done = 0
    with output.screen(quiet=quiet) as screen, open_for_reading(path) as device:

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            screen.emit(Progress(stage="read-back", item=found, done_bytes=done, total_bytes=total))

        result = verify.read_back(
            device, password, serial=found, expected_manifest_hash=record.manifest_hash, on_bytes=on_bytes
        )
    print(f"disk {result.serial}: {result.files} files, {output.size(result.size_bytes)}, all as written")


@app.command("key")
def key(
    serial: Annotated[str, typer.Argument(metavar="SERIAL", help="The disk's serial number.")],
    staging: inputs.StagingOption,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
) -> None:
    """Print the recovery password of a disk. It opens the disk for whoever holds both."""
    place = parse_staging(staging)
    print(
        recovery_password(place, serial, inputs.passphrase(passphrase_file, passphrase_fd, passphrase_command)).reveal()
    )


def recovery_password(place: Staging, serial: str, passphrase: Secret[str]) -> Secret[str]:
    """The recovery password of a disk out of escrow."""
    seed = load_seed(place)
    return keys.load(place, seed, serial, unlock_escrow(place, open_staged(place, passphrase)))


def _confirm(wanted: target.Target, confirmed: list[str]) -> None:
    """Make sure that somebody means this disk: its serial, typed or given. One try, no default."""
    if wanted.blank:
        return
    facts = wanted.facts
    print(
        f"{wanted.path}: {facts.model if facts else 'image'}, serial {wanted.serial}, {output.size(wanted.size_bytes)}"
        f"{f', {facts.bus}' if facts else ''}: everything on it will be erased",
        file=sys.stderr,
    )
    if wanted.serial in confirmed:
        return
    if not os.isatty(0):
        raise DiskRefused(
            f"disk {wanted.serial} was not confirmed",
            hint=f"add --confirm-serial {wanted.serial} if it is the right one",
        )
    typed = str(typer.prompt("type its serial number to erase it", default="", show_default=False, err=True))
    if typed != wanted.serial:
        raise DiskRefused(f"that is not the serial of {wanted.path}; nothing was written")


def _refuse_lost_disks(place: Staging, seal: Seal, made: plans.Plan, targets: Mapping[str, target.Target]) -> None:
    """Refuse a plan that would leave disks sealed with packs that are not theirs any more."""
    if not place.plan_file.exists():
        return
    new = {share.serial: share for share in made.disks}
    for old in plans.load_plan(place.plan_file, seal).disks:
        try:
            recorded(place, old, seal.digest)
        except (NotFound, JobConflict):
            continue
        if new.get(old.serial) != old and old.serial not in targets:
            raise DiskRefused(
                f"disk {old.serial} is sealed already, and these disks would carry its packs again",
                hint="give all disks of the plan together; `diskprep status STAGING` lists them",
            )


def _journal_folder() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/diskprep/journals")
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(home) / "diskprep/journals"
