"""`diskprep cleanup ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diskprep import cleanup
from diskprep.cli import inputs, output
from diskprep.cli.stores import Container, KeyFile, Vault, open_store
from diskprep.errors import CleanupRefused, NotFound
from diskprep.seal import load_seal
from diskprep.seed import parse_staging
from diskprep.vault import certificate as certificates

app = typer.Typer(no_args_is_help=True, help="Remove what a certificate covers, and nothing else.")

CertificateFile = Annotated[Path, typer.Option("--certificate", help="The certificate that `vault ingest` wrote.")]


@app.command("plan")
def plan(
    staging: inputs.StagingArgument,
    container: Container,
    vault: Vault,
    certificate: CertificateFile = Path("certificate.json"),
    account_key_file: KeyFile = None,
) -> None:
    """What may go, and why. Nothing is removed."""
    _run(staging, container, vault, certificate, account_key_file, remove=False)
    output.next_step(
        f"diskprep cleanup run {staging} --container {container} --vault {vault} --certificate {certificate}"
    )


@app.command("run")
def run(
    staging: inputs.StagingArgument,
    container: Container,
    vault: Vault,
    certificate: CertificateFile = Path("certificate.json"),
    account_key_file: KeyFile = None,
) -> None:
    """Remove staged and imported data that the certificate covers, after looking at the vault again."""
    _run(staging, container, vault, certificate, account_key_file, remove=True)


def _run(staging: str, container: str, vault: str, certificate: Path, key_file: Path | None, *, remove: bool) -> None:
    place = parse_staging(staging).first
    seal = load_seal(place.seal_file)
    imported, ingested = open_store(container, key_file), open_store(vault, key_file)
    try:
        proof = certificates.load(certificate)
    except NotFound:
        raise CleanupRefused(
            f"there is no certificate {certificate}; nothing was removed", hint="`diskprep vault ingest` writes it"
        ) from None
    made = cleanup.plan(place, seal, proof, container=imported, vault=ingested)
    for line in made.lines():
        print(output.escape(line))
    if remove:
        with output.screen() as screen:
            removed = cleanup.run(made, place, seal, proof, container=imported, vault=ingested, emit=screen.emit)
        print(f"removed: {output.size(removed)}")
