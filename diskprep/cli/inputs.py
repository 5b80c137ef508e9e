"""Inputs that several commands share: where the passphrase comes from, sizes, stagings."""

from __future__ import annotations

import os
import re
import urllib.parse
from pathlib import Path
from typing import Annotated

import typer

from diskprep import clock
from diskprep.errors import UsageError
from diskprep.secrets import Secret, read_passphrase_fd, read_passphrase_file

PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", help="A file that holds the passphrase.", show_default=False)
]
PassphraseFd = Annotated[
    int | None, typer.Option("--passphrase-fd", help="An open descriptor to read it from.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No bars, no notes; results and errors only.")]
StagingArgument = Annotated[str, typer.Argument(metavar="STAGING", help="The staging location, also as s:PATH.")]
StagingOption = Annotated[
    str, typer.Option("--staging", metavar="DIR", help="The staging location, also as s:PATH.", show_default=False)
]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(i?[bB])?")
_CREDENTIAL = "diskprep.passphrase"


def passphrase(file: Path | None, descriptor: int | None, *, new: bool = False) -> Secret[str]:
    """The passphrase from one place: a file, a descriptor, systemd's credentials, or a prompt on the terminal."""
    if file is not None and descriptor is not None:
        raise UsageError("give the passphrase in one way, not two")
    if file is not None:
        return read_passphrase_file(file)
    if descriptor is not None:
        return read_passphrase_fd(descriptor)
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")  # a folder that systemd makes, not a secret
    if credentials and (Path(credentials) / _CREDENTIAL).exists():
        return read_passphrase_file(Path(credentials) / _CREDENTIAL)
    if not os.isatty(0):
        raise UsageError("no passphrase was given", hint="use --passphrase-file FILE or --passphrase-fd N")
    return Secret(str(typer.prompt("passphrase", hide_input=True, confirmation_prompt=new, err=True)))


def container_signature(path: Path, container: str) -> Secret[str]:
    """The signature in a file: `CONTAINER?sv=...&sig=...`, for this container, still valid. Raises UsageError."""
    signature = read_secret(path)
    name, _, query = signature.reveal().partition("?")
    fields = dict(urllib.parse.parse_qsl(query))
    if not fields.get("sig") or not fields.get("se"):
        raise UsageError(f"{path} holds no container signature", hint="it reads CONTAINER?sv=...&se=...&sig=...")
    if name != container:
        raise UsageError(f"the signature in {path} is for another container than {container}")
    try:
        expires = clock.parse_rfc3339(fields["se"])
    except ValueError:
        raise UsageError(f"the signature in {path} has no proper time of expiry") from None
    if expires < clock.now():
        raise UsageError(f"the signature in {path} has expired", hint="make a new one, valid for the whole journey")
    return signature


def read_secret(path: Path) -> Secret[str]:
    """The one line of a file that holds a key, a token or a signature."""
    try:
        return Secret(path.read_bytes().decode("ascii").strip())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a line of text") from None


def size_bytes(text: str) -> int:
    """`512M`, `1.5G`, `10TB`: K, M, G, T are powers of 1024 as losetup and qemu-img have them; with B, of 1000."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size", hint="write it as 512M or 10G")
    base = 1000 if match[3] in ("b", "B") and match[2] else 1024
    return int(float(match[1]) * base ** " kmgt".index(match[2].lower() or " "))
