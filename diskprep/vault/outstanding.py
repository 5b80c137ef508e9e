"""Outstanding cleanups: jobs that were certified in a vault, and whose staging and container were not cleaned up yet.

A certificate covers the vault as it was ingested. Once recovery points or packs go, it covers nothing any more, and the
staging and the container, which nobody may then empty by it, would stay for ever. So forget and prune wait until the
cleanup is settled: a small object beside the certificate says that it is done, or was given up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from diskprep import clock
from diskprep.errors import DiskprepError, NotFound
from diskprep.store import Store, check_name
from diskprep.vault import certificate as certificates
from diskprep.vault.certificate import Certificate

FORMAT = "diskprep-settled"
VERSION = 1
DONE = "done"
GIVEN_UP = "given up"


def outstanding(vault: Store) -> Mapping[str, Certificate | None]:
    """Name of each job whose cleanup is not settled, and its certificate; None when that cannot be read."""
    head, tail = certificates.object_name("JOB").split("JOB")
    found: dict[str, Certificate | None] = {}
    for stored in list(vault.list(head[: head.index("/") + 1])):
        if not (stored.name.startswith(head) and stored.name.endswith(tail)):
            continue
        job_name = stored.name.removeprefix(head).removesuffix(tail)
        try:
            certificate = certificates.load_from_vault(vault, job_name)
        except NotFound:
            continue
        except DiskprepError:
            found[job_name] = None
            continue
        if _settled_digest(vault, job_name) != certificate.digest:
            found[job_name] = certificate
    return found


def settle(vault: Store, certificate: Certificate, how: str = DONE) -> None:
    """Note that the cleanup of what this certificate covers is `DONE` or `GIVEN_UP`. A later certificate of the same
    job is not settled by it."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "job_name": certificate.job_name,
        "certificate_digest": certificate.digest,
        "how": how,
        "time": clock.rfc3339(clock.now()),
    }
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    vault.write(_object_name(certificate.job_name), [text.encode()])


def give_up(vault: Store) -> None:
    """Settle all outstanding cleanups: somebody said that there is nothing to clean up, or that they do it themselves.
    A certificate that cannot be read stays outstanding."""
    for certificate in outstanding(vault).values():
        if certificate is not None:
            settle(vault, certificate, GIVEN_UP)


def _object_name(job_name: str) -> str:
    return check_name(f"x-seed/settled-{job_name}.json")


def _settled_digest(vault: Store, job_name: str) -> str | None:
    """The digest of the certificate that was settled; what cannot be understood settles nothing."""
    try:
        document = json.loads(vault.read(_object_name(job_name)))
    except (NotFound, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return None
    return str(document.get("certificate_digest"))
