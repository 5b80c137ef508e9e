"""The service on the command line: where it is, and who asks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from diskprep import interrupts
from diskprep.cli.inputs import read_secret
from diskprep.cli.output import escape
from diskprep.errors import UsageError
from diskprep.importjob.service import ImportService
from diskprep.importjob.signin import LOOPBACK, PUBLIC_URL, Auth, TokenSource, sign_in, token_file
from diskprep.secrets import is_open_to_others
from diskprep.seed import Seed

AuthOption = Annotated[
    Auth | None,
    typer.Option(
        "--auth", help="How to sign in to Azure; without it `default`, which takes what it finds.", show_default=False
    ),
]
Tenant = Annotated[
    str | None, typer.Option("--tenant", metavar="ID", help="The tenant to sign in to.", show_default=False)
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help="Instead of signing in: a file with a management token, as `az account get-access-token` prints it.",
        show_default=False,
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="The management endpoint; without it Azure's public one.",
        show_default=False,
    ),
]


def open_service(
    seed: Seed, *, endpoint: str | None, token_file: Path | None, auth: Auth | None, tenant: str | None
) -> ImportService:
    """The service with the seed's subscription and resource group. Nobody is asked to sign in before the first call.

    Raises UsageError.
    """
    with interrupts.held():  # an import that is broken off can leave a library half there
        from diskprep.importjob.client import AzureImportService  # noqa: PLC0415 - half a second, for its library

    return AzureImportService(
        endpoint,
        _token_source(endpoint, token_file, auth, tenant),
        subscription_id=seed.subscription_id,
        resource_group=seed.resource_group,
    )


def _token_source(endpoint: str | None, path: Path | None, auth: Auth | None, tenant: str | None) -> TokenSource:
    if path is not None:
        if auth is not None or tenant is not None:
            raise UsageError("a token file takes the place of signing in", hint="leave --auth and --tenant out")
        if is_open_to_others(path):
            print(f"warning: others can read {escape(str(path))}: chmod go= takes that away", file=sys.stderr)
        given = path  # for the closure: it is not None
        return token_file(lambda: read_secret(given), str(path))
    if endpoint is not None and urlsplit(endpoint).hostname in LOOPBACK:
        raise UsageError(
            f"{endpoint} is on this computer: nobody signs in to that",
            hint="--token-file FILE; `diskprep datacenter serve` says where its token is",
        )
    return sign_in(auth or Auth.DEFAULT, scope_url=endpoint or PUBLIC_URL, tenant=tenant or "", tell=_tell)


def _tell(text: str) -> None:
    print(escape(text), file=sys.stderr, flush=True)
