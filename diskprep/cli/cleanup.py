"""`diskprep cleanup ...`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from diskprep import cleanup
from diskprep.cleanup import CleanupPlan, Outstanding, Place
from diskprep.cli import inputs, output
from diskprep.cli.stores import KeyFile, Vault, open_store
from diskprep.disk.plan import load_plan
from diskprep.errors import CleanupRefused, NotFound, UsageError
from diskprep.importjob import states
from diskprep.importjob.saved import SavedJob, load_job
from diskprep.repair import find_repairs
from diskprep.seal import Seal, load_seal
from diskprep.seed import Staging, load_seed, parse_staging
from diskprep.store import BlobStore
from diskprep.vault import certificate as certificates
from diskprep.vault.certificate import Certificate

app = typer.Typer(no_args_is_help=True, help="Remove what a certificate covers, and nothing else.")

CertificateFile = Annotated[Path, typer.Option("--certificate", help="The certificate that `vault ingest` wrote.")]
OptionalContainer = Annotated[
    str | None,
    typer.Option(
        "--container",
        metavar="STORE",
        help="The import's container: a folder, or its https address.",
        show_default=False,
    ),
]
AccountedFor = Annotated[
    list[str] | None,
    typer.Option(
        "--accounted-for",
        metavar="SERIAL",
        help="A disk that is not waited for: it is back, or will never come; several times.",
        show_default=False,
    ),
]
Grace = Annotated[
    int | None,
    typer.Option(
        "--grace", metavar="DAYS", min=1, help="Move aside what lies in a folder; a run after so many days deletes it."
    ),
]


@app.command("plan")
def plan(
    staging: inputs.StagingArgument,
    vault: Vault,
    container: OptionalContainer = None,
    certificate: CertificateFile = Path("certificate.json"),
    accounted_for: AccountedFor = None,
    account_key_file: KeyFile = None,
    json: inputs.Json = False,
) -> None:
    """What may go, and why. Nothing is removed."""
    found = _Found(staging, container, vault, certificate, account_key_file, accounted_for or ())
    if json:
        output.print_json(_document(found.plan))
        return
    for line in found.plan.lines():
        print(output.escape(line))
    named = f" --container {output.word(container)}" if container else ""
    more = "".join(f" --accounted-for {serial}" for serial in accounted_for or ())
    output.next_step(
        f"diskprep cleanup run {output.word(staging)}{named} --vault {output.word(vault)} "
        f"--certificate {output.word(certificate)}{more}"
    )


@app.command("run")
def run(
    staging: inputs.StagingArgument,
    vault: Vault,
    container: OptionalContainer = None,
    certificate: CertificateFile = Path("certificate.json"),
    staging_only: Annotated[bool, typer.Option("--staging-only", help="Leave the container alone.")] = False,
    container_only: Annotated[bool, typer.Option("--container-only", help="Leave the staging alone.")] = False,
    grace: Grace = None,
    end_grace: Annotated[
        bool, typer.Option("--end-grace", help="Delete what was moved aside earlier, though its days are not over.")
    ] = False,
    read_vault: Annotated[
        bool, typer.Option("--read-vault", help="First read and hash all that is covered, not only list it.")
    ] = False,
    accounted_for: AccountedFor = None,
    account_key_file: KeyFile = None,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Remove staged and imported data that the certificate covers, after looking at the vault again."""
    if (staging_only and container_only) or (container_only and container is None):
        raise UsageError("then nothing would be removed", hint="name the --container, or one place only")
    places = [Place.STAGING] if staging_only else [Place.CONTAINER] if container_only else list(Place)
    found = _Found(staging, container, vault, certificate, account_key_file, accounted_for or ())
    if not json:
        for line in found.plan.lines():
            print(output.escape(line))
    with output.screen(quiet=quiet) as screen:
        removed = cleanup.run(
            found.plan,
            found.place,
            found.seal,
            found.proof,
            container=found.imported,
            vault=found.ingested,
            places=places,
            outstanding=found.outstanding,
            grace=None if grace is None else timedelta(days=grace),
            end_grace=end_grace,
            read_vault=read_vault,
            emit=screen.emit,
        )
    if json:
        output.print_json({**_document(found.plan), "places": places, "removed_bytes": removed})
        return
    print(f"removed: {output.size(removed)}{'' if grace is None else f', of folders aside for {grace} days'}")


@app.command("undo")
def undo(
    staging: inputs.StagingArgument,
    container: OptionalContainer = None,
    account_key_file: KeyFile = None,
    quiet: inputs.Quiet = False,
) -> None:
    """Bring back what was moved aside with --grace and is not deleted yet."""
    store = None if container is None else open_store(container, account_key_file)
    with output.screen(quiet=quiet) as screen:
        back = cleanup.undo(parse_staging(staging).first, store, screen.emit)
    print(f"brought back: {output.size(back)}")


class _Found:
    """A staging, its certificate, and what may go by it. Raises CleanupRefused."""

    def __init__(
        self,
        staging: str,
        container: str | None,
        vault: str,
        certificate: Path,
        key_file: Path | None,
        accounted_for: Collection[str],
    ) -> None:
        self.place: Staging = parse_staging(staging).first
        self.seal: Seal = load_seal(self.place.seal_file)
        self.imported: BlobStore | None = None if container is None else open_store(container, key_file)
        self.ingested: BlobStore = open_store(vault, key_file)
        try:
            self.proof: Certificate = certificates.load(certificate)
        except NotFound:
            raise CleanupRefused(
                f"there is no certificate {certificate}; nothing was removed", hint="`diskprep vault ingest` writes it"
            ) from None
        given = {serial.lower() for serial in accounted_for}
        self.outstanding = [disk for disk in outstanding_disks(self.place) if disk.serial.lower() not in given]
        self.plan: CleanupPlan = cleanup.plan(
            self.place,
            self.seal,
            self.proof,
            container=self.imported,
            vault=self.ingested,
            outstanding=self.outstanding,
        )


def outstanding_disks(staging: Staging) -> list[Outstanding]:
    """Disks of the staging's plan, of its repairs' plans and of their jobs, whose job has not ended as last seen.

    Raises DataDamaged or FormatTooNew when a plan or job.json cannot be read.
    """
    found: dict[tuple[str, str], Outstanding] = {}
    for place in (staging.first, *(repair.staging for repair in find_repairs(staging))):
        for disk in _waiting(place):
            found.setdefault((disk.serial.lower(), disk.job), disk)
    return list(found.values())


def _waiting(place: Staging) -> Iterator[Outstanding]:
    job = load_seed(place).job_name
    planned = _planned(place)
    try:
        saved = load_job(place)
    except NotFound:
        yield from (Outstanding(serial=serial, job=job, state="was not created yet") for serial in planned)
        return
    job = saved.job.name
    taken = {drive.drive_id.lower(): drive.drive_id for drive in saved.job.drives}
    if states.is_open(saved.job):
        for serial in dict.fromkeys([*taken.values(), *(s for s in planned if s.lower() not in taken)]):
            yield Outstanding(serial=serial, job=job, state=_state(saved))
        return
    for serial in planned:
        if serial.lower() not in taken:
            yield Outstanding(serial=serial, job=job, state="does not have it, though the plan does")


def _state(saved: SavedJob) -> str:
    if saved.gone:
        return f"the service does not have any more; it was {saved.job.state} when last seen"
    return f"is {saved.job.state} as last seen"


def _planned(place: Staging) -> list[str]:
    try:
        return [disk.serial for disk in load_plan(place.plan_file, load_seal(place.seal_file)).disks]
    except NotFound:
        return []


def _document(found: CleanupPlan) -> dict[str, Any]:
    return {
        "job_name": found.job_name,
        "certificate": found.certificate_digest,
        "why": found.why,
        "may_go": {str(p): {"objects": found.count(p), "bytes": found.size_bytes(p)} for p in Place},
        "removals": [
            {"place": removal.place, "name": removal.name, "size_bytes": removal.size_bytes}
            for removal in found.removals
        ],
        "stays": [{"what": kept.what, "why": kept.reason} for kept in found.kept],
        "notes": list(found.notes),
    }
