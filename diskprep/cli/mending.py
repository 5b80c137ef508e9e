"""`diskprep vault repair`: packs that are missing or damaged in the vault, and what can be done about them."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from diskprep.cli import inputs, output
from diskprep.cli.stores import KeyFile, Vault, open_vault
from diskprep.errors import DataDamaged, NotFound, UsageError
from diskprep.events import Note
from diskprep.repair import placements
from diskprep.seed import Staging, load_seed, parse_staging
from diskprep.source import Source, check_sources, display
from diskprep.store.directory import DirectoryStore
from diskprep.vault import withdrawal
from diskprep.vault.lost import LostEntry
from diskprep.vault.repair import BadPack, Flaw, Mended, find_bad_packs, find_lost
from diskprep.vault.repair import repair as mend

_SHOWN = 20

OptionalStaging = Annotated[
    str | None,
    typer.Argument(metavar="[STAGING]", help="The staging location: packs that it has are sent again."),
]
SourceOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--source",
        metavar="PATH",
        help="Store lost content again from this source, where it is unchanged; several times.",
        show_default=False,
    ),
]
Disk = Annotated[
    list[str] | None,
    typer.Option("--disk", metavar="SERIAL", help="Packs of this disk, which is lost; several times."),
]
All = Annotated[bool, typer.Option("--all", help="All packs that are missing, though disks are still under way.")]
ReadData = Annotated[bool, typer.Option("--read-data", help="Read every pack, to find what is damaged.")]
DropLost = Annotated[
    bool, typer.Option("--drop-lost", help="Take packs out of the index that nobody has, so that nothing counts on it.")
]


def repair(
    vault: Vault,
    staging: OptionalStaging = None,
    source: SourceOption = None,
    disk: Disk = None,
    all_missing: All = False,
    read_data: ReadData = False,
    drop_lost: DropLost = False,
    account_key_file: KeyFile = None,
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
    json: inputs.Json = False,
    quiet: inputs.Quiet = False,
) -> None:
    """Name the packs that are missing or damaged; send them again, or store their content again from the source.

    Without STAGING, --source or --drop-lost no pack is changed. When something is missing or damaged, a certificate
    that a cleanup may still go by is withdrawn: `vault ingest` then proves the vault again.
    """
    sources = [Source(os.fsencode(path.absolute())) for path in source or ()]
    if sources:
        check_sources(sources)
    place = None if staging is None else parse_staging(staging).first
    disks = _disks(place)
    repository = open_vault(vault, account_key_file, passphrase_file, passphrase_fd, passphrase_command)
    if place is not None and (found := load_seed(place).repository_id) != repository.id:
        raise UsageError(f"{place.root} is the staging of another repository, {found[:8]}")
    with output.screen(quiet=quiet) as screen:
        bad = find_bad_packs(repository, read_data=read_data, emit=screen.emit)
        chosen = _chosen(bad, disk or (), disks)
        held = [hold.label for hold in repository.find_holds()]  # by a withdrawal the vault is held, too
        done = withdrawal.withdraw_unsettled(repository) if bad else ()
        for each in done:
            screen.emit(Note(stage="repair", text=each.words))
        changes = place is not None or bool(sources) or drop_lost
        if changes:
            _refuse_guess(chosen, held, named=bool(disk) or all_missing)
            mended = mend(
                repository,
                chosen,
                staging=None if place is None else DirectoryStore(place.repository),
                sources=sources,
                drop=drop_lost,
                emit=screen.emit,
            )
        else:
            mended = Mended(left=chosen, lost=find_lost(repository, chosen))
        if mended.lost and not done:  # what no index names, too, the certificate said could be resolved
            done = withdrawal.withdraw_unsettled(repository)
    if json:
        output.print_json(_document(chosen, mended, disks) | {"withdrawn": withdrawal.documents(done)})
    else:
        _tell(chosen, mended, disks)
    told = [each.words for each in done]
    if mended.left or mended.lost:
        raise DataDamaged(
            "; ".join((_verdict(mended, changes=changes), *told)),
            hint=_hint(mended, place, sources, changes=changes),
        )
    if told and not json:
        print("\n".join(output.escape(f"{text}: ingest again") for text in told))


def _disks(place: Staging | None) -> Mapping[str, str]:
    """Object name of each data pack -> serial of the disk it travels on, where a plan says so."""
    if place is not None:
        with contextlib.suppress(NotFound):
            return placements(place)
    return {}


def _chosen(bad: Sequence[BadPack], wanted: Sequence[str], disks: Mapping[str, str]) -> tuple[BadPack, ...]:
    if strange := set(wanted) - set(disks.values()):
        raise UsageError(
            f"no pack travels on a disk {min(strange)}" if disks else "which disk a pack is on only its staging tells",
            hint="`diskprep status` lists the disks of a staging",
        )
    return tuple(pack for pack in bad if not wanted or disks.get(pack.name) in wanted)


def _refuse_guess(bad: Sequence[BadPack], held: Sequence[str], *, named: bool) -> None:
    """While disks travel, what is missing may still come. What came damaged will not come again by itself."""
    if held and not named and any(pack.flaw is Flaw.MISSING for pack in bad):
        raise UsageError(
            f"the vault is held for {', '.join(sorted(held))}: what is missing may still come on a disk",
            hint="name the disk that is lost: --disk SERIAL, with the staging; or --all, also when none is under way",
        )


def _tell(bad: Sequence[BadPack], mended: Mended, disks: Mapping[str, str]) -> None:
    counts = Counter((disks.get(pack.name, ""), pack.flaw) for pack in bad)
    for (serial, flaw), count in sorted(counts.items()):
        print(f"{count} packs {flaw}{f', on disk {output.escape(serial)}' if serial else ''}")
    if not bad:
        print("every pack of the index is there")
    for count, what in (
        (mended.sent, f"packs sent again, {output.size(mended.sent_bytes)}"),
        (mended.adopted, "packs taken in that no index named"),
        (mended.stored, f"blobs stored again, {output.size(mended.stored_bytes)}"),
        (mended.dropped, "packs taken out of the index"),
    ):
        if count:
            print(f"{count} {what}")
    for entry in mended.lost[:_SHOWN]:
        print(line_of_lost(entry))
    if len(mended.lost) > _SHOWN:
        print(f"lost: {len(mended.lost) - _SHOWN} more; --json lists all")


def line_of_lost(entry: LostEntry) -> str:
    everything = " and all below it" if entry.is_directory else ""
    return f"lost: {display(entry.path)}{everything}, in {_points(entry)}"


def _points(entry: LostEntry) -> str:
    named = ", ".join(point[:8] for point in entry.points[:3])
    return f"{named} and {len(entry.points) - 3} more" if len(entry.points) > 3 else named


def _verdict(mended: Mended, *, changes: bool) -> str:
    points = {point for entry in mended.lost for point in entry.points}
    parts = [f"{len(mended.left)} packs are not whole in the vault"] if mended.left else []
    if mended.lost:
        what = "cannot be restored" if changes or not mended.left else "would be lost with them"
        parts.append(f"{len(mended.lost)} files or directories of {len(points)} recovery points {what}")
    return "; ".join(parts)


def _hint(mended: Mended, place: Staging | None, sources: Sequence[Source], *, changes: bool) -> str:
    if not changes:
        return "name the staging, which sends packs again; without one --source PATH stores their content again"
    if mended.left and not sources:
        return "what the staging does not have whole, --source PATH stores again where the source is unchanged"
    if mended.lost and place is None:
        return "another source may still have it: give it with --source; a later backup stores what it meets"
    return "a later backup stores again what it meets; older recovery points miss what is listed"


def _document(bad: Sequence[BadPack], mended: Mended, disks: Mapping[str, str]) -> dict[str, Any]:
    left = {pack.pack for pack in mended.left}
    return {
        "packs": [document_of_pack(pack, disks) | {"left": pack.pack in left} for pack in bad],
        "sent": mended.sent,
        "sent_bytes": mended.sent_bytes,
        "adopted": mended.adopted,
        "stored_blobs": mended.stored,
        "stored_bytes": mended.stored_bytes,
        "dropped": mended.dropped,
        "lost": [document_of_lost(entry) for entry in mended.lost],
    }


def document_of_pack(pack: BadPack, disks: Mapping[str, str]) -> dict[str, Any]:
    """A pack for --json; `disks`: object name of each pack -> serial of its disk."""
    return {
        "name": pack.name,
        "kind": pack.kind,
        "flaw": pack.flaw,
        "size_bytes": pack.size_bytes,
        "disk": disks.get(pack.name),
    }


def document_of_lost(entry: LostEntry) -> dict[str, Any]:
    """A lost file or directory for --json."""
    return {"path": display(entry.path), "directory": entry.is_directory, "recovery_points": list(entry.points)}
