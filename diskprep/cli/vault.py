"""`diskprep vault ...`: what is in the vault, and all that is done with it."""

from __future__ import annotations

from typing import Annotated

import typer

from diskprep.cli import (
    abandoning,
    backing,
    estimating,
    forgetting,
    ingesting,
    inputs,
    mending,
    mounting,
    output,
    passphrase,
    points,
    restoring,
    selecting,
    viewing,
)
from diskprep.cli.stores import KeyFile, Vault, open_vault
from diskprep.staging.writer import BackupOptions
from diskprep.view.model import Hooks, ViewKind

app = typer.Typer(no_args_is_help=True, help="The vault: ingestion, incrementals, restore.")


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
    repository = open_vault(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
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
    with output.screen(quiet=quiet) as screen:
        result = ingesting.incremental(
            repository,
            backing.sources(sources),
            options=options,
            kind=snapshot,
            hooks=Hooks(pre=pre_hook, post=post_hook),
            emit=screen.emit,
        )
    if json:
        output.print_json(backing.document(result))
    else:
        backing.tell(result)
    backing.refuse_incomplete(result)


app.command("publish")(ingesting.publish)
app.command("ingest")(ingesting.ingest)
app.command("settings")(ingesting.settings)
app.command("list")(points.list_points)
app.command("find")(points.find)
app.command("diff")(points.diff)
app.command("restore")(restoring.restore)
app.command("mount")(mounting.mount)
app.command("check")(restoring.check)
app.command("repair")(mending.repair)
app.command("give-up")(abandoning.give_up)
app.command("forget")(forgetting.forget)
app.command("prune")(forgetting.prune)
app.add_typer(passphrase.app, name="passphrase")
