"""What must hold before anything goes; each look raises CleanupRefused, and says that nothing was deleted."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, runtime_checkable

from diskprep.errors import CleanupRefused, DataDamaged, DiskprepError, NotFound
from diskprep.events import Emit, Progress
from diskprep.repository.slots import has_whole_slot
from diskprep.seal import FileKind, Seal, SealedFile
from diskprep.store import Store
from diskprep.store.directory import DirectoryStore
from diskprep.vault import certificate as certificates
from diskprep.vault.certificate import Certificate
from diskprep.vault.reading import in_threads

HINT = "nothing was deleted; `diskprep vault ingest` proves the vault and writes a new certificate"
_CONFIG = "config"


@runtime_checkable
class KeepsDeleted(Protocol):
    """A store that may keep what is deleted for a while."""

    def soft_delete_days(self) -> int | None:
        """For how many days; 0: not at all, None: it cannot be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outstanding:
    """A disk whose import job has not ended. `state`: where it is, in words that follow "which"."""

    serial: str
    job: str
    state: str


def covered_files(seal: Seal, certificate: Certificate) -> Mapping[str, SealedFile]:
    """The files that the certificate covers: all but the key files, which may be others by now."""
    claimed = (certificate.job_name, certificate.repository_id, certificate.seal_digest, certificate.files_digest)
    actual = (seal.job_name, seal.repository_id, seal.digest, certificates.files_digest(seal.files))
    if claimed != actual or seal.snapshot not in certificate.snapshots:
        raise CleanupRefused("the certificate does not cover what this staging sealed", hint=HINT)
    return {file.name: file for file in seal.files if file.kind is not FileKind.KEY}


def reason_to_keep(covered: SealedFile | None, size_bytes: int) -> str:
    if covered is None:
        return "is not covered by the certificate"
    if covered.size_bytes != size_bytes:
        return f"has {size_bytes} bytes, not the {covered.size_bytes} that the certificate covers"
    return ""


def refuse_changed_vault(covered: Mapping[str, SealedFile], vault: Mapping[str, int]) -> None:
    changed = [name for name, file in covered.items() if vault.get(name) != file.size_bytes]
    if changed:
        raise CleanupRefused(
            f"the vault has changed since it was certified: {len(changed)} files are missing or have another size, "
            f"{changed[0]} among them",
            hint=HINT,
        )


def refuse_vault_without_slot(vault: Store) -> None:
    """What nobody can open is no copy, whole as it may be."""
    if not has_whole_slot(vault):
        raise CleanupRefused(
            "the vault has changed since it was certified: none of its key files is whole",
            hint="nothing was deleted; `diskprep vault passphrase change` writes a whole one if the vault still opens, "
            "else copy one from the staging's repository/keys",
        )


def refuse_other_certificate(vault: Store, certificate: Certificate) -> None:
    try:
        kept = certificates.load_from_vault(vault, certificate.job_name)
    except NotFound:
        raise CleanupRefused(
            f"the vault has no copy of the certificate of {certificate.job_name} any more: it was withdrawn, since "
            "something in the vault was found damaged or missing, or this is another vault",
            hint=HINT,
        ) from None
    except DiskprepError as error:
        raise CleanupRefused(
            f"the vault's copy of the certificate cannot be read: {error.message}", hint=HINT
        ) from None
    if kept.digest != certificate.digest:
        raise CleanupRefused("the vault holds another certificate for this job", hint=HINT)


def refuse_outstanding(outstanding: Collection[Outstanding]) -> None:
    if outstanding:
        told = "; ".join(f"disk {disk.serial} of job {disk.job}, which {disk.state}" for disk in list(outstanding)[:3])
        more = f"; and {len(outstanding) - 3} more" if len(outstanding) > 3 else ""
        raise CleanupRefused(
            f"{len(outstanding)} disks are outstanding: {told}{more}",
            hint="nothing was deleted; `diskprep job show` asks how the job stands; a disk that will never come, or is "
            "back, is named with --accounted-for SERIAL",
        )


def refuse_short_grace(source: Store, grace: timedelta | None) -> None:
    """A grace period is kept or refused: a directory's is ours, a container's is its account's soft delete."""
    if not grace or isinstance(source, DirectoryStore):
        return
    days = source.soft_delete_days() if isinstance(source, KeepsDeleted) else 0
    if timedelta(days=days or 0) < grace:
        raise CleanupRefused(
            f"{source.location} keeps deleted blobs for {days or 0} days, not for {grace.days}",
            hint="nothing was deleted; switch on blob soft delete for the account, or leave the container out with "
            "--staging-only",
        )


def refuse_other_content(covered: Mapping[str, SealedFile], vault: Store, emit: Emit) -> None:
    """Read what is covered from the vault; every file must have the SHA-256 of the seal."""

    def differs(file: SealedFile) -> tuple[SealedFile, bool]:
        try:
            return file, hashlib.sha256(vault.read(file.name)).hexdigest() != file.sha256
        except (NotFound, DataDamaged):
            return file, True

    done, total = 0, sum(file.size_bytes for file in covered.values())
    wrong: list[str] = []
    for file, is_wrong in in_threads(vault, differs, covered.values()):
        done += file.size_bytes
        wrong += [file.name] if is_wrong else []
        emit(Progress(stage="look again", done_bytes=done, total_bytes=total))
    if wrong:
        raise CleanupRefused(
            f"the vault has changed since it was certified: {len(wrong)} files are not what was sealed, {wrong[0]} "
            "among them",
            hint=HINT,
        )


def refuse_repository(container: Store) -> None:
    """Disks bring packs and index files. What has a config is a repository of its own, whose backups count on them."""
    if container.stat(_CONFIG) is not None:
        raise CleanupRefused(
            f"{container.location} has a config: it is the vault or another repository, and not what the disks were "
            "imported into",
            hint="nothing was deleted; name the import's container, or leave it out with --staging-only",
        )


def is_the_vault(source: Store, vault: Store, certificate: Certificate) -> bool:
    if source.location == vault.location:
        return True
    if isinstance(source, DirectoryStore) and isinstance(vault, DirectoryStore):
        with contextlib.suppress(OSError):
            if source.root.samefile(vault.root):
                return True
    return source.stat(certificates.object_name(certificate.job_name)) is not None


def is_where_it_came_from(container: Store, certificate: Certificate) -> bool:
    """Whether this is the container that the packs were ingested from; also when a certificate does not say it."""
    if certificate.container is None or container.location == certificate.container:
        return True
    if isinstance(container, DirectoryStore):
        with contextlib.suppress(OSError):
            return container.root.samefile(certificate.container)
    return False
