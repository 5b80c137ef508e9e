"""Signing in to Azure: where the token of each request comes from.

Invariants: a token is a Secret from the moment it is known; nothing of azure-identity, or of msal under it, gets into a
log, a message or a traceback; nothing is kept on disk. The library is loaded when the first token is asked for.

The library starts `az` by itself, as the user would: that is the one program that `diskprep.process` does not start.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from typing import Any, Protocol
from urllib.parse import urlsplit

from diskprep import clock
from diskprep.errors import NotSignedIn, UsageError
from diskprep.secrets import Secret

PUBLIC_URL = "https://management.azure.com"
#: Hosts of this computer: plain http may go there, and nobody signs in to them.
LOOPBACK = ("127.0.0.1", "::1", "localhost")
#: Management endpoint -> who signs in there. An endpoint that is not listed is signed in to where the public one is.
_AUTHORITIES = {
    "management.usgovcloudapi.net": "login.microsoftonline.us",
    "management.chinacloudapi.cn": "login.chinacloudapi.cn",
}
_MARGIN = timedelta(minutes=5)  # a token that has less left is replaced before it is used
_AZ_TIMEOUT_S = 60  # `az` is a large program, and slow on a cold disk
_BROWSER_TIMEOUT_S = 300
_MESSAGE_LIMIT_CHARS = 300
_TOKEN_LIMIT_CHARS = 1 << 16
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,127}")
_LONG_WORD = re.compile(r"[A-Za-z0-9._~+/=-]{40,}")  # longer than any UUID: a token, or a part of one

# The libraries log what went wrong, and where their own debugging is on also what they were given.
for _name in ("azure", "msal", "msal_extensions"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False


class Auth(StrEnum):
    """How to sign in. `default` takes what it finds: the environment, a managed identity, `az` and its like."""

    CLI = "cli"
    DEVICE_CODE = "device-code"
    BROWSER = "browser"
    MANAGED = "managed"
    DEFAULT = "default"


class TokenSource(Protocol):
    """Where tokens come from."""

    def token(self, *, renew: bool = False) -> Secret[str]:
        """A token for the next request. `renew`: the service refused the last one, so another is wanted.

        Raises NotSignedIn when there is none, or no other.
        """


def parse_token(text: Secret[str], origin: str) -> Secret[str]:
    """The bearer token in `text`: by itself, or in the document that `az account get-access-token` prints.

    Raises UsageError.
    """
    value = text.reveal().strip()
    if value.startswith("{"):
        try:
            value = json.loads(value)["accessToken"]
        except (ValueError, KeyError, RecursionError):
            value = ""
    if not isinstance(value, str) or len(value) > _TOKEN_LIMIT_CHARS or not _TOKEN.fullmatch(value):
        raise UsageError(f"{origin} holds no token", hint="az account get-access-token --output json > FILE")
    return Secret(value)


def fixed(token: Secret[str]) -> TokenSource:
    """One token, which cannot be renewed. Raises UsageError when it is none."""
    given = parse_token(token, "what was given as a token")
    return _Read(lambda: given, "the token that was given")


def token_file(read: Callable[[], Secret[str]], origin: str) -> TokenSource:
    """The token in a file. It is read again when the service refuses it: somebody may have put a new one there."""
    return _Read(lambda: parse_token(read(), origin), f"the token in {origin}")


def sign_in(auth: Auth, *, scope_url: str, tenant: str = "", tell: Callable[[str], None]) -> TokenSource:
    """Sign in to what answers at `scope_url`, at the first request that needs it.

    `tell` shows the user what to do: the page and the code of `device-code`, for example. Raises UsageError; the
    source it returns raises NotSignedIn.
    """
    if tenant and not _TENANT.fullmatch(tenant):
        raise UsageError(f"{tenant!a} is not a tenant", hint="give its UUID or its domain")
    if tenant and auth is Auth.MANAGED:
        raise UsageError("a managed identity has one tenant, its own", hint="leave --tenant out")
    return _Identity(auth, scope_url.rstrip("/"), tenant, tell)


class _Read:
    """A token that somebody else got."""

    def __init__(self, read: Callable[[], Secret[str]], name: str) -> None:
        self._read, self._name = read, name
        self._last: Secret[str] | None = None

    def token(self, *, renew: bool = False) -> Secret[str]:
        if self._last is None or renew:
            token = self._read()
            if token == self._last:
                raise NotSignedIn(
                    f"the service refuses {self._name}: it has expired, or is for something else",
                    hint="a token is good for about an hour: get a new one with `az account get-access-token`",
                )
            self._last = token
        return self._last


class _Identity:
    """Tokens from azure-identity, kept until shortly before they expire."""

    def __init__(self, auth: Auth, scope_url: str, tenant: str, tell: Callable[[str], None]) -> None:
        self._auth, self._tenant, self._tell = auth, tenant, tell
        self._scope = f"{scope_url}/.default"
        self._authority = _AUTHORITIES.get(urlsplit(scope_url).hostname or "")
        self._credential: Any = None
        self._last: Secret[str] | None = None
        self._expires_s = 0.0

    def __repr__(self) -> str:
        return f"TokenSource({self._auth})"

    def token(self, *, renew: bool = False) -> Secret[str]:
        if renew or self._last is None or clock.now().timestamp() > self._expires_s - _MARGIN.total_seconds():
            self._ask(renew=renew)
        assert self._last is not None, "asking raises or finds one"
        return self._last

    def _ask(self, *, renew: bool) -> None:
        try:
            found = self._request(renew=renew)
            self._last = parse_token(Secret(found.token), "what signing in brought")
            self._expires_s = float(found.expires_on)
            return
        except Exception as error:  # noqa: BLE001 - azure-identity lets through what its own libraries raise
            failure = _failure(self._auth, error)
        raise failure

    def _request(self, *, renew: bool) -> Any:
        interactive = self._auth in (Auth.DEVICE_CODE, Auth.BROWSER)
        options: dict[str, Any] = {}
        if self._auth is Auth.DEFAULT and self._tenant:
            options["tenant_id"] = self._tenant
        if renew and interactive and self._credential is not None:
            # A token made from now on: what the service itself asks for when it takes a token back. It comes from the
            # refresh token, without the user; a clock that is a little ahead must not ask for one of the future.
            since = int((clock.now() - _MARGIN).timestamp())
            options["claims"] = json.dumps({"access_token": {"nbf": {"essential": True, "value": str(since)}}})
        elif renew or self._credential is None:
            self._credential = self._new_credential()
        return self._credential.get_token(self._scope, **options)

    def _new_credential(self) -> Any:
        from azure import identity  # noqa: PLC0415 - half a second, which commands without a service need not spend

        places: dict[str, Any] = {"authority": self._authority} if self._authority else {}
        if self._auth is Auth.CLI:
            return identity.AzureCliCredential(tenant_id=self._tenant, process_timeout=_AZ_TIMEOUT_S)
        if self._auth is Auth.MANAGED:
            return identity.ManagedIdentityCredential()
        if self._auth is Auth.DEFAULT:
            return identity.DefaultAzureCredential(process_timeout=_AZ_TIMEOUT_S, **places)
        if self._tenant:
            places["tenant_id"] = self._tenant
        if self._auth is Auth.BROWSER:
            self._tell("sign in on the page that a browser on this computer shows now")
            return identity.InteractiveBrowserCredential(timeout=_BROWSER_TIMEOUT_S, **places)

        def prompt(page: str, code: str, expires: Any) -> None:
            self._tell(f"to sign in, open {page} on any computer and enter the code {code} before {expires:%H:%M} UTC")

        return identity.DeviceCodeCredential(prompt_callback=prompt, **places)


_HINTS = {
    Auth.CLI: "`az login`, then give the same command again",
    Auth.DEVICE_CODE: "give the same command again; or `az login` once, and --auth cli",
    Auth.BROWSER: "where no browser can open, use --auth device-code",
    Auth.MANAGED: "give this machine in Azure an identity with a role in the resource group, or use --auth cli",
    Auth.DEFAULT: "`az login`, or choose another way: --auth device-code, --auth browser, or --token-file FILE",
}


def _failure(auth: Auth, error: Exception) -> NotSignedIn:
    """`error` in our words, with what it says on one line. It may quote what `az` printed, which may be a token."""
    text = str(getattr(error, "message", "") or error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = next((line for line in lines if "AADSTS" in line), lines[0] if lines else type(error).__name__)
    hint = _HINTS[auth]
    if auth is Auth.MANAGED:
        said = "this computer has no identity in Azure that may be used"
    elif _is_of_the_network(error):
        said, hint = "no answer from where one signs in", "check the network, then give the same command again"
    elif isinstance(error, UsageError) or "Unexpected output" in text:
        said = "what came is not a token"
    elif auth is Auth.DEFAULT and "AADSTS" not in text:
        said = "nothing on this computer is signed in"
    elif "not found on path" in text:
        said, hint = "the program az is not there", "install the Azure CLI and `az login`, or use --auth device-code"
    said = _LONG_WORD.sub("***", "".join(sign if sign.isprintable() else " " for sign in said))
    return NotSignedIn(f"cannot sign in to Azure: {said[:_MESSAGE_LIMIT_CHARS]}", hint=hint)


def _is_of_the_network(error: BaseException | None) -> bool:
    seen = 0
    while error is not None and seen < 20:
        if type(error).__name__ in ("ServiceRequestError", "ServiceResponseError"):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False
