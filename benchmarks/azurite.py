"""A blob server for benchmarks: Azurite on loopback, one process of Node, as new each time it is started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from harness import ROOT, Failed

#: The emulator's account and key are the same everywhere and public.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_OTHER = "otheraccount"
API_VERSION = "2025-11-05"  # the newest that Azurite 3.35 knows; it takes newer ones unread

_START_S = 60.0
_END_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running blob server. `key_file` opens both of its accounts."""

    process: subprocess.Popen[bytes]
    port: int
    key_file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    @property
    def other_url(self) -> str:
        """Another account, by another name of this computer: the service copies nothing from there to the first."""
        return f"http://localhost:{self.port}/{_OTHER}"

    @property
    def rclone(self) -> Mapping[str, str]:
        """Environment that makes `az:CONTAINER` a remote of rclone."""
        return {
            "RCLONE_CONFIG": "/dev/null",
            "RCLONE_CONFIG_AZ_TYPE": "azureblob",
            "RCLONE_CONFIG_AZ_USE_EMULATOR": "true",
            "RCLONE_CONFIG_AZ_ENDPOINT": self.url,
        }

    def cpu_s(self) -> float:
        """User and system time that the server has used so far, all its threads."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server that keeps its blobs below `folder`, which must not exist; it has ended afterwards. Raises Failed."""
    folder.mkdir()
    key_file = folder / "key"
    key_file.write_text(KEY + "\n")
    key_file.chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"--blobHost 127.0.0.1 --blobPort {port} --silent --disableTelemetry --skipApiVersionCheck"
    process = subprocess.Popen(
        [program(), "--location", folder / "blobs", *options.split()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY};{_OTHER}:{KEY}"},
        start_new_session=True,  # Ctrl-C is for the benchmark, which ends the server when it is done with it
    )
    try:
        _wait(process, port)
        yield Server(process=process, port=port, key_file=key_file)
    finally:
        _end(process)


def program() -> Path:
    """Azurite, where `.ci/prepare` puts it. Raises SystemExit when it is not there."""
    found = sorted((ROOT / ".cache").glob("azurite-*/node_modules/.bin/azurite-blob"))
    if not found:
        raise SystemExit("the blob server Azurite is missing: `.ci/prepare bench` installs it")
    return found[-1]


def version() -> str:
    return f"Azurite {program().relative_to(ROOT / '.cache').parts[0].partition('-')[2]}"


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise Failed("Azurite did not start")


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(_END_S)
    except ProcessLookupError:
        pass
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
