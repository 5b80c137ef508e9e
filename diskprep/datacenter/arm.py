"""The service's ARM routes: a request in, an answer out. Knows no sockets; `endpoint` carries the bytes.

Names in paths are compared without regard to case; keys are given out by the POST alone; `nextLink` is absolute.
Source: the published REST reference (2016-11-01 and later, which have the same routes) and recorded answers.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from diskprep.datacenter import lifecycle, locations
from diskprep.datacenter.bodies import Mode
from diskprep.datacenter.faults import ServiceFault
from diskprep.datacenter.filters import parse_filter
from diskprep.datacenter.lifecycle import StoredJob
from diskprep.datacenter.orders import Order
from diskprep.datacenter.refusal import Refusal
from diskprep.datacenter.state import State, job_key

PROVIDER = "Microsoft.ImportExport"
API_VERSIONS = ("2016-11-01", "2020-08-01", "2021-01-01")
_PROVIDER_API_VERSION = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}")
_PAGE_LIMIT = 100
_QUERY_LIMIT = 20
_OPERATIONS = (
    "locations/read",
    "jobs/read",
    "jobs/write",
    "jobs/delete",
    "jobs/listBitLockerKeys/action",
    "register/action",
)
#: The first number of calls that an answer of ours says are left; recorded answers begin there.
_CALLS_LEFT = {"GET": ("reads", 11999), "DELETE": ("deletes", 14999)}
_WRITES_LEFT = ("writes", 1199)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that has passed the door: `base_url` is how the client reached us, `body` is decoded JSON or None."""

    method: str
    target: str
    base_url: str
    body: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status, JSON document (None: an empty body), further headers. `lost`: the client never gets it."""

    status: int
    document: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    lost: bool = False

    def encode(self) -> bytes:
        return b"" if self.document is None else json.dumps(self.document).encode()


def refused(error: Refusal) -> Answer:
    """An error in the form all ARM services have."""
    return Answer(status=error.status, document={"error": error.document()})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A request taken apart."""

    request: Request
    query: dict[str, str]
    subscription: str = ""
    group: str = ""
    name: str = ""

    @property
    def key(self) -> str:
        return job_key(self.subscription, self.group, self.name)

    @property
    def body(self) -> dict[str, Any]:
        if not isinstance(self.request.body, dict):
            raise Refusal("InvalidRequestContent", "the body is not a JSON object")
        return self.request.body


class Arm:
    """The routes over one State."""

    def __init__(self, state: State, mode: Mode = Mode.STRICT) -> None:
        self._state, self._mode = state, mode
        subscription, group = "/subscriptions/(?P<subscription>[^/]+)", "/resourceGroups/(?P<group>[^/]+)"
        provider = f"/providers/{re.escape(PROVIDER)}"
        job = f"{subscription}{group}{provider}/jobs/(?P<name>[^/]+)"
        routes: tuple[tuple[str, str, Callable[[_Call], Answer]], ...] = (
            ("GET", f"{provider}/locations", self._list_locations),
            ("GET", f"{provider}/locations/(?P<name>[^/]+)", self._get_location),
            ("GET", f"{provider}/operations", self._list_operations),
            ("GET", f"{subscription}{provider}/jobs", self._list_jobs),
            ("GET", f"{subscription}{group}{provider}/jobs", self._list_jobs),
            ("PUT", job, self._put_job),
            ("GET", job, self._get_job),
            ("PATCH", job, self._patch_job),
            ("DELETE", job, self._delete_job),
            ("POST", f"{job}/listBitLockerKeys", self._list_keys),
            ("POST", f"{subscription}{provider}/register", self._register),
            ("GET", f"{subscription}{provider}", self._provider),
        )
        self._routes = tuple((method, re.compile(path, re.IGNORECASE), call) for method, path, call in routes)

    def now(self) -> datetime:
        """The stand-in's time, which answers are dated with."""
        return self._state.clock()

    def handle(self, request: Request) -> Answer:
        """Answer a request; whatever the caller did wrong becomes an ARM error, and what was ordered goes wrong."""
        order = self._state.orders.take(request.method)
        try:
            answer = self._dispatch(request) if order is None or order.fault is ServiceFault.ANSWER_LOST else None
        except Refusal as error:
            answer = refused(error)
        if answer is None:
            assert order is not None, "else the request was carried out"
            answer = _struck(order)
        answer.headers.update(self._headers(request.method))
        return replace(answer, lost=order is not None and order.fault is ServiceFault.ANSWER_LOST)

    def _headers(self, method: str) -> dict[str, str]:
        request_id = str(uuid.uuid4())
        kind, left = _CALLS_LEFT.get(method, _WRITES_LEFT)
        return {
            "Cache-Control": "no-cache",
            "Pragma": "no-cache",
            "Expires": "-1",
            "x-ms-request-id": request_id,
            "x-ms-correlation-request-id": request_id,
            "x-ms-routing-request-id": f"LOOPBACK:{self.now():%Y%m%dT%H%M%SZ}:{request_id}",
            f"x-ms-ratelimit-remaining-subscription-{kind}": str(left),
            "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
            "X-Content-Type-Options": "nosniff",
        }

    def _dispatch(self, request: Request) -> Answer:
        try:
            target = urlsplit(request.target)
            fields = parse_qs(target.query, max_num_fields=_QUERY_LIMIT)
        except ValueError:
            raise Refusal("InvalidRequestContent", "the request's target is malformed") from None
        path = unquote(target.path, errors="replace").rstrip("/")
        query = {name.lower(): values[-1] for name, values in fields.items()}
        known_path = False
        for method, pattern, call in self._routes:
            if match := pattern.fullmatch(path):
                known_path = True
                if method == request.method:
                    provider = call in (self._provider, self._register)
                    self._check_version(query, provider=provider)
                    if "subscription" in match.groupdict() and not provider:
                        self._check_registered()
                    return call(_Call(request=request, query=query, **match.groupdict()))
        if known_path:
            raise Refusal("MethodNotAllowed", f"{request.method} is not allowed here", 405)
        raise Refusal("ResourceNotFound", "there is no such resource", 404)

    @staticmethod
    def _check_version(query: dict[str, str], *, provider: bool) -> None:
        version = query.get("api-version")
        if version is None:
            raise Refusal("MissingApiVersionParameter", "the api-version query parameter is required for all requests")
        if not (_PROVIDER_API_VERSION.fullmatch(version) if provider else version in API_VERSIONS):
            supported = ", ".join(API_VERSIONS)
            raise Refusal("NoRegisteredProviderFound", f"the api-version is not supported; supported are {supported}")

    def _list_locations(self, _call: _Call) -> Answer:
        return Answer(status=200, document={"value": list(locations.LOCATIONS.values())})

    def _get_location(self, call: _Call) -> Answer:
        location = locations.find(call.name)
        if location is None:
            raise Refusal("ResourceNotFound", "there is no such location", 404)
        return Answer(status=200, document=location)

    def _list_operations(self, _call: _Call) -> Answer:
        value = [
            {"name": f"{PROVIDER}/{name}", "display": {"provider": PROVIDER, "resource": name, "operation": name}}
            for name in _OPERATIONS
        ]
        return Answer(status=200, document={"value": value})

    def _list_jobs(self, call: _Call) -> Answer:
        wanted = parse_filter(call.query["$filter"]) if "$filter" in call.query else None
        top, after = self._top(call), self._after(call)
        found = self._state.jobs(call.subscription, call.group or None)
        left = [(key, job) for key, job in found if key > after and (wanted is None or wanted(job))]
        document: dict[str, Any] = {"value": [_resource(job) for _key, job in left[:top]]}
        if len(left) > top:
            token = base64.urlsafe_b64encode(left[top - 1][0].encode()).decode()
            given = [(name, call.query[name]) for name in ("api-version", "$filter") if name in call.query]
            query = urlencode([*given, ("$top", top), ("$skiptoken", token)])
            document["nextLink"] = f"{call.request.base_url}{urlsplit(call.request.target).path}?{query}"
        return Answer(status=200, document=document)

    def _put_job(self, call: _Call) -> Answer:
        def make(job: StoredJob | None) -> StoredJob:
            if job is None:
                return lifecycle.create(call.subscription, call.group, call.name, call.body, self.now())
            return lifecycle.put_again(job, call.body, self.now())

        job, new = self._state.put(call.subscription, call.group, call.name, make)
        return Answer(status=201 if new else 200, document=job.resource)

    def _get_job(self, call: _Call) -> Answer:
        return Answer(status=200, document=_resource(self._state.get(call.key)))

    def _patch_job(self, call: _Call) -> Answer:
        job = self._state.update(
            call.key, lambda job, in_use: lifecycle.update(job, call.body, self.now(), in_use, self._mode)
        )
        return Answer(status=200, document=_resource(job))

    def _delete_job(self, call: _Call) -> Answer:
        self._state.delete(call.key)
        return Answer(status=200)

    def _list_keys(self, call: _Call) -> Answer:
        keys = self._state.get(call.key).keys
        value = [{"driveId": drive_id, "bitLockerKey": key.reveal()} for drive_id, key in keys.items()]
        return Answer(status=200, document={"value": value})

    def _register(self, call: _Call) -> Answer:
        self._state.orders.register()
        return self._provider(call)

    def _provider(self, call: _Call) -> Answer:
        identity = f"/subscriptions/{call.subscription}/providers/{PROVIDER}"
        registered = "NotRegistered" if self._state.orders.unregistered else "Registered"
        return Answer(status=200, document={"id": identity, "namespace": PROVIDER, "registrationState": registered})

    def _check_registered(self) -> None:
        if not self._state.orders.unregistered:
            return
        message = f"the subscription is not registered to use the namespace {PROVIDER!r}"
        reason = Refusal("MissingSubscriptionRegistration", message, 409, target=PROVIDER)
        raise Refusal(reason.code, message, 409, details=[reason])

    @staticmethod
    def _top(call: _Call) -> int:
        text = call.query.get("$top", str(_PAGE_LIMIT))
        if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= _PAGE_LIMIT):
            raise Refusal("InvalidTop", f"$top is 1 to {_PAGE_LIMIT}", target="$top")
        return int(text)

    @staticmethod
    def _after(call: _Call) -> str:
        """The key of the last job on the page before, so that jobs that come and go meanwhile shift nothing."""
        try:
            return base64.b64decode(call.query.get("$skiptoken", "").encode(), b"-_", validate=True).decode()
        except (binascii.Error, ValueError):
            raise Refusal("InvalidSkipToken", "$skiptoken is not one of ours", target="$skiptoken") from None


def _struck(order: Order) -> Answer:
    """What a request gets that is not carried out."""
    if order.fault is ServiceFault.THROTTLED:
        answer = refused(Refusal("TooManyRequests", "too many requests were made; try again later", 429))
        answer.headers["Retry-After"] = str(order.retry_after_s)
    elif order.fault is ServiceFault.TOKEN_EXPIRED:
        answer = refused(Refusal("ExpiredAuthenticationToken", "the access token has expired", 401))
        answer.headers["WWW-Authenticate"] = 'Bearer error="invalid_token", error_description="the token has expired"'
    else:
        answer = refused(Refusal("ServiceUnavailable", "the service is not available; try again later", 503))
    return answer


def _resource(job: StoredJob) -> dict[str, Any]:
    """As answered by all but the PUT that created it: the location under its display name."""
    location = locations.find(job.resource["location"])
    return {**job.resource, "location": location["name"] if location else job.resource["location"]}
