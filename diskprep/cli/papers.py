"""`diskprep disk certificate` and `diskprep disk export`: what goes with a finished disk to other people."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from diskprep import clock, durable
from diskprep.cli import inputs, output
from diskprep.cli.recovery import recovery_password
from diskprep.disk import certificate as certificates
from diskprep.disk.record import PreparedDisk, recorded_disk
from diskprep.errors import DataDamaged, NotFound, UsageError
from diskprep.exchange import waimportexport
from diskprep.seed import Seed, Staging, load_seed, parse_staging

Serial = Annotated[str, typer.Argument(metavar="SERIAL", help="The disk's serial number.")]


def certificate(
    serial: Serial,
    staging: inputs.StagingOption,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Write it there too, as JSON and as a page.")
    ] = None,
    json: inputs.Json = False,
) -> None:
    """The certificate of a finished disk: what is on it, and that all of it was read back. It holds no secret."""
    place = parse_staging(staging)
    made = _kept(place, load_seed(place), serial)
    folder = certificates.folder(place)
    if to is not None:
        folder = to.absolute()
        certificates.save(made, folder)
    if json:
        output.print_json(made.document())
        return
    back = made.read_back
    print(
        f"disk {made.serial}: {back.files} files, {output.size(back.size_bytes)}, "
        f"all read back as written; sealed {made.sealed}"
    )
    for name in certificates.file_names(serial):
        print(output.escape(str(folder / name)))


def export(
    serial: Serial,
    staging: inputs.StagingOption,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where to write them; outside the staging.")],
    passphrase_file: inputs.PassphraseFile = None,
    passphrase_fd: inputs.PassphraseFd = None,
    passphrase_command: inputs.PassphraseCommand = None,
) -> None:
    """Write a disk's .jrn and DriveInfo XML as WAImportExport would, for a process that asks for them.

    The XML holds the disk's recovery password in clear.
    """
    place, folder = parse_staging(staging), to.absolute()
    if folder.resolve().is_relative_to(place.root.resolve()):
        raise UsageError(
            "a recovery password in clear does not belong into the staging",
            hint="name a directory elsewhere, on this computer only",
        )
    seed, disk = load_seed(place), recorded_disk(place, serial)
    sealed = certificates.certify_recorded(place, seed, serial)
    passphrase = inputs.passphrase(passphrase_file, passphrase_fd, passphrase_command)
    password = recovery_password(place, serial, passphrase)
    info = waimportexport.DriveInfo(
        drive_id=disk.serial,
        bitlocker_key=password,
        manifest_file=disk.manifest_file,
        manifest_hash=disk.manifest_hash,
    )
    journal = waimportexport.write_journal(
        info, created=clock.parse_rfc3339(sealed.claimed), finished=clock.parse_rfc3339(sealed.sealed)
    )
    durable.make_directory(folder)
    log, description = (folder / name for name in waimportexport.file_names(disk.serial))
    durable.write_file(log, journal)
    durable.write_file(description, waimportexport.write_drive_info(info))
    print(f"{output.escape(str(log))}\n{output.escape(str(description))}")
    sys.stdout.flush()
    for line in (
        f"WARNING: {output.escape(description.name)} holds the recovery password of disk {serial} in clear.",
        "         Whoever has it and the disk can read what is on the disk, also the container's signature.",
        "         Keep it apart from the disk, and delete it after use.",
    ):
        print(line, file=sys.stderr)
    if _others_may_read(description):
        print("WARNING: others can read it: that file system does not keep modes.", file=sys.stderr)


def write_certificate(staging: Staging, seed: Seed, disk: PreparedDisk) -> None:
    """Keep the certificate of a disk that was just sealed. Raises StorageFull, StorageUnavailable, JournalDamaged."""
    _kept(staging, seed, disk.serial)


def _kept(staging: Staging, seed: Seed, serial: str) -> certificates.DiskCertificate:
    """The certificate in the staging, made (again) from the journal's mirror where it is not there or differs."""
    made = certificates.certify_recorded(staging, seed, serial)
    folder = certificates.folder(staging)
    try:
        before = certificates.load(folder / certificates.file_names(serial)[0])
    except (NotFound, DataDamaged):
        before = None
    if before is not None and certificates.same(before, made):
        return before
    certificates.save(made, folder)
    return made


def _others_may_read(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & 0o077)
    except OSError:
        return True
