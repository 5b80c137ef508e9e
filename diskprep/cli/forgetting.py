"""`diskprep vault forget` and `prune`: recovery points go by a policy, then the data that nothing else needs."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from diskprep import clock
from diskprep.cli import inputs, output
from diskprep.cli.stores import KeyFile, Vault, open_vault
from diskprep.errors import UsageError
from diskprep.repository.repository import Repository
from diskprep.repository.snapshot import Snapshot
from diskprep.source.source import public_path
from diskprep.vault.forget import ForgetPlan, Wish
from diskprep.vault.forget import forget as forget_points
from diskprep.vault.prune import Limits, PrunePlan
from diskprep.vault.prune import prune as prune_packs
from diskprep.vault.retention import (
    UNLIMITED,
    Duration,
    Filter,
    Group,
    KeepPolicy,
    parse_duration,
    parse_grouping,
    parse_tags,
)
from diskprep.vault.settings import load_settings

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")


def _count(option: str, short: str, what: str) -> Any:
    return typer.Option(option, short, metavar="N", help=f"Keep the newest of the last N {what}, or `unlimited`.")


def _within(option: str, what: str) -> Any:
    return typer.Option(option, metavar="TIME", help=f"Keep {what} within TIME of the newest, as 1y5m7d2h.")


DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be done.")]
BeforeCleanup = Annotated[
    bool,
    typer.Option("--before-cleanup", help="Although a staging was not cleaned up: its cleanup is given up."),
]
MaxUnused = Annotated[
    str,
    typer.Option("--max-unused", metavar="LIMIT", help="What may stay unused: a size, a share as 5%, or `unlimited`."),
]
MaxRepack = Annotated[
    str | None, typer.Option("--max-repack-size", metavar="SIZE", help="Pack anew at most so much.", show_default=False)
]


def forget(
    vault: Vault,
    points: Annotated[
        list[str] | None, typer.Argument(metavar="[ID...]", help="These recovery points, whatever a policy says.")
    ] = None,
    keep_last: Annotated[str | None, _count("--keep-last", "-l", "recovery points")] = None,
    keep_hourly: Annotated[str | None, _count("--keep-hourly", "-H", "hours that have one")] = None,
    keep_daily: Annotated[str | None, _count("--keep-daily", "-d", "days that have one")] = None,
    keep_weekly: Annotated[str | None, _count("--keep-weekly", "-w", "weeks that have one")] = None,
    keep_monthly: Annotated[str | None, _count("--keep-monthly", "-m", "months that have one")] = None,
    keep_yearly: Annotated[str | None, _count("--keep-yearly", "-y", "years that have one")] = None,
    keep_within: Annotated[str | None, _within("--keep-within", "all")] = None,
    keep_within_hourly: Annotated[str | None, _within("--keep-within-hourly", "one an hour")] = None,
    keep_within_daily: Annotated[str | None, _within("--keep-within-daily", "one a day")] = None,
    keep_within_weekly: Annotated[str | None, _within("--keep-within-weekly", "one a week")] = None,
    keep_within_monthly: Annotated[str | None, _within("--keep-within-monthly", "one a month")] = None,
    keep_within_yearly: Annotated[str | None, _within("--keep-within-yearly", "one a year")] = None,
    keep_tag: Annotated[
        list[str] | None, typer.Option("--keep-tag", metavar="TAG[,TAG...]", help="Keep those with all these tags.")
    ] = None,
    host: Annotated[list[str] | None, typer.Option("--host", help="Only look at those of this host.")] = None,
    path: Annotated[list[str] | None, typer.Option("--path", help="Only look at those of this source.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="TAG[,TAG...]", help="Only look at those with all these tags.")
    ] = None,
    group_by: Annotated[
        str, typer.Option("--group-by", "-g", help="A policy is for each group alone: host, paths, tags.")
    ] = "host,paths",
    dry_run: DryRun = False,
    prune: Annotated[bool, typer.Option("--prune", help="Then free what nothing else needs.")] = False,
    max_unused: MaxUnused = "5%",
    max_repack_size: MaxRepack = None,
    before_cleanup: BeforeCleanup = False,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Let recovery points go: those that are named, or those that a policy does not keep. A plan is shown first.

    Without a policy the vault's own is used (`diskprep vault settings`). What other recovery points need stays; the
    data of those that go stays too until a prune.
    """
    limits = _limits(max_unused, max_repack_size)
    policy = KeepPolicy(
        last=_number(keep_last),
        hourly=_number(keep_hourly),
        daily=_number(keep_daily),
        weekly=_number(keep_weekly),
        monthly=_number(keep_monthly),
        yearly=_number(keep_yearly),
        within=_duration(keep_within),
        within_hourly=_duration(keep_within_hourly),
        within_daily=_duration(keep_within_daily),
        within_weekly=_duration(keep_within_weekly),
        within_monthly=_duration(keep_within_monthly),
        within_yearly=_duration(keep_within_yearly),
        tags=tuple(parse_tags(text) for text in keep_tag or ()),
    )
    only = Filter(
        hosts=tuple(host or ()),
        paths=tuple(public_path(os.fsencode(Path(text).absolute())) for text in path or ()),
        tags=tuple(parse_tags(text) for text in tag or ()),
    )
    grouping = parse_grouping(group_by)
    repository = open_vault(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    if not points and not policy:
        policy = _own_policy(repository)
    wish = Wish(ids=tuple(points or ()), policy=policy, only=only, grouping=grouping)
    pruned: PrunePlan | None = None
    with output.screen(quiet=quiet) as screen:
        plan = forget_points(
            repository,
            wish,
            dry_run=dry_run,
            before_cleanup=before_cleanup,
            tell=_silent if json else _tell_forgetting,
            emit=screen.emit,
        )
        if prune:
            pruned = prune_packs(
                repository,
                limits,
                dry_run=dry_run,
                before_cleanup=before_cleanup,
                forgotten=[point.id for point in plan.removed],
                tell=_silent if json else _tell_pruning,
                emit=screen.emit,
            )
    if json:
        output.print_json(_document(plan, pruned, dry_run=dry_run))
    elif dry_run:
        print("nothing was changed: this was a dry run")
    elif plan.removed and not prune:
        output.next_step(f"diskprep vault prune --vault {output.word(vault)}")


def prune(
    vault: Vault,
    dry_run: DryRun = False,
    max_unused: MaxUnused = "5%",
    max_repack_size: MaxRepack = None,
    before_cleanup: BeforeCleanup = False,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Free what no recovery point needs: unused packs are deleted, partly used ones packed anew. The plan is shown."""
    limits = _limits(max_unused, max_repack_size)
    repository = open_vault(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    with output.screen(quiet=quiet) as screen:
        plan = prune_packs(
            repository,
            limits,
            dry_run=dry_run,
            before_cleanup=before_cleanup,
            tell=_silent if json else _tell_pruning,
            emit=screen.emit,
        )
    if json:
        output.print_json({"dry_run": dry_run, "prune": _prune_document(plan)})
    elif dry_run:
        print("nothing was changed: this was a dry run")


# -- what was asked for


def _number(text: str | None) -> int:
    if text is None:
        return 0
    if text == "unlimited":
        return UNLIMITED
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise UsageError(f"{text!r} is not a number of recovery points", hint="give a number, or `unlimited`")
    return int(text)


def _duration(text: str | None) -> Duration:
    return Duration() if text is None else parse_duration(text)


def _limits(max_unused: str, max_repack: str | None) -> Limits:
    repack_bytes = float("inf") if max_repack is None else inputs.size_bytes(max_repack)
    if max_unused == "unlimited":
        return Limits(unused_share=1, repack_bytes=repack_bytes)
    percent = _PERCENT.fullmatch(max_unused)
    if percent is None:
        return Limits(unused_bytes=inputs.size_bytes(max_unused), repack_bytes=repack_bytes)
    if float(percent[1]) > 100:
        raise UsageError(f"{max_unused} is more than everything", hint="give a share up to 100%")
    return Limits(unused_share=float(percent[1]) / 100, repack_bytes=repack_bytes)


def _own_policy(repository: Repository) -> KeepPolicy:
    """The vault's own; one that says nothing where none was set."""
    own = load_settings(repository).retention
    return KeepPolicy(daily=own.daily, weekly=own.weekly, monthly=own.monthly, yearly=own.yearly)


# -- what is shown


def _silent(_plan: object) -> None:
    """With --json the plan is in the document."""


def _tell_forgetting(plan: ForgetPlan) -> None:
    for group in plan.groups:
        if title := _title(group):
            print(title)
        rows = [(*_cells(kept.point), "stays: " + "; ".join(kept.reasons)) for kept in group.kept]
        rows += [(*_cells(point), "goes") for point in group.removed]
        rows.sort(key=lambda row: row[1], reverse=True)
        print(output.table(("id", "time", "plan"), [(row[0], row[1], output.escape(row[2])) for row in rows]))
        print()
    print(f"{len(plan.kept)} recovery points stay, {len(plan.removed)} go", flush=True)


def _title(group: Group) -> str:
    parts = (("host", [group.host]), ("paths", group.paths), ("tags", group.tags))
    return output.escape("; ".join(f"{name} {', '.join(values)}" for name, values in parts if any(values)))


def _cells(point: Snapshot) -> tuple[str, str]:
    return point.id[:8], f"{point.time:%Y-%m-%d %H:%M:%S}"


def _tell_pruning(plan: PrunePlan) -> None:
    rows = (
        ("packs that stay", plan.kept, plan.kept_bytes),
        ("packs that nothing needs", plan.unneeded, plan.unneeded_bytes),
        ("packs that no index names", plan.unindexed, plan.unindexed_bytes),
        ("packs to pack anew", plan.repacked, plan.repacked_bytes),
        ("    of which is needed", "", plan.moved_bytes),
        ("unused, in packs that stay", "", plan.unused_bytes),
        ("freed in the end", "", plan.freed_bytes),
    )
    print(output.table(("", "packs", "size"), [(text, str(packs), output.size(size)) for text, packs, size in rows]))
    if plan.lost:
        print(f"{plan.lost} packs are missing, or not whole, and nothing needs them: the index will forget them")
    print(
        f"for {plan.points} recovery points; {plan.index_files_replaced} of {plan.index_files} index files are replaced"
    )
    print(end="", flush=True)


def _document(plan: ForgetPlan, pruned: PrunePlan | None, *, dry_run: bool) -> dict[str, Any]:
    groups = [
        {
            "host": group.host,
            "paths": list(group.paths),
            "tags": list(group.tags),
            "kept": [{**_point(kept.point), "reasons": list(kept.reasons)} for kept in group.kept],
            "removed": _points(group.removed),
        }
        for group in plan.groups
    ]
    return {"dry_run": dry_run, "groups": groups, "prune": None if pruned is None else _prune_document(pruned)}


def _prune_document(plan: PrunePlan) -> dict[str, Any]:
    return {**asdict(plan), "freed_bytes": plan.freed_bytes}


def _points(points: Sequence[Snapshot]) -> list[dict[str, Any]]:
    return [_point(point) for point in points]


def _point(point: Snapshot) -> dict[str, Any]:
    return {"id": point.id, "time": clock.rfc3339(point.time), "hostname": point.hostname, "tags": list(point.tags)}
