"""An operator's desk, and the stand-in of the service in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import diskprep, make_tree

SUBSCRIPTION = "11111111-2222-4333-8444-555555555555"
CONTAINER = "imported"
PASSPHRASE = "canary passphrase, long enough"


class Desk:
    """An operator's desk: a source, a folder for everything else, and what is typed again and again."""

    def __init__(self, base: Path, *, megabytes: int = 2) -> None:
        self.base = base
        self.source = make_tree(base / "source", megabytes=megabytes)
        self.staging, self.vault, self.practice = base / "staging", base / "vault", base / "practice"
        self.disks = [base / "WD-A1.img", base / "WD-B2.img"]
        self.container = self.practice / "containers" / CONTAINER
        self.certificate = base / "certificate.json"
        self.passphrase_file = base / "passphrase"
        self.passphrase_file.write_text(PASSPHRASE + "\n")
        self.secret = ("--passphrase-file", self.passphrase_file)
        self.new_passphrase_file = base / "new passphrase"  # the vault's, once it was changed
        self.opening = ("--vault", self.vault, "--passphrase-file", self.new_passphrase_file)
        self.stores = ("--container", self.container, "--vault", self.vault)

    def stage(self, code: int = 0) -> tuple[str, str]:
        trip = ("--job", "my-first-job", "--storage-account", "account1", "--container", CONTAINER)
        azure = ("--subscription", SUBSCRIPTION, "--resource-group", "group")
        return diskprep("stage", self.source, "--staging", self.staging, *trip, *azure, *self.secret, code=code)

    def prepare(self, *more: str | Path, code: int = 0) -> tuple[str, str]:
        sas = ("--container-sas-file", self.practice / f"{CONTAINER}.sas")
        journals = ("--journals", self.base / "journals")
        return diskprep("disk", "prepare", f"s:{self.staging}", *self.disks, *sas, *journals, *more, code=code)

    def receive(self, job: str, *more: str | Path, code: int = 0) -> tuple[str, str]:
        """The package arrives at the stand-in, whose staff copies it and sends it back."""
        return diskprep("datacenter", "receive", self.practice, job, *more, code=code)


#: What is typed with `job ship`.
RETURN = (
    "--return-recipient", "Somebody", "--return-street", "Somewhere 1", "--return-city", "Elsewhere",
    "--return-postal-code", "12345", "--return-country", "Netherlands", "--return-phone", "+31 20 0000000",
    "--return-email", "operator@example.invalid",
)  # fmt: skip


@contextmanager
def serving(practice: Path) -> Iterator[tuple[str, ...]]:
    """The stand-in, as a process of its own; gives what a command needs to reach it."""
    server = subprocess.Popen(
        [sys.executable, "-m", "diskprep", "datacenter", "serve", practice], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    endpoint = server.stdout.readline().removeprefix("endpoint: ").strip()
    token = server.stdout.readline().removeprefix("token file: ").strip()
    try:
        yield "--endpoint", endpoint, "--token-file", token
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
