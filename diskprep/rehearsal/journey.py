"""The journey: every stage of a seed's trip, one after the other, on this computer.

The stages meet in sealed files only (seed.json, seal.json, plan.json, journals, manifests, job.json, copy logs,
certificate), just as they do when each runs on another computer; this module hands the paths on and compares the end
with the beginning.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import timedelta
from pathlib import Path

from diskprep import cleanup, clock, compare, durable, replica
from diskprep.datacenter.server import Datacenter
from diskprep.disk import plan as disk_plan
from diskprep.disk import target, together
from diskprep.disk.record import PreparedDisk
from diskprep.disk.work import Order
from diskprep.errors import DataDamaged, DiskprepError, RestoreDiffers, SourceIncomplete, UsageError
from diskprep.events import Emit, Note
from diskprep.importjob import job as import_job
from diskprep.importjob.model import Address, Drive, Job, JobState, ReturnAddress
from diskprep.importjob.service import AzureImportService
from diskprep.rehearsal import preflight
from diskprep.rehearsal.summary import DiskFigures, RecoveryPoint, Summary
from diskprep.repository.repository import Repository, open_repository
from diskprep.seal import Seal, load_seal
from diskprep.secrets import Secret, generate_passphrase
from diskprep.seed import Seed, Staging, load_seed
from diskprep.source import Source
from diskprep.staging.stage import stage
from diskprep.staging.writer import BackupOptions, backup
from diskprep.store import Account, BlobStore
from diskprep.store.directory import DirectoryAccount
from diskprep.vault import ingest, online, restore
from diskprep.vault.certificate import Certificate
from diskprep.volume.bitlocker import Method

ACCOUNT = "rehearsal"
CONTAINER = "container"
VAULT = "vault"
JOB_NAME = "rehearsal"
RESOURCE_GROUP = "rehearsal"
LOCATION = "westeurope"
CARRIER = "DHL"
TRACKING_NUMBER = "JD0140000000000001"
RETURN_ADDRESS = ReturnAddress(
    recipient_name="Backup operator",
    street_address1="1 Rehearsal Street",
    city="Springfield",
    postal_code="12345",
    country_or_region="Netherlands",
    phone="+31 20 000 0000",
    email="operator@example.invalid",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a rehearsal is asked for. Without `disks` and `disk_bytes`: two disks, as small as the data allows."""

    source: Path | None = None
    workdir: Path | None = None
    disks: int | None = None
    disk_bytes: int | None = None
    keep: bool = False
    method: Method = Method.XTS_AES_256


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    """A recovery point, and what the source was when it was taken; `ignore`: paths that moved or cannot be read."""

    name: str
    snapshot: str
    truth: compare.Fingerprint
    stored: int
    ignore: frozenset[bytes] = frozenset()


@dataclass(slots=True, kw_only=True)
class _Trip:
    """What the stages hand on to each other."""

    options: Options
    source: Path
    root: Path
    account: Account
    staging: Staging
    passphrase: Secret[str]
    summary: Summary
    emit: Emit
    expected: list[_Expected]

    def say(self, stage_name: str, text: str) -> None:
        self.emit(Note(stage=stage_name, text=text))


def rehearse(options: Options, emit: Emit, *, account: Account | None = None) -> Summary:
    """Walk the whole journey and return its figures; raises the first error of a stage.

    `account` is the blob storage; without it containers are folders in the working directory.
    """
    preflight.check_tools()
    if options.disks is not None and not 1 <= options.disks <= disk_plan.MAX_DRIVES:
        raise UsageError(f"--disks is 1 to {disk_plan.MAX_DRIVES}: an import job takes no more drives")
    if options.disk_bytes is not None and options.disk_bytes < disk_plan.MIN_DISK_BYTES:
        raise UsageError(f"--disk-size is {disk_plan.MIN_DISK_BYTES >> 20}M at least, not {options.disk_bytes} bytes")
    source = preflight.check_source(options.source) if options.source else preflight.default_source()
    with preflight.workdir_for(options.workdir, source) as root:
        trip = _Trip(
            options=options,
            source=source,
            root=root,
            account=account or _directory_account(root),
            staging=Staging(root / "staging"),
            passphrase=generate_passphrase(),
            summary=Summary(source=_shown(source), workdir=_shown(root)),
            emit=emit,
            expected=[],
        )
        try:
            _walk(trip)
        except DiskprepError as error:
            trip.summary.error = error.message.encode("utf-8", "backslashreplace").decode()
            with contextlib.suppress(DiskprepError):  # the first error is the one to tell
                durable.write_json(root / "summary.json", trip.summary.document())
            trip.say("rehearsal", f"what was made until then is left in {root}")
            raise
        except KeyboardInterrupt:
            if not options.keep:
                _leave(root, keep=())
            raise
        if not options.keep:
            _leave(root, keep=("summary.json",) if options.workdir else ())
    return trip.summary


def _shown(path: Path) -> str:
    """A path as text that can be written anywhere: names need not be UTF-8."""
    return compare.display(os.fsencode(path))


def _leave(root: Path, *, keep: tuple[str, ...]) -> None:
    """Remove what the rehearsal made; with nothing to keep, its folder too."""
    preflight.clear(root, keep=keep)
    if not keep:
        preflight.remove_workdir(root)


def _walk(trip: _Trip) -> None:
    size = preflight.measure(trip.source)
    trip.say("preflight", f"source {trip.source}: {size.entries} entries, {size.size_bytes / 1e6:.1f} MB")
    if not size.size_bytes:
        raise UsageError(f"{trip.source} holds no file data, so there is nothing to ship", hint="choose another SOURCE")
    preflight.check_space(trip.root, size)
    durable.write_file(trip.root / "passphrase", trip.passphrase.reveal().encode() + b"\n")

    _stage(trip, size.size_bytes)
    seed, seal = load_seed(trip.staging), load_seal(trip.staging.seal_file)
    if not seal.data_packs:
        raise SourceIncomplete(f"nothing in {trip.source} could be read, so there is nothing to ship")
    disks = _prepare(trip, seed, seal)

    token = Secret(secrets.token_hex(16))
    datacenter = Datacenter(trip.root / "datacenter.sqlite", trip.account, token=token)
    with datacenter:
        service = AzureImportService(
            datacenter.base_url, token, subscription_id=seed.subscription_id, resource_group=seed.resource_group
        )
        _create_job(trip, service, seed, disks)
        vault = trip.account.container(VAULT)
        with trip.summary.stage("online") as meter:
            meter.bytes = online.publish(trip.staging, seal, vault, trip.emit)
        repository = open_repository(vault, trip.passphrase)
        hold = repository.hold(seed.job_name)
        trip.say("online", "the small part is in the vault, held against prune and check until the disks are in")

        _backup_changed(trip, repository, "while the disks travelled", change=1)
        _datacenter(trip, service, datacenter, seed, disks)
        certificate = _ingest(trip, repository, seed, seal)
        hold.release()
        _backup_changed(trip, repository, "after ingestion", change=2)
        _restore_all(trip)
        _cleanup(trip, seal, certificate)
    trip.summary.ok = True
    durable.write_json(trip.root / "summary.json", trip.summary.document())


def _stage(trip: _Trip, size_bytes: int) -> None:
    before = compare.fingerprint(trip.source, contents=False)
    with trip.summary.stage("stage") as meter:
        result = stage(
            trip.staging,
            [Source(os.fsencode(trip.source))],
            passphrase=trip.passphrase,
            job_name=JOB_NAME,
            storage_account=trip.account.name,
            container=CONTAINER,
            subscription_id=preflight.SUBSCRIPTION,
            resource_group=RESOURCE_GROUP,
            location=LOCATION,
            hostname=socket.gethostname(),
            options=BackupOptions(pack_size_bytes=_pack_bytes(trip.options, size_bytes)),
            emit=trip.emit,
        )
        meter.bytes = result.bytes_processed
    truth = compare.fingerprint(trip.source)
    moved = compare.changed(before, truth)
    unread = frozenset(truth.unreadable)
    trip.summary.left_out = sorted(compare.display(path) for path in moved | unread)
    for path in sorted(moved)[:10]:
        trip.say("stage", f"not compared, because it changed while it was backed up: {compare.display(path)}")
    for path in sorted(unread - moved)[:10]:
        trip.say("stage", f"not compared, because it cannot be read: {compare.display(path)}")
    trip.expected.append(
        _Expected(
            name="first", snapshot=result.snapshot, truth=truth, ignore=moved | unread, stored=result.bytes_stored
        )
    )
    trip.say(
        "stage", f"snapshot {result.snapshot[:8]}: {result.files} files, {result.bytes_stored / 1e6:.1f} MB stored"
    )


def _prepare(trip: _Trip, seed: Seed, seal: Seal) -> list[PreparedDisk]:
    folder = trip.root / "disks"
    durable.make_directory(folder)
    plan = _plan(trip.options, seal)
    disk_plan.save_plan(trip.staging.plan_file, plan)
    trip.account.container(CONTAINER)  # a signature opens a container, it cannot make one
    sas = trip.account.container_sas(CONTAINER, clock.now() + timedelta(days=1))
    orders = [
        Order(
            target=target.parse(str(folder / f"{share.serial}.img"), image_bytes=share.size_bytes),
            share=share,
            staging=trip.staging,
            seed=seed,
            seal_digest=seal.digest,
            container_sas=sas,
            journal_path=trip.root / "journals" / f"{share.serial}.journal",
            method=trip.options.method,
        )
        for share in plan.disks
    ]
    with trip.summary.stage("disks") as meter:
        prepared = together.check(together.prepare_disks(orders, trip.emit))
        meter.bytes = sum(disk.payload_bytes for disk in prepared)
    for disk in prepared:
        trip.say(
            "disks",
            f"{disk.serial}: {disk.files} files, {disk.payload_bytes / 1e6:.1f} MB, BitLocker {trip.options.method}, "
            "read back and sealed",
        )
        trip.summary.disks.append(DiskFigures(serial=disk.serial, image=_shown(disk.path), bytes=disk.payload_bytes))
    return prepared


def _create_job(trip: _Trip, service: AzureImportService, seed: Seed, disks: Sequence[PreparedDisk]) -> None:
    drives = [
        Drive(
            drive_id=disk.serial,
            recovery_password=_password_of(disk),
            manifest_file=disk.manifest_file,
            manifest_hash=disk.manifest_hash,
        )
        for disk in disks
    ]
    with trip.summary.stage("import job"):
        job = import_job.create_job(service, trip.staging, seed, drives, return_address=RETURN_ADDRESS)
        shipping = import_job.shipping_address(service, seed.location)
    trip.say("import job", f"disks prepared: {', '.join(disk.serial for disk in disks)}")
    trip.say("import job", f"import job created: {job.name}")
    trip.say("import job", f"ship to: {_one_line(shipping.address)}")
    with trip.summary.stage("shipping"):
        job = import_job.enter_shipping(
            service,
            trip.staging,
            carrier=CARRIER,
            tracking_number=TRACKING_NUMBER,
            drive_count=len(disks),
            ship_date=clock.now().date(),
        )
    trip.say("shipping", f"shipped with {CARRIER}, tracking number {TRACKING_NUMBER}; the job is {job.state}")
    trip.summary.job = {"name": job.name, "shipping_address": _one_line(shipping.address)}


def _datacenter(
    trip: _Trip,
    service: AzureImportService,
    datacenter: Datacenter,
    seed: Seed,
    disks: Sequence[PreparedDisk],
) -> None:
    with trip.summary.stage("datacenter") as meter:
        datacenter.receive(seed.job_name, {disk.serial: disk.path for disk in disks}, trip.emit)
        datacenter.process(seed.job_name, trip.emit)
        datacenter.ship_back(seed.job_name)
        meter.bytes = sum(disk.payload_bytes for disk in disks)
    job: Job = service.get(seed.job_name)
    trip.summary.job |= {
        "state": str(job.state),
        "drives": {drive.drive_id: str(drive.state) for drive in job.drives},
    }
    if job.state != JobState.COMPLETED:
        raise DataDamaged(
            f"the import job ended as {job.state}", hint="the copy logs under waies/ in the container say why"
        )
    trip.say("datacenter", f"import job {job.name}: {job.state}")


def _ingest(trip: _Trip, repository: Repository, seed: Seed, seal: Seal) -> Certificate:
    placement = disk_plan.load_plan(trip.staging.plan_file, seal).placement()
    with trip.summary.stage("ingest") as meter:
        certificate = ingest.ingest(
            trip.account.container(CONTAINER),
            trip.account.container(VAULT),
            repository,
            seal,
            placement,
            job_name=seed.job_name,
            certificate_path=trip.root / "certificate.json",
            emit=trip.emit,
        )
        meter.bytes = sum(pack.size_bytes for pack in seal.data_packs)
    trip.say("ingest", f"every pack verified in the vault of {seed.job_name}; certificate written")
    return certificate


def _backup_changed(trip: _Trip, repository: Repository, name: str, *, change: int) -> None:
    """Change a copy of the source and take an incremental of it under the original paths.

    A copy has other inodes and ctimes, so size and mtime alone decide what is unchanged.
    """
    copy = trip.root / "source-copy"
    if change == 1:
        trip.say("incremental", "making a copy of the source, to change it")
        replica.copy_tree(trip.source, copy)
    changes = replica.change_some(copy, seed=change)
    truth = compare.fingerprint(copy)
    with trip.summary.stage(f"incremental {change}") as meter:
        result = backup(
            repository,
            [Source(os.fsencode(trip.source), read_from=os.fsencode(copy))],
            base=repository.snapshot(trip.expected[-1].snapshot),
            hostname=socket.gethostname(),
            options=BackupOptions(ignore_ctime=True, ignore_inode=True),
            emit=trip.emit,
        )
        meter.bytes = result.bytes_processed
    unread = frozenset(truth.unreadable)
    trip.expected.append(
        _Expected(name=name, snapshot=result.snapshot, truth=truth, ignore=unread, stored=result.bytes_stored)
    )
    trip.say(
        f"incremental {change}",
        f"snapshot {result.snapshot[:8]} {name}: {len(changes)} changes, {result.bytes_stored / 1e6:.2f} MB stored",
    )


def _restore_all(trip: _Trip) -> None:
    """Restore every recovery point from the vault, as another machine would: with nothing but the passphrase."""
    repository = open_repository(trip.account.container(VAULT), trip.passphrase)
    for number, point in enumerate(trip.expected, 1):
        into = trip.root / ("restored" if number == 1 else "restored-later")
        with trip.summary.stage(f"restore {number}") as meter:
            result = restore.restore(repository, repository.snapshot(point.snapshot), into, emit=trip.emit)
            meter.bytes = result.bytes_restored
        with trip.summary.stage(f"compare {number}") as meter:
            found = compare.fingerprint(into / trip.source.relative_to("/"))
            ignore = point.ignore | _cannot_be_made(point.truth)
            different = compare.differences(point.truth, found, ignore=ignore)
            meter.bytes = result.bytes_restored
        if different:
            raise RestoreDiffers(
                f"recovery point {number} ({point.name}) differs from what the source was: {'; '.join(different[:5])}",
                hint=f"look into {into}",
            )
        trip.summary.recovery_points.append(
            RecoveryPoint(
                name=point.name,
                snapshot=point.snapshot,
                entries=len(point.truth.entries),
                bytes=result.bytes_restored,
                added_bytes=point.stored,
            )
        )
        trip.say(f"restore {number}", f"{point.name}: {len(point.truth.entries)} entries as they were")
        if number > 1:
            preflight.clear_one(trip.root, "restored-later")


def _cannot_be_made(tree: compare.Fingerprint) -> frozenset[bytes]:
    """Device nodes, when we are not root: the restore told them, and nobody but root can make them."""
    if os.geteuid() == 0:
        return frozenset()
    return frozenset(path for path, entry in tree.entries.items() if entry.device is not None)


def _cleanup(trip: _Trip, seal: Seal, certificate: Certificate) -> None:
    container: BlobStore = trip.account.container(CONTAINER)
    vault = trip.account.container(VAULT)
    with trip.summary.stage("cleanup") as meter:
        plan = cleanup.plan(trip.staging, seal, certificate, container=container, vault=vault)
        for line in plan.lines() if trip.options.keep else plan.lines()[:2]:
            trip.say("cleanup", line)
        if trip.options.keep:
            trip.say("cleanup", "--keep: nothing was removed")
        else:
            meter.bytes = cleanup.run(plan, trip.staging, seal, certificate, container=container, vault=vault)
            trip.say("cleanup", f"removed {meter.bytes / 1e6:.1f} MB, all of it covered by the certificate")


def _one_line(address: Address) -> str:
    return ", ".join(line for line in astuple(address) if line)


def _plan(options: Options, seal: Seal) -> disk_plan.Plan:
    """As many disks as the data needs, of the size asked for; all of them are used."""
    count = options.disks or 2
    if options.disk_bytes is None:
        packs = seal.data_packs
        size = disk_plan.size_for(packs, count, indexes=seal.indexes_of(packs))
    else:
        size = options.disk_bytes
        if options.disks is None:
            fewest = disk_plan.make_plan(seal, _offers(disk_plan.MAX_DRIVES, size))
            disk_plan.require_complete(fewest)
            count = len(fewest.disks)
    plan = disk_plan.make_plan(seal, _offers(count, size), spread=True)
    disk_plan.require_complete(plan)
    disk_plan.require_one_job(plan)
    return plan


def _offers(count: int, size_bytes: int) -> list[disk_plan.Offer]:
    return [disk_plan.Offer(serial=f"REHEARSAL-{n:02}", size_bytes=size_bytes) for n in range(1, count + 1)]


def _pack_bytes(options: Options, size_bytes: int) -> int:
    """Small enough that even a small source fills several packs on every disk; restic's 16 MiB at most."""
    return max(64 << 10, min(16 << 20, size_bytes // ((options.disks or 2) * 16)))


def _password_of(disk: PreparedDisk) -> Secret[str]:
    assert disk.recovery_password is not None, "a rehearsal prepares every disk itself"
    return disk.recovery_password


def _directory_account(root: Path) -> DirectoryAccount:
    paths = {CONTAINER: root / "container", VAULT: root / "vault"}
    return DirectoryAccount(ACCOUNT, root / "account", Secret(secrets.token_bytes(32)), paths)
