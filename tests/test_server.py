"""The server of local pages: who is answered, how large a request may be, and how it begins and ends."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from unveil.reporting.server import Answer, Request, Server

SRC = Path(__file__).parents[1] / "src"


def application(request: Request) -> Answer:
    if request.path == "/mistake":
        raise ValueError("give another number")
    if request.path == "/fault":
        raise RuntimeError("of ours")
    if request.method == "POST":
        return Answer.json({"bytes": len(request.body), **request.query})
    return Answer(b"a page")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(application, max_body=1000)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(server: Server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_the_page_comes_to_its_own_user_alone(server: Server):
    own = f"127.0.0.1:{server.server_port}"
    assert server.url == f"http://{own}/"
    assert ask(server, "GET", "/") == (200, "a page")
    assert ask(server, "HEAD", "/") == (200, "")
    assert ask(server, "GET", "/", Host="localhost:9999")[0] == 200  # through a tunnel of ssh
    assert ask(server, "GET", "/", Host="[::1]:9999")[0] == 200
    for host in ("evil.example", f"evil.example:{server.server_port}", "localhost.evil.example", "", "[::1"):
        assert ask(server, "GET", "/", Host=host)[0] == 403, host
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"https://{own}"):
        assert ask(server, "POST", "/x", b"1", Origin=origin)[0] == 403, origin
    assert ask(server, "POST", "/x?a=1&a=2", b"1", Origin=f"http://{own}") == (200, '{"bytes": 1, "a": "2"}')
    assert ask(server, "GET", "/picture", Sec_Fetch_Site="cross-site", Sec_Fetch_Dest="image")[0] == 403
    assert ask(server, "GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Dest="document")[0] == 200  # a link
    assert ask(server, "POST", "/", b"", Sec_Fetch_Site="cross-site", Sec_Fetch_Dest="document")[0] == 403


def test_requests_are_bounded_and_mistakes_are_sentences(server: Server, capfd: pytest.CaptureFixture[str]):
    status, text = ask(server, "POST", "/", bytes(1001))
    assert status == 413
    assert "at most" in text
    assert ask(server, "POST", "/", bytes(1000))[0] == 200
    assert ask(server, "POST", "/", None, Content_Length="-1")[0] == 411
    assert ask(server, "PUT", "/", b"")[0] == 501
    assert ask(server, "GET", "/mistake") == (400, '{"error": "give another number"}')
    assert capfd.readouterr().err == ""
    status, text = ask(server, "GET", "/fault")
    assert status == 500
    assert "of ours" not in text
    assert "RuntimeError: of ours" in capfd.readouterr().err
    with socket.create_connection(("127.0.0.1", server.server_port)) as browser:  # one that leaves in a request
        browser.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\nhalf")
    assert ask(server, "GET", "/")[0] == 200
    assert capfd.readouterr().err == ""
    with pytest.raises(ValueError, match="is no JSON"):
        Request("POST", "/", body=b"{").json()
    with pytest.raises(ValueError, match="JSON object; got list"):
        Request("POST", "/", body=b"[]").json()


def test_a_port_that_is_taken_is_one_sentence(server: Server):
    with pytest.raises(ValueError, match=f"--port {server.server_port} is taken by another program; give another"):
        Server(application, port=server.server_port)
    with pytest.raises(ValueError, match="from 1 to 65535"):
        Server(application, port=70000)
    with pytest.raises(ValueError, match=r"--host 203\.0\.113\.7 is no address of this machine"):
        Server(application, host="203.0.113.7")
    everywhere = Server(application, host="0.0.0.0")
    assert not everywhere.is_local
    assert everywhere.url.startswith("http://127.0.0.1:")
    assert everywhere.knows("192.168.1.2:80")
    assert everywhere.knows(socket.gethostname())
    assert not everywhere.knows("evil.example")
    everywhere.server_close()


def test_ctrl_c_is_the_ordinary_end():
    code = (
        "from unveil.reporting.server import Answer, Server\n"
        "Server(lambda request: Answer(b'')).run('a page')\n"
        "print('after')"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(SRC)},
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline().startswith("a page: http://127.0.0.1:")
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=20)
    assert (child.returncode, out, err) == (0, "after\n", "\nended\n")
