"""A small web server for pages of this machine: `unveil explore`, and a report that follows a training.

It answers by a function of requests, `Request -> Answer`. Pages of other sites in the same browser get nothing: they
reach such a server by a name of their own that leads here (DNS rebinding), or send requests across sites.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..runs.console import harmless, log

MAX_BODY = 1 << 20  # bytes of a request, where an application says no other number
_IDLE_SECONDS = 30.0  # that a connection may wait within a request or between two
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_EVERYWHERE = ("0.0.0.0", "::", "")
_GONE = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError, TimeoutError)  # the browser has left


@dataclass(frozen=True)
class Request:
    """A request that has passed the checks: its path without the query, the query's last values, and the body."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    content_type: str = ""

    def json(self) -> dict[str, Any]:
        """The body as an object. Raises ValueError for a body that is none."""
        try:
            content = json.loads(self.body)
        except ValueError as error:
            raise ValueError(f"the request is no JSON: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"the request is a JSON object; got {type(content).__name__}")
        return content


@dataclass(frozen=True)
class Answer:
    """What is sent: bytes of a media type. Nothing is cached by the browser unless `seconds` says for how long."""

    body: bytes
    content_type: str = "text/html; charset=utf-8"
    status: int = 200
    seconds: int = 0

    @classmethod
    def json(cls, content: object, status: int = 200) -> Answer:
        """An answer of JSON without NaN, which browsers do not read."""
        return cls(json.dumps(content, allow_nan=False).encode(), "application/json", status)

    @classmethod
    def error(cls, message: str, status: int = 400) -> Answer:
        """A message for the page to show, as `{"error": message}`."""
        return cls.json({"error": harmless(message)}, status)


Application = Callable[[Request], Answer]


class Server(ThreadingHTTPServer):
    """A bound server that waits for `run`. Raises ValueError where it cannot listen at `host` and `port`.

    `host` is an address or a name of this machine; port 0 is any free one. A request has at most `max_body` bytes.
    """

    daemon_threads = True  # a request that is being computed does not hold up the end
    allow_reuse_address = sys.platform != "win32"  # there it would share a port that is taken
    request_queue_size = 64

    def __init__(self, application: Application, host: str = "127.0.0.1", port: int = 0, max_body: int = MAX_BODY):
        if not 0 <= port <= 65535:
            raise ValueError(f"--port {port}: a port is a number from 1 to 65535, 0 for any free one")
        self.application, self.host, self.max_body = application, host, max_body
        try:
            where = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            self.address_family = where[0]
            super().__init__(where[4][:2], _Handler)  # type: ignore[arg-type]  # of IPv6 the address is a str as well
        except socket.gaierror as error:
            raise ValueError(f"--host {host} is no address of this machine ({error.strerror})") from error
        except OverflowError as error:
            raise ValueError(f"--host {host} --port {port} is no address") from error
        except OSError as error:
            raise ValueError(_why_not(error, host, port)) from error

    def server_bind(self) -> None:
        """Bind without asking for the machine's name in the network, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(self.allow_reuse_address))
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.host, self.server_address[1]

    @property
    def is_local(self) -> bool:
        """Whether programs of this machine alone can reach it."""
        return self.host == "localhost" or ipaddress.ip_address(str(self.server_address[0])).is_loopback

    @property
    def url(self) -> str:
        """The address to open in a browser of this machine."""
        shown = "127.0.0.1" if self.host in _EVERYWHERE else self.host
        return f"http://{f'[{shown}]' if ':' in shown else shown}:{self.server_port}/"

    def run(self, what: str) -> None:
        """Print where `what` is and answer until Ctrl-C, which is the ordinary end."""
        try:
            if not self.is_local:
                log(f"warning: whoever reaches port {self.server_port} of this machine sees and uses this page")
            print(f"{what}: {self.url}  (Ctrl-C ends it)", flush=True)
            self.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            log("\nended")
        finally:
            self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a browser that has left in the middle of an answer."""
        if not isinstance(sys.exc_info()[1], _GONE):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # as the base class calls it

    def knows(self, host_header: str) -> bool:
        """Whether a request's Host names this machine as its user does: an address, or a name that it goes by."""
        name = (urlsplit(f"//{host_header}").hostname or "").rstrip(".")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            names = {*_LOOPBACK, self.host.lower()}
            return name in (names if self.is_local else names | {socket.gethostname().lower()})
        return True  # another site has a name: an address can be no other's


class _Handler(BaseHTTPRequestHandler):
    """Checks a request, asks the application and sends its answer."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "unveil", ""
    timeout = _IDLE_SECONDS
    disable_nagle_algorithm = True  # head and body are two packets, and the second would wait for 40 ms
    wbufsize = -1

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: requests are no news to who started the command."""

    def _answer(self) -> None:
        try:
            answer = self._refused() or self._computed()
            self._send(answer)
        except _GONE:
            self.close_connection = True

    def _refused(self) -> Answer | None:
        """What a request is told that does not come from a page of this server."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        try:
            is_known = self.server.knows(host)
        except ValueError:
            is_known = False
        if not is_known:
            self.close_connection = True
            return Answer.error(f"this server is not {host or 'without a Host'}: open {self.server.url}", 403)
        fetched = self.headers.get("Sec-Fetch-Site", "none")
        is_link = self.command == "GET" and self.headers.get("Sec-Fetch-Dest") == "document"  # a click on an address
        is_own = origin is None or origin == f"http://{host}"
        if not is_own or (fetched not in ("none", "same-origin") and not is_link):
            self.close_connection = True
            return Answer.error("this request comes from another site, which may not ask", 403)
        return None

    def _computed(self) -> Answer:
        body = self._body()
        if isinstance(body, Answer):
            self.close_connection = True  # what was not read would be taken for the next request
            return body
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        method = "GET" if self.command == "HEAD" else self.command
        request = Request(method, url.path, query, body, self.headers.get("Content-Type", ""))
        try:
            return self.server.application(request)
        except (ValueError, OSError) as error:
            return Answer.error(str(error) or type(error).__name__)
        except Exception:  # a fault of ours ends this request, and nothing else
            traceback.print_exc()
            return Answer.error("this is a fault of unveil: the terminal has the lines to report", 500)

    def _body(self) -> bytes | Answer:
        """The body of a request, or why it is not read."""
        if self.command != "POST":
            return b""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            return Answer.error("a request needs its length", 411)
        if int(length) > self.server.max_body:
            most = self.server.max_body / 2**20
            return Answer.error(f"{int(length) / 2**20:,.1f} MiB are too many: at most {most:g} are taken", 413)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionAbortedError
        return body

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", f"private, max-age={answer.seconds}" if answer.seconds else "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Frame-Options", "DENY")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        self.wfile.flush()


def _why_not(error: OSError, host: str, port: int) -> str:
    """Why nothing can listen there, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return f"--port {port} is taken by another program; give another --port, or none for any that is free"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"--port {port} is not for everyone: give one above 1023, or none for any that is free"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host} is no address of this machine; give 127.0.0.1, or 0.0.0.0 for all of its addresses"
    return f"nothing can listen at {host}, port {port}: {error.strerror or error}"
