"""The certificate of an ingest: what was proven to be in the vault, how and when. Cleanup deletes nothing without it.

It is kept beside the staging and in the vault under `x-seed/`, a prefix that restic never looks at. Its digest guards
against damage and careless edits; the two copies vouch for each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diskprep import durable
from diskprep.errors import DataDamaged, FormatTooNew
from diskprep.seal import SealedFile
from diskprep.store import Store, check_name

FORMAT = "diskprep-certificate"
VERSION = 2
_WHOLE = (
    "a key file of the vault opened it; every pack that the index names is there with the size the index implies; "
    "every directory and every blob of every file of the snapshots can be resolved"
)
METHOD = (
    "every sealed file but the key files, which may have been changed since, was read back from the vault and has the "
    f"SHA-256 of its seal; every blob of every pack was decrypted and has the SHA-256 that names it; {_WHOLE}"
)
METHOD_MD5 = (
    "every sealed file but some data packs, and the key files, which may have been changed since, was read back from "
    "the vault and has the SHA-256 of its seal; of these data packs the service says that it has them with the size "
    "and the MD5 of the staging's own files, which were read and have the SHA-256 of the seal; every blob of every "
    f"pack was decrypted and has the SHA-256 that names it; {_WHOLE}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """`files_digest` is over the sorted (name, size, SHA-256) of the covered files; `data_packs`, `data_bytes` count
    those that travelled. `created` is RFC 3339; all digests and ids are in hex.

    `began`: when the first pack that counts was proven. `container`: where the packs came from; the vault itself when
    they were imported in place. `packs_read`, `packs_trusted`: how many data packs were read back, and how many are
    proven by the service's MD5. These four are None in a certificate of version 1, which read every pack."""

    job_name: str
    repository_id: str
    seal_digest: str
    snapshots: tuple[str, ...]
    vault: str
    created: str
    method: str
    files: int
    files_bytes: int
    files_digest: str
    data_packs: int
    data_bytes: int
    began: str | None = None
    container: str | None = None
    packs_read: int | None = None
    packs_trusted: int | None = None

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the certificate's canonical form."""
        text = json.dumps(_document(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def files_digest(files: Iterable[SealedFile]) -> str:
    """SHA-256 in hex over the list of name, size and SHA-256 of the files, sorted by name."""
    lines = sorted(f"{file.name} {file.size_bytes} {file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def object_name(job_name: str) -> str:
    """Where a job's certificate is kept in its vault."""
    return check_name(f"x-seed/certificate-{job_name}.json")


def save(certificate: Certificate, vault: Store, path: Path | None) -> None:
    """Write the certificate to the vault, then to `path`."""
    text = json.dumps({**_document(certificate), "digest": certificate.digest}, indent=2, sort_keys=True) + "\n"
    vault.write(object_name(certificate.job_name), [text.encode()])
    if path is not None:
        durable.write_file(path, text.encode())


def load(path: Path) -> Certificate:
    """Read a certificate and check its digest. Raises NotFound, DataDamaged or FormatTooNew."""
    return _parse(durable.read_json(path, limit_bytes=1 << 20), str(path))


def load_from_vault(vault: Store, job_name: str) -> Certificate:
    """The vault's own copy. Raises NotFound, DataDamaged or FormatTooNew."""
    name = object_name(job_name)
    try:
        document = json.loads(vault.read(name))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise DataDamaged(f"{name} in {vault.location} is not a certificate")
    return _parse(document, f"{name} in {vault.location}")


def _document(certificate: Certificate) -> dict[str, Any]:
    fields = {name: value for name, value in asdict(certificate).items() if value is not None}
    return {"format": FORMAT, "version": 1 if certificate.packs_read is None else VERSION, **fields}


def _parse(document: dict[str, Any], where: str) -> Certificate:
    if document.pop("format", None) != FORMAT:
        raise DataDamaged(f"{where} is not a certificate")
    version = document.pop("version", None)
    if version not in (1, VERSION):
        raise FormatTooNew(f"{where} was written by a newer diskprep", hint="upgrade diskprep on this computer")
    digest = document.pop("digest", None)
    try:
        certificate = Certificate(snapshots=tuple(document.pop("snapshots")), **document)
        matches = certificate.digest == digest and _document(certificate)["version"] == version
    except (TypeError, ValueError, KeyError):
        matches = False
    if not matches:
        raise DataDamaged(f"{where} is damaged or was edited: its digest does not match", hint="ingest again")
    return certificate
