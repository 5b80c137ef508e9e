"""One question to the service, asked until it is answered, refused, or patience ends. The client's transport is here.

What is waited out: no answer, half an answer, 408, 429 and 5xx. Every call may be repeated: the caller says with
`recover` what a refusal means when an earlier attempt may have been carried out. A refused token (401) is renewed once.
Every failure becomes one of ours, unlinked from the original, which may quote requests, and so keys and tokens.
"""

from __future__ import annotations

import email.utils
import io
import json
import random
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, TypeVar

from azure.mgmt.storageimportexport import StorageImportExport
from msrest.authentication import Authentication
from msrest.exceptions import ClientException, ClientRequestError, HttpOperationError, ValidationError

from diskprep import clock
from diskprep.errors import DiskprepError, JobConflict, NotFound, NotSignedIn, ServiceError, UsageError
from diskprep.importjob.signin import TokenSource

_TIMEOUT_S = 60  # for a connection, for the first bytes of an answer, and for all of it
_ANSWER_LIMIT_BYTES = 16 << 20  # a page has at most a hundred jobs of ten drives: about 1 MB
_CHUNK_BYTES = 1 << 16
_MESSAGE_LIMIT_CHARS = 400
_DETAILS_LIMIT = 3
_PASSWORD = re.compile(r"[0-9]{6}(-[0-9]{6}){7}")
_NOT_PASSING = (HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
_Answer = TypeVar("_Answer")

#: What to return instead of a refusal, or None to let it stand: gets the HTTP status, and whether an earlier attempt of
#: the same call may have been carried out, its answer being lost.
Recover = Callable[[int, bool], _Answer | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long trouble is waited out: at most `repeats` repeats, none of them begun later than `within_s` after the
    first attempt. Pauses double from `first_pause_s`, with jitter; a Retry-After is taken instead. Both end at
    `pause_limit_s`. The whole of a call takes at most `within_s` and two minutes, for its last attempt.
    """

    repeats: int = 4
    within_s: float = 300.0
    first_pause_s: float = 1.0
    pause_limit_s: float = 60.0
    wait: Callable[[float], None] = clock.sleep
    now_s: Callable[[], float] = clock.monotonic_s

    def pause_s(self, repeat: int, asked_s: float | None) -> float:
        """How long to wait before repeat number `repeat` (from 0); `asked_s` is what the service asks for."""
        if asked_s is not None:
            return min(max(asked_s, 0.0), self.pause_limit_s)
        return min(self.first_pause_s * float(2**repeat), self.pause_limit_s) * random.uniform(0.5, 1.0)  # noqa: S311


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trouble:
    """Why an attempt failed. `status` is 0 without an answer."""

    failure: DiskprepError
    status: int = 0
    passing: bool = False
    retry_after_s: float | None = None


class Line:
    """The client with its transport set up for this service, and the one way to ask."""

    def __init__(self, url: str, source: TokenSource, subscription_id: str, patience: Patience, *, local: bool) -> None:
        self._url, self._source, self._patience = url, source, patience
        self._ahead = timedelta(0)  # how far the service's clock is ahead of ours
        self._status, self._reason, self._code = 0, "", ""
        self._retry_after_s: float | None = None
        self._renewed = False  # and no other token was accepted since
        self.client = StorageImportExport(_Bearer(source), subscription_id, base_url=url)
        config = self.client.config
        config.generate_client_request_id = False  # the client's own ids hold this computer's network address
        config.hooks.clear()  # would register the provider without asking, and wait for it without end
        config.hooks.append(self._receive)
        config.proxies.use_env_settings = not local
        config.redirect_policy.allow = False
        config.connection.timeout = _TIMEOUT_S
        config.retry_policy.retries = 0  # they would be bounded in number only, and leave out some calls
        config.retry_policy.policy.status_forcelist = []

    def server_time(self) -> datetime:
        """The time of the last answer (UTC), carried forward; without one, ours."""
        return clock.now() + self._ahead

    def ask(
        self, doing: str, call: Callable[[dict[str, str]], _Answer], recover: Recover[_Answer] | None = None
    ) -> _Answer:
        """Make one call, repeatedly where that helps. `call` gets the headers to send, `doing` completes "cannot"."""
        headers = {"x-ms-client-request-id": str(uuid.uuid4())}
        begun_s, repeats, maybe_done = self._patience.now_s(), 0, False
        while True:
            result = self._attempt(doing, call, headers)
            if self._status not in (0, HTTPStatus.UNAUTHORIZED):
                self._renewed = False
            if not isinstance(result, _Trouble):
                return result
            if result.status == HTTPStatus.UNAUTHORIZED and not self._renewed:
                self._renew(result.failure)
                continue
            if not result.passing:
                found = recover(result.status, maybe_done) if recover else None
                if found is None:
                    raise result.failure
                return found
            pause_s = self._patience.pause_s(repeats, result.retry_after_s)
            left_s = begun_s + self._patience.within_s - self._patience.now_s()
            if repeats >= self._patience.repeats or pause_s > left_s:
                raise result.failure
            self._patience.wait(pause_s)
            repeats += 1
            maybe_done = maybe_done or result.status != HTTPStatus.TOO_MANY_REQUESTS

    def _renew(self, refused: DiskprepError) -> None:
        self._renewed = True
        try:
            self._source.token(renew=True)
            return
        except (NotSignedIn, UsageError) as error:
            failure = NotSignedIn(f"{refused.message}; {error.message}", hint=error.hint or refused.hint)
        raise failure

    def _attempt(
        self, doing: str, call: Callable[[dict[str, str]], _Answer], headers: dict[str, str]
    ) -> _Answer | _Trouble:
        self._status, self._reason, self._code, self._retry_after_s = 0, "", "", None
        try:
            return call(headers)
        except DiskprepError:
            raise
        except HttpOperationError:
            pass
        except ValidationError:
            return _Trouble(failure=UsageError(f"cannot {doing}: the service's client refuses a value, or misses one"))
        except ClientException as error:
            return _Trouble(failure=self._unanswered(doing, error), passing=not _is_distrust(error))
        except Exception:  # noqa: BLE001 - what the client raises on strange answers is no closed set
            if self._status < HTTPStatus.MULTIPLE_CHOICES:
                what = "the service's answer is not what it should be" if self._status else "it cannot be asked for"
                return _Trouble(failure=ServiceError(f"cannot {doing}: {what}"), status=self._status)
        return _Trouble(
            failure=_refusal(doing, self._status, self._reason, self._code),
            status=self._status,
            passing=_is_passing(self._status),
            retry_after_s=self._retry_after_s,
        )

    def _unanswered(self, doing: str, error: ClientException) -> ServiceError:
        if isinstance(error, _CutOff):
            what, hint = f"the answer from {self._url} {error}", "give the same command again later"
        elif _is_distrust(error):
            what = f"the certificate of {self._url} cannot be trusted"
            hint = "somebody is between this computer and the service: a proxy that opens connections, perhaps"
        else:
            what, hint = f"no answer from {self._url}", "check the network, then give the same command again"
        return ServiceError(f"cannot {doing}: {what}", hint=hint)

    def _receive(self, response: Any, *_: Any, **__: Any) -> None:
        """Take an answer in: all of it, within limits of size and time. The client then finds it in memory."""
        self._status = response.status_code
        self._note_time(response.headers.get("Date"))
        self._retry_after_s = _seconds(response.headers.get("Retry-After"), self.server_time())
        body, until_s = bytearray(), clock.monotonic_s() + _TIMEOUT_S
        try:
            while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=True):
                body += chunk
                if len(body) > _ANSWER_LIMIT_BYTES or clock.monotonic_s() > until_s:
                    break
            else:
                chunk = b""
        except Exception:  # noqa: BLE001 - several libraries have a say in reading a body
            chunk = None
        response.raw.close()
        if chunk is None:
            raise _CutOff("was cut off")
        if chunk:
            raise _CutOff("has no end")
        response.raw = io.BytesIO(body)
        if self._status >= HTTPStatus.MULTIPLE_CHOICES:
            self._code, self._reason = _said(bytes(body), self._status)
        elif (body or response.request.method != "DELETE") and not _is_json(bytes(body)):
            raise _CutOff("was cut off, or is not the service's")

    def _note_time(self, text: str | None) -> None:
        try:
            moment = email.utils.parsedate_to_datetime(text or "")
        except ValueError:
            return
        self._ahead = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - clock.now()


class _Bearer(Authentication):
    """Asks for the token at each request, so that a source that renews it is listened to."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source

    def signed_session(self, session: Any = None) -> Any:
        session = super().signed_session(session)
        session.auth = self  # a header would be replaced by what the user's .netrc has for the host
        return session

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._source.token().reveal()}"
        return request


class _CutOff(ClientRequestError):
    """An answer began, and is of no use."""


def _is_passing(status: int) -> bool:
    if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS):
        return True
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in _NOT_PASSING


def _is_distrust(error: ClientException) -> bool:
    return type(error.inner_exception).__name__ == "SSLError" or "CERTIFICATE_VERIFY_FAILED" in str(error)


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def _seconds(retry_after: str | None, now: datetime) -> float | None:
    """Retry-After in seconds: a number, or a date. None without one that can be read."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds()
    except ValueError:
        return None


def _said(body: bytes, status: int) -> tuple[str, str]:
    """The code of a refusal, and what the service said: on one line, short, and safe for a terminal."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        error = None
    told = [error]
    if isinstance(error, dict) and isinstance(error.get("details"), list):
        told += error["details"][:_DETAILS_LIMIT]
    parts = [
        ": ".join(str(item[name]) for name in ("code", "message") if item.get(name))
        for item in told
        if isinstance(item, dict)
    ]
    text = "; ".join(dict.fromkeys(part for part in parts if part))
    text = _PASSWORD.sub("***", "".join(sign if sign.isprintable() else " " for sign in text))
    code = str(error.get("code") or "") if isinstance(error, dict) else ""
    return code, f"{text[:_MESSAGE_LIMIT_CHARS] or 'no reason given'} (HTTP {status})"


#: A 404 that says nothing of a job: who asks sees none of the subscription, being signed in to another tenant.
_NOT_SEEN = ("SubscriptionNotFound", "InvalidSubscriptionId")
_ROLE_HINT = "the role must allow Microsoft.ImportExport/* in the resource group"
_REFUSALS: dict[int, tuple[type[DiskprepError], str]] = {
    HTTPStatus.UNAUTHORIZED: (NotSignedIn, "sign in again; --tenant ID when the subscription is in another tenant"),
    HTTPStatus.FORBIDDEN: (NotSignedIn, _ROLE_HINT),
    HTTPStatus.NOT_FOUND: (NotFound, ""),
    HTTPStatus.CONFLICT: (JobConflict, "`diskprep job show` tells where the job is"),
    HTTPStatus.PRECONDITION_FAILED: (JobConflict, "`diskprep job show` tells where the job is"),
}


def _refusal(doing: str, status: int, reason: str, code: str) -> DiskprepError:
    kind, hint = _REFUSALS.get(status, (ServiceError, ""))
    if status == HTTPStatus.NOT_FOUND and code in _NOT_SEEN:
        kind, hint = _REFUSALS[HTTPStatus.UNAUTHORIZED]
    elif status == HTTPStatus.NOT_FOUND and not code:
        kind, hint = ServiceError, "something else answers at this address: a proxy, or a wrong --endpoint"
    elif code == "MissingSubscriptionRegistration":
        kind, hint = ServiceError, "az provider register --namespace Microsoft.ImportExport"
    elif _is_passing(status):
        hint = "the service is busy or in trouble; give the same command again later"
    return kind(f"cannot {doing}: {reason or f'an unexpected answer (HTTP {status})'}", hint=hint)
