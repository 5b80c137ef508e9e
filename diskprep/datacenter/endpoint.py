"""The stand-in's door: HTTP on 127.0.0.1, for holders of the token only, with limits on everything that comes in.

Nothing is logged. Another name in the Host header is refused, so that no page in a browser reaches the stand-in through
a name that resolves to this computer. Answers are dated with the stand-in's own clock.
"""

from __future__ import annotations

import contextlib
import hmac
import http.client
import io
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NoReturn

from diskprep import clock, durable
from diskprep.datacenter.arm import Answer, Arm, Request, refused
from diskprep.datacenter.refusal import Refusal
from diskprep.errors import DiskprepError
from diskprep.secrets import Secret

HOST: Final = "127.0.0.1"
BODY_LIMIT_BYTES: Final = 1 << 20
HEAD_LIMIT_BYTES: Final = 1 << 16  # the request line and all headers
CONNECTIONS_LIMIT: Final = 64
_DEPTH_LIMIT = 32
_SILENCE_LIMIT_S = 15
_REQUEST_LIMIT_S = 30.0  # for a whole request, so that nobody keeps a thread busy byte by byte
_POLL_S = 0.05  # how soon `stop` is noticed
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Endpoint:
    """A running server. `port` 0 takes a free one."""

    def __init__(self, arm: Arm, token: Secret[str], port: int) -> None:
        try:
            self._server = _Server((HOST, port), _Handler)
        except OSError as error:
            raise durable.storage_error(error, f"listen on {HOST}:{port}") from error
        self._server.arm, self._server.token = arm, token
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="stand-in", daemon=True
        )

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; requests under way are finished or dropped."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = CONNECTIONS_LIMIT
    arm: Arm
    token: Secret[str]

    def __init__(self, *args: Any) -> None:
        self._free = threading.BoundedSemaphore(CONNECTIONS_LIMIT)
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for each connection, up to the limit; who comes after that is told so."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        request.settimeout(0)
        with contextlib.suppress(OSError):
            request.sendall(_BUSY)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event; anything else was answered with 500 already."""


class _Meter(io.RawIOBase):
    """What comes from a client, no longer and no later than is allowed."""

    def __init__(self, connection: socket.socket, silence_s: float) -> None:
        self._connection, self._silence_s = connection, silence_s
        self.allow(HEAD_LIMIT_BYTES)
        self.begin()

    def begin(self) -> None:
        """A new request may come."""
        self._until_s = clock.monotonic_s() + _REQUEST_LIMIT_S

    def allow(self, count: int) -> None:
        """Let this many bytes come."""
        self._left = count

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self._until_s - clock.monotonic_s()
        if left_s <= 0:
            raise TimeoutError("the request takes too long")
        view = memoryview(buffer).cast("B")[: max(self._left, 0)]
        if not view:
            raise http.client.LineTooLong("header")
        self._connection.settimeout(min(self._silence_s, left_s))
        count = self._connection.recv_into(view)
        self._left -= count
        return count


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "Microsoft-HTTPAPI/2.0"
    sys_version = ""
    timeout = _SILENCE_LIMIT_S
    server: _Server

    def setup(self) -> None:
        super().setup()
        self._meter = _Meter(self.connection, self.timeout)
        self.rfile = io.BufferedReader(self._meter)

    def handle_one_request(self) -> None:
        self._meter.begin()
        self._meter.allow(HEAD_LIMIT_BYTES)
        try:
            super().handle_one_request()
        except (http.client.HTTPException, OSError):  # a request line without end, a client that went away
            self.close_connection = True

    def do_GET(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Requests are not logged: they carry keys."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The stand-in's time instead of the computer's."""
        return super().date_time_string(self.server.arm.now().timestamp() if timestamp is None else timestamp)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """What the base class complains of, in the form of all errors here."""
        self.close_connection = True
        self.request_version = self.protocol_version  # else an answer to what cannot be read has no status line
        self._send(refused(Refusal("InvalidRequestContent", message or "the request is malformed", int(code))))

    def _serve(self) -> None:
        try:
            self._door()
            answer = self.server.arm.handle(self._request())
        except Refusal as error:
            answer = refused(error)
            self.close_connection = True  # perhaps the body was not read
        except DiskprepError:
            answer = refused(Refusal("InternalServerError", "the stand-in failed", 500))
        if answer.lost:
            self.close_connection = True
            return
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        body = answer.encode()
        self.connection.settimeout(self.timeout)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if body:
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _door(self) -> None:
        """Let a request in, or raise Refusal."""
        if self.headers.get_all("Host") != [f"{HOST}:{self.server.server_address[1]}"]:
            raise Refusal("InvalidHost", "this stand-in answers to its own address only")
        given = self.headers.get("Authorization", "")
        wanted = f"Bearer {self.server.token.reveal()}"
        if not hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode()):
            raise Refusal("AuthenticationFailed", "authentication failed: the token is missing or not valid", 401)
        lengths = self.headers.get_all("Content-Length", ["0"])
        length = lengths[0]
        if "Transfer-Encoding" in self.headers or len(lengths) > 1 or not (length.isascii() and length.isdigit()):
            raise Refusal("LengthRequired", "a plain Content-Length is required", 411)
        if len(length) > 12 or int(length) > BODY_LIMIT_BYTES:
            raise Refusal("RequestEntityTooLarge", f"a body has at most {BODY_LIMIT_BYTES} bytes", 413)

    def _request(self) -> Request:
        length = int(self.headers.get("Content-Length", "0"))
        self._meter.allow(length)
        data = self.rfile.read(length)
        if len(data) < length:
            raise Refusal("InvalidRequestContent", "the body ends early")
        try:
            body = json.loads(data, parse_constant=_no_number) if data else None
            fine = _depth(body) <= _DEPTH_LIMIT
        except (ValueError, RecursionError):
            raise Refusal("InvalidRequestContent", "the body is not JSON") from None
        if not fine:
            raise Refusal("InvalidRequestContent", "the body is nested too deeply")
        base_url = f"http://{HOST}:{self.server.server_address[1]}"
        return Request(method=self.command, target=self.path, base_url=base_url, body=body)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not in JSON")


def _depth(value: Any) -> int:
    """How deeply lists and objects are nested, without recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, dict))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth
