"""`diskprep vault ...`."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

from diskprep.cli import backing, estimating, inputs, output, passphrase, selecting, viewing
from diskprep.cli.stores import Container, KeyFile, Vault, open_store
from diskprep.errors import DataDamaged
from diskprep.events import Note
from diskprep.repair import placements
from diskprep.repository.repository import Repository, open_repository
from diskprep.seal import load_seal
from diskprep.seed import load_seed, parse_staging
from diskprep.source import public_path
from diskprep.staging.writer import BackupOptions
from diskprep.staging.writer import backup as take_backup
from diskprep.store.directory import DirectoryStore
from diskprep.vault import check as checks
from diskprep.vault import ingest as ingestion
from diskprep.vault import online
from diskprep.vault import restore as restoring
from diskprep.view.model import Hooks, ViewKind
from diskprep.view.view import consistent_view

app = typer.Typer(no_args_is_help=True, help="The vault: ingestion, incrementals, restore.")
app.add_typer(passphrase.app, name="passphrase")


@app.command("publish")
def publish(
    staging: inputs.StagingArgument,
    vault: Vault,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    quiet: inputs.Quiet = False,
) -> None:
    """Send the small part of the seed online, so that incremental backups run while the disks travel.

    The vault is held against prune, check and repair until ingestion is verified.
    """
    place = parse_staging(staging).first
    store = open_store(vault, account_key_file)
    secret = inputs.passphrase(passphrase_file, passphrase_fd, passphrase_command)
    with output.screen(quiet=quiet) as screen:
        sent = online.publish(place, load_seal(place.seal_file), store, screen.emit)
    repository = open_repository(store, secret)
    job = load_seed(place).job_name
    holds = [hold for hold in repository.find_holds() if hold.label == job]
    for hold in holds:
        hold.refresh()
    if not holds:
        repository.hold(job)
    print(f"in the vault: {output.size(sent)}; the packs follow on the disks")
    output.next_step(f"diskprep vault backup SOURCE --vault {vault}")


@app.command("ingest")
def ingest(
    staging: inputs.StagingArgument,
    container: Container,
    vault: Vault,
    certificate: Annotated[Path, typer.Option(help="Where to keep a copy of the certificate.")] = Path(
        "certificate.json"
    ),
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    quiet: inputs.Quiet = False,
) -> None:
    """Move the imported packs into the vault, verify every one, and write the certificate."""
    place = parse_staging(staging).first  # a repair ends in the vault of the whole
    seal, seed = load_seal(place.seal_file), load_seed(place)
    store = open_store(vault, account_key_file)
    repository = open_repository(store, inputs.passphrase(passphrase_file, passphrase_fd, passphrase_command))
    with output.screen(quiet=quiet) as screen:
        proven = ingestion.ingest(
            open_store(container, account_key_file),
            store,
            repository,
            seal,
            placements(place),
            job_name=seed.job_name,
            certificate_path=certificate.absolute(),
            emit=screen.emit,
        )
    for hold in repository.find_holds():
        if hold.label == seed.job_name:
            hold.release()
    print(f"{proven.data_packs} packs, {output.size(proven.data_bytes)}, all verified in {proven.vault}")
    print(f"certificate: {certificate.absolute()}")
    output.next_step(f"diskprep cleanup plan {staging} --container {container} --vault {vault}")


@app.command("list")
def list_points(
    vault: Vault,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
) -> None:
    """The recovery points of the vault."""
    repository = _open(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    points = [
        {"id": point.id, "time": str(point.time), "hostname": point.hostname, "paths": list(point.paths)}
        for point in repository.snapshots()
    ]
    if json:
        output.print_json({"recovery_points": points})
        return
    rows = [
        (
            str(p["id"])[:8],
            str(p["time"]),
            output.escape(str(p["hostname"])),
            output.escape(", ".join(map(str, p["paths"]))),
        )
        for p in points
    ]
    print(output.table(("id", "time", "host", "paths"), rows))


@app.command("backup")
def backup(
    sources: backing.Sources,
    vault: Vault,
    exclude: selecting.Exclude = None,
    iexclude: selecting.IExclude = None,
    exclude_file: selecting.ExcludeFile = None,
    iexclude_file: selecting.IExcludeFile = None,
    exclude_if_present: selecting.ExcludeIfPresent = None,
    exclude_caches: selecting.ExcludeCaches = False,
    one_file_system: selecting.OneFileSystem = False,
    exclude_larger_than: selecting.ExcludeLargerThan = None,
    ignore_ctime: Annotated[bool, typer.Option("--ignore-ctime", help="Another ctime alone is no change.")] = False,
    ignore_inode: Annotated[bool, typer.Option("--ignore-inode", help="Another inode alone is no change.")] = False,
    snapshot: viewing.SnapshotOption = ViewKind.NONE,
    pre_hook: viewing.PreHook = "",
    post_hook: viewing.PostHook = "",
    fixed_blocks: backing.FixedBlocks = None,
    scratch: estimating.Scratch = None,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Take an incremental backup into the vault, on top of the newest recovery point of the same sources.

    Files of the same size, times and inode as there are not read.
    """
    repository = _open(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
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
        ignore_ctime=ignore_ctime,
        ignore_inode=ignore_inode,
        block_rule=backing.block_rule(fixed_blocks),
        scratch=scratch,
    )
    hostname = socket.gethostname()
    wanted = backing.sources(sources)
    paths = {public_path(source.path) for source in wanted}
    bases = [point for point in repository.snapshots() if point.hostname == hostname and paths <= set(point.paths)]
    local = [repository.store.root] if isinstance(repository.store, DirectoryStore) else []
    with (
        output.screen(quiet=quiet) as screen,
        consistent_view(
            wanted,
            kind=snapshot,
            hooks=Hooks(pre=pre_hook, post=post_hook),
            one_file_system=one_file_system,
            writes_to=[*local, *([scratch] if scratch else [])],
            emit=screen.emit,
        ) as view,
    ):
        if snapshot is not ViewKind.NONE:
            screen.emit(Note(stage="view", text=view.consistency))
        result = take_backup(
            repository,
            view.sources,
            base=bases[-1] if bases else None,
            hostname=hostname,
            options=options,
            emit=screen.emit,
        )
    if json:
        output.print_json(backing.document(result))
    else:
        backing.tell(result)
    backing.refuse_incomplete(result)


@app.command("check")
def check(
    vault: Vault,
    read_data: Annotated[bool, typer.Option("--read-data", help="Read every pack, open every blob.")] = False,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    quiet: inputs.Quiet = False,
) -> None:
    """Check that the vault is whole."""
    repository = _open(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    with output.screen(quiet=quiet) as screen:
        result = checks.check(repository, read_data=read_data, emit=screen.emit)
    for problem in result.problems[:50]:
        print(output.escape(problem))
    if result.problems:
        raise DataDamaged(f"{len(result.problems)} problems were found", hint="do not remove the staging")
    print("no problems were found")


@app.command("restore")
def restore(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new or empty folder.")],
    vault: Vault,
    snapshot: Annotated[str, typer.Option(help="A recovery point, or the beginning of its id.")] = "latest",
    path: Annotated[str | None, typer.Option(help="Only what lies at or below this absolute path.")] = None,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    quiet: inputs.Quiet = False,
) -> None:
    """Restore a recovery point below TARGET, under the original absolute paths."""
    repository = _open(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    with output.screen(quiet=quiet) as screen:
        result = restoring.restore(repository, snapshot, target.absolute(), emit=screen.emit, subpath=path)
    for warning in result.warnings[:20]:
        print(f"warning: {output.escape(warning)}")
    print(f"restored below {target}: {result.files} files, {output.size(result.bytes_restored)}")


def _open(
    vault: str, key_file: Path | None, file: Path | None, descriptor: int | None, command: str | None
) -> Repository:
    return open_repository(open_store(vault, key_file), inputs.passphrase(file, descriptor, command))
