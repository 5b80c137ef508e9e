"""`diskprep job ...`."""

from __future__ import annotations

from dataclasses import asdict, astuple
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from diskprep import clock
from diskprep.cli import inputs, output
from diskprep.cli.inputs import read_secret
from diskprep.cli.recovery import recovery_password
from diskprep.disk.plan import load_plan, require_complete, require_one_job
from diskprep.disk.record import recorded
from diskprep.errors import UsageError
from diskprep.importjob import job as jobs
from diskprep.importjob.model import Drive, Job, ReturnAddress
from diskprep.importjob.service import AzureImportService, credential
from diskprep.seal import load_seal
from diskprep.seed import Seed, load_seed, parse_staging

app = typer.Typer(no_args_is_help=True, help="The import job.")

Endpoint = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The management endpoint; without it Azure's public one.", show_default=False),
]
TokenFile = Annotated[
    Path | None, typer.Option(help="A file with a management token, as `az account get-access-token` prints it.")
]


@app.command("create")
def create(
    staging: inputs.StagingArgument,
    endpoint: Endpoint = None,
    token_file: TokenFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
) -> None:
    """Create the import job of the sealed disks, under the name given at staging. Creating twice is one job."""
    place = parse_staging(staging)
    seed = load_seed(place)
    service = _service(seed, endpoint, token_file)
    seal = load_seal(place.seal_file)
    plan = load_plan(place.plan_file, seal)
    require_complete(plan)
    require_one_job(plan)
    sealed = [recorded(place, disk, seal.digest) for disk in plan.disks]
    secret = inputs.passphrase(passphrase_file, passphrase_fd, passphrase_command)
    drives = [
        Drive(
            drive_id=disk.serial,
            recovery_password=recovery_password(place, disk.serial, secret),
            manifest_file=disk.manifest_file,
            manifest_hash=disk.manifest_hash,
        )
        for disk in sealed
    ]
    job = jobs.create_job(service, place, seed, drives)
    destination = jobs.shipping_address(service, seed.location)
    if json:
        output.print_json({**_document(job), "ship_to": asdict(destination.address), "carriers": destination.carriers})
    else:
        print(f"disks prepared: {', '.join(disk.serial for disk in sealed)}")
        print(f"import job created: {job.name}")
        print(f"ship to: {output.escape(', '.join(line for line in astuple(destination.address) if line))}")
        print(f"carriers: {', '.join(destination.carriers)}")
        print(f"enter the tracking number before {jobs.load_job(place).ship_until:%Y-%m-%d}, or the job is deleted")
    output.next_step(f"diskprep job ship {staging} --carrier NAME --tracking-number NUMBER ...")


@app.command("show")
def show(
    staging: inputs.StagingArgument, endpoint: Endpoint = None, token_file: TokenFile = None, json: inputs.Json = False
) -> None:
    """The job of a staging as the service has it now."""
    place = parse_staging(staging)
    job = jobs.refresh_job(_service(load_seed(place), endpoint, token_file), place)
    if json:
        output.print_json(_document(job))
        return
    print(f"import job {job.name}: {job.state}, {job.percent_complete} %")
    print(
        output.table(
            ("drive", "state", "done", "bytes"),
            [(d.drive_id, str(d.state), f"{d.percent_complete} %", output.size(d.bytes_succeeded)) for d in job.drives],
        )
    )


@app.command("list")
def list_jobs(
    staging: inputs.StagingArgument, endpoint: Endpoint = None, token_file: TokenFile = None, json: inputs.Json = False
) -> None:
    """All jobs of the seed's resource group."""
    found = _service(load_seed(parse_staging(staging)), endpoint, token_file).list()
    if json:
        output.print_json({"jobs": [_document(job) for job in found]})
        return
    print(output.table(("job", "state", "drives"), [(job.name, str(job.state), str(len(job.drives))) for job in found]))


@app.command("ship")
def ship(
    staging: inputs.StagingArgument,
    carrier: Annotated[str, typer.Option(help="Who carries the package.")],
    tracking_number: Annotated[str, typer.Option(help="Its tracking number; every job needs one of its own.")],
    recipient: Annotated[str, typer.Option("--return-recipient", help="Who gets the disks back.")],
    street: Annotated[str, typer.Option("--return-street")],
    city: Annotated[str, typer.Option("--return-city")],
    postal_code: Annotated[str, typer.Option("--return-postal-code")],
    country: Annotated[str, typer.Option("--return-country")],
    phone: Annotated[str, typer.Option("--return-phone")],
    email: Annotated[str, typer.Option("--return-email")],
    ship_date: Annotated[str | None, typer.Option(help="YYYY-MM-DD; today without it.", show_default=False)] = None,
    endpoint: Endpoint = None,
    token_file: TokenFile = None,
) -> None:
    """Tell the service that the package is on its way. All disks of the job travel in one package."""
    place = parse_staging(staging)
    service = _service(load_seed(place), endpoint, token_file)
    job = jobs.enter_shipping(
        service,
        place,
        carrier=carrier,
        tracking_number=tracking_number,
        drive_count=len(jobs.load_job(place).job.drives),
        ship_date=_date(ship_date),
        return_address=ReturnAddress(
            recipient_name=recipient,
            street_address1=street,
            city=city,
            postal_code=postal_code,
            country_or_region=country,
            phone=phone,
            email=email,
        ),
    )
    print(f"import job {job.name}: {job.state}")
    output.next_step(f"diskprep job show {staging}")


def _service(seed: Seed, endpoint: str | None, token_file: Path | None) -> AzureImportService:
    token = credential(read_secret(token_file) if token_file else None)
    return AzureImportService(endpoint, token, subscription_id=seed.subscription_id, resource_group=seed.resource_group)


def _date(text: str | None) -> date:
    if text is None:
        return clock.now().date()
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a date", hint="write it as YYYY-MM-DD") from None


def _document(job: Job) -> dict[str, Any]:
    document = asdict(job)
    for package in ("package", "return_package"):
        if document[package] and document[package]["ship_date"]:
            document[package]["ship_date"] = document[package]["ship_date"].isoformat()
    return document
