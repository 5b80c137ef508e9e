"""`diskprep job slip`: what goes on paper with a package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diskprep import clock, durable
from diskprep.cli import connecting, inputs, output
from diskprep.cli.advising import ship_command
from diskprep.disk import certificate as certificates
from diskprep.errors import DataDamaged, JobConflict, JournalDamaged, NotFound, UsageError
from diskprep.importjob import job as jobs
from diskprep.importjob import paper, states
from diskprep.importjob.deadline import deadline_of
from diskprep.importjob.model import Address, JobState
from diskprep.importjob.service import ImportService
from diskprep.importjob.shipping import Destination, checklist, shipping_address
from diskprep.seed import Seed, Staging, load_seed, parse_staging

MODE = 0o644  # it is made to be shown
_ADDRESS_LINES = range(3, 10)
_ADDRESS_LINE_LIMIT_CHARS = 200


def slip(
    staging: inputs.StagingArgument,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="Where to write the page; without it ./JOB-slip.html."),
    ] = None,
    inbound_id: Annotated[
        str, typer.Option(metavar="ID", help="The inbound ID that Azure's support gave, where the region needs one.")
    ] = "",
    ship_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LINE",
            help="The address that Azure's support gave, once for each line, in place of the service's own.",
        ),
    ] = None,
    endpoint: connecting.Endpoint = None,
    token_file: connecting.TokenFile = None,
    auth: connecting.AuthOption = None,
    tenant: connecting.Tenant = None,
    json: inputs.Json = False,
) -> None:
    """Write the packing slip, the checklist and the disks' labels as one page to print. There is no secret on it."""
    place = parse_staging(staging)
    seed = load_seed(place)
    service = connecting.open_service(seed, endpoint=endpoint, token_file=token_file, auth=auth, tenant=tenant)
    made = make_slip(service, place, seed, inbound_id=inbound_id, ship_to=ship_to or ())
    path = _target(to, paper.file_name(made.job_name))
    durable.write_file(path, paper.packing_slip(made).encode(), mode=MODE)
    if json:
        output.print_json({**paper.document(made), "page": str(path)})
    else:
        labels = "the label of 1 disk" if len(made.disks) == 1 else f"the labels of {len(made.disks)} disks"
        print(f"import job {made.job_name}: packing slip, checklist and {labels}, to print from a browser")
        print(output.escape(str(path)))
    if made.package is None:
        output.next_step(ship_command(place))
    else:
        output.next_step(f"diskprep job watch {output.word(place.root)}")


def make_slip(
    service: ImportService,
    staging: Staging,
    seed: Seed,
    *,
    inbound_id: str = "",
    ship_to: list[str] | tuple[str, ...] = (),
) -> paper.Slip:
    """The papers' content, from the job as the service has it now: nothing is printed for a job that is gone or over.

    Raises UsageError for an address that is none, and what the service raises.
    """
    job = jobs.refresh_job(service, staging)
    states.check(job, states.Action.SHIP)
    if job.cancel_requested:
        raise JobConflict(f"import job {job.name} was cancelled", hint="do not send the disks; create another job")
    saved, now = jobs.load_job(staging), clock.now()
    goes_to = _given(seed, ship_to) if ship_to else shipping_address(service, seed.location)
    checks = checklist(seed.location, goes_to)
    deadline = deadline_of(saved, now)
    wants_inbound_id = inbound_id.strip() or any("inbound ID" in line for line in checks)
    return paper.Slip(
        job_name=job.name,
        region=seed.location,
        ship_to=tuple(ship_to) or paper.address_lines(goes_to.address),
        ship_to_region=goes_to.region,
        disks=tuple(_disk(staging, seed, drive.drive_id) for drive in job.drives),
        made=saved.service_time(now),
        ship_until=deadline.until if deadline else None,
        package=job.package if job.state != JobState.CREATING else None,
        return_address=job.return_address,
        return_shipping=job.return_shipping,
        inbound_id=inbound_id if wants_inbound_id else None,
        checklist=checks,
    )


def _target(to: Path | None, name: str) -> Path:
    """The file to write: `to`, or `name` inside it where it is a directory."""
    path = (to or Path(name)).absolute()
    try:
        return path / name if path.is_dir() else path
    except OSError as error:
        raise durable.storage_error(error, f"look at {path}") from error


def _given(seed: Seed, lines: list[str] | tuple[str, ...]) -> Destination:
    """An address in words, for the job's own region; which carriers it takes is not known."""
    if len(lines) not in _ADDRESS_LINES or not all(
        line.strip() and line.isprintable() and len(line) <= _ADDRESS_LINE_LIMIT_CHARS for line in lines
    ):
        raise UsageError(
            "that is not an address",
            hint='give it as --ship-to "RECIPIENT" --ship-to "STREET" --ship-to "CITY" ..., 3 to 9 lines',
        )
    whole = Address(
        recipient_name=lines[0], street_address1=", ".join(lines[1:]), city="", postal_code="", country_or_region=""
    )
    return Destination(address=whole, carriers=(), region=seed.location)


def _disk(staging: Staging, seed: Seed, serial: str) -> paper.SlipDisk:
    """With model and size where the disk's journal is in the staging; the serial number is what matters."""
    try:
        known = certificates.certify_recorded(staging, seed, serial)
    except (NotFound, DataDamaged, JournalDamaged, UsageError):
        return paper.SlipDisk(serial=serial)
    return paper.SlipDisk(serial=serial, model=known.model, size_bytes=known.size_bytes)
