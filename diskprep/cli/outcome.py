"""`diskprep job report` and `diskprep job repair`: what became of the disks, and sending again what did not arrive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from diskprep import clock
from diskprep.cli import inputs, output, places, trips
from diskprep.cli.connecting import AuthOption, Endpoint, Tenant, TokenFile, open_service
from diskprep.cli.copylogs import Logs
from diskprep.cli.stores import KeyFile, azure_account, open_store
from diskprep.disk import plan as plans
from diskprep.errors import DrivesFailed, JobConflict, NotFound, UsageError
from diskprep.importjob import job as jobs
from diskprep.importjob.advice import advise
from diskprep.importjob.model import Job
from diskprep.importjob.outcome import Fate, RepairPlan, Report, plan_repair
from diskprep.importjob.outcome import report as make_report
from diskprep.importjob.signin import LOOPBACK, Auth
from diskprep.repair import Repair, make_repair
from diskprep.seal import Seal, load_seal
from diskprep.secrets import Secret
from diskprep.seed import Seed, Staging, load_seed, parse_staging
from diskprep.store import Store

Container = Annotated[
    str | None,
    typer.Option(
        "--container",
        metavar="STORE",
        help="Where the copy logs are: the import's container, a folder or its https address.",
        show_default=False,
    ),
]
ContainerSas = Annotated[
    Path | None,
    typer.Option("--container-sas-file", help="A file with the container's signature.", show_default=False),
]
LogFiles = Annotated[
    list[Path] | None,
    typer.Option("--log", metavar="FILE", help="A copy log that was downloaded; several times.", show_default=False),
]
Full = Annotated[bool, typer.Option("--full", help="Read the verbose logs too; they tell of renamed files.")]
Offline = Annotated[bool, typer.Option("--offline", help="Ask nobody: take the job as it was last seen.")]
Lost = Annotated[
    list[str] | None,
    typer.Option("--lost", metavar="SERIAL", help="Give a disk up, whatever the service says.", show_default=False),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What is known of a job's end. `plan` is None where there is no plan of the disks.

    `repairs`: the job's, and theirs, oldest first; `ended`: the names of those whose job was over when last seen.
    """

    place: Staging
    seal: Seal
    outcome: Report
    plan: RepairPlan | None
    repairs: tuple[Repair, ...]
    ended: frozenset[str] = frozenset()

    @property
    def missing(self) -> int:
        """How many packs are to be sent again; without a plan, how many drives were in trouble."""
        return len(self.outcome.troubled) if self.plan is None else len(self.plan.packs)

    @property
    def sent_by(self) -> tuple[Repair, ...]:
        """The repairs under way that send again what is missing; none where a pack of it is in none of them."""
        if self.plan is None:
            return ()
        left, senders = set(self.plan.packs), []
        for made in self.repairs:
            packs = {pack.name for pack in made.seal.data_packs}
            if made.job_name not in self.ended and not left.isdisjoint(packs):
                senders.append(made)
                left -= packs
        return () if left else tuple(senders)

    @property
    def not_brought_by(self) -> Repair | None:
        """The last repair that is over and was to bring what is missing: it is the one to be repaired."""
        if self.plan is None or not self.plan.packs or self.sent_by:
            return None
        under_way = {
            pack.name for made in self.repairs if made.job_name not in self.ended for pack in made.seal.data_packs
        }
        left = set(self.plan.packs) - under_way
        over = [made for made in reversed(self.repairs) if made.job_name in self.ended]
        return next((made for made in over if left <= {pack.name for pack in made.seal.data_packs}), None)


def report(
    staging: inputs.StagingArgument,
    container: Container = None,
    account_key_file: KeyFile = None,
    container_sas_file: ContainerSas = None,
    log: LogFiles = None,
    full: Full = False,
    lost: Lost = None,
    offline: Offline = False,
    endpoint: Endpoint = None,
    token_file: TokenFile = None,
    auth: AuthOption = None,
    tenant: Tenant = None,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """What became of every disk and file of the job, in words; what is missing, and what to do.

    With the import's container, what is in it is compared with what the disks carried.
    """
    place = parse_staging(staging)
    seed = load_seed(place)
    job, notes, _names = _job(place, seed, endpoint, token_file, auth, tenant, offline=offline)
    store = _store(seed, container, account_key_file, container_sas_file)
    found = _look(place, seed, job, store, log or [], lost or [], notes, full=full, quiet=quiet)
    if json:
        output.print_json(_document(found))
    else:
        _tell(found)
    if not found.missing:
        _refuse_gone(place)
    _next(found, staging)
    if found.missing:
        hint = f"`diskprep job repair {output.word(_to_repair(found).root)}` sends that again, as a new job"
        if over := found.not_brought_by:
            hint = f"nor did the repair {over.job_name} bring it, whose job has ended: {hint}"
        if sent := found.sent_by:
            names = ", ".join(made.job_name for made in sent)
            where = output.word(sent[-1].staging.root)
            hint = f"the repair {names} sends it again: `diskprep status {where}` tells how far it is"
        raise DrivesFailed(f"{_missing(found)} of job {job.name} did not arrive", hint=hint)


def repair(
    staging: inputs.StagingArgument,
    job_name: Annotated[
        str, typer.Option("--job", metavar="NAME", help="The name of the new job; else the first one's with -r1, -r2.")
    ] = "",
    same_disk: Annotated[
        bool, typer.Option("--same-disk", help="Send all that was on a disk that came in part, not what failed only.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be sent again; make nothing.")] = False,
    container: Container = None,
    account_key_file: KeyFile = None,
    container_sas_file: ContainerSas = None,
    log: LogFiles = None,
    full: Full = False,
    lost: Lost = None,
    offline: Offline = False,
    endpoint: Endpoint = None,
    token_file: TokenFile = None,
    auth: AuthOption = None,
    tenant: Tenant = None,
    state_folder: places.State = None,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Make a further trip of what did not arrive: a staging below STAGING/repairs, with a job of its own.

    Disks are prepared and the job is created from it as from any staging. The same command again is the same repair.
    """
    place = parse_staging(staging)
    seed = load_seed(place)
    job, notes, names = _job(place, seed, endpoint, token_file, auth, tenant, offline=offline, named=not dry_run)
    store = _store(seed, container, account_key_file, container_sas_file)
    found = _look(place, seed, job, store, log or [], lost or [], notes, full=full, quiet=quiet, same_disk=same_disk)
    if found.plan is None:
        raise NotFound("the staging has no plan of its disks", hint="repair where the disks were prepared")
    if not found.plan.packs:
        _refuse_gone(place)
    if over := found.not_brought_by:
        raise JobConflict(
            f"{_missing(found)} of job {job.name} did not arrive, nor with the repair {over.job_name}, which has ended",
            hint=f"`diskprep job repair {output.word(over.staging.root)}` sends it once more",
        )
    made = None
    if found.plan.packs and not dry_run:
        taken = names | trips.open_names(places.ledger(state_folder), seed)
        made = make_repair(place, found.plan.packs.keys(), job_name=job_name, drives=found.plan.drives, taken=taken)
    if json:
        output.print_json(_repair_document(found.plan, made))
    else:
        _tell_repair(found, made)
    if made is not None:
        output.next_step(f"diskprep disk prepare {output.word(made.staging.root)} DISK... --container-sas-file FILE")


def _job(
    place: Staging,
    seed: Seed,
    endpoint: str | None,
    token_file: Path | None,
    auth: Auth | None,
    tenant: str | None,
    *,
    offline: bool,
    named: bool = False,
) -> tuple[Job, list[str], frozenset[str]]:
    """The job, what is to be known of it, and the names of the group's jobs at the service.

    One that the service has deleted is told as it was last seen.
    """
    saved = jobs.load_job(place).job
    if offline:
        return saved, ["the job as it was last seen; the service was not asked"], frozenset()
    service = open_service(seed, endpoint=endpoint, token_file=token_file, auth=auth, tenant=tenant)
    names = trips.names_of(service.list(), seed) if named else frozenset[str]()
    try:
        return jobs.refresh_job(service, place), [], names
    except NotFound:
        return saved, [f"the service has no job {saved.name} any more; this is how it was last seen"], names


def _refuse_gone(place: Staging) -> None:
    """Raise what `job show` ends with for a job that the service does not have any more."""
    saved = jobs.load_job(place)
    if saved.gone and (error := advise(saved, clock.now()).error) is not None:
        raise error


def _store(seed: Seed, container: str | None, key_file: Path | None, sas_file: Path | None) -> Store | None:
    if container is None:
        if sas_file is None:
            return None
        container = f"https://{seed.storage_account}.blob.core.windows.net/{seed.container}"
    if sas_file is None or not container.startswith(("https://", "http://")):
        return open_store(container, key_file)
    if key_file is not None:
        raise UsageError("give the account's key or the container's signature, not both")
    if container.startswith("http://") and urlsplit(container).hostname not in LOOPBACK:
        raise UsageError(f"{container} is not an https address: the signature would travel in clear")
    account, _, name = container.rstrip("/").rpartition("/")
    return azure_account(account, Secret("")).open_sas(inputs.container_signature(sas_file, name))


def _look(
    place: Staging,
    seed: Seed,
    job: Job,
    store: Store | None,
    files: Sequence[Path],
    lost: Sequence[str],
    notes: Sequence[str],
    *,
    full: bool,
    quiet: bool,
    same_disk: bool = False,
) -> _Found:
    serials = {drive.drive_id.lower() for drive in job.drives}
    if strange := [serial for serial in lost if serial.lower() not in serials]:
        raise UsageError(f"import job {job.name} has no disk {', '.join(strange)}")
    seal = load_seal(place.seal_file)
    with output.screen(quiet=quiet) as screen:
        logs = Logs(job, screen.emit)
        for path in files:
            logs.read_file(path)
        if store is not None:
            logs.read_store(store, full=full)
        outcome = make_report(job, logs.found, lost=lost, notes=[*notes, *logs.notes])
        through = any(drive.fate is not Fate.WAITING for drive in outcome.drives)
        present = _present(store, seed, seal) if through else None
    try:
        placement = plans.load_plan(place.plan_file, seal).placement()
    except NotFound:
        plan = None
    else:
        plan = plan_repair(outcome, placement, present=present, same_disk=same_disk)
    repairs = trips.repairs_of(place, seed.job_name)
    over = trips.look_at(repairs)
    if plan is not None and present is None:
        plan = plan.without(over.brought, placement)
    return _Found(place=place, seal=seal, outcome=outcome, plan=plan, repairs=repairs, ended=over.ended)


def _present(store: Store | None, seed: Seed, seal: Seal) -> frozenset[str] | None:
    """The packs that are in the import's container with their size; None when this is not that container."""
    if store is None or store.location.rstrip("/").rpartition("/")[2] != seed.container:
        return None
    sizes = {pack.name: pack.size_bytes for pack in seal.data_packs}
    return frozenset(stored.name for stored in store.list("data/") if sizes.get(stored.name) == stored.size_bytes)


def _tell(found: _Found) -> None:
    for line in found.outcome.lines():
        print(output.escape(line))
    if found.plan is not None and found.plan.packs:
        print(f"to be sent again: {_missing(found)}")
    for made in found.repairs:
        print(f"repair {made.job_name}: sends {len(made.seal.data_packs)} packs again, from {made.staging.root}")


def _tell_repair(found: _Found, made: Repair | None) -> None:
    plan = found.plan
    assert plan is not None
    for serial, says in plan.drives.items():
        share = "all of its packs" if serial in plan.disks else "the packs that did not arrive"
        print(output.escape(f"drive {serial} {says}: {share}"))
    for serial in plan.waiting:
        print(output.escape(f"drive {serial} is not through yet, and not part of this"))
    if plan.spared:
        print(f"{plan.spared} failed files are no packs of this staging; nobody misses them")
    if not plan.packs:
        print("nothing is to be sent again")
        return
    if made is None:
        print(f"to be sent again: {_missing(found)}")
        return
    seal = made.seal
    print(
        f"repair {made.job_name}: {len(seal.data_packs)} packs, {output.size(_bytes(seal))}, "
        f"on a disk of {output.size(plans.make_plan(seal, []).missing_bytes)} or more"
    )
    print(f"its staging: {made.staging.root}")
    others = [other.job_name for other in found.repairs if other.job_name != made.job_name]
    if others:
        print(f"what is not in it is sent by {', '.join(others)}")


def _next(found: _Found, staging: str) -> None:
    if found.missing:
        sent, again = found.sent_by, output.word(_to_repair(found).root)
        status = f"diskprep status {output.word(sent[-1].staging.root)}" if sent else ""
        output.next_step(status or f"diskprep job repair {again} ...")
    elif found.outcome.complete or found.outcome.ended:
        first = output.word(found.place.first.root)
        output.next_step(f"diskprep vault ingest {first} --container STORE --vault STORE")
    else:
        output.next_step(f"diskprep job watch {output.word(staging)}")


def _to_repair(found: _Found) -> Staging:
    over = found.not_brought_by
    return over.staging if over is not None else found.place


def _missing(found: _Found) -> str:
    if found.plan is None:
        return f"what was on {len(found.outcome.troubled)} drives"
    packs = [pack for pack in found.seal.data_packs if pack.name in found.plan.packs]
    size = sum(pack.size_bytes for pack in packs)
    return f"{len(packs)} of {len(found.seal.data_packs)} packs, {output.size(size)}"


def _bytes(seal: Seal) -> int:
    return sum(pack.size_bytes for pack in seal.data_packs)


def _document(found: _Found) -> dict[str, Any]:
    return {
        **found.outcome.document(),
        "repair": None if found.plan is None else found.plan.document(),
        "repairs": [{"job": made.job_name, "staging": str(made.staging.root)} for made in found.repairs],
    }


def _repair_document(plan: RepairPlan, made: Repair | None) -> dict[str, Any]:
    document: dict[str, Any] = {**plan.document(), "job": None, "staging": None}
    if made is not None:
        seal = made.seal
        document |= {
            "job": made.job_name,
            "staging": str(made.staging.root),
            "number": made.number,
            "of": made.of,
            "sends": [pack.name for pack in seal.data_packs],
            "bytes": _bytes(seal),
            "disk_bytes": plans.make_plan(seal, []).missing_bytes,
        }
    return document
