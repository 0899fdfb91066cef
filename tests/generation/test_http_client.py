"""The HTTP client against servers that misbehave, on real sockets."""

import base64
import gzip
import hashlib
import io
import json
import os
import socket
import struct
import threading
import time
import tracemalloc
import zlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.utils import format_datetime

import pytest

from generation.http import (
    MAX_REDIRECTS,
    HttpClient,
    OutputHosts,
    Response,
    TransportError,
    parse_retry_after,
)
from generation.provider import Downloaded, ErrorClass, Failure, InputFile

LOCAL = OutputHosts(extra=("127.0.0.1",))
DEADLINE_S = 0.3
# A loaded machine may be late; without the deadline the drips below take ten times as long.
LATEST_S = 1.5


def reset(sock):
    """Close so that the peer sees a reset rather than an end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    return False


def timed(call):
    started = time.monotonic()
    result = call()
    return result, time.monotonic() - started


def download(http, url, *, hosts=LOCAL, max_bytes=1_000_000, deadline_s=5.0):
    sink = io.BytesIO()
    return http.download(url, sink, hosts=hosts, max_bytes=max_bytes, deadline_s=deadline_s), sink


class TestJson:
    def test_returns_status_headers_and_body(self, http, serve, answer):
        def script(sock, request, server):
            sock.sendall(answer(b'{"a": [1]}', status="201 Created", headers={"X-Thing": "yes"}))
            return True

        result = http.json("GET", serve(script).url())

        assert isinstance(result, Response)
        assert (result.status, result.json()) == (201, {"a": [1]})
        assert result.headers["x-thing"] == "yes"

    def test_sends_the_body_as_json_with_the_given_headers(self, http, serve, answer):
        def script(sock, request, server):
            sock.sendall(answer())
            return True

        server = serve(script)
        http.json("POST", server.url("/p"), headers={"Authorization": "Bearer t"}, json={"a": "é"})

        (request,) = server.requests
        assert request.path == "/p"
        assert json.loads(request.body) == {"a": "é"}
        assert request.headers["content-type"] == "application/json"
        assert request.headers["authorization"] == "Bearer t"

    def test_refuses_to_send_what_is_not_json(self, http, serve, answer):
        server = serve(lambda sock, request, server: True)
        with pytest.raises(ValueError, match="JSON"):
            http.json("POST", server.url(), json={"a": float("nan")})
        assert server.requests == []

    @pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b"", b"\xff\xfe", b"[" * 50_000])
    def test_an_answer_that_is_not_json_parses_to_none(self, http, serve, answer, body):
        def script(sock, request, server):
            sock.sendall(answer(body, status="502 Bad Gateway"))
            return True

        result = http.json("GET", serve(script).url())
        assert isinstance(result, Response)
        assert (result.status, result.json(), result.body) == (502, None, body)

    def test_reuses_the_connection(self, http, serve, answer):
        def script(sock, request, server):
            sock.sendall(answer(b"{}"))
            return True

        server = serve(script)
        for _ in range(5):
            assert isinstance(http.json("GET", server.url()), Response)
        assert len(server.requests) == 5
        assert server.connections == 1

    def test_an_idle_connection_that_the_server_closed_is_not_used_again(self, http, serve, answer):
        closed = threading.Event()

        def script(sock, request, server):
            sock.sendall(answer(b"{}"))  # announces no close
            sock.close()
            closed.set()
            return False

        server = serve(script)
        for _ in range(3):
            assert isinstance(http.json("POST", server.url(), json={}), Response)
            assert closed.wait(2)
            closed.clear()
        assert server.connections == 3

    def test_does_not_follow_a_redirect(self, http, serve, answer):
        def script(sock, request, server):
            sock.sendall(answer(status="302 Found", headers={"Location": "/elsewhere"}))
            return True

        server = serve(script)
        result = http.json("GET", server.url())
        assert isinstance(result, Response)
        assert result.status == 302
        assert [request.path for request in server.requests] == ["/"]

    def test_keeps_no_cookies_and_ignores_the_environment(self, serve, answer, monkeypatch):
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

        def script(sock, request, server):
            sock.sendall(answer(b"{}", headers={"Set-Cookie": "a=b; Path=/"}))
            return True

        server = serve(script)
        with HttpClient() as client:
            for _ in range(2):
                assert isinstance(client.json("GET", server.url()), Response)
        assert all("cookie" not in request.headers for request in server.requests)

    def test_an_answer_that_is_too_large_is_not_read_to_its_end(self, http, serve, answer):
        def script(sock, request, server):
            sock.sendall(answer(b"x" * 300_000))
            return True

        result = http.json("GET", serve(script).url(), max_bytes=1_000)
        assert isinstance(result, TransportError)
        assert (result.kind, result.status, result.too_large) == ("read", 200, True)
        assert "1,000 bytes" in result.message


class TestWhatIsKnownOfALostCall:
    @pytest.mark.parametrize(
        "error", [ConnectionResetError(104, "reset"), BrokenPipeError(32, "broken pipe")]
    )
    def test_a_connection_that_breaks_while_it_is_made_was_never_sent(
        self, http, refused_url, monkeypatch, error
    ):
        # urllib3 takes these for errors of a request that was sent, and would read the answer.
        def breaks(*args, **kwargs):
            raise error

        monkeypatch.setattr("generation.connections.connection.create_connection", breaks)
        result = http.json("POST", refused_url, json={})
        assert isinstance(result, TransportError)
        assert result.kind == "connect"

    def test_refused_connection_was_never_sent(self, http, refused_url):
        result = http.json("POST", refused_url, json={})
        assert isinstance(result, TransportError)
        assert (result.kind, result.status) == ("connect", None)
        assert "connection refused" in result.message

    def test_unknown_host_was_never_sent(self, http, monkeypatch):
        def fail(*args, **kwargs):
            raise socket.gaierror(-2, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", fail)
        result = http.json("POST", "https://api.example.test/", json={})
        assert result == TransportError(
            "connect", "api.example.test: the host name could not be resolved"
        )

    def test_connect_timeout_was_never_sent(self, serve, monkeypatch):
        def never(*args, **kwargs):
            raise TimeoutError("timed out")

        monkeypatch.setattr("urllib3.util.connection.create_connection", never)
        with HttpClient(connect_timeout_s=0.05) as client:
            result = client.json("POST", "http://127.0.0.1:9/", json={})
        assert isinstance(result, TransportError)
        assert (result.kind, result.message) == ("connect", "127.0.0.1:9: timed out")

    def test_failed_tls_handshake_was_never_sent(self, http):
        listener = socket.create_server(("127.0.0.1", 0))
        with listener:
            port = listener.getsockname()[1]

            def plain():
                sock, _ = listener.accept()
                with sock:
                    sock.recv(1024)
                    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

            thread = threading.Thread(target=plain)
            thread.start()
            result = http.json("POST", f"https://127.0.0.1:{port}/", json={})
            thread.join()
        assert isinstance(result, TransportError)
        assert result.kind == "connect"
        assert "TLS failed" in result.message

    def test_reset_after_the_request_is_an_unknown_outcome(self, http, serve):
        server = serve(lambda sock, request, server: reset(sock))
        result = http.json("POST", server.url(), json={})
        assert isinstance(result, TransportError)
        assert (result.kind, result.status) == ("sent", None)
        assert len(server.requests) == 1

    def test_close_without_an_answer_is_an_unknown_outcome(self, http, serve):
        server = serve(lambda sock, request, server: False)
        result = http.json("POST", server.url(), json={})
        assert isinstance(result, TransportError)
        assert result.kind == "sent"
        assert len(server.requests) == 1

    def test_lost_reused_connection_is_an_unknown_outcome_and_not_repeated(
        self, http, serve, answer
    ):
        def script(sock, request, server):
            if len(server.requests) == 1:
                sock.sendall(answer(b"{}"))
                return True
            return reset(sock)

        server = serve(script)
        http.json("POST", server.url(), json={})
        result = http.json("POST", server.url(), json={})
        assert isinstance(result, TransportError)
        assert result.kind == "sent"
        assert len(server.requests) == 2

    def test_cut_off_body_tells_the_status(self, http, serve, answer):
        def script(sock, request, server):
            sock.sendall(answer(b"{", headers={"Content-Length": "100"}))
            return False

        result = http.json("POST", serve(script).url(), json={})
        assert isinstance(result, TransportError)
        assert (result.kind, result.status, result.too_large) == ("read", 200, False)
        assert "cut off" in result.message

    def test_garbage_instead_of_http_is_an_unknown_outcome(self, http, serve):
        def script(sock, request, server):
            sock.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")
            return False

        result = http.json("POST", serve(script).url(), json={})
        assert isinstance(result, TransportError)
        assert result.kind == "sent"

    def test_messages_never_hold_a_header_or_the_path(self, http, refused_url):
        result = http.json(
            "POST", f"{refused_url}/hook-secret", headers={"Authorization": "Bearer r8_x\nsecret"}
        )
        assert isinstance(result, TransportError)
        assert "secret" not in result.message
        assert "r8_x" not in result.message


class TestDeadline:
    def test_ends_a_hang(self, http, serve):
        def script(sock, request, server):
            server.hang()
            return False

        server = serve(script)
        result, took_s = timed(
            lambda: http.json("POST", server.url(), json={}, deadline_s=DEADLINE_S)
        )
        assert isinstance(result, TransportError)
        assert result.kind == "sent"
        assert DEADLINE_S * 0.9 <= took_s < LATEST_S

    @pytest.mark.parametrize(
        ("at_once", "dripped", "kind", "status"),
        [
            (b"", b"HTTP/1.1" + b" " * 50, "sent", None),
            (b"HTTP/1.1 200 OK\r\n", b"X-Drip: 1\r\n" * 20, "read", 200),
        ],
        ids=["status line", "headers"],
    )
    def test_ends_a_dripping_head(self, http, serve, at_once, dripped, kind, status):
        def script(sock, request, server):
            sock.sendall(at_once)
            server.drip(sock, dripped)
            return False

        server = serve(script)
        result, took_s = timed(
            lambda: http.json("POST", server.url(), json={}, deadline_s=DEADLINE_S)
        )
        assert isinstance(result, TransportError)
        assert (result.kind, result.status) == (kind, status)
        assert "deadline" in result.message
        assert took_s < LATEST_S

    @pytest.mark.parametrize(
        "head",
        [b"Content-Length: 200\r\n", b"Connection: close\r\n"],
        ids=["length", "until-close"],
    )
    def test_ends_a_dripping_body(self, http, serve, head):
        def script(sock, request, server):
            sock.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")
            server.drip(sock, b"x" * 200)
            return False

        server = serve(script)
        result, took_s = timed(lambda: http.json("GET", server.url(), deadline_s=DEADLINE_S))
        assert isinstance(result, TransportError)
        assert (result.kind, result.status) == ("read", 200)
        assert "deadline" in result.message
        assert took_s < LATEST_S

    def test_ends_a_dripping_chunked_body(self, http, serve):
        def script(sock, request, server):
            sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            server.drip(sock, b"1\r\nx\r\n" * 40)
            return False

        server = serve(script)
        result, took_s = timed(lambda: http.json("GET", server.url(), deadline_s=DEADLINE_S))
        assert isinstance(result, TransportError)
        assert result.kind == "read"
        assert took_s < LATEST_S

    @pytest.mark.parametrize("look_up_s", [0, DEADLINE_S * 0.8], ids=["at once", "in time"])
    def test_ends_a_dripping_tls_handshake(self, http, monkeypatch, look_up_s):
        look_up = socket.getaddrinfo

        def slow_look_up(*args, **kwargs):
            time.sleep(look_up_s)
            return look_up(*args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", slow_look_up)
        record = b"\x16\x03\x03\x3f\xff" + bytes(200)  # the head of a record that never ends
        stopping = threading.Event()
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def script():
                sock, _ = listener.accept()
                with sock:
                    for byte in record:
                        try:
                            sock.sendall(bytes([byte]))
                        except OSError:
                            return
                        if stopping.wait(0.02):
                            return

            thread = threading.Thread(target=script)
            thread.start()
            url = f"https://localhost:{listener.getsockname()[1]}/"
            result, took_s = timed(lambda: http.json("POST", url, json={}, deadline_s=DEADLINE_S))
            stopping.set()
            thread.join()
        assert isinstance(result, TransportError)
        assert result.kind == "connect"
        assert took_s < LATEST_S

    def test_that_passes_while_connecting_leaves_the_request_unsent(self, http, serve, monkeypatch):
        server = serve(lambda sock, request, server: False)
        look_up = socket.getaddrinfo

        def slow_look_up(*args, **kwargs):
            server.hang(DEADLINE_S * 1.5)
            return look_up(*args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", slow_look_up)
        result = http.json("POST", server.url(), json={}, deadline_s=DEADLINE_S)
        assert isinstance(result, TransportError)
        assert (result.kind, server.requests) == ("connect", [])

    def test_holds_on_a_reused_connection(self, http, serve, answer):
        def script(sock, request, server):
            if len(server.requests) == 1:
                sock.sendall(answer(b"{}"))
                return True
            server.drip(sock, answer(b"x" * 200))
            return False

        server = serve(script)
        http.json("GET", server.url())
        result, took_s = timed(lambda: http.json("GET", server.url(), deadline_s=DEADLINE_S))
        assert isinstance(result, TransportError)
        assert server.connections == 1
        assert took_s < LATEST_S

    def test_of_one_exchange_leaves_the_next_one_on_its_connection_alone(self, http, serve, answer):
        def script(sock, request, server):
            if len(server.requests) == 2:
                server.hang(DEADLINE_S * 2)
            sock.sendall(answer(b"{}"))
            return True

        server = serve(script)
        assert isinstance(http.json("GET", server.url(), deadline_s=DEADLINE_S), Response)
        assert isinstance(http.json("GET", server.url(), deadline_s=5), Response)
        assert server.connections == 1

    def test_of_many_threads_needs_one_thread(self, http, serve, answer):
        def script(sock, request, server):
            server.hang()
            return False

        server = serve(script)
        results = []
        threads = [
            threading.Thread(
                target=lambda: results.append(http.json("GET", server.url(), deadline_s=DEADLINE_S))
            )
            for _ in range(20)
        ]
        _, took_s = timed(lambda: [t.start() for t in threads] + [t.join() for t in threads])
        assert [type(result) for result in results] == [TransportError] * 20
        assert took_s < LATEST_S
        names = [t.name for t in threading.enumerate()]
        assert names.count("http-deadlines") == 1

    def test_holds_in_a_forked_child(self, http, serve, answer):
        def script(sock, request, server):
            if request.path == "/quick":
                sock.sendall(answer(b"{}"))
                return True
            server.drip(sock, answer(b"x" * 200))
            return False

        server = serve(script)
        assert isinstance(http.json("GET", server.url("/quick")), Response)
        pid = os.fork()
        if pid == 0:
            result, took_s = timed(
                lambda: http.json("GET", server.url("/slow"), deadline_s=DEADLINE_S)
            )
            os._exit(0 if isinstance(result, TransportError) and took_s < LATEST_S else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert isinstance(http.json("GET", server.url("/quick")), Response)
        # The child opened a connection of its own and left the parent's alone.
        assert [request.connection for request in server.requests] == [1, 2, 1]


def input_file(content=b"bytes of a cat", **fields):
    file = InputFile(
        filename="cat.png",
        content_type="image/png",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        open=lambda: io.BytesIO(content),
    )
    return replace(file, **fields)


def form_of(request):
    """Return the parts of a form as (name, filename, type, content)."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    return [
        (
            part.get_param("name", header="content-disposition"),
            part.get_filename(),
            part.get_content_type() if part["content-type"] else None,
            part.get_payload(decode=True),
        )
        for part in message_from_bytes(head + request.body).get_payload()
    ]


class TestUpload:
    @pytest.fixture
    def server(self, serve, answer):
        def script(sock, request, server):
            sock.sendall(answer(b'{"id": "f1"}', status="201 Created"))
            return True

        return serve(script)

    def test_sends_a_form_with_the_file(self, http, server):
        content = os.urandom(200_000)
        result = http.upload(
            server.url("/files"),
            input_file(content),
            field="content",
            fields={"type": "input", "text": "ä\r\nb"},
            headers={"Authorization": "Bearer t"},
        )
        assert isinstance(result, Response)
        assert (result.status, result.json()) == (201, {"id": "f1"})
        (request,) = server.requests
        assert request.head.startswith("POST /files ")
        assert request.headers["authorization"] == "Bearer t"
        assert request.headers["content-type"].startswith("multipart/form-data; boundary=")
        assert int(request.headers["content-length"]) == len(request.body)
        assert "transfer-encoding" not in request.headers
        assert form_of(request) == [
            ("type", None, None, b"input"),
            ("text", None, None, "ä\r\nb".encode()),
            ("content", "cat.png", "image/png", content),
        ]

    @pytest.mark.parametrize("size_bytes", [0, 1, 65_535, 65_536, 65_537])
    def test_sends_files_of_any_size(self, http, server, size_bytes):
        content = os.urandom(size_bytes)
        assert isinstance(http.upload(server.url(), input_file(content), field="f"), Response)
        assert form_of(server.requests[0])[0][3] == content

    def test_sends_another_name_when_told(self, http, server):
        http.upload(server.url(), input_file(), field="image", filename="attempt-1.png")
        assert form_of(server.requests[0])[0][:2] == ("image", "attempt-1.png")

    @pytest.mark.parametrize(
        "filename", ['a"; name="b', "a\r\nX-Header: b", "a\r\n\r\nbody", "ä.png", "a\\b"]
    )
    def test_keeps_names_within_their_header(self, http, server, filename):
        http.upload(server.url(), input_file(), field="f", filename=filename)
        ((name, _, content_type, content),) = form_of(server.requests[0])
        assert (name, content_type, content) == ("f", "image/png", b"bytes of a cat")

    def test_shares_connections_with_other_calls(self, http, server):
        http.json("GET", server.url())
        http.upload(server.url(), input_file(), field="f")
        http.json("GET", server.url())
        assert server.connections == 1

    def test_holds_little_of_the_file_in_memory(self, http):
        size_bytes = 30_000_000

        class Zeros(io.RawIOBase):
            left_bytes = size_bytes

            def read(self, at_most=-1):
                assert 0 < at_most <= 1_000_000
                given = min(at_most, self.left_bytes)
                self.left_bytes -= given
                return bytes(given)

        received = []
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def count():
                sock, _ = listener.accept()
                total = 0
                with sock:
                    while total < size_bytes + 200 and (data := sock.recv(65536)):
                        total += len(data)
                    received.append(total)
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

            thread = threading.Thread(target=count)
            thread.start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            tracemalloc.start()
            try:
                file = input_file(size_bytes=size_bytes, open=Zeros)
                result = http.upload(url, file, field="f")
                peak_bytes = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            thread.join()
        assert isinstance(result, Response)
        assert received[0] > size_bytes
        assert peak_bytes < 2_000_000

    def test_does_not_follow_a_redirect(self, http, serve, answer):
        def script(sock, request, server):
            sock.sendall(answer(status="307 Again", headers={"Location": "/elsewhere"}))
            return True

        server = serve(script)
        result = http.upload(server.url(), input_file(), field="f")
        assert isinstance(result, Response)
        assert result.status == 307
        assert len(server.requests) == 1

    def test_of_a_file_that_is_gone_asks_nobody(self, http, server):
        def gone():
            raise FileNotFoundError("no such file")

        with pytest.raises(FileNotFoundError):
            http.upload(server.url(), input_file(open=gone), field="f")
        assert server.connections == 0

    @pytest.mark.parametrize(
        ("claimed_bytes", "size_bytes"), [(14, 15), (15, 14), (10, 5_000), (200_000, 10)]
    )
    def test_of_a_file_of_another_length_is_our_fault(self, http, serve, claimed_bytes, size_bytes):
        server = serve(lambda sock, request, server: False)
        file = input_file(bytes(size_bytes), size_bytes=claimed_bytes)
        with pytest.raises(OSError, match="not as long"):
            http.upload(server.url(), file, field="f")
        # It was never whole, so the server cannot have taken it for one.
        assert server.requests == []

    def test_of_a_file_that_is_lost_midway_is_our_fault(self, http, serve):
        class Lost(io.BytesIO):
            def read(self, *args):
                if self.tell():
                    raise OSError("the storage is away")
                return super().read(100_000)

        server = serve(lambda sock, request, server: False)
        file = input_file(size_bytes=300_000, open=lambda: Lost(bytes(300_000)))
        with pytest.raises(OSError, match="the storage is away"):
            http.upload(server.url(), file, field="f")
        assert server.requests == []

    def test_closes_the_file(self, http, server):
        opened = io.BytesIO(b"x")
        http.upload(server.url(), input_file(b"x", open=lambda: opened), field="f")
        assert opened.closed

    def test_without_an_answer_has_an_unknown_outcome(self, http, serve):
        server = serve(lambda sock, request, server: reset(sock))
        result = http.upload(server.url(), input_file(), field="f")
        assert isinstance(result, TransportError)
        assert result.kind == "sent"

    def test_to_nobody_was_never_sent(self, http, refused_url):
        result = http.upload(refused_url, input_file(), field="f")
        assert isinstance(result, TransportError)
        assert result.kind == "connect"

    def test_to_who_does_not_read_ends_at_the_deadline(self, http):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            file = input_file(bytes(20_000_000))
            result, took_s = timed(lambda: http.upload(url, file, field="f", deadline_s=DEADLINE_S))
        assert isinstance(result, TransportError)
        assert result.kind == "sent"
        assert took_s < LATEST_S


class TestDownload:
    def test_writes_the_file_and_tells_size_digest_and_type(self, http, serve, answer):
        content = os.urandom(200_000)

        def script(sock, request, server):
            sock.sendall(answer(content, headers={"Content-Type": "image/webp"}))
            return True

        result, sink = download(http, serve(script).url("/a.webp"))
        assert result == Downloaded(200_000, hashlib.sha256(content).hexdigest(), "image/webp")
        assert sink.getvalue() == content

    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            (403, ErrorClass.OUTPUT_EXPIRED),
            (404, ErrorClass.OUTPUT_EXPIRED),
            (410, ErrorClass.OUTPUT_EXPIRED),
            (408, ErrorClass.DOWNLOAD_FAILED),
            (429, ErrorClass.DOWNLOAD_FAILED),
            (500, ErrorClass.DOWNLOAD_FAILED),
            (503, ErrorClass.DOWNLOAD_FAILED),
            (599, ErrorClass.DOWNLOAD_FAILED),
            (204, ErrorClass.BAD_OUTPUT),
            (304, ErrorClass.BAD_OUTPUT),
            (400, ErrorClass.BAD_OUTPUT),
            (401, ErrorClass.BAD_OUTPUT),
        ],
    )
    def test_classifies_other_statuses(self, http, serve, answer, status, expected):
        def script(sock, request, server):
            sock.sendall(answer(status=f"{status} Whatever"))
            return False

        result, sink = download(http, serve(script).url())
        assert isinstance(result, Failure)
        assert (result.error_class, result.provider_code) == (expected, str(status))
        assert sink.getvalue() == b""

    def test_passes_the_wait_on_that_the_server_asked_for(self, http, serve, answer):
        def script(sock, request, server):
            sock.sendall(answer(status="503 Busy", headers={"Retry-After": "7"}))
            return True

        result, _ = download(http, serve(script).url())
        assert isinstance(result, Failure)
        assert result.retry_after_s == 7.0

    def test_refused_connection_is_worth_repeating(self, http, refused_url):
        result, _ = download(http, refused_url)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.DOWNLOAD_FAILED

    @pytest.mark.parametrize(
        "head",
        [
            b"Content-Length: 1000\r\n\r\n" + b"x" * 10,
            b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n" + b"x" * 10,
        ],
        ids=["length", "chunked"],
    )
    def test_cut_off_file_is_a_failed_download(self, http, serve, head):
        def script(sock, request, server):
            sock.sendall(b"HTTP/1.1 200 OK\r\n" + head)
            return False

        result, _ = download(http, serve(script).url())
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.DOWNLOAD_FAILED

    def test_file_that_does_not_decode_is_a_failed_download(self, http, serve, answer):
        def script(sock, request, server):
            sock.sendall(answer(b"no gzip at all", headers={"Content-Encoding": "gzip"}))
            return True

        result, _ = download(http, serve(script).url())
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.DOWNLOAD_FAILED

    def test_stops_at_the_cap(self, http, serve, answer):
        def script(sock, request, server):
            sock.sendall(answer(b"x" * 500_000))
            return True

        result, sink = download(http, serve(script).url(), max_bytes=100_000)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.BAD_OUTPUT
        assert "100,000 bytes" in result.message
        assert len(sink.getvalue()) <= 100_000

    def test_takes_a_file_of_exactly_the_cap(self, http, serve, answer):
        def script(sock, request, server):
            sock.sendall(answer(b"x" * 100_000))
            return True

        result, _ = download(http, serve(script).url(), max_bytes=100_000)
        assert isinstance(result, Downloaded)

    def test_stops_a_gzip_bomb_before_it_unfolds(self, http, serve, answer):
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        bomb = b"".join(packer.compress(bytes(1_000_000)) for _ in range(100)) + packer.flush()
        assert len(bomb) < 200_000

        def script(sock, request, server):
            sock.sendall(answer(bomb, headers={"Content-Encoding": "gzip"}))
            return True

        url = serve(script).url()
        tracemalloc.start()
        try:
            result, sink = download(http, url, max_bytes=1_000_000)
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.BAD_OUTPUT
        assert len(sink.getvalue()) <= 1_000_000
        assert peak_bytes < 10_000_000

    def test_unpacks_an_honest_gzip(self, http, serve, answer):
        def script(sock, request, server):
            packed = gzip.compress(b"hello" * 1_000)
            sock.sendall(answer(packed, headers={"Content-Encoding": "gzip"}))
            return True

        result, sink = download(http, serve(script).url())
        assert isinstance(result, Downloaded)
        assert sink.getvalue() == b"hello" * 1_000

    def test_deadline_ends_a_drip(self, http, serve, answer):
        def script(sock, request, server):
            server.drip(sock, answer(b"x" * 200))
            return False

        server = serve(script)
        (result, _), took_s = timed(lambda: download(http, server.url(), deadline_s=DEADLINE_S))
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.DOWNLOAD_FAILED
        assert took_s < LATEST_S

    def test_deadline_covers_all_redirects_together(self, http, serve, answer):
        def script(sock, request, server):
            server.hang(DEADLINE_S * 0.6)
            sock.sendall(answer(status="302 Found", headers={"Location": "/next"}))
            return True

        server = serve(script)
        (result, _), took_s = timed(lambda: download(http, server.url(), deadline_s=DEADLINE_S))
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.DOWNLOAD_FAILED
        assert took_s < DEADLINE_S * 0.6 * MAX_REDIRECTS

    def test_full_disk_is_not_blamed_on_the_server(self, http, serve, answer):
        class Full(io.BytesIO):
            def write(self, data):
                raise OSError(28, "No space left on device")

        def script(sock, request, server):
            sock.sendall(answer(b"x" * 100))
            return True

        with pytest.raises(OSError, match="No space left"):
            http.download(serve(script).url(), Full(), hosts=LOCAL, max_bytes=1_000)


class TestRedirects:
    def test_are_followed_within_the_allowed_hosts(self, http, serve, answer):
        def script(sock, request, server):
            if request.path == "/file":
                sock.sendall(answer(b"data"))
            else:
                sock.sendall(answer(status="302 Found", headers={"Location": "/file"}))
            return True

        result, sink = download(http, serve(script).url("/start"))
        assert isinstance(result, Downloaded)
        assert sink.getvalue() == b"data"

    def test_to_another_host_are_refused_before_any_request(self, http, serve, answer):
        inside = serve(lambda sock, request, server: False)

        def script(sock, request, server):
            location = f"http://localhost:{inside.port}/secret"
            sock.sendall(answer(status="302 Found", headers={"Location": location}))
            return True

        result, _ = download(http, serve(script).url())
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.BAD_OUTPUT
        assert "localhost" in result.message
        assert inside.connections == 0

    @pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://["])
    def test_to_another_scheme_are_refused(self, http, serve, answer, location):
        def script(sock, request, server):
            sock.sendall(answer(status="301 Moved", headers={"Location": location}))
            return True

        result, _ = download(http, serve(script).url())
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.BAD_OUTPUT

    def test_end_after_a_few(self, http, serve, answer):
        def script(sock, request, server):
            sock.sendall(answer(status="307 Again", headers={"Location": "/again"}))
            return True

        server = serve(script)
        result, _ = download(http, server.url())
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.BAD_OUTPUT
        assert len(server.requests) == MAX_REDIRECTS + 1


class TestAllowedHosts:
    PUBLIC = OutputHosts(public=("replicate.delivery", ".replicate.delivery"))

    @pytest.mark.parametrize(
        "url",
        [
            "https://replicate.delivery/a.webp",
            "https://pbxt.replicate.delivery/x/y.png?z=1",
            "https://REPLICATE.delivery:443/a",
        ],
    )
    def test_take_the_public_hosts_by_https(self, url):
        assert self.PUBLIC.allows(url)

    @pytest.mark.parametrize(
        "url",
        [
            "http://replicate.delivery/a.webp",
            "https://replicate.delivery:8443/a.webp",
            "https://evilreplicate.delivery/a",
            "https://replicate.delivery.evil.test/a",
            "https://replicate.delivery@evil.test/a",
            "https://evil.test\\@replicate.delivery/a",
            "https://evil.test\\.replicate.delivery/a",
            "https://evil.test#@replicate.delivery/a",
            "https://user:pass@replicate.delivery/a",
            "https://127.0.0.1/a",
            "https://[::1]/a",
            "https:///a",
            "//replicate.delivery/a",
            "javascript:alert(1)",
            "https://replicate.delivery:port/a",
            "",
        ],
    )
    def test_refuse_everything_else(self, url):
        assert not self.PUBLIC.allows(url)

    @pytest.mark.parametrize(
        ("entry", "url", "allowed"),
        [
            ("127.0.0.1", "http://127.0.0.1:8123/a", True),
            ("127.0.0.1", "https://127.0.0.1/a", True),
            ("127.0.0.1:8123", "http://127.0.0.1:8123/a", True),
            ("127.0.0.1:8123", "http://127.0.0.1:8124/a", False),
            ("127.0.0.1:8123", "http://127.0.0.1/a", False),
            ("files.test:80", "http://files.test/a", True),
            ("files.test:443", "https://files.test/a", True),
            ("127.0.0.1", "http://127.0.0.2/a", False),
            ("127.0.0.1", "ftp://127.0.0.1/a", False),
            ("127.0.0.1", "http://127.0.0.1@evil.test/a", False),
            ("[::1]:8123", "http://[::1]:8123/a", True),
        ],
    )
    def test_take_what_the_operator_added(self, entry, url, allowed):
        assert OutputHosts(extra=(entry,)).allows(url) is allowed

    def test_are_asked_before_the_first_request(self, http, serve):
        server = serve(lambda sock, request, server: False)
        result, _ = download(http, server.url(), hosts=self.PUBLIC)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.BAD_OUTPUT
        assert server.connections == 0


class TestDataUri:
    def test_is_decoded_without_a_request(self, http):
        content = os.urandom(1_000)
        uri = "data:image/png;base64," + base64.b64encode(content).decode()
        result, sink = download(http, uri, hosts=OutputHosts(), max_bytes=1_000)
        assert result == Downloaded(1_000, hashlib.sha256(content).hexdigest(), "image/png")
        assert sink.getvalue() == content

    @pytest.mark.parametrize(
        "uri",
        [
            "data:image/png;base64,****",
            "data:image/png;base64,QUJ",
            "data:image/svg+xml,%3Csvg%3E",
            "data:",
            "data:image/png;base64," + base64.b64encode(bytes(1_001)).decode(),
            "data:image/png;base64," + "A" * 100_000,
        ],
    )
    def test_is_refused_when_malformed_or_too_large(self, http, uri):
        result, sink = download(http, uri, hosts=OutputHosts(), max_bytes=1_000)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.BAD_OUTPUT
        assert sink.getvalue() == b""


class TestRetryAfter:
    NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("value", "expected_s"),
        [
            ("0", 0.0),
            ("1", 1.0),
            (" 30 ", 30.0),
            ("1.5", 1.5),
            ("86400", 86400.0),
            (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
            (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0.0),
            ("Fri, 20 Nov 2026 12:00:05", 5.0),
            (None, None),
            ("", None),
            ("soon", None),
            ("-5", None),
            ("nan", None),
            ("inf", None),
            ("1e9", None),
            ("٣", None),
            ("9" * 400, None),
            ("Fri, 99 Nov 2026 12:00:05 GMT", None),
        ],
    )
    def test_is_read_or_ignored(self, value, expected_s):
        assert parse_retry_after(value, now=self.NOW) == expected_s

    def test_of_a_date_counts_from_now(self):
        value = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
        wait_s = parse_retry_after(value)
        assert wait_s is not None
        assert 50 < wait_s <= 60
