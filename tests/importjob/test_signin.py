"""Signing in with the real library: against an identity endpoint, an ADFS and an `az` that run here."""

from __future__ import annotations

import base64
import io
import json
import logging
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from seeds import SEED

from diskprep import clock
from diskprep.cli.connecting import open_service
from diskprep.errors import NotSignedIn, ServiceError, UsageError
from diskprep.importjob.signin import PUBLIC_URL, Auth, fixed, parse_token, sign_in, token_file
from diskprep.secrets import Secret

_CANARY = "eyJ0eXAi.canary-token-as-long-as-true-ones-at-the-least.0123456789"


class Identities(ThreadingHTTPServer):
    """Gives out numbered tokens. `answers` come first: what an endpoint says once, by the end of its path."""

    daemon_threads = True
    url = ""
    given = 0
    lifetime_s = 3600
    answers: list[tuple[int, Any]]
    seen: list[tuple[str, dict[str, str]]]


class Handler(BaseHTTPRequestHandler):
    server: Identities

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        target = urlsplit(self.path)
        form = parse_qs(target.query) | parse_qs(self.rfile.read(length).decode())
        self.server.seen.append((target.path, {name: values[0] for name, values in form.items()}))
        asks_for_token = target.path.endswith(("/token", "/msi"))
        status, document = (
            self.server.answers.pop(0) if asks_for_token and self.server.answers else (200, self._document(target.path))
        )
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _document(self, path: str) -> dict[str, Any]:
        base = f"{self.server.url}/adfs"
        if path.endswith("openid-configuration"):
            return {
                "issuer": base,
                "authorization_endpoint": f"{base}/authorize",
                "token_endpoint": f"{base}/token",
                "device_authorization_endpoint": f"{base}/devicecode",
            }
        if path.endswith("/devicecode"):
            return {
                "user_code": "ABCD-EFGH",
                "device_code": f"device-{_CANARY}",
                "verification_uri": "https://example.org/device",
                "expires_in": 900,
                "interval": 1,
                "message": "unused",
            }
        self.server.given += 1
        claims = {
            "iss": base,
            "aud": "04b07795-8ddb-461a-bbee-02f9e1bf7b46",
            "sub": "s",
            "upn": "operator@example.org",
            "exp": int(time.time()) + 3600,
            "iat": int(time.time()),
        }
        body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
        return {
            "access_token": f"{_CANARY}-{self.server.given}",
            "refresh_token": f"refresh-{_CANARY}",
            "id_token": f"e30.{body}.x",
            "token_type": "Bearer",
            "expires_in": self.server.lifetime_s,
            "expires_on": str(int(time.time()) + self.server.lifetime_s),
            "resource": PUBLIC_URL,
        }

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def endpoint() -> Iterator[Identities]:
    yield from _serving(None)


@pytest.fixture
def adfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Identities]:
    """Over TLS, as the library wants it, with a certificate that this process trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(clock.now() - timedelta(days=1))
        .not_valid_after(clock.now() + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "both.pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem))
    for server in _serving(context):
        monkeypatch.setenv("AZURE_AUTHORITY_HOST", server.url)
        yield server


def _serving(context: ssl.SSLContext | None) -> Iterator[Identities]:
    server = Identities(("127.0.0.1", 0), Handler)
    server.answers, server.seen = [], []
    server.url = f"{'https' if context else 'http'}://localhost:{server.server_address[1]}"
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody is signed in on this computer, and what was found once is not remembered."""
    for name in ("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID", "IDENTITY_ENDPOINT", "MSI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + ":/usr/bin:/bin")


@pytest.fixture
def managed(endpoint: Identities, monkeypatch: pytest.MonkeyPatch) -> Identities:
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{endpoint.url}/msi")
    monkeypatch.setenv("IDENTITY_HEADER", f"header-{_CANARY}")
    return endpoint


def az(folder: Path, script: str) -> None:
    """Install a program `az` that runs these lines of shell."""
    program = folder / "bin" / "az"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\necho x >> {folder}/called\n{script}\n")
    program.chmod(0o755)


def az_token(name: str, seconds: int = 3600) -> str:
    document = {"accessToken": name, "expires_on": int(time.time()) + seconds}
    return f"echo '{json.dumps(document)}'"


def quiet(text: str) -> None:
    raise AssertionError(f"nothing is to be told, but was: {text}")


def test_a_managed_identity_signs_in_and_its_token_is_kept(managed: Identities) -> None:
    source = sign_in(Auth.MANAGED, scope_url=PUBLIC_URL, tell=quiet)
    assert managed.seen == []  # nobody is asked before a token is wanted
    assert source.token() == Secret(f"{_CANARY}-1")
    assert source.token() == Secret(f"{_CANARY}-1")
    assert managed.seen == [("/msi", {"api-version": "2019-08-01", "resource": PUBLIC_URL})]
    assert source.token(renew=True) == Secret(f"{_CANARY}-2")


def test_a_token_that_is_about_to_expire_is_replaced(tmp_path: Path) -> None:
    az(tmp_path, az_token("short", 120))
    source = sign_in(Auth.CLI, scope_url=PUBLIC_URL, tell=quiet)
    assert source.token() == Secret("short")
    az(tmp_path, az_token("long"))
    assert source.token() == Secret("long")
    az(tmp_path, "exit 1")
    assert source.token() == Secret("long")


def test_az_is_asked_for_the_endpoint_and_the_tenant(tmp_path: Path) -> None:
    az(tmp_path, f'echo "$@" > {tmp_path}/argv\n{az_token("from-az")}')
    source = sign_in(Auth.CLI, scope_url="https://management.usgovcloudapi.net/", tenant="contoso.example", tell=quiet)
    assert source.token() == Secret("from-az")
    said = (tmp_path / "argv").read_text()
    assert "--resource https://management.usgovcloudapi.net" in said
    assert "--tenant contoso.example" in said


def test_the_default_takes_what_it_finds(tmp_path: Path, managed: Identities) -> None:
    az(tmp_path, az_token("from-az"))
    assert sign_in(Auth.DEFAULT, scope_url=PUBLIC_URL, tell=quiet).token() == Secret(f"{_CANARY}-1")
    managed.answers = [(400, {"error": "invalid", "error_description": "no identity"})] * 9
    assert sign_in(Auth.DEFAULT, scope_url=PUBLIC_URL, tenant="t", tell=quiet).token() == Secret("from-az")


def test_a_device_code_is_shown_and_renewed_without_the_user(adfs: Identities) -> None:
    told: list[str] = []
    source = sign_in(Auth.DEVICE_CODE, scope_url=PUBLIC_URL, tenant="adfs", tell=told.append)
    assert source.token() == Secret(f"{_CANARY}-1")
    assert len(told) == 1
    assert "https://example.org/device" in told[0]
    assert "ABCD-EFGH" in told[0]
    assert source.token(renew=True) == Secret(f"{_CANARY}-2")
    assert len(told) == 1
    assert adfs.seen[-1][1]["grant_type"] == "refresh_token"
    assert "nbf" in adfs.seen[-1][1]["claims"]


def test_a_refresh_that_is_refused_asks_the_user_again(adfs: Identities) -> None:
    told: list[str] = []
    source = sign_in(Auth.DEVICE_CODE, scope_url=PUBLIC_URL, tenant="adfs", tell=told.append)
    source.token()
    adfs.answers = [(400, {"error": "invalid_grant", "error_description": "AADSTS70043: expired"})]
    assert source.token(renew=True) == Secret(f"{_CANARY}-2")
    assert len(told) == 2


_NOBODY = {
    Auth.CLI: "az login",
    Auth.MANAGED: "an identity with a role",
    Auth.DEFAULT: "az login",
}


@pytest.mark.parametrize("auth", _NOBODY)
def test_where_nobody_is_signed_in_the_error_says_what_to_do(
    auth: Auth, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of the library, between its attempts
    with pytest.raises(NotSignedIn, match="cannot sign in to Azure: ") as caught:
        sign_in(auth, scope_url=PUBLIC_URL, tell=quiet).token()
    assert _NOBODY[auth] in caught.value.hint
    assert caught.value.__context__ is None
    assert caught.value.message.isprintable()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("script", "said", "hint"),
    [
        ("echo 'ERROR: Please run az login to setup account.' >&2; exit 1", "az login", "az login"),
        ("echo 'ERROR: AADSTS700082: The refresh token has expired.' >&2; exit 1", "AADSTS700082", "az login"),
        (f'echo \'{{"accessToken":"{_CANARY}"}}\'', "not a token", "az login"),
        (f"echo '{_CANARY}' \u202e", "not a token", "az login"),
        ("true", "not a token", "az login"),
        ("exit 127", "not there", "install the Azure CLI"),
        pytest.param(az_token("has a blank"), "not a token", "az login", id="a token with a blank"),
    ],
)
def test_what_az_says_is_told_without_the_token(
    tmp_path: Path, script: str, said: str, hint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    az(tmp_path, script)
    with pytest.raises(NotSignedIn) as caught:
        sign_in(Auth.CLI, scope_url=PUBLIC_URL, tell=quiet).token()
    assert said in caught.value.message
    assert hint in caught.value.hint
    assert _CANARY not in caught.value.message
    assert caught.value.message.isprintable()
    assert capfd.readouterr() == ("", "")


def test_a_place_to_sign_in_that_does_not_answer_is_a_matter_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", "https://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(NotSignedIn, match="no answer") as caught:
        sign_in(Auth.DEVICE_CODE, scope_url=PUBLIC_URL, tenant="adfs", tell=quiet).token()
    assert "network" in caught.value.hint


def test_a_token_file_is_read_again_when_its_token_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("one")
    source = token_file(lambda: Secret(path.read_text()), str(path))
    assert source.token() == Secret("one")
    path.write_text("two\n")
    assert source.token() == Secret("one")
    assert source.token(renew=True) == Secret("two")
    with pytest.raises(NotSignedIn, match="refuses the token in") as caught:
        source.token(renew=True)
    assert "get-access-token" in caught.value.hint
    only = fixed(Secret("only"))
    assert only.token() == Secret("only")
    with pytest.raises(NotSignedIn):
        only.token(renew=True)


@pytest.mark.parametrize(
    "text", ["", " \n", "two words", "line\nbreak", "{", "{}", '{"accessToken": 5}', "ü", "x" * 70000, "[" * 9, "a=b"]
)
def test_what_is_no_token_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(UsageError, match="holds no token") as caught:
        parse_token(Secret(text), "the file")
    assert not text.strip() or text not in caught.value.message


def test_what_az_prints_is_a_token() -> None:
    assert parse_token(Secret(f' {{"accessToken": "{_CANARY}", "x": 1}}\n'), "x") == Secret(_CANARY)
    assert parse_token(Secret(f"{_CANARY}\n"), "x") == Secret(_CANARY)


@pytest.mark.parametrize("tenant", ["two words", "-x", "a/b", "x" * 200])
def test_a_tenant_is_a_uuid_or_a_domain(tenant: str) -> None:
    with pytest.raises(UsageError, match="not a tenant"):
        sign_in(Auth.CLI, scope_url=PUBLIC_URL, tenant=tenant, tell=quiet)


def test_a_managed_identity_has_its_own_tenant() -> None:
    with pytest.raises(UsageError, match="its own"):
        sign_in(Auth.MANAGED, scope_url=PUBLIC_URL, tenant="contoso.example", tell=quiet)


def test_no_token_gets_out(
    tmp_path: Path, managed: Identities, adfs: Identities, capfd: pytest.CaptureFixture[str]
) -> None:
    """With every logger at its most talkative, and a handler at the root, as some test or library may set them."""
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    text = ""
    try:
        az(tmp_path, az_token(f"{_CANARY}-az"))
        for auth in (Auth.MANAGED, Auth.CLI, Auth.DEFAULT, Auth.DEVICE_CODE):
            tenant = "adfs" if auth is Auth.DEVICE_CODE else ""
            source = sign_in(auth, scope_url=PUBLIC_URL, tenant=tenant, tell=lambda told: None)
            assert source.token().reveal().startswith(_CANARY)
            text += repr(source)
            managed.answers = adfs.answers = [(400, {"error": f"{_CANARY}", "accessToken": _CANARY})] * 50
            az(tmp_path, f"echo '{_CANARY}'")
            try:
                text += repr(source.token(renew=True))
            except NotSignedIn:
                text += traceback.format_exc()
            managed.answers = adfs.answers = []
            az(tmp_path, az_token(f"{_CANARY}-az"))
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    out, err = capfd.readouterr()
    assert _CANARY not in text + heard.getvalue() + out + err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"token_file": Path("/x"), "auth": Auth.CLI}, "takes the place"),
        ({"token_file": Path("/x"), "tenant": "contoso.example"}, "takes the place"),
        ({"endpoint": "http://127.0.0.1:1"}, "on this computer"),
        ({"endpoint": "https://localhost", "auth": Auth.CLI}, "on this computer"),
        ({"endpoint": "http://management.example.org"}, "in clear"),
    ],
)
def test_contradictions_about_who_asks_are_refused(given: dict[str, Any], said: str) -> None:
    options: dict[str, Any] = {"endpoint": None, "token_file": None, "auth": None, "tenant": None}
    with pytest.raises(UsageError, match=said):
        open_service(SEED, **(options | given))


def test_the_commands_sign_in_at_the_first_call(
    tmp_path: Path, endpoint: Identities, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "token"
    path.write_text(_CANARY)
    path.chmod(0o644)
    service = open_service(SEED, endpoint=endpoint.url, token_file=path, auth=None, tenant=None)
    assert "others can read" in capfd.readouterr().err
    endpoint.answers = []
    with pytest.raises(ServiceError):  # this endpoint gives out identities, and knows no jobs
        service.list()
    path.unlink()
    with pytest.raises(UsageError, match="cannot read"):
        open_service(SEED, endpoint=endpoint.url, token_file=path, auth=None, tenant=None).list()
    open_service(SEED, endpoint=None, token_file=None, auth=None, tenant=None)
    assert capfd.readouterr() == ("", "")


def test_the_library_is_not_loaded_before_it_is_needed() -> None:
    code = "import sys; import diskprep.cli.connecting; print('azure.identity' in sys.modules, 'msal' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
