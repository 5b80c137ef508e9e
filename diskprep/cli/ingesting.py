"""`diskprep vault publish`, `ingest` and `settings`; and the first incremental, which runs at once after ingestion."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from diskprep import durable
from diskprep.cli import backing, inputs, output, selecting, viewing
from diskprep.cli.places import ingested_file
from diskprep.cli.stores import KeyFile, Vault, open_store, open_vault
from diskprep.errors import DiskprepError, IngestIncomplete, UsageError
from diskprep.events import Emit, Note
from diskprep.repair import placements
from diskprep.repository.repository import Repository, open_repository
from diskprep.repository.snapshot import Snapshot
from diskprep.seal import load_seal
from diskprep.seed import Seed, Staging, load_seed, parse_staging
from diskprep.source import Source, public_path
from diskprep.source.selection import Pattern
from diskprep.staging import choices
from diskprep.staging import stage as stager
from diskprep.staging.writer import BackupOptions, BackupResult
from diskprep.staging.writer import backup as take_backup
from diskprep.store.directory import DirectoryStore
from diskprep.vault import ingest as ingestion
from diskprep.vault import online
from diskprep.vault.certificate import Certificate
from diskprep.vault.ingest import PackFault
from diskprep.vault.settings import (
    Redundancy,
    Settings,
    change_settings,
    load_settings,
    parse_access_tier,
    write_in_tier,
)
from diskprep.view.model import Hooks, ViewKind
from diskprep.view.view import consistent_view

ImportContainer = Annotated[
    str | None,
    typer.Option(
        "--container",
        metavar="STORE",
        help="The import's container: a folder, or its https address.",
        show_default=False,
    ),
]
ContainerKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--container-key-file", help="The key of the container's account, if it is another one.", show_default=False
    ),
]
RedundancyOption = Annotated[
    Redundancy | None,
    typer.Option(
        "--redundancy",
        case_sensitive=False,
        help="How the vault's storage is replicated; fixed with the first recovery point.",
        show_default=False,
    ),
]
_SHOWN = 50


def _keep(period: str) -> Any:
    return typer.Option(
        f"--keep-{period}",
        metavar="N",
        min=0,
        help=f"{period.capitalize()} recovery points to keep.",
        show_default=False,
    )


def publish(
    staging: inputs.StagingArgument,
    vault: Vault,
    redundancy: RedundancyOption = None,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Send the small part of the seed online, so that incremental backups run while the disks travel.

    The vault is held against prune, check and repair until ingestion is verified. Its redundancy is GRS when none was
    named.
    """
    place = parse_staging(staging).first
    store = open_store(vault, account_key_file)
    secret = inputs.passphrase(passphrase_file, passphrase_fd, passphrase_command)
    with output.screen(quiet=quiet) as screen:
        sent = online.publish(place, load_seal(place.seal_file), store, screen.emit)
    repository = open_repository(store, secret)
    online.place_hold(repository, load_seed(place).job_name)
    settings = change_settings(
        repository, redundancy=redundancy or load_settings(repository).redundancy or Redundancy.GRS
    )
    if json:
        output.print_json({"vault": store.location, "sent_bytes": sent, "settings": document(settings)})
    else:
        print(f"in the vault: {output.size(sent)}; the packs follow on the disks")
    output.next_step(f"diskprep vault backup SOURCE --vault {output.word(vault)}")


def ingest(
    staging: inputs.StagingArgument,
    vault: Vault,
    container: ImportContainer = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="The disks were imported into the vault itself.")
    ] = False,
    trust_md5: Annotated[
        bool,
        typer.Option(
            "--trust-md5", help="Do not read packs whose MD5, as the service keeps it, is that of the staging's file."
        ),
    ] = False,
    no_backup: Annotated[bool, typer.Option("--no-backup", help="Take no incremental backup afterwards.")] = False,
    certificate: Annotated[Path, typer.Option(help="Where to keep a copy of the certificate.")] = Path(
        "certificate.json"
    ),
    exclude: selecting.Exclude = None,
    iexclude: selecting.IExclude = None,
    exclude_file: selecting.ExcludeFile = None,
    iexclude_file: selecting.IExcludeFile = None,
    exclude_if_present: selecting.ExcludeIfPresent = None,
    exclude_caches: selecting.ExcludeCaches = False,
    one_file_system: selecting.OneFileSystem = False,
    exclude_larger_than: selecting.ExcludeLargerThan = None,
    fixed_blocks: backing.FixedBlocks = None,
    snapshot: viewing.SnapshotOption = ViewKind.NONE,
    pre_hook: viewing.PreHook = "",
    post_hook: viewing.PostHook = "",
    account_key_file: KeyFile = None,
    container_key_file: ContainerKeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Move the imported packs into the vault, verify every one, and write the certificate.

    Then a first incremental backup runs, when this is the computer that the seed was staged on and its sources are
    there. It leaves out what `stage` was told to, and cuts images alike; options that are given here win.
    """
    if in_place == (container is not None):
        raise UsageError("give --container, or --in-place when the disks were imported into the vault itself")
    place = parse_staging(staging).first  # a repair ends in the vault of the whole
    seal, seed = load_seal(place.seal_file), load_seed(place)
    store = open_store(vault, account_key_file)
    imported = store if container is None else open_store(container, container_key_file or account_key_file)
    options = BackupOptions(
        selection=selecting.selection(
            exclude=exclude,
            iexclude=iexclude,
            exclude_file=exclude_file,
            iexclude_file=iexclude_file,
            exclude_if_present=exclude_if_present,
            exclude_caches=exclude_caches,
            one_file_system=one_file_system,
            exclude_larger_than=exclude_larger_than,
        ),
        block_rule=backing.block_rule(fixed_blocks),
    )
    repository = open_repository(store, inputs.passphrase(passphrase_file, passphrase_fd, passphrase_command))
    faults: list[PackFault] = []
    with output.screen(quiet=quiet) as screen:
        try:
            proven = ingestion.ingest(
                imported,
                store,
                repository,
                seal,
                placements(place),
                job_name=seed.job_name,
                certificate_path=certificate.absolute(),
                emit=screen.emit,
                originals=DirectoryStore(place.repository) if trust_md5 else None,
                tell_fault=faults.append,
            )
        except IngestIncomplete as error:
            if json:
                output.print_json({"certificate": None, "faults": [asdict(fault) for fault in faults]})
            if not faults:
                raise
            raise IngestIncomplete(error.message, hint=_send_again(place, container)) from error
    _keep_copy(certificate, place)
    online.refresh_holds(repository)  # this job's is released: it has its certificate
    if not json:
        _tell(proven, certificate)
    taken = None
    if not no_backup:
        with output.screen(quiet=quiet) as screen:
            taken = first_incremental(
                repository,
                place,
                options=options,
                kind=snapshot,
                hooks=Hooks(pre=pre_hook, post=post_hook),
                emit=screen.emit,
            )
    if json:
        found = {**asdict(proven), "digest": proven.digest, "file": str(certificate.absolute())}
        backup = None if taken is None else backing.document(taken)
        output.print_json({"certificate": found, "faults": [], "backup": backup})
    elif taken is not None:
        backing.tell(taken)
    emptied = f" --container {output.word(container)}" if container is not None else ""
    output.next_step(
        f"diskprep cleanup plan {output.word(staging)}{emptied} --vault {output.word(vault)} "
        f"--certificate {output.word(certificate)}"
    )
    if taken is not None:
        backing.refuse_incomplete(taken)


def settings(
    vault: Vault,
    redundancy: RedundancyOption = None,
    access_tier: Annotated[
        str | None,
        typer.Option(
            "--access-tier",
            metavar="hot|cool|cold|default",
            help="Where data packs are to lie in a container; default: as its account says.",
            show_default=False,
        ),
    ] = None,
    keep_daily: Annotated[int | None, _keep("daily")] = None,
    keep_weekly: Annotated[int | None, _keep("weekly")] = None,
    keep_monthly: Annotated[int | None, _keep("monthly")] = None,
    keep_yearly: Annotated[int | None, _keep("yearly")] = None,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
) -> None:
    """The vault's redundancy, access tier and retention: what they are, or what they are to be."""
    tier = None if access_tier is None else parse_access_tier(access_tier)
    repository = open_vault(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    found = change_settings(
        repository,
        redundancy=redundancy,
        access_tier=tier,
        daily=keep_daily,
        weekly=keep_weekly,
        monthly=keep_monthly,
        yearly=keep_yearly,
    )
    if json:
        output.print_json(document(found))
        return
    print(f"redundancy: {found.redundancy or 'not said'}")
    print(f"access tier of data packs: {found.access_tier}")
    kept = ", ".join(f"{count} {period}" for period, count in asdict(found.retention).items() if count)
    print(f"retention: {kept or 'everything is kept'}")


def document(found: Settings) -> dict[str, Any]:
    """Settings for --json."""
    return {"redundancy": found.redundancy, "access_tier": found.access_tier, "retention": asdict(found.retention)}


def first_incremental(
    repository: Repository,
    staging: Staging,
    *,
    options: BackupOptions,
    kind: ViewKind = ViewKind.NONE,
    hooks: Hooks | None = None,
    emit: Emit,
) -> BackupResult | None:
    """The first backup after ingestion, on top of the seed; None, and a note, where the seed's sources are not.

    It leaves out what the seed did, and cuts as it did, where `options` do not say otherwise.
    """
    seed = load_seed(staging)
    reason = _why_not_here(seed)
    try:
        chosen = choices.load(staging, repository.key)
    except DiskprepError as error:  # a backup of other things than the seed's is none that was asked for
        reason = reason or error.message
        chosen = None
    if reason:
        emit(Note(stage="backup", text=f"no incremental backup was taken: {reason}"))
        return None
    wanted = [Source(os.fsencode(path)) for path in seed.sources]
    options = stager.own_exclusions(staging, wanted, options)
    if chosen is None:
        options = _with_patterns(repository.snapshot(load_seal(staging.seal_file).snapshot), options)
    else:
        if said := chosen.described():
            emit(Note(stage="backup", text=f"as the seed was staged: {' '.join(said)}"))
        options = chosen.with_own(options)
    return incremental(
        repository,
        wanted,
        options=options,
        kind=kind,
        hooks=hooks,
        emit=emit,
    )


def _with_patterns(seeded: Snapshot, options: BackupOptions) -> BackupOptions:
    """`options` with the patterns that the seed's recovery point tells, where its staging does not tell the rest."""
    selection = options.selection
    known = {*selection.described(), *map(public_path, options.exclude)}
    again = tuple(Pattern(text=os.fsencode(text), origin="the seed") for text in seeded.excludes if text not in known)
    return replace(options, selection=replace(selection, exclude=(*again, *selection.exclude)))


def incremental(
    repository: Repository,
    wanted: Sequence[Source],
    *,
    options: BackupOptions,
    kind: ViewKind = ViewKind.NONE,
    hooks: Hooks | None = None,
    emit: Emit,
) -> BackupResult:
    """Back up into the vault, on top of the newest recovery point of the same sources on this computer. The holds of
    jobs whose disks still travel are prolonged."""
    online.refresh_holds(repository)
    write_in_tier(repository, emit)
    hostname = socket.gethostname()
    local = [repository.store.root] if isinstance(repository.store, DirectoryStore) else []
    with consistent_view(
        wanted,
        kind=kind,
        hooks=hooks or Hooks(),
        exclude=options.exclude,
        one_file_system=options.selection.one_file_system,
        writes_to=[*local, *([options.scratch] if options.scratch else [])],
        emit=emit,
    ) as view:
        if kind is not ViewKind.NONE:
            emit(Note(stage="view", text=view.consistency))
        return take_backup(
            repository,
            view.sources,
            base=newest_base(repository.snapshots(), hostname, wanted),
            hostname=hostname,
            options=options,
            emit=emit,
        )


def newest_base(points: Sequence[Snapshot], hostname: str, wanted: Sequence[Source]) -> Snapshot | None:
    """The newest recovery point of this computer that has all these sources; `points` are oldest first."""
    paths = {public_path(source.path) for source in wanted}
    bases = [point for point in points if point.hostname == hostname and paths <= set(point.paths)]
    return bases[-1] if bases else None


def _why_not_here(seed: Seed) -> str:
    """Why the seed's sources cannot be read here; empty when they can."""
    hostname = socket.gethostname()
    if hostname != seed.hostname:
        return f"the seed is of {seed.hostname}, and this is {hostname}"
    gone = [path for path in seed.sources if not os.path.lexists(path)]
    return f"{gone[0]} is not there" if gone else ""


def _send_again(staging: Staging, container: str | None) -> str:
    """What to do about packs that did not arrive. The job's report says why; a repair is a job of their own."""
    named = f"{output.word(staging.root)} --container {output.word(container) if container else 'STORE'}"
    return f"see why: diskprep job report {named}; send them again: diskprep job repair {named}; then ingest again"


def _keep_copy(certificate: Path, staging: Staging) -> None:
    """A copy in the staging, where `status` looks. The certificate counts without it."""
    with contextlib.suppress(DiskprepError, OSError):
        if certificate.absolute() != ingested_file(staging):
            durable.write_file(ingested_file(staging), certificate.read_bytes())


def _tell(proven: Certificate, path: Path) -> None:
    read, trusted = proven.packs_read or 0, proven.packs_trusted or 0
    how = "all read back" if not trusted else f"{read} read back, {trusted} proven by the service's MD5"
    print(f"{proven.data_packs} packs, {output.size(proven.data_bytes)}, {how}: whole in {proven.vault}")
    print(f"certificate: {path.absolute()}")
