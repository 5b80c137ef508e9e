"""The service's ARM routes: a request in, an answer out. Knows no sockets; `endpoint` carries the bytes.

Names in paths are compared without regard to case; keys are given out by the POST alone; `nextLink` is absolute.
Source: the published REST reference (2016-11-01 and later, which have the same routes) and recorded answers.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from diskprep.datacenter import lifecycle, locations
from diskprep.datacenter.lifecycle import Refusal, StoredJob
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that has passed the door: `base_url` is how the client reached us, `body` is decoded JSON or None."""

    method: str
    target: str
    base_url: str
    body: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status, JSON document (None: an empty body), further headers."""

    status: int
    document: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        return b"" if self.document is None else json.dumps(self.document).encode()


def refusal(code: str, message: str, status: int) -> Answer:
    """An error in the form all ARM services have."""
    return Answer(status=status, document={"error": {"code": code, "message": message}})


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

    def __init__(self, state: State, now: Callable[[], datetime]) -> None:
        self._state, self._now = state, now
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
            ("POST", f"{subscription}{provider}/register", self._provider),
            ("GET", f"{subscription}{provider}", self._provider),
        )
        self._routes = tuple((method, re.compile(path, re.IGNORECASE), call) for method, path, call in routes)

    def handle(self, request: Request) -> Answer:
        """Answer a request; whatever the caller did wrong becomes an ARM error."""
        try:
            answer = self._dispatch(request)
        except Refusal as error:
            answer = refusal(error.code, error.message, error.status)
        request_id = str(uuid.uuid4())
        answer.headers.update(
            {
                "Cache-Control": "no-cache",
                "x-ms-request-id": request_id,
                "x-ms-correlation-request-id": request_id,
                "x-ms-ratelimit-remaining-subscription-writes": "1199",
            }
        )
        return answer

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
                    self._check_version(query, provider=call == self._provider)
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
        if "$filter" in call.query:
            raise Refusal("InvalidFilter", "this stand-in does not filter")
        top, skip = self._number(call, "$top", _PAGE_LIMIT), self._number(call, "$skiptoken", 0)
        if not 1 <= top <= _PAGE_LIMIT:
            raise Refusal("InvalidTop", f"$top is 1 to {_PAGE_LIMIT}")
        jobs = self._state.jobs(call.subscription, call.group or None)
        document: dict[str, Any] = {"value": [_resource(job) for job in jobs[skip : skip + top]]}
        if skip + top < len(jobs):
            query = urlencode({"api-version": call.query["api-version"], "$top": top, "$skiptoken": skip + top})
            document["nextLink"] = f"{call.request.base_url}{urlsplit(call.request.target).path}?{query}"
        return Answer(status=200, document=document)

    def _put_job(self, call: _Call) -> Answer:
        def make(job: StoredJob | None) -> StoredJob:
            if job is None:
                return lifecycle.create(call.subscription, call.group, call.name, call.body, self._now())
            return lifecycle.put_again(job, call.body, self._now())

        new = self._state.put(call.subscription, call.group, call.name, make)
        return Answer(status=201 if new else 200, document=self._state.get(call.key).resource)

    def _get_job(self, call: _Call) -> Answer:
        return Answer(status=200, document=_resource(self._state.get(call.key)))

    def _patch_job(self, call: _Call) -> Answer:
        in_use = self._state.tracking_in_use(call.key)
        job = self._state.change(call.key, lambda job: lifecycle.update(job, call.body, self._now(), in_use))
        return Answer(status=200, document=_resource(job))

    def _delete_job(self, call: _Call) -> Answer:
        self._state.delete(call.key)
        return Answer(status=200)

    def _list_keys(self, call: _Call) -> Answer:
        keys = self._state.get(call.key).keys
        value = [{"driveId": drive_id, "bitLockerKey": key.reveal()} for drive_id, key in keys.items()]
        return Answer(status=200, document={"value": value})

    def _provider(self, call: _Call) -> Answer:
        identity = f"/subscriptions/{call.subscription}/providers/{PROVIDER}"
        return Answer(status=200, document={"id": identity, "namespace": PROVIDER, "registrationState": "Registered"})

    @staticmethod
    def _number(call: _Call, name: str, default: int) -> int:
        text = call.query.get(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise Refusal("InvalidParameter", f"{name} is not a number")
        return int(text)


def _resource(job: StoredJob) -> dict[str, Any]:
    """As answered by all but the PUT that created it: the location under its display name."""
    location = locations.find(job.resource["location"])
    return {**job.resource, "location": location["name"] if location else job.resource["location"]}
