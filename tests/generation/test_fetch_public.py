"""Fetching what a user's URL names, without becoming the user's hand inside our network."""

import datetime
import gzip
import io
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from generation import addresses
from generation.addresses import is_public, look_up
from generation.http import MAX_REDIRECTS, Downloaded, OutputHosts, TransportError
from generation.provider import ErrorClass, Failure
from tests.simulator.support import eventually

PUBLIC = "93.184.215.14"
OTHER_PUBLIC = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
DEADLINE_S = 0.3
LATEST_S = 2.0

NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",  # Alibaba's metadata
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",  # Azure's
    "169.254.169.254",  # most others'
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",  # Oracle's
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::93.184.215.14",
    "::ffff:127.0.0.1",
    "::ffff:93.184.215.14",
    "::ffff:0:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::5db8:d70e",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:0:7f00:1::",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:5db8:d70e::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",  # Amazon's
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
]
ARE_PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.215.14",
    "100.63.255.255",
    "100.128.0.0",
    "168.63.129.15",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.1",
    "223.255.255.255",
    "2001:4860:4860::8888",
    "2606:4700:4700::1111",
    "2a00:1450:4001:82a::200e",
]


class Internet:
    """Names with addresses, and servers behind them; notes who was asked for and called.

    Each look-up of a name takes the next of its answers, the last one for ever.
    """

    def __init__(self, monkeypatch):
        self.names = {}
        self.servers = {}
        self.looked_up = []
        self.called = []
        self._really = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self.getaddrinfo)
        monkeypatch.setattr("urllib3.util.connection.create_connection", self.create_connection)

    def has(self, name, *answers, server=None):
        self.names[name] = [list(answer) for answer in answers]
        if server is not None:
            for answer in answers:
                self.servers.update({address: server.port for address in answer})

    def getaddrinfo(self, host, port, *args, **kwargs):
        self.looked_up.append(host)
        if host in self.names:
            answers = self.names[host]
            found = answers.pop(0) if len(answers) > 1 else answers[0]
            return [
                (
                    socket.AF_INET6 if ":" in a else socket.AF_INET,
                    socket.SOCK_STREAM,
                    6,
                    "",
                    (a, port),
                )
                for a in found
            ]
        # A number in whatever disguise; nobody is asked.
        return self._really(host, port, *args, flags=socket.AI_NUMERICHOST, **kwargs)

    def create_connection(self, address, *args, **kwargs):
        self.called.append(address[0])
        if address[0] not in self.servers:
            raise ConnectionRefusedError(111, "Connection refused")
        sock = socket.socket()
        sock.connect(("127.0.0.1", self.servers[address[0]]))
        return sock


@pytest.fixture
def internet(monkeypatch):
    return Internet(monkeypatch)


@pytest.fixture
def picture(serve, answer):
    """A server with a picture at every path."""

    def script(sock, request, server):
        sock.sendall(answer(b"picture", headers={"Content-Type": "image/png"}))
        return True

    return serve(script)


def fetch(http, url, **options):
    sink = io.BytesIO()
    options = {"max_bytes": 1_000_000, "deadline_s": 5.0, **options}
    return http.fetch_public(url, sink, **options), sink.getvalue()


def refused(result, error_class=ErrorClass.INVALID_INPUT):
    result = result[0] if isinstance(result, tuple) else result
    assert isinstance(result, Failure), result
    assert result.error_class == error_class, result
    assert result.message
    return result


class TestAddresses:
    @pytest.mark.parametrize("address", NOT_PUBLIC)
    def test_that_are_not_everybodys(self, address):
        assert not is_public(address)

    @pytest.mark.parametrize("address", ARE_PUBLIC)
    def test_that_are_anybodys(self, address):
        assert is_public(address)

    def test_that_are_none(self):
        assert not any(map(is_public, ["", "x", "1.2.3", "1.2.3.4.5", "::g", "127.1"]))

    def test_agree_with_python_on_what_is_private(self):
        for address in ARE_PUBLIC:
            assert ipaddress.ip_address(address).is_global


class TestFetch:
    def test_gives_what_is_there(self, http, internet, picture):
        internet.has("cats.test", [PUBLIC], server=picture)
        result, content = fetch(http, "http://cats.test/cat.png?size=1")
        assert isinstance(result, Downloaded)
        assert (content, result.content_type) == (b"picture", "image/png")
        (request,) = picture.requests
        assert request.path == "/cat.png?size=1"
        assert request.headers["host"] == "cats.test"

    def test_tells_the_server_nothing_of_us(self, http, internet, picture, monkeypatch):
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        internet.has("cats.test", [PUBLIC], server=picture)
        fetch(http, "http://cats.test/")
        assert picture.requests[0].headers.keys() <= {
            "host",
            "user-agent",
            "accept-encoding",
        }

    def test_looks_a_name_up_once_and_calls_the_address_that_was_checked(
        self, http, internet, picture
    ):
        internet.has("rebound.test", [PUBLIC], ["127.0.0.1"], server=picture)
        result, _ = fetch(http, "http://rebound.test/")
        assert isinstance(result, Downloaded)
        assert internet.looked_up == ["rebound.test"]
        assert internet.called == [PUBLIC]

    def test_checks_a_name_anew_each_time(self, http, internet, picture):
        internet.has("rebound.test", [PUBLIC], ["127.0.0.1"], server=picture)
        assert isinstance(fetch(http, "http://rebound.test/")[0], Downloaded)
        refused(fetch(http, "http://rebound.test/"))
        assert internet.called == [PUBLIC]

    def test_calls_public_addresses_only(self, http, internet, picture):
        internet.has("mixed.test", ["10.0.0.1", OTHER_PUBLIC, "::1", PUBLIC])
        internet.servers[PUBLIC] = picture.port
        result, _ = fetch(http, "http://mixed.test/")
        assert isinstance(result, Downloaded)
        assert internet.called == [OTHER_PUBLIC, PUBLIC]

    @pytest.mark.parametrize("address", NOT_PUBLIC)
    def test_calls_nobody_whose_name_leads_inside(self, http, internet, address):
        internet.has("inside.test", [address])
        failure = refused(fetch(http, "http://inside.test/secret?key=1"))
        assert failure.message == "inside.test has no public address."
        assert failure.provider_code == "private_address"
        assert internet.called == []

    @pytest.mark.parametrize(
        "host",
        [
            *(address for address in NOT_PUBLIC if ":" not in address),
            *(f"[{address}]" for address in NOT_PUBLIC if ":" in address and "%" not in address),
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "127.1",
            "0177.0.0.1",
            "0",
        ],
    )
    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_calls_no_number_that_leads_inside(self, http, internet, scheme, host):
        refused(fetch(http, f"{scheme}://{host}/"))
        assert internet.called == []

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "cats.test",
            "//cats.test/",
            "http://",
            "http:///cat.png",
            "ftp://cats.test/",
            "file:///etc/passwd",
            "gopher://cats.test/",
            "data:image/png;base64,AAAA",
            "javascript:alert(1)",
            "http://cats.test:8080/",
            "https://cats.test:22/",
            "http://cats.test:0/",
            "http://cats.test:99999/",
            "http://cats.test:x/",
            "http://user@cats.test/",
            "http://user:word@cats.test/",
            "http://:@cats.test/",
            "http://inside.test\\@cats.test/",
            "http://cats.test\\.inside.test/",
            "http://inside.test#@cats.test/",
            "http://[::1",
            "http://cats.test]/",
            "http://cats .test/",
            "http://" + "a" * 300 + ".test/",
            "http://..test/",
        ],
    )
    def test_takes_no_other_url(self, http, internet, picture, url):
        internet.has("cats.test", [PUBLIC], server=picture)
        internet.has("inside.test", ["10.0.0.1"], server=picture)
        result, content = fetch(http, url)
        assert isinstance(result, Failure)
        assert (result.error_class, result.provider_code) in (
            (ErrorClass.INVALID_INPUT, "invalid_url"),
            (ErrorClass.INVALID_INPUT, "private_address"),
            (ErrorClass.DOWNLOAD_FAILED, ""),
        )
        assert (content, picture.requests) == (b"", [])

    @pytest.mark.parametrize("url", ["http://cats.test:80/", "http://cats.test:443/"])
    def test_takes_the_usual_ports(self, http, internet, picture, url):
        internet.has("cats.test", [PUBLIC], server=picture)
        assert isinstance(fetch(http, url)[0], Downloaded)

    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            (204, ErrorClass.INVALID_INPUT),
            (401, ErrorClass.INVALID_INPUT),
            (403, ErrorClass.INVALID_INPUT),
            (404, ErrorClass.INVALID_INPUT),
            (410, ErrorClass.INVALID_INPUT),
            (408, ErrorClass.DOWNLOAD_FAILED),
            (429, ErrorClass.DOWNLOAD_FAILED),
            (500, ErrorClass.DOWNLOAD_FAILED),
            (503, ErrorClass.DOWNLOAD_FAILED),
        ],
    )
    def test_tells_the_status(self, http, internet, serve, answer, status, expected):
        def script(sock, request, server):
            sock.sendall(answer(b"page", status=f"{status} No"))
            return False

        internet.has("cats.test", [PUBLIC], server=serve(script))
        result = fetch(http, "http://cats.test/secret.png?key=secret")
        failure = refused(result, expected)
        assert failure.provider_code == str(status)
        assert "cats.test" in failure.message
        assert "secret" not in failure.message

    def test_of_too_much_ends_early(self, http, internet, serve, answer):
        def script(sock, request, server):
            packed = gzip.compress(bytes(20_000_000))
            sock.sendall(answer(packed, headers={"Content-Encoding": "gzip"}))
            return False

        internet.has("cats.test", [PUBLIC], server=serve(script))
        result, content = fetch(http, "http://cats.test/", max_bytes=100_000)
        failure = refused(result)
        assert "100,000 bytes" in failure.message
        assert failure.provider_code == "too_large"
        assert len(content) <= 100_000

    def test_of_nobody_is_a_failed_download(self, http, internet):
        internet.has("away.test", [PUBLIC])
        refused(fetch(http, "http://away.test/"), ErrorClass.DOWNLOAD_FAILED)
        failure = refused(fetch(http, "http://nowhere.test/"), ErrorClass.DOWNLOAD_FAILED)
        assert "could not be resolved" in failure.message

    def test_of_a_drip_ends_at_the_deadline(self, http, internet, serve, answer):
        def script(sock, request, server):
            server.drip(sock, answer(b"x" * 200))
            return False

        internet.has("slow.test", [PUBLIC], server=serve(script))
        started = time.monotonic()
        refused(fetch(http, "http://slow.test/", deadline_s=DEADLINE_S), ErrorClass.DOWNLOAD_FAILED)
        assert time.monotonic() - started < LATEST_S

    def test_of_a_cut_off_file_is_a_failed_download(self, http, internet, serve):
        def script(sock, request, server):
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
            return False

        internet.has("cats.test", [PUBLIC], server=serve(script))
        refused(fetch(http, "http://cats.test/"), ErrorClass.DOWNLOAD_FAILED)

    def test_of_a_full_disk_is_not_blamed_on_the_server(self, http, internet, picture):
        class Full(io.BytesIO):
            def write(self, data):
                raise OSError(28, "No space left on device")

        internet.has("cats.test", [PUBLIC], server=picture)
        with pytest.raises(OSError, match="No space left"):
            http.fetch_public("http://cats.test/", Full(), max_bytes=1_000)


class TestRedirects:
    @pytest.fixture
    def redirect(self, internet, serve, answer):
        """`redirect(location)`: cats.test leads there, and to a picture at /end."""

        def to(location):
            def script(sock, request, server):
                if request.path == "/end":
                    sock.sendall(answer(b"picture"))
                else:
                    sock.sendall(answer(status="302 Found", headers={"Location": location}))
                return True

            server = serve(script)
            internet.has("cats.test", [PUBLIC], server=server)
            return server

        return to

    @pytest.mark.parametrize("location", ["/end", "http://cats.test/end", "//cats.test:80/end"])
    def test_are_followed(self, http, redirect, location):
        redirect(location)
        assert fetch(http, "http://cats.test/")[1] == b"picture"

    def test_are_followed_to_another_public_host(self, http, internet, redirect, picture):
        redirect("http://other.test/end")
        internet.has("other.test", [OTHER_PUBLIC], server=picture)
        assert fetch(http, "http://cats.test/")[1] == b"picture"
        assert internet.called == [PUBLIC, OTHER_PUBLIC]

    @pytest.mark.parametrize(
        "location",
        [
            "http://169.254.169.254/latest/meta-data/",
            "http://127.0.0.1/",
            "http://127.0.0.1:8000/",
            "http://[::1]/",
            "http://[::ffff:10.0.0.1]/",
            "http://2130706433/",
            "http://inside.test/",
            "http://cats.test:6379/",
            "http://user:word@cats.test/end",
            "file:///etc/passwd",
            "ftp://cats.test/end",
            "data:image/png;base64,AAAA",
            "http://[",
        ],
    )
    def test_are_checked_like_the_first_url(self, http, internet, redirect, location):
        redirect(location)
        internet.has("inside.test", ["10.0.0.1"])
        result, content = fetch(http, "http://cats.test/")
        refused(result)
        assert (internet.called, content) == ([PUBLIC], b"")

    def test_by_way_of_a_name_that_turns_private_are_refused(self, http, internet, redirect):
        """The connection is kept, but the next name is looked up and checked like any other."""
        redirect("http://later.test/end")
        internet.has("later.test", ["192.168.1.1"])
        refused(fetch(http, "http://cats.test/"))
        assert internet.called == [PUBLIC]

    def test_end_after_a_few(self, http, redirect):
        server = redirect("/again")
        refused(fetch(http, "http://cats.test/"))
        assert len(server.requests) == MAX_REDIRECTS + 1


class TestExemptHosts:
    def test_may_be_anywhere(self, http, picture):
        exempt = OutputHosts(extra=(f"127.0.0.1:{picture.port}",))
        assert fetch(http, picture.url("/a"), exempt=exempt)[1] == b"picture"

    def test_are_those_named_only(self, http, picture):
        exempt = OutputHosts(extra=(f"127.0.0.1:{picture.port + 1}", "localhost"))
        refused(fetch(http, picture.url("/a"), exempt=exempt))
        refused(fetch(http, picture.url("/a")))
        assert picture.connections == 0

    def test_cannot_lead_to_others(self, http, serve, answer, picture):
        def script(sock, request, server):
            location = picture.url("/a")
            sock.sendall(answer(status="302 Found", headers={"Location": location}))
            return True

        server = serve(script)
        exempt = OutputHosts(extra=(f"127.0.0.1:{server.port}",))
        refused(fetch(http, server.url(), exempt=exempt))
        assert picture.connections == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return the paths of a certificate for right.test that signs itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "right.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("right.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "cert.pem", folder / "key.pem"


class TestTls:
    @pytest.fixture
    def right(self, serve, answer, certificate):
        """A server that can prove to be right.test, and notes for whom it was taken."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        self.asked_for = []
        context.sni_callback = lambda sock, name, context: self.asked_for.append(name)
        listener = socket.create_server(("127.0.0.1", 0))

        class Server:
            port = listener.getsockname()[1]

        def run():
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                try:
                    with sock, context.wrap_socket(sock, server_side=True) as secure:
                        secure.recv(65536)
                        secure.sendall(answer(b"picture", headers={"Connection": "close"}))
                except OSError:
                    pass

        thread = threading.Thread(target=run)
        thread.start()
        yield Server
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()

    def test_is_spoken_with_the_name_at_the_address_that_was_checked(
        self, http, internet, right, certificate, monkeypatch
    ):
        monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(certificate[0]))
        internet.has("right.test", [PUBLIC], server=right)
        assert fetch(http, "https://right.test/")[1] == b"picture"
        assert (internet.called, self.asked_for) == ([PUBLIC], ["right.test"])

    def test_of_another_name_is_refused(self, http, internet, right, certificate, monkeypatch):
        monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(certificate[0]))
        internet.has("wrong.test", [PUBLIC], server=right)
        failure = refused(fetch(http, "https://wrong.test/"), ErrorClass.DOWNLOAD_FAILED)
        assert "TLS failed" in failure.message

    def test_of_somebody_unknown_is_refused(self, http, internet, right):
        internet.has("right.test", [PUBLIC], server=right)
        failure = refused(fetch(http, "https://right.test/"), ErrorClass.DOWNLOAD_FAILED)
        assert "TLS failed" in failure.message


class TestLookUp:
    @pytest.fixture
    def stuck(self, monkeypatch):
        """Nobody answers for names until the test is over."""
        over = threading.Event()

        def getaddrinfo(*args, **kwargs):
            over.wait(10)
            raise socket.gaierror(-3, "Temporary failure in name resolution")

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(addresses, "_slots", addresses._Slots())
        yield
        over.set()
        for thread in threading.enumerate():
            if thread.name == "look-up":
                thread.join(10)

    def test_of_an_address_asks_nobody(self, stuck):
        assert look_up("127.0.0.1", 80, timeout_s=0) == ["127.0.0.1"]
        assert look_up("[::1]", 80, timeout_s=0) == ["::1"]

    def test_that_nobody_answers_ends_with_the_deadline_of_its_exchange(self, http, stuck):
        started = time.monotonic()
        result = http.json("GET", "http://cats.test/", deadline_s=DEADLINE_S)
        assert isinstance(result, TransportError)
        assert result.kind == "connect"
        refused(fetch(http, "http://cats.test/", deadline_s=DEADLINE_S), ErrorClass.DOWNLOAD_FAILED)
        assert time.monotonic() - started < 2 * LATEST_S

    def test_takes_only_so_many_threads(self, stuck):
        def ask():
            with suppress(TimeoutError):
                look_up("cats.test", 80, timeout_s=1.0)
            refused.append(True)

        def asking():
            return [thread.name for thread in threading.enumerate()].count("look-up")

        refused = []
        askers = [threading.Thread(target=ask) for _ in range(addresses.LOOK_UPS_AT_ONCE + 8)]
        for asker in askers:
            asker.start()
        eventually(lambda: asking() == addresses.LOOK_UPS_AT_ONCE, "as many as allowed")
        for asker in askers:
            asker.join(10)
        assert len(refused) == addresses.LOOK_UPS_AT_ONCE + 8
        assert asking() == addresses.LOOK_UPS_AT_ONCE

    def test_gives_each_address_once_and_in_order(self, internet):
        internet.has("cats.test", [PUBLIC, OTHER_PUBLIC, PUBLIC])
        assert look_up("cats.test", 80, timeout_s=5) == [PUBLIC, OTHER_PUBLIC]

    @pytest.mark.parametrize("host", ["a..test", "a" * 70 + ".test", "\udcff.test", "a\0.test"])
    def test_of_what_is_no_name_finds_nobody(self, host):
        with pytest.raises(socket.gaierror):
            look_up(host, 80, timeout_s=5)
