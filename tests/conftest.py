"""What every test may use."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from blobserver import Azurite
from hypothesis import settings
from support import TurnedClock, windows_volumes_archive
from trip import Seeded, Trip, new_trip, seeded

from diskprep.secrets import Secret
from diskprep.store.azure import AzureAccount
from diskprep.store.directory import DirectoryStore

# A machine may be busy: how long one example takes says nothing. In CI the same examples are tried every time.
settings.register_profile("steady", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("steady")

#: The folders of slower tests, in the order in which they run after all others.
_LATE = ("disk", "datacenter", "vault", "cleanup", "store", "volume", "staging", "readers", "e2e")


def pytest_configure() -> None:
    """Programs that the tests start inherit what is ignored here: nohup ignores SIGHUP, and `&` in a script SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_report_header() -> list[str]:
    """What this machine can do; tests that need what is missing are skipped, and fail in CI."""
    programs = ("restic", "rclone", "cryptsetup", "dislocker-file", "mkntfs", "ntfs-3g", "fls", "sgdisk", "strace")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    found = {name: shutil.which(name, path=path) is not None for name in programs}
    found |= {
        "root": os.geteuid() == 0,
        "loop": Path("/dev/loop-control").exists(),
        "FUSE": Path("/dev/fuse").exists(),
        "Azurite": _AZURITE.exists(),
        "Windows-made volumes": windows_volumes_archive() is not None,
    }
    return [
        f"{'has' if has else 'LACKS'}: {', '.join(n for n, v in found.items() if v is has)}" for has in (True, False)
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The fast tests first: what is wrong there is known in a minute."""

    def place(item: pytest.Item) -> int:
        folder = item.path.parent.name
        return _LATE.index(folder) + 1 if folder in _LATE else 0

    items.sort(key=place)


_AZURITE = Path(__file__).parent.parent / ".cache/azurite-3.35.0/node_modules/.bin/azurite-blob"
#: The newest protocol that Azurite 3.35.0 speaks; the SDK's own is newer.
_API_VERSION = "2025-11-05"
#: The emulator's account and key are the same everywhere and public.
_ACCOUNT = "devstoreaccount1"
_ELSEWHERE = "elsewhere"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """Azurite in folder mode on a free port of loopback; one for the whole run."""
    if not _AZURITE.exists():
        reason = "the blob server Azurite is missing: `.ci/prepare test` installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("azurite")
    elsewhere = Secret(base64.b64encode(os.urandom(64)).decode())
    accounts = f"{_ACCOUNT}:{_KEY};{_ELSEWHERE}:{elsewhere.reveal()}"
    options = f"--blobHost 127.0.0.1 --blobPort {port} --silent --disableTelemetry --skipApiVersionCheck"
    server = subprocess.Popen(
        [_AZURITE, "--location", folder, *options.split()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "AZURITE_ACCOUNTS": accounts},
    )
    try:
        _wait_for_port(port, server)
        url, key = f"http://127.0.0.1:{port}/{_ACCOUNT}", Secret(_KEY)
        account = AzureAccount(url, key, api_version=_API_VERSION)
        other = AzureAccount(f"http://127.0.0.1:{port}/{_ELSEWHERE}", elsewhere, api_version=_API_VERSION)
        yield Azurite(
            account=account,
            account_name=_ACCOUNT,
            key=key,
            port=port,
            url=url,
            elsewhere=other,
            elsewhere_key=elsewhere,
        )
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.fixture(scope="module", autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test's job, tracking number or journal is another's, or this computer's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISKPREP_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def restic_seeded(tmp_path_factory: pytest.TempPathFactory) -> Seeded:
    """A sealed repository that restic wrote; one for the whole run, not to be changed."""
    return seeded(tmp_path_factory.mktemp("seeded"))


@pytest.fixture
def trip(restic_seeded: Seeded, tmp_path: Path) -> Trip:
    """A small seed before its trip, with container and vault in directories."""
    for name in ("container", "vault"):
        (tmp_path / name).mkdir()
    return new_trip(restic_seeded, tmp_path, DirectoryStore(tmp_path / "container"), DirectoryStore(tmp_path / "vault"))


def _wait_for_port(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("Azurite did not start")


@pytest.fixture
def test_clock() -> TurnedClock:
    return TurnedClock()
