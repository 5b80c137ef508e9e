"""Copies from one storage account to another: what the service does, what it refuses, and that no signature is told."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import threading
import traceback
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from azure.storage.blob import ExponentialRetry
from blobserver import Azurite

from diskprep import clock
from diskprep.errors import NotFound, StorageUnavailable
from diskprep.secrets import Secret
from diskprep.store import AccessTier
from diskprep.store.azure import AzureAccount, AzureStore

MIB = 1 << 20
API_VERSION = "2025-11-05"


class Answering(ThreadingHTTPServer):
    """A blob service that has any container and refuses all else with one status and code."""

    status, code = 500, "InternalError"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/elsewhere"


class _Answer(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        assert isinstance(self.server, Answering)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        made = "restype=container" in self.path
        self.send_response(201 if made else self.server.status)
        self.send_header("x-ms-error-code", self.server.code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Not on the terminal."""


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answering]:
    monkeypatch.setattr("diskprep.store.azure.ExponentialRetry", lambda **_: ExponentialRetry(retry_total=0))
    with Answering(("127.0.0.1", 0), _Answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def with_another_key(azurite: Azurite) -> AzureAccount:
    key = Secret(base64.b64encode(os.urandom(64)).decode())
    return AzureAccount(azurite.elsewhere.url, key, api_version=API_VERSION)


@pytest.mark.parametrize("size", [10, 9 * MIB + 17])
def test_the_service_copies_from_another_account(azurite: Azurite, size: int) -> None:
    source, target = azurite.container_elsewhere(), azurite.fresh_container("some/prefix/")
    data = os.urandom(size)
    source.write("data/aa/object", [data])
    assert target.copy_from(source, "data/aa/object")
    assert target.read("data/aa/object") == data
    found = target.stat("data/aa/object")
    assert found is not None
    assert found.md5 == hashlib.md5(data).digest()
    assert target.why_not_copied(source) == ""


def test_what_is_missing_there_is_not_found_and_the_next_is_copied(azurite: Azurite) -> None:
    source, target = azurite.container_elsewhere(), azurite.fresh_container()
    source.write("object", [b"there"])
    with pytest.raises(NotFound):
        target.copy_from(source, "missing")
    assert [found.name for found in target.list()] == []
    assert target.copy_from(source, "object")


def test_a_source_that_cannot_be_reached_is_asked_once_and_left_to_the_caller(azurite: Azurite) -> None:
    source, target = azurite.container_elsewhere(), azurite.fresh_container()
    source.write("object", [b"there"])
    far = azurite.unreachable(source)
    assert far.read("object") == b"there"
    assert not target.copy_from(far, "object")
    assert target.why_not_copied(far) == "CannotVerifyCopySource"
    assert not target.copy_from(far, "missing")  # asked of the service it would be NotFound
    assert target.copy_from(source, "object")
    assert target.why_not_copied(source) == ""


def test_a_source_whose_key_is_another_one_is_refused(azurite: Azurite) -> None:
    source, target = azurite.container_elsewhere(), azurite.fresh_container()
    source.write("object", [b"there"])
    source._key = with_another_key(azurite)._key  # it was changed since the container was opened
    assert not target.copy_from(source, "object")
    assert target.why_not_copied(source) == "CannotVerifyCopySource"
    assert [found.name for found in target.list()] == []


def test_a_service_in_trouble_is_asked_again_and_one_that_cannot_is_not(azurite: Azurite, answering: Answering) -> None:
    source = azurite.container_elsewhere()
    target = AzureAccount(answering.url, azurite.key, api_version=API_VERSION).container("target")
    assert not target.copy_from(source, "object")
    assert target.why_not_copied(source) == ""
    answering.status, answering.code = 501, "APINotImplemented"
    assert not target.copy_from(source, "object")
    assert target.why_not_copied(source) == "APINotImplemented"


def test_an_account_without_the_tier_is_named_as_such(azurite: Azurite, answering: Answering) -> None:
    answering.status, answering.code = 400, "BlobAccessTierNotSupportedForAccountType"
    target = AzureAccount(answering.url, azurite.key, api_version=API_VERSION).container("target")
    target.choose_tiers(lambda _name, _parts: AccessTier.COLD)
    with pytest.raises(StorageUnavailable, match="BlobAccessTierNotSupportedForAccountType") as caught:
        target.write("object", [b"x"])
    assert "does not have this access tier" in caught.value.hint


def test_a_signature_that_was_given_is_not_passed_to_another_account(azurite: Azurite) -> None:
    azurite.elsewhere.container("signed-there").write("object", [b"there"])
    sas = azurite.elsewhere.container_sas("signed-there", clock.now() + timedelta(hours=1))
    source, target = azurite.elsewhere.open_sas(sas), azurite.fresh_container()
    assert not target.copy_from(source, "object")
    assert [found.name for found in target.list()] == []


def test_no_signature_is_told_whatever_listens(
    azurite: Azurite,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = azurite.container_elsewhere(), azurite.fresh_container()
    source.write("object", [b"there"])
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(logging.getLogger("azure"), "propagate", True)  # the SDK's own words, too
    assert target.copy_from(source, "object")
    assert not target.copy_from(azurite.unreachable(source), "object")
    with pytest.raises(NotFound) as caught:
        target.copy_from(source, "missing")
    told = caplog.text + "".join(traceback.format_exception(caught.value)) + "".join(capfd.readouterr())
    assert "x-ms-copy-source" in told  # the SDK does tell of the request
    assert "sig=" not in told
    assert repr(target) + repr(source) == f"AzureStore({target.location!r})AzureStore({source.location!r})"


def test_the_signature_of_a_copy_reads_one_blob_for_half_an_hour(azurite: Azurite) -> None:
    source = azurite.container_elsewhere()
    before = clock.now() + timedelta(minutes=30)
    address = source._readable_url("data/aa/object")
    after = clock.now() + timedelta(minutes=30)
    assert address is not None
    query = address.reveal().partition("?")[2].split("&")
    fields = dict(field.split("=", 1) for field in query)
    assert (fields["sp"], fields["sr"]) == ("r", "b")
    assert before.replace(microsecond=0) <= clock.parse_rfc3339(fields["se"].replace("%3A", ":")) <= after


def test_the_signature_of_an_https_address_is_for_https_only(azurite: Azurite) -> None:
    account = AzureAccount("https://account.blob.core.windows.net", azurite.key)
    client = account._client("container", {"account_name": "account", "account_key": azurite.key.reveal()})
    address = AzureStore(client, account.url, key=azurite.key)._readable_url("object")
    assert address is not None
    assert "spr=https&" in address.reveal()
    plain = azurite.container_elsewhere()._readable_url("object")
    assert plain is not None
    assert "spr=" not in plain.reveal()
