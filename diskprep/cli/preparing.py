"""`diskprep disk prepare`: what is planned, who confirms it, and what happens while a further disk is awaited."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from diskprep.cli import inputs, output, places
from diskprep.cli.connecting import AuthOption, Endpoint, Tenant, TokenFile, open_service
from diskprep.cli.jobmaking import make_job, tell_made
from diskprep.cli.papers import write_certificate
from diskprep.disk import inventory, memory, prepare, target, together, watch
from diskprep.disk import plan as plans
from diskprep.disk.record import PreparedDisk, recorded
from diskprep.disk.work import Order, Wipe
from diskprep.errors import DiskprepError, DiskRefused, DisksInsufficient, JobConflict, NotFound
from diskprep.seal import Seal, load_seal
from diskprep.secrets import Secret
from diskprep.seed import Seed, Staging, load_seed, parse_staging
from diskprep.staging.stage import open_staged, unlock_escrow
from diskprep.volume.bitlocker import Method

Disks = Annotated[
    list[str],
    typer.Argument(
        metavar="DISK...", help="Serial, /dev/disk/by-id name, device, or image file; PATH,serial=NUMBER names it."
    ),
]
Journals = Annotated[
    Path | None, typer.Option("--journals", metavar="DIR", help="Where the disks' journals are kept on this computer.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What all disks of a call have in common."""

    staging: Staging
    seed: Seed
    seal: Seal
    journals: Path
    container_sas: Secret[str]
    method: Method
    wipe: Wipe
    escrow_key: Secret[bytes] | None
    confirmed: tuple[str, ...]

    @property
    def protected(self) -> tuple[Path, ...]:
        return (self.staging.root, self.staging.first.root, self.journals, *map(Path, self.seed.sources))


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
    wipe: Annotated[Wipe, typer.Option(help="The old content: discarded, or all of it overwritten too.")] = (
        Wipe.DISCARD
    ),
    wait: Annotated[
        bool, typer.Option("--wait", help="When the disks do not suffice, wait for the next one to be attached.")
    ] = False,
    journals: Journals = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    create_job: Annotated[
        bool, typer.Option("--create-job", help="Create the import job, too, once all disks are sealed.")
    ] = False,
    auth: AuthOption = None,
    tenant: Tenant = None,
    token_file: TokenFile = None,
    endpoint: Endpoint = None,
    state_folder: places.State = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the steps; write nothing.")] = False,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Erase disks, encrypt them with BitLocker, copy the seed onto them, and read everything back.

    All disks are worked on at once. A disk is erased only after its serial number was typed, or given with
    --confirm-serial. The same command again goes on with what was broken off; the passphrase is needed for that only
    when the computer was started again meanwhile.
    """
    place = parse_staging(staging)
    seed = load_seed(place)
    passphrase = _passphrase(passphrase_file, passphrase_fd, passphrase_command, wanted=create_job)
    service = None
    if create_job:  # before hours of copying: what is wrong with the way to the service is found now
        service = open_service(seed, endpoint=endpoint, token_file=token_file, auth=auth, tenant=tenant)
    job = _Job(
        staging=place,
        seed=seed,
        seal=load_seal(place.seal_file),
        journals=(journals or places.journal_folder(state_folder)).absolute(),
        container_sas=inputs.container_signature(container_sas_file, seed.container),
        method=method,
        wipe=wipe,
        escrow_key=None if passphrase is None else unlock_escrow(place, open_staged(place, passphrase)),
        confirmed=tuple(confirm_serial or ()),
    )
    known = inventory.list_disks() if wait else []  # one that comes while others are worked on is new, too
    size = inputs.size_bytes(image_size) if image_size else None
    targets = target.parse_all(disks, image_bytes=size, protected=job.protected, create=not dry_run)
    done: dict[str, PreparedDisk] = {}
    arrivals: Iterator[target.Target] | None = None
    while True:
        plan = _replan(job, targets)
        shares = [share for share in plan.disks if share.serial in targets and share.serial not in done]
        _show(plan, shares, targets)
        if dry_run:
            for step in prepare.STEPS:
                print(f"{step.name}: {step.says}")
            plans.require_complete(plan)
            return
        for share in shares:
            _confirm(targets[share.serial], job.confirmed)
        plans.save_plan(place.plan_file, plan)
        outcomes = _prepare(job, shares, targets, quiet=quiet)
        done |= {outcome.serial: outcome.disk for outcome in outcomes if outcome.disk is not None}
        if plan.is_complete or not wait or any(outcome.error for outcome in outcomes):
            break
        arrivals = arrivals or _arrivals(job, known)
        print(f"{_missing(plan)}; waiting for the next disk to be attached", file=sys.stderr, flush=True)
        found = next(arrivals)
        targets[found.serial] = found
    if service is None or not plan.is_complete or any(outcome.error for outcome in outcomes):
        _report(plan, done, as_json=json)
    together.check(outcomes)
    _require_all(job, plan)
    if service is None:
        output.next_step(f"diskprep job create {output.word(place.root)} --passphrase-file FILE")
        return
    assert passphrase is not None, "it was asked for at the beginning"
    secret = passphrase
    made = make_job(place, seed, service, lambda: secret, places.ledger(state_folder))
    tell_made(place, seed, made, as_json=json)


def _passphrase(file: Path | None, descriptor: int | None, command: str | None, *, wanted: bool) -> Secret[str] | None:
    """The passphrase when it was given; asked for only when it is `wanted`."""
    if not wanted and file is None and descriptor is None and command is None:
        return None
    return inputs.passphrase(file, descriptor, command)


def _replan(job: _Job, targets: Mapping[str, target.Target]) -> plans.Plan:
    """The plan for the disks at hand.

    What an earlier plan gave to a disk stays there when the disk is sealed or at hand. The share of one that is neither
    waits for it, unless there is a new disk to take it.
    """
    offers = {serial: found.offer for serial, found in targets.items()}
    kept: list[plans.DiskPlan] = []
    if job.staging.plan_file.exists():
        for share in plans.load_plan(job.staging.plan_file, job.seal).disks:
            offer = offers.get(share.serial)
            if _is_sealed(job, share) or (offer is not None and offer.size_bytes == share.size_bytes):
                kept.append(share)
                offers.pop(share.serial, None)
            elif offer is None:
                kept.append(share)
        if offers:
            kept = [share for share in kept if share.serial in targets or _is_sealed(job, share)]
    plan = plans.make_plan(job.seal, list(offers.values()), kept=kept)
    plans.require_one_job(plan)
    return plan


def _is_sealed(job: _Job, share: plans.DiskPlan) -> bool:
    try:
        recorded(job.staging, share, job.seal.digest)
    except (NotFound, JobConflict):
        return False
    return True


def _show(plan: plans.Plan, shares: Sequence[plans.DiskPlan], targets: Mapping[str, target.Target]) -> None:
    for share in shares:
        print(
            f"disk {share.serial} ({targets[share.serial].path}): {len(share.packs)} packs, "
            f"{output.size(share.payload_bytes)} of {output.size(share.size_bytes)}",
            file=sys.stderr,
        )
    planned = {share.serial for share in plan.disks}
    for serial, found in targets.items():
        if serial not in planned:
            print(f"disk {serial} ({found.path}): not needed", file=sys.stderr)


def _confirm(wanted: target.Target, confirmed: Sequence[str]) -> None:
    """Make sure that somebody means this disk: its serial, typed or given. One try, no default."""
    if wanted.blank:
        return
    facts = wanted.facts
    print(
        f"{wanted.path}: {output.escape(facts.model) if facts else 'image'}, serial {wanted.serial}, "
        f"{output.size(wanted.size_bytes)}{f', {facts.bus}' if facts else ''}: everything on it will be erased",
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


def _prepare(
    job: _Job, shares: Sequence[plans.DiskPlan], targets: Mapping[str, target.Target], *, quiet: bool
) -> list[together.Outcome]:
    orders = [
        Order(
            target=targets[share.serial],
            share=share,
            staging=job.staging,
            seed=job.seed,
            seal_digest=job.seal.digest,
            container_sas=job.container_sas,
            journal_path=job.journals / f"{share.serial}.journal",
            method=job.method,
            wipe=job.wipe,
            memory=memory.place(),
            escrow_key=job.escrow_key,
        )
        for share in shares
    ]
    with output.screen(quiet=quiet) as screen:
        outcomes = together.prepare_disks(orders, screen.emit)
    for outcome in outcomes:
        if outcome.disk is not None:
            write_certificate(job.staging, job.seed, outcome.disk)
    return outcomes


def _arrivals(job: _Job, known: Sequence[inventory.DiskFacts]) -> Iterator[target.Target]:
    """Disks as they are attached that may be erased; why another may not is told."""
    for facts in watch.arrivals(known):
        try:
            yield target.parse(str(facts.node), protected=job.protected)
        except DiskprepError as error:
            print(f"{facts.node}: {output.escape(error.message)}", file=sys.stderr, flush=True)


def _missing(plan: plans.Plan) -> str:
    return f"a further disk of {output.size(plan.missing_bytes)} is needed"


def _report(plan: plans.Plan, done: Mapping[str, PreparedDisk], *, as_json: bool) -> None:
    if as_json:
        fields = ("serial", "path", "size_bytes", "payload_bytes", "files", "manifest_hash", "volume_guid")
        disks = [{name: str(getattr(disk, name)) for name in fields} for disk in done.values()]
        output.print_json({"disks": disks, "complete": plan.is_complete, "missing_bytes": plan.missing_bytes})
    elif done:
        print(f"disks prepared: {', '.join(done)}")


def _require_all(job: _Job, plan: plans.Plan) -> None:
    """Raise DisksInsufficient while a part of the seed is on no sealed disk."""
    if not plan.is_complete:
        staging = output.word(job.staging.root)
        raise DisksInsufficient(
            f"the disks do not suffice: {_missing(plan)}",
            hint=f"attach it, then: diskprep disk prepare {staging} DISK... --container-sas-file FILE",
        )
    waiting = [share.serial for share in plan.disks if not _is_sealed(job, share)]
    if waiting:
        raise DisksInsufficient(
            f"not prepared yet, though planned: {', '.join(waiting)}",
            hint="give these disks too, or another disk that takes their share",
        )
