"""Outstanding cleanups: jobs that were certified in a vault, and whose staging and container were not cleaned up yet.

A certificate covers the vault as it was ingested. Once recovery points or packs go, it covers nothing any more, and the
staging and the container, which nobody may then empty by it, would stay for ever. So forget and prune wait until the
cleanup is settled: a small object beside the certificate says that it is done, or was given up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

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
    return {job_name: certificate for job_name, certificate in _certificates(vault) if not _how(vault, certificate)}


def not_cleaned_up(vault: Store) -> Mapping[str, bool]:
    """Name of each job whose cleanup is not done, and whether it is outstanding. Of one that was given up the staging
    may be there, and somebody may still clean it up by the certificate."""
    found = ((job_name, _how(vault, certificate)) for job_name, certificate in _certificates(vault))
    return {job_name: not how for job_name, how in found if how != DONE}


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


def _certificates(vault: Store) -> Iterator[tuple[str, Certificate | None]]:
    """Name of each certified job, and its certificate; None when that cannot be read."""
    head, tail = certificates.object_name("JOB").split("JOB")
    for stored in list(vault.list(head[: head.index("/") + 1])):
        if not (stored.name.startswith(head) and stored.name.endswith(tail)):
            continue
        job_name = stored.name.removeprefix(head).removesuffix(tail)
        try:
            yield job_name, certificates.load_from_vault(vault, job_name)
        except NotFound:
            continue
        except DiskprepError:
            yield job_name, None


def _how(vault: Store, certificate: Certificate | None) -> str:
    """How the cleanup of what a certificate covers was settled; empty: it was not. What cannot be understood settles
    nothing."""
    if certificate is None:
        return ""
    try:
        document = json.loads(vault.read(_object_name(certificate.job_name)))
    except (NotFound, ValueError, RecursionError):
        return ""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return ""
    return str(document.get("how") or GIVEN_UP) if document.get("certificate_digest") == certificate.digest else ""
