"""`diskprep stage`."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from diskprep import durable
from diskprep.cli import backing, estimating, inputs, output, selecting, viewing
from diskprep.errors import UsageError
from diskprep.events import Note
from diskprep.secrets import check_new_passphrase
from diskprep.seed import parse_staging
from diskprep.source import Measure
from diskprep.staging import preflight
from diskprep.staging import stage as stager
from diskprep.staging.writer import BackupOptions, table_bytes
from diskprep.view.model import Hooks, ViewKind
from diskprep.view.view import consistent_view


def stage(
    sources: backing.Sources,
    staging: inputs.StagingOption,
    job: Annotated[str, typer.Option("--job", metavar="NAME", help="The import job's name.")],
    storage_account: Annotated[str, typer.Option("--storage-account", help="The account that receives the import.")],
    container: Annotated[str, typer.Option("--container", help="The container that receives the import.")],
    subscription: Annotated[str, typer.Option("--subscription", help="The Azure subscription's id.")],
    resource_group: Annotated[str, typer.Option("--resource-group", help="The job's resource group.")],
    location: Annotated[str, typer.Option("--location", help="The account's region.")] = "westeurope",
    exclude: selecting.Exclude = None,
    iexclude: selecting.IExclude = None,
    exclude_file: selecting.ExcludeFile = None,
    iexclude_file: selecting.IExcludeFile = None,
    exclude_if_present: selecting.ExcludeIfPresent = None,
    exclude_caches: selecting.ExcludeCaches = False,
    one_file_system: selecting.OneFileSystem = False,
    exclude_larger_than: selecting.ExcludeLargerThan = None,
    snapshot: viewing.SnapshotOption = ViewKind.NONE,
    pre_hook: viewing.PreHook = "",
    post_hook: viewing.PostHook = "",
    fixed_blocks: backing.FixedBlocks = None,
    scratch: estimating.Scratch = None,
    allow_tight: estimating.AllowTight = False,
    disk_size: estimating.DiskSize = None,
    disk_rate: estimating.DiskRate = None,
    upload_rate: estimating.UploadRate = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    generate_passphrase: inputs.GeneratePassphrase = False,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Write the initial full backup into a staging location, as a restic repository.

    The same command again goes on where the last one was cut off.
    """
    place = parse_staging(staging)
    if place.whole is not None:
        raise UsageError(
            f"{place.root} sends packs of {place.whole} again; nothing is staged there",
            hint=f"diskprep disk prepare {place.root} DISK... --container-sas-file FILE",
        )
    new, sealed = not durable.exists(place.seed_file), durable.exists(place.seal_file)
    wanted = backing.sources(sources)
    options = stager.own_exclusions(
        place,
        wanted,
        BackupOptions(
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
            scratch=scratch,
        ),
    )
    estimate: dict[str, Any] = {}
    with output.screen(quiet=quiet) as screen, ExitStack() as stack:
        expected: Measure | None = None
        if not sealed:
            found = preflight.scan(
                wanted,
                selection=options.selection,
                exclude=options.exclude,
                exclude_identities=options.exclude_identities,
                emit=screen.emit,
            )
            expected = Measure(files=found.files, size_bytes=found.size_bytes, has_long_files=found.long_files > 0)
            foreseen = estimating.forecast(
                preflight.estimate(found),
                staging=estimating.space_at(place.root),
                staged_bytes=stager.staged_bytes(place),
                scratch=estimating.space_at(scratch) if scratch else None,
                scratch_bytes=table_bytes(expected, options) if scratch else 0,
                allow_tight=allow_tight,
                disk_bytes=disk_size,
                disk_rate=disk_rate or estimating.DISK_RATE,
                upload_rate=upload_rate,
            )
            estimate = estimating.document(foreseen, found)
            for line in estimating.lines(foreseen, found):
                screen.emit(Note(stage="preflight", text=line))
        secret = inputs.passphrase(
            passphrase_file, passphrase_fd, passphrase_command, new=new, generate=generate_passphrase
        )
        if not sealed:
            view = stack.enter_context(
                consistent_view(
                    wanted,
                    kind=snapshot,
                    hooks=Hooks(pre=pre_hook, post=post_hook),
                    exclude=options.exclude,
                    one_file_system=one_file_system,
                    writes_to=[place.root, *([scratch] if scratch else [])],
                    emit=screen.emit,
                )
            )
            wanted = list(view.sources)
            if snapshot is not ViewKind.NONE:
                screen.emit(Note(stage="view", text=view.consistency))
        result = stager.stage(
            place,
            wanted,
            passphrase=check_new_passphrase(secret) if new else secret,
            job_name=job,
            storage_account=storage_account,
            container=container,
            subscription_id=subscription,
            resource_group=resource_group,
            location=location,
            hostname=socket.gethostname(),
            options=options,
            expected=expected,
            emit=screen.emit,
        )
    if json:
        staged = {"staging": str(place.root), "already_sealed": result.already_sealed, "preflight": estimate}
        output.print_json(backing.document(result) | staged)
    else:
        backing.tell(result)
        print(f"staged in {place.root}: {output.size(sum(file.size_bytes for file in result.seal.files))}, sealed")
    output.next_step(f"diskprep plan {output.word(place.root)} --disk-size 4T")
    backing.refuse_incomplete(result)
