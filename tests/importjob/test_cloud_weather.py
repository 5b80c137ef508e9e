"""Every call in every weather: what passes is waited out and leaves one change, what stays is told with a bound."""

from __future__ import annotations

import email.utils
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from weather import (
    PACKAGE,
    PASSWORD,
    REQUEST,
    SENDER,
    TOKEN,
    Cloud,
    Fault,
    Waits,
    answered,
    connect,
    refused,
    sky,
)

from diskprep import clock
from diskprep.errors import DiskprepError, JobConflict, NotFound, NotSignedIn, ServiceError
from diskprep.importjob.asking import Patience
from diskprep.importjob.client import AzureImportService
from diskprep.importjob.model import JobState
from diskprep.secrets import Secret


@pytest.fixture(scope="module")
def new_cloud() -> Iterator[Callable[[], Cloud]]:
    with sky() as new:
        yield new


@pytest.fixture
def cloud(new_cloud: Callable[[], Cloud]) -> Cloud:
    return new_cloud()


Call = Callable[[AzureImportService], object]

#: name -> the call, what must be committed in the end, how many requests it makes
CALLS: dict[str, tuple[Call, list[str], int]] = {
    "create": (lambda service: service.create(REQUEST), ["create"], 1),
    "get": (lambda service: service.get("a-job"), [], 1),
    "list": (lambda service: service.list(), [], 1),
    "ship": (lambda service: service.ship("a-job", PACKAGE, return_address=SENDER), ["ship"], 1),
    "cancel": (lambda service: service.cancel("a-job"), ["cancel"], 1),
    "delete": (lambda service: service.delete("a-job"), ["delete"], 1),
    "keep_alive": (lambda service: service.keep_alive("a-job"), ["touch"], 2),
    "recovery_passwords": (lambda service: service.recovery_passwords("a-job"), [], 1),
    "locations": (lambda service: service.locations(), [], 1),
    "location": (lambda service: service.location("westeurope"), [], 1),
}

#: Trouble that passes. Those that are `done` are answers that were lost after the change was made.
PASSING: dict[str, Fault] = {
    "429 with Retry-After": refused(429, Retry_After="7"),
    "429 without": refused(429),
    "408": refused(408),
    "500": refused(500),
    "500 after it was done": replace(refused(500), done=True),
    "502 in HTML": Fault(status=502, body=b"<html>Bad Gateway"),
    "503 with a date": refused(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "503 with nonsense": refused(503, Retry_After="soon"),
    "504 after it was done": Fault(status=504, done=True),
    "reset before": Fault(reset=True),
    "reset after": Fault(reset=True, done=True),
    "half a body": Fault(half=True, done=True),
    "half a chunk": Fault(half=True, done=True, chunked=True),
    "bad JSON": answered(b"{"),
    "bad JSON after it was done": Fault(status=200, body=b'{"name": "a-job", "prope', done=True),
    "HTML instead": answered(b"<html>Please sign in to the hotel's network"),
    "not text": answered(b"\xff\xfe\x00"),
}


#: The answer to a deletion has no body that could be halved.
_EMPTY_ANSWERS = {("delete", "half a body"), ("delete", "half a chunk")}


def prepare(cloud: Cloud, name: str) -> None:
    """The job that a call is about; nothing of it counts."""
    if name != "create":
        connect(cloud).create(REQUEST)
    cloud.committed.clear()
    cloud.seen.clear()


@pytest.mark.parametrize("trouble", PASSING)
@pytest.mark.parametrize("name", CALLS)
def test_trouble_that_passes_leaves_one_change(cloud: Cloud, name: str, trouble: str) -> None:
    call, committed, requests = CALLS[name]
    for struck in range(requests):
        cloud.jobs.clear()
        prepare(cloud, name)
        waits = Waits()
        cloud.forecast = [None] * struck + [PASSING[trouble]]
        found = call(connect(cloud, waits))
        assert cloud.forecast == []
        assert len(waits.pauses) == (0 if (name, trouble) in _EMPTY_ANSWERS else 1)
        if waits.pauses:
            first, second = cloud.seen[struck : struck + 2]
            assert first.headers["x-ms-client-request-id"] == second.headers["x-ms-client-request-id"]
        # A create or an update that is carried out twice leaves what one leaves.
        assert list(dict.fromkeys(cloud.committed)) == committed
        if name in ("create", "get", "ship", "cancel", "keep_alive"):
            assert list(cloud.jobs) == ["a-job"]
            assert getattr(found, "name", "") == "a-job"
        if name == "ship":
            assert getattr(found, "state", "") == JobState.SHIPPING
            assert cloud.committed == ["ship"]
        if name == "cancel":
            assert getattr(found, "cancel_requested", False) is True
            assert cloud.committed == ["cancel"]
        if name == "delete":
            assert cloud.jobs == {}
        if name == "recovery_passwords":
            assert found == {"D": Secret(PASSWORD)}


#: Trouble that stays: what it is told as, and after how many requests.
LASTING: dict[str, tuple[Fault, type[DiskprepError], int]] = {
    "429": (refused(429), ServiceError, 5),
    "500": (refused(500), ServiceError, 5),
    "503": (refused(503, Retry_After="1"), ServiceError, 5),
    "501": (refused(501), ServiceError, 1),
    "reset": (Fault(reset=True), ServiceError, 5),
    "half a body": (Fault(status=200, body=b"{}" * 99, half=True), ServiceError, 5),
    "bad JSON": (answered(b"{"), ServiceError, 5),
    "deep JSON": (answered(b"[" * 100_000), ServiceError, 5),
    "redirect": (refused(302, Location="http://127.0.0.1:9/"), ServiceError, 1),
    "400": (refused(400), ServiceError, 1),
    "403": (refused(403), NotSignedIn, 1),
    "403 without a reason": (Fault(status=403), NotSignedIn, 1),
    "404": (refused(404), NotFound, 1),
    "409": (refused(409), JobConflict, 1),
    "409 in odd words": (Fault(status=409, body=b'{"error": {"code": 5, "details": {"a": 1}}}'), JobConflict, 1),
    "409 in a list": (Fault(status=409, body=b"[5]"), JobConflict, 1),
    "409 not registered": (refused(409, "MissingSubscriptionRegistration"), ServiceError, 1),
    "412": (refused(412), JobConflict, 1),
}


@pytest.mark.parametrize("trouble", LASTING)
@pytest.mark.parametrize("name", CALLS)
def test_trouble_that_stays_is_told_after_a_bounded_time(cloud: Cloud, name: str, trouble: str) -> None:
    call, _, _ = CALLS[name]
    fault, expected, requests = LASTING[trouble]
    prepare(cloud, name)
    waits = Waits()
    cloud.climate = fault
    if name == "list" and expected is NotSignedIn:
        requests += 1  # the resource group is asked, too
    with pytest.raises(DiskprepError) as caught:
        call(connect(cloud, waits))
    assert type(caught.value) is expected
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert caught.value.message.isprintable()
    assert caught.value.hint or requests == 1
    assert len(cloud.seen) == requests
    assert waits.moment_s <= 60
    assert cloud.committed == []


#: Answers in good form that say nothing of what was asked.
STRANGE: dict[str, object] = {
    "a list": [],
    "a text": "x",
    "a number": 7,
    "null": None,
    "nothing in it": {},
    "odd properties": {"name": "a-job", "properties": 5, "value": 5},
    "no properties": {"name": "a-job", "properties": None, "value": [{"name": "b"}, None]},
    "odd drives": {"name": "a-job", "properties": {"driveList": 7}, "value": [{"name": 1, "properties": []}]},
    "no drive": {"name": "a-job", "properties": {"driveList": [None, {"driveId": None}]}, "value": [[]]},
    "odd numbers": {"name": "a-job", "properties": {"percentComplete": "many"}, "value": [7]},
    "odd package": {"name": "a-job", "properties": {"deliveryPackage": {"driveCount": {}, "shipDate": 5}}},
    "numbers without end": b'{"name": "a-job", "properties": {"percentComplete": 1e999}, "value": [7]}',
    "long numbers": b'{"name": "a-job", "properties": {"percentComplete": %s}}' % (b"9" * 5000),
}


@pytest.mark.parametrize("answer", STRANGE)
@pytest.mark.parametrize("name", CALLS)
def test_a_strange_answer_is_shown_or_told_and_never_a_crash(cloud: Cloud, name: str, answer: str) -> None:
    call, _, _ = CALLS[name]
    prepare(cloud, name)
    cloud.climate = answered(STRANGE[answer])
    try:
        found = call(connect(cloud))
    except ServiceError as error:
        told = error.message
    else:
        told = repr(found)
    assert told
    assert PASSWORD not in told
    if name in ("create", "get", "ship", "cancel", "keep_alive") and answer in ("null", "nothing in it", "odd drives"):
        assert told.startswith("cannot ")


def test_a_call_that_a_strange_answer_satisfies_holds_nothing_strange(cloud: Cloud) -> None:
    cloud.climate = answered({"value": [{"id": 5, "name": None, "properties": {"supportedCarriers": [None, 1]}}]})
    found = connect(cloud).locations()
    assert [place.carriers for place in found] == [("", "1")]


def test_a_lost_creation_that_was_shipped_meanwhile_is_the_same_job(cloud: Cloud) -> None:
    prepare(cloud, "create")
    service = connect(cloud)
    service.create(REQUEST)
    cloud.jobs["a-job"]["properties"]["state"] = "Shipping"
    with pytest.raises(JobConflict):
        service.create(REQUEST)  # nothing was lost: the conflict is real
    cloud.forecast = [Fault(reset=True)]
    assert service.create(REQUEST).state == JobState.SHIPPING
    cloud.jobs["a-job"]["properties"]["driveList"][0]["driveId"] = "ANOTHER"
    cloud.forecast = [Fault(reset=True)]
    with pytest.raises(JobConflict):
        service.create(REQUEST)


def test_a_conflict_after_a_lost_answer_is_real_when_the_job_is_not_as_wanted(cloud: Cloud) -> None:
    prepare(cloud, "ship")
    service = connect(cloud)
    service.ship("a-job", PACKAGE, return_address=SENDER)
    cloud.forecast = [Fault(reset=True)]
    with pytest.raises(JobConflict):
        service.ship("a-job", replace(PACKAGE, tracking_number="OTHER-1"), return_address=SENDER)
    cloud.forecast = [Fault(reset=True)]
    assert service.ship("a-job", PACKAGE, return_address=SENDER).state == JobState.SHIPPING


def test_a_job_that_was_not_there_is_not_deleted(cloud: Cloud) -> None:
    with pytest.raises(NotFound):
        connect(cloud).delete("a-job")
    cloud.forecast = [refused(429)]  # nothing was carried out
    with pytest.raises(NotFound):
        connect(cloud).delete("a-job")


def test_pauses_grow_with_jitter_and_end_at_a_limit() -> None:
    patience = Patience()
    pauses = [[patience.pause_s(repeat, None) for _ in range(50)] for repeat in range(12)]
    for repeat, seen in enumerate(pauses):
        assert max(seen) <= min(2.0**repeat, 60)
        assert min(seen) >= min(2.0**repeat, 60) / 2
        assert len(set(seen)) > 1
    assert patience.pause_s(0, 17) == 17
    assert patience.pause_s(0, 1e9) == 60
    assert patience.pause_s(0, -5) == 0


def test_the_service_says_how_long_to_wait_up_to_a_limit(cloud: Cloud) -> None:
    now = datetime.now(UTC)
    later = (now + timedelta(seconds=30)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    waits = Waits()
    cloud.forecast = [
        refused(429, Retry_After="7"),
        refused(503, Retry_After="99999999999999999999"),
        refused(503, Retry_After=later),
    ]
    connect(cloud, waits).list()
    assert waits.pauses[:2] == [7, 60]
    assert 25 <= waits.pauses[2] <= 31


def test_repeats_end_with_the_time_though_not_with_their_number(cloud: Cloud) -> None:
    waits = Waits()
    cloud.climate = refused(503, "ServerBusy", "come back", Retry_After="60")
    with pytest.raises(ServiceError, match=r"ServerBusy: come back \(HTTP 503\)"):
        connect(cloud, waits, repeats=1000).list()
    assert waits.moment_s == 300
    assert len(cloud.seen) == 6


class Tokens:
    """A source whose tokens are numbered; the last of them is kept for ever."""

    def __init__(self, *tokens: str) -> None:
        self.left, self.renewals = list(tokens), 0

    def token(self, *, renew: bool = False) -> Secret[str]:
        if renew:
            self.renewals += 1
            if len(self.left) == 1:
                raise NotSignedIn("there is no other token", hint="az login")
            self.left.pop(0)
        return Secret(self.left[0])


@pytest.mark.parametrize("name", CALLS)
def test_an_expired_token_is_renewed_once_and_the_call_repeated(cloud: Cloud, name: str) -> None:
    call, committed, requests = CALLS[name]
    prepare(cloud, name)
    source, waits = Tokens("expired", TOKEN), Waits()
    call(connect(cloud, waits, source))
    assert cloud.committed == committed
    assert source.renewals == 1
    assert waits.pauses == []
    assert [seen.headers["Authorization"] for seen in cloud.seen] == ["Bearer expired"] + [f"Bearer {TOKEN}"] * requests


@pytest.mark.parametrize("name", CALLS)
def test_a_token_that_is_refused_for_ever_is_told_after_one_renewal(cloud: Cloud, name: str) -> None:
    call, committed, _ = CALLS[name]
    prepare(cloud, name)
    source = Tokens("expired", "revoked", "never")
    with pytest.raises(NotSignedIn, match="AuthenticationFailed"):
        call(connect(cloud, token=source))
    assert source.renewals == 1
    assert cloud.committed == []
    assert committed is not None


def test_a_source_without_another_token_says_so_with_its_own_advice(cloud: Cloud) -> None:
    with pytest.raises(NotSignedIn, match=r"AuthenticationFailed.*there is no other token") as caught:
        connect(cloud, token=Tokens("expired")).get("a-job")
    assert caught.value.hint == "az login"
    assert caught.value.__context__ is None


def test_each_expiry_of_a_long_watch_is_renewed(cloud: Cloud) -> None:
    prepare(cloud, "get")
    source = Tokens("first", "second", "third")
    service = connect(cloud, token=source)
    for token in ("first", "second", "third"):
        cloud.tokens = {token}
        assert service.get("a-job").name == "a-job"
        assert service.get("a-job").name == "a-job"
    assert source.renewals == 2


def test_a_role_that_ends_at_the_group_lists_the_group(cloud: Cloud) -> None:
    prepare(cloud, "list")
    for fault in (refused(403), refused(401)):
        cloud.seen.clear()
        source = Tokens(TOKEN, TOKEN)
        cloud.forecast = [fault, fault] if fault.status == 401 else [fault]
        assert [job.name for job in connect(cloud, token=source).list()] == ["a-job"]
        assert "/resourceGroups/" not in cloud.seen[0].path
        assert "/resourceGroups/group/" in cloud.seen[-1].path


def test_the_list_is_of_the_whole_subscription(cloud: Cloud) -> None:
    connect(cloud).list()
    assert [seen.path.split("?")[0] for seen in cloud.seen] == [
        "/subscriptions/00000000-0000-4000-8000-000000000001/providers/Microsoft.ImportExport/jobs"
    ]


def test_keeping_alive_changes_nothing_but_touches_the_job(cloud: Cloud) -> None:
    prepare(cloud, "keep_alive")
    service = connect(cloud)
    before = service.get("a-job")
    assert service.keep_alive("a-job") == before
    assert cloud.committed == ["touch"]
    assert b'"logLevel": "Verbose"' in cloud.seen[-1].body


def test_the_services_time_is_carried_forward(cloud: Cloud) -> None:
    service = connect(cloud)

    def ahead() -> timedelta:
        return service.server_time() - clock.now()

    assert abs(ahead()) < timedelta(seconds=5)
    cloud.date = email.utils.format_datetime(clock.now() + timedelta(days=3), usegmt=True)
    service.list()
    assert abs(ahead() - timedelta(days=3)) < timedelta(seconds=5)
    for nonsense in ("", "yesterday", "Wed, 99 Foo 2026 99:99:99 GMT", "Wed, 21 Oct 2015 07:28:00 +9999"):
        cloud.climate = answered({"value": []})
        cloud.date = nonsense or "-"
        service.list()
        assert abs(ahead() - timedelta(days=3)) < timedelta(seconds=5)
    cloud.climate = refused(503)  # the time of a refusal is as good
    cloud.date = "Wed, 21 Oct 2015 07:28:00 GMT"
    with pytest.raises(ServiceError):
        service.list()
    assert service.server_time().year == 2015
    assert service.server_time().tzinfo is not None


@pytest.mark.parametrize(
    ("answer", "kind", "hint"),
    [
        (refused(404, "ResourceNotFound"), NotFound, ""),
        (refused(404, "SubscriptionNotFound"), NotSignedIn, "--tenant ID"),
        (refused(404, "InvalidSubscriptionId"), NotSignedIn, "--tenant ID"),
        (Fault(status=404, body=b"<html>not here</html>"), ServiceError, "proxy"),
        (Fault(status=404), ServiceError, "proxy"),
    ],
)
def test_only_the_services_word_on_a_job_says_that_it_is_gone(
    cloud: Cloud, answer: Fault, kind: type[DiskprepError], hint: str
) -> None:
    cloud.climate = answer
    with pytest.raises(DiskprepError) as caught:
        connect(cloud).get("a-job")
    assert type(caught.value) is kind
    assert hint in caught.value.hint
