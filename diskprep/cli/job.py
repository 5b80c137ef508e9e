"""`diskprep job ...`: the import job, from creation to the returned disks."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from datetime import date
from typing import Annotated

import typer

from diskprep.cli import inputs, output, places, returning
from diskprep.cli.advising import end, ship_command
from diskprep.cli.connecting import AuthOption, Endpoint, Tenant, TokenFile, open_service
from diskprep.cli.jobmaking import address_line, follow, job_document, make_job, tell, tell_made
from diskprep.cli.outcome import repair, report
from diskprep.cli.slip import slip
from diskprep.cli.watching import watch
from diskprep.errors import DiskprepError, UsageError
from diskprep.importjob import job as jobs
from diskprep.importjob.model import JobState
from diskprep.importjob.saved import load_job
from diskprep.importjob.shipping import checklist, shipping_address
from diskprep.seed import load_seed, parse_staging

app = typer.Typer(no_args_is_help=True, help="The import job.")


@app.command("create")
def create(
    staging: inputs.StagingArgument,
    recipient: returning.Recipient = None,
    street: returning.Street = None,
    street2: returning.Street2 = None,
    city: returning.City = None,
    state: returning.State = None,
    postal_code: returning.PostalCode = None,
    country: returning.Country = None,
    phone: returning.Phone = None,
    email: returning.Email = None,
    return_carrier: returning.Carrier = None,
    return_account: returning.Account = None,
    auth: AuthOption = None,
    tenant: Tenant = None,
    token_file: TokenFile = None,
    endpoint: Endpoint = None,
    state_folder: places.State = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
) -> None:
    """Create the import job of the sealed disks, under the name given at staging. Creating twice is one job.

    The return address may be given here or with `job ship`.
    """
    place = parse_staging(staging)
    seed = load_seed(place)
    address = returning.return_address(
        recipient_name=recipient,
        street_address1=street,
        street_address2=street2,
        city=city,
        state_or_province=state,
        postal_code=postal_code,
        country_or_region=country,
        phone=phone,
        email=email,
    )
    back = returning.return_shipping(return_carrier, return_account)
    made = make_job(
        place,
        seed,
        open_service(seed, endpoint=endpoint, token_file=token_file, auth=auth, tenant=tenant),
        lambda: inputs.passphrase(passphrase_file, passphrase_fd, passphrase_command),
        places.ledger(state_folder),
        return_address=address,
        return_shipping=back,
    )
    if made.destination is not None:
        returning.warn_of_carrier(back, made.destination.carriers)
    tell_made(place, seed, made, as_json=json)


@app.command("show")
def show(
    staging: inputs.StagingArgument,
    auth: AuthOption = None,
    tenant: Tenant = None,
    token_file: TokenFile = None,
    endpoint: Endpoint = None,
    state_folder: places.State = None,
    json: inputs.Json = False,
) -> None:
    """The job of a staging as the service has it now, how long there is time, and what to do next.

    Ends with 43 when the job needs its tracking number within five days, with 44 when a drive did not arrive or was not
    copied whole.
    """
    place = parse_staging(staging)
    seed = load_seed(place)
    service = open_service(seed, endpoint=endpoint, token_file=token_file, auth=auth, tenant=tenant)
    saved = follow(service, place, places.ledger(state_folder))
    tell(saved, as_json=json)
    end(place, saved)


@app.command("list")
def list_jobs(
    staging: inputs.StagingArgument,
    auth: AuthOption = None,
    tenant: Tenant = None,
    token_file: TokenFile = None,
    endpoint: Endpoint = None,
    json: inputs.Json = False,
) -> None:
    """All import jobs that the credential may see in the seed's subscription, or else in its resource group."""
    seed = load_seed(parse_staging(staging))
    found = open_service(seed, endpoint=endpoint, token_file=token_file, auth=auth, tenant=tenant).list()
    if json:
        output.print_json({"jobs": [job_document(job) for job in found]})
        return
    if not found:
        print("there are no import jobs")
        return
    rows = [
        (
            job.name,
            str(job.state),
            str(len(job.drives)),
            job.location,
            job.package.tracking_number if job.package else "",
        )
        for job in found
    ]
    headings = ("job", "state", "drives", "region", "tracking number")
    print(output.table(headings, [tuple(map(output.escape, row)) for row in rows]))


@app.command("ship")
def ship(
    staging: inputs.StagingArgument,
    carrier: Annotated[str, typer.Option(help="Who carries the package.")],
    tracking_number: Annotated[str, typer.Option(help="Its tracking number; every job needs one of its own.")],
    serials: Annotated[
        list[str] | None,
        typer.Option("--serial", help="A disk that is in the package, to be checked; as often as needed."),
    ] = None,
    ship_date: Annotated[str | None, typer.Option(help="YYYY-MM-DD; today without it.", show_default=False)] = None,
    recipient: returning.Recipient = None,
    street: returning.Street = None,
    street2: returning.Street2 = None,
    city: returning.City = None,
    state: returning.State = None,
    postal_code: returning.PostalCode = None,
    country: returning.Country = None,
    phone: returning.Phone = None,
    email: returning.Email = None,
    return_carrier: returning.Carrier = None,
    return_account: returning.Account = None,
    auth: AuthOption = None,
    tenant: Tenant = None,
    token_file: TokenFile = None,
    endpoint: Endpoint = None,
    state_folder: places.State = None,
    json: inputs.Json = False,
) -> None:
    """Tell the service that the package is on its way. All disks of the job travel in one package, and no others."""
    place = parse_staging(staging)
    seed = load_seed(place)
    known = load_job(place).job
    address = returning.return_address(
        recipient_name=recipient,
        street_address1=street,
        street_address2=street2,
        city=city,
        state_or_province=state,
        postal_code=postal_code,
        country_or_region=country,
        phone=phone,
        email=email,
        wanted=known.return_address is None,
    )
    back = returning.return_shipping(return_carrier, return_account)
    service = open_service(seed, endpoint=endpoint, token_file=token_file, auth=auth, tenant=tenant)
    jobs.enter_shipping(
        service,
        place,
        carrier=carrier,
        tracking_number=tracking_number,
        drive_count=len(serials or known.drives),
        ship_date=_date(ship_date),
        return_address=address,
        return_shipping=back,
        serials=serials,
        ledger=places.ledger(state_folder),
    )
    if back is not None:
        with contextlib.suppress(DiskprepError):  # the package is entered, whatever is to be known of carriers
            returning.warn_of_carrier(back, shipping_address(service, seed.location).carriers)
    saved = load_job(place)
    tell(saved, as_json=json)
    output.next_step(f"diskprep job watch {output.word(place.root)}")


@app.command("keep-alive")
def keep_alive(
    staging: inputs.StagingArgument,
    auth: AuthOption = None,
    tenant: Tenant = None,
    token_file: TokenFile = None,
    endpoint: Endpoint = None,
    state_folder: places.State = None,
    json: inputs.Json = False,
) -> None:
    """Restart the two weeks after which the service deletes a job that has no tracking number."""
    place = parse_staging(staging)
    seed = load_seed(place)
    service = open_service(seed, endpoint=endpoint, token_file=token_file, auth=auth, tenant=tenant)
    jobs.keep_alive(service, place, ledger=places.ledger(state_folder))
    saved = load_job(place)
    tell(saved, as_json=json)
    if saved.job.state == JobState.CREATING:
        output.next_step(ship_command(place))
    else:
        end(place, saved)


@app.command("cancel")
def cancel(
    staging: inputs.StagingArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Also when the package is on its way or drives are being copied.")
    ] = False,
    auth: AuthOption = None,
    tenant: Tenant = None,
    token_file: TokenFile = None,
    endpoint: Endpoint = None,
    state_folder: places.State = None,
    json: inputs.Json = False,
) -> None:
    """Ask for the job to be cancelled, and show what came of it."""
    place = parse_staging(staging)
    seed = load_seed(place)
    service = open_service(seed, endpoint=endpoint, token_file=token_file, auth=auth, tenant=tenant)
    jobs.cancel_job(service, place, force=force, ledger=places.ledger(state_folder))
    saved = load_job(place)
    tell(saved, as_json=json)
    end(place, saved)


@app.command("delete")
def delete(
    staging: inputs.StagingArgument,
    auth: AuthOption = None,
    tenant: Tenant = None,
    token_file: TokenFile = None,
    endpoint: Endpoint = None,
    state_folder: places.State = None,
    json: inputs.Json = False,
) -> None:
    """Take a job back that was never sent, or was cancelled: the staging has none then, and its name is free."""
    place = parse_staging(staging)
    seed = load_seed(place)
    service = open_service(seed, endpoint=endpoint, token_file=token_file, auth=auth, tenant=tenant)
    job = jobs.delete_job(service, place, ledger=places.ledger(state_folder))
    if json:
        output.print_json({"deleted": job_document(job)})
    else:
        print(f"import job deleted: {output.escape(job.name)}")
    output.next_step(f"diskprep job create {output.word(place.root)}")


@app.command("checklist")
def show_checklist(
    staging: inputs.StagingArgument,
    auth: AuthOption = None,
    tenant: Tenant = None,
    token_file: TokenFile = None,
    endpoint: Endpoint = None,
    json: inputs.Json = False,
) -> None:
    """What to see to before the package leaves: the address, carriers, and the rules of the region that it goes to."""
    seed = load_seed(parse_staging(staging))
    service = open_service(seed, endpoint=endpoint, token_file=token_file, auth=auth, tenant=tenant)
    destination = shipping_address(service, seed.location)
    steps = checklist(seed.location, destination)
    if json:
        output.print_json(
            {
                "region": destination.region,
                "ship_to": asdict(destination.address),
                "carriers": destination.carriers,
                "checklist": steps,
            }
        )
        return
    print(f"ship to: {output.escape(address_line(destination))}")
    print("\n".join(f"[ ] {output.escape(step)}" for step in steps))


app.command("watch")(watch)
app.command("slip")(slip)
app.command("report")(report)
app.command("repair")(repair)


def _date(text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a date", hint="write it as YYYY-MM-DD") from None
