"""A stand-in with a clock that tests turn, and a bare HTTP client beside the service's own."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import TurnedClock

from diskprep.datacenter.server import Datacenter
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryAccount

Http = Callable[..., tuple[int, Any]]


@pytest.fixture
def account(tmp_path: Path) -> DirectoryAccount:
    return DirectoryAccount("backups", tmp_path / "account", Secret(b"k" * 32))


@pytest.fixture
def datacenter(tmp_path: Path, account: DirectoryAccount, test_clock: TurnedClock) -> Iterator[Datacenter]:
    with Datacenter(tmp_path / "state.sqlite", account, token=Secret("the-token"), now=test_clock) as running:
        yield running


@pytest.fixture
def http_call(datacenter: Datacenter) -> Http:
    """`http_call(method, target, body, **headers)`: status and document; `None` takes a header away."""

    def call(method: str, target: str, body: Any = None, **headers: str | None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", int(datacenter.base_url.rpartition(":")[2]), timeout=20)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Authorization": "Bearer the-token", **{name.replace("_", "-"): text for name, text in headers.items()}}
        try:
            connection.request(method, target, data, {name: text for name, text in sent.items() if text is not None})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        return answer.status, json.loads(text) if text else None

    return call
