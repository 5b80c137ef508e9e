"""`diskprep disk ...` and `diskprep plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from diskprep.cli import disks, inputs, output, papers, preparing
from diskprep.cli.recovery import recovery_password
from diskprep.disk import plan as plans
from diskprep.disk import target, verify
from diskprep.disk.record import recorded_disk
from diskprep.events import Progress
from diskprep.seal import Seal, load_seal
from diskprep.seed import parse_staging
from diskprep.volume.device import open_for_reading

app = typer.Typer(no_args_is_help=True, help="Disks: found, prepared, verified.")

app.command("list")(disks.list_disks)
app.command("show")(disks.show_disk)
app.command("prepare")(preparing.prepare_disks)
app.command("certificate")(papers.certificate)
app.command("export")(papers.export)


def plan(
    staging: inputs.StagingArgument,
    disk_size: Annotated[str, typer.Option("--disk-size", metavar="SIZE", help="Size of the disks at hand.")],
    count: Annotated[
        int | None, typer.Option("--disks", metavar="N", help="How many there are; as many as it takes when not given.")
    ] = None,
    json: inputs.Json = False,
) -> None:
    """How many disks of a size the seed takes, and what goes where. Nothing is written."""
    seal = load_seal(parse_staging(staging).seal_file)
    size = inputs.size_bytes(disk_size)
    made = _plan_for(seal, size, count)
    jobs = plans.jobs_needed(len(made.disks))
    if json:
        shares = [{"disk": d.serial, "packs": len(d.packs), "bytes": d.payload_bytes} for d in made.disks]
        document = {"job_name": made.job_name, "bytes": made.payload_bytes, "disks": shares, "jobs": jobs}
        output.print_json({**document, "complete": made.is_complete, "missing_bytes": made.missing_bytes})
    else:
        rows = [(d.serial, str(len(d.packs)), output.size(d.payload_bytes)) for d in made.disks]
        print(output.table(("disk", "packs", "bytes"), rows))
        if jobs > 1:
            print(f"an import job takes {plans.MAX_DRIVES} drives: this would be {jobs} jobs; larger disks make fewer")
    plans.require_complete(made)
    output.next_step(f"diskprep disk prepare {output.word(staging)} DISK... --container-sas-file FILE")


def _plan_for(seal: Seal, size_bytes: int, count: int | None) -> plans.Plan:
    """The plan for `count` disks of one size, or for as many as it takes; incomplete where no number is enough."""
    number = 1 if count is None else count
    while True:
        offers = [plans.Offer(serial=f"disk-{place}", size_bytes=size_bytes) for place in range(1, number + 1)]
        made = plans.make_plan(seal, offers)
        if made.is_complete or count is not None or number > len(seal.data_packs):
            return made
        number *= 2


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
