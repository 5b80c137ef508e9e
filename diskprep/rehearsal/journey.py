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
from pathlib import Path

from diskprep import cleanup, compare, durable, replica
from diskprep import repair as repairs
from diskprep.datacenter.server import Datacenter
from diskprep.disk import plan as disk_plan
from diskprep.errors import DiskprepError, RestoreDiffers, SourceIncomplete, UsageError
from diskprep.events import Emit
from diskprep.importjob.client import AzureImportService
from diskprep.rehearsal import making, post, preflight
from diskprep.rehearsal.summary import RecoveryPoint, Summary
from diskprep.rehearsal.trip import (
    ACCOUNT,
    CONTAINER,
    JOB_NAME,
    LOCATION,
    RESOURCE_GROUP,
    VAULT,
    Expected,
    Options,
    Trip,
    shown,
)
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
        trip = Trip(
            options=options,
            source=source,
            root=root,
            account=account or _directory_account(root),
            staging=Staging(root / "staging"),
            passphrase=generate_passphrase(),
            summary=Summary(source=shown(source), workdir=shown(root)),
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


def _leave(root: Path, *, keep: tuple[str, ...]) -> None:
    """Remove what the rehearsal made; with nothing to keep, its folder too."""
    preflight.clear(root, keep=keep)
    if not keep:
        preflight.remove_workdir(root)


def _walk(trip: Trip) -> None:
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
    disks = making.prepare(trip, trip.staging)

    token = Secret(secrets.token_hex(16))
    datacenter = Datacenter(trip.root / "datacenter.sqlite", trip.account, token=token)
    with datacenter:
        service = AzureImportService(
            datacenter.base_url, token, subscription_id=seed.subscription_id, resource_group=seed.resource_group
        )
        post.send(trip, service, trip.staging, disks)
        vault = trip.account.container(VAULT)
        with trip.summary.stage("online") as meter:
            meter.bytes = online.publish(trip.staging, seal, vault, trip.emit)
        repository = open_repository(vault, trip.passphrase)
        hold = repository.hold(seed.job_name)
        trip.say("online", "the small part is in the vault, held against prune and check until the disks are in")

        _backup_changed(trip, repository, "while the disks travelled", change=1)
        post.deliver(trip, service, datacenter, trip.staging, disks)
        certificate = _ingest(trip, repository, seed, seal)
        hold.release()
        _backup_changed(trip, repository, "after ingestion", change=2)
        _restore_all(trip)
        _cleanup(trip, seal, certificate)
    trip.summary.ok = True
    durable.write_json(trip.root / "summary.json", trip.summary.document())


def _stage(trip: Trip, size_bytes: int) -> None:
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
        Expected(name="first", snapshot=result.snapshot, truth=truth, ignore=moved | unread, stored=result.bytes_stored)
    )
    trip.say(
        "stage", f"snapshot {result.snapshot[:8]}: {result.files} files, {result.bytes_stored / 1e6:.1f} MB stored"
    )


def _ingest(trip: Trip, repository: Repository, seed: Seed, seal: Seal) -> Certificate:
    placement = repairs.placements(trip.staging)
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


def _backup_changed(trip: Trip, repository: Repository, name: str, *, change: int) -> None:
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
        Expected(name=name, snapshot=result.snapshot, truth=truth, ignore=unread, stored=result.bytes_stored)
    )
    trip.say(
        f"incremental {change}",
        f"snapshot {result.snapshot[:8]} {name}: {len(changes)} changes, {result.bytes_stored / 1e6:.2f} MB stored",
    )


def _restore_all(trip: Trip) -> None:
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


def _cleanup(trip: Trip, seal: Seal, certificate: Certificate) -> None:
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


def _pack_bytes(options: Options, size_bytes: int) -> int:
    """Small enough that even a small source fills several packs on every disk; restic's 16 MiB at most."""
    return max(64 << 10, min(16 << 20, size_bytes // ((options.disks or 2) * 16)))


def _directory_account(root: Path) -> DirectoryAccount:
    paths = {CONTAINER: root / "container", VAULT: root / "vault"}
    return DirectoryAccount(ACCOUNT, root / "account", Secret(secrets.token_bytes(32)), paths)
