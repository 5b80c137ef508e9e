"""The stand-in's door: HTTP on 127.0.0.1, for holders of the token only, with limits on everything that comes in.

Nothing is logged. Another name in the Host header is refused, so that no page in a browser reaches the stand-in through
a name that resolves to this computer.
"""

from __future__ import annotations

import hmac
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from diskprep import durable
from diskprep.datacenter.arm import Answer, Arm, Request, refusal
from diskprep.errors import DiskprepError
from diskprep.secrets import Secret

HOST = "127.0.0.1"
BODY_LIMIT_BYTES = 1 << 20
_DEPTH_LIMIT = 32
_SILENCE_LIMIT_S = 15
_POLL_S = 0.05  # how soon `stop` is noticed


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
    arm: Arm
    token: Secret[str]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event; anything else was answered with 500 already."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "Microsoft-HTTPAPI/2.0"
    sys_version = ""
    timeout = _SILENCE_LIMIT_S
    server: _Server

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

    def _serve(self) -> None:
        answer = self._door()
        if answer is None:
            try:
                answer = self.server.arm.handle(self._request())
            except _BadRequest as error:
                answer = refusal("InvalidRequestContent", str(error), 400)
                self.close_connection = True
            except DiskprepError:
                answer = refusal("InternalServerError", "the stand-in failed", 500)
        else:
            self.close_connection = True  # the body was not read
        body = answer.encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if body:
            self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _door(self) -> Answer | None:
        """None when the request may be read."""
        if self.headers.get("Host") != f"{HOST}:{self.server.server_address[1]}":
            return refusal("InvalidHost", "this stand-in answers to its own address only", 400)
        given = self.headers.get("Authorization", "")
        wanted = f"Bearer {self.server.token.reveal()}"
        if not hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode()):
            return refusal("AuthenticationFailed", "authentication failed: the token is missing or not valid", 401)
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            return refusal("LengthRequired", "a plain Content-Length is required", 411)
        if len(length) > 12 or int(length) > BODY_LIMIT_BYTES:
            return refusal("RequestEntityTooLarge", f"a body has at most {BODY_LIMIT_BYTES} bytes", 413)
        return None

    def _request(self) -> Request:
        length = int(self.headers.get("Content-Length", "0"))
        data = self.rfile.read(length)
        if len(data) < length:
            raise _BadRequest("the body ends early")
        try:
            body = json.loads(data) if data else None
            if _depth(body) > _DEPTH_LIMIT:
                raise _BadRequest("the body is nested too deeply")
        except (ValueError, RecursionError):
            raise _BadRequest("the body is not JSON") from None
        base_url = f"http://{HOST}:{self.server.server_address[1]}"
        return Request(method=self.command, target=self.path, base_url=base_url, body=body)


class _BadRequest(Exception):
    """The body cannot be used."""


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
