"""Inputs that several commands share: where the passphrase comes from, sizes, stagings."""

from __future__ import annotations

import os
import re
import shlex
import sys
import urllib.parse
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from diskprep import clock, process
from diskprep.cli.output import escape
from diskprep.errors import UsageError
from diskprep.secrets import (
    PASSPHRASE_MAX_BYTES,
    Secret,
    check_new_passphrase,
    generate_passphrase,
    is_open_to_others,
    parse_passphrase,
    read_passphrase_fd,
    read_passphrase_file,
)

PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", help="A file that holds the passphrase.", show_default=False)
]
PassphraseFd = Annotated[
    int | None, typer.Option("--passphrase-fd", help="An open descriptor to read it from.", show_default=False)
]
PassphraseCommand = Annotated[
    str | None,
    typer.Option("--passphrase-command", help="A program that prints it; no shell is started.", show_default=False),
]
GeneratePassphrase = Annotated[
    bool, typer.Option("--generate-passphrase", help="Make a new passphrase and show it, once.")
]
NewPassphraseFile = Annotated[
    Path | None, typer.Option("--new-passphrase-file", help="A file that holds the new one.", show_default=False)
]
NewPassphraseFd = Annotated[
    int | None, typer.Option("--new-passphrase-fd", help="An open descriptor to read the new one.", show_default=False)
]
NewPassphraseCommand = Annotated[
    str | None,
    typer.Option("--new-passphrase-command", help="A program that prints the new one.", show_default=False),
]
GenerateNew = Annotated[bool, typer.Option("--generate", help="Make the new passphrase and show it, once.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No bars, no notes; results and errors only.")]
StagingArgument = Annotated[str, typer.Argument(metavar="STAGING", help="The staging location, also as s:PATH.")]
StagingOption = Annotated[
    str, typer.Option("--staging", metavar="DIR", help="The staging location, also as s:PATH.", show_default=False)
]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(i?[bB])?")
_CREDENTIAL = "diskprep.passphrase"
#: Two weeks until the package is sent, as long again until it is opened, ten days of copying, and some to spare.
_JOURNEY = timedelta(days=45)


def passphrase(
    file: Path | None,
    descriptor: int | None,
    command: str | None = None,
    *,
    new: bool = False,
    generate: bool = False,
) -> Secret[str]:
    """The passphrase from one place: a file, a descriptor, a program, systemd's credentials, or a prompt.

    `new`: it is the first one of what is about to be made; it is asked for twice, or made with `generate`, and checked.
    """
    _refuse_two_ways(file, descriptor, command, generate or None)
    if generate:
        if not new:
            raise UsageError(
                "there is a passphrase already, so none is made", hint="give that one, as at the first time"
            )
        return generated()
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")  # a folder that systemd makes, not a secret
    found = _given(file, descriptor, command)
    if found is None and credentials and (Path(credentials) / _CREDENTIAL).exists():
        found = read_passphrase_file(Path(credentials) / _CREDENTIAL)
    if found is None:
        found = _asked("passphrase", "--passphrase", twice=new)
    return check_new_passphrase(found) if new else found


def new_passphrase(file: Path | None, descriptor: int | None, command: str | None, *, generate: bool) -> Secret[str]:
    """A passphrase beside the one that opens: from one place, as `passphrase` but for systemd's, and checked."""
    _refuse_two_ways(file, descriptor, command, generate or None)
    if generate:
        return generated()
    found = _given(file, descriptor, command)
    if found is None:
        found = _asked("new passphrase", "--new-passphrase", twice=True)
    return check_new_passphrase(found)


def generated() -> Secret[str]:
    """A new passphrase, shown on stdout before anything is made that needs it: what fails to be shown is never used.

    Raises UsageError when stdout is systemd's journal, which would keep it.
    """
    if os.environ.get("JOURNAL_STREAM") == "{0.st_dev}:{0.st_ino}".format(os.fstat(1)):
        raise UsageError(
            "a passphrase is not shown where the journal would keep it",
            hint="give one: LoadCredential=diskprep.passphrase:FILE",
        )
    made = generate_passphrase()
    print(f"passphrase: {made.reveal()}", flush=True)
    print("write it down now: it is not stored, and will not be shown again", file=sys.stderr, flush=True)
    return made


def _refuse_two_ways(*ways: object) -> None:
    if sum(way is not None for way in ways) > 1:
        raise UsageError("give the passphrase in one way, not two")


def _given(file: Path | None, descriptor: int | None, command: str | None) -> Secret[str] | None:
    if file is not None:
        if is_open_to_others(file):
            print(f"warning: others can read {escape(str(file))}: chmod go= takes that away", file=sys.stderr)
        return read_passphrase_file(file)
    if descriptor is not None:
        return read_passphrase_fd(descriptor)
    if command is not None:
        return _told_by(command)
    return None


def _told_by(command: str) -> Secret[str]:
    """What a program prints. The command itself is in no message: somebody may have put a secret into it."""
    try:
        argv = shlex.split(command)
    except ValueError:
        argv = []
    if not argv:
        raise UsageError("the passphrase command is empty, or a quotation mark in it is not closed")
    told = process.ask(argv, "the passphrase command", limit_bytes=PASSPHRASE_MAX_BYTES)
    return parse_passphrase(told, "what the passphrase command prints")


def _asked(what: str, option: str, *, twice: bool) -> Secret[str]:
    if not os.isatty(0):
        raise UsageError(
            f"no {what} was given", hint=f"use {option}-file FILE, {option}-fd N or {option}-command COMMAND"
        )
    return Secret(str(typer.prompt(what, hide_input=True, confirmation_prompt=twice, err=True)))


def container_signature(path: Path, container: str) -> Secret[str]:
    """The signature in a file: `CONTAINER?sv=...&sig=...`, for this container, still valid. Raises UsageError.

    It travels in the disks' manifests and opens the container when they are copied, which is weeks from now.
    """
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
    if expires < clock.now() + _JOURNEY:
        print(
            f"warning: the signature in {escape(str(path))} ends on {expires:%Y-%m-%d}; disks copied later are "
            f"refused. Shipping and copying can take {_JOURNEY.days} days: make one that lasts longer",
            file=sys.stderr,
        )
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
