"""A process that cannot run says why in one line, and exits with 1; or waits for the database."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from picture import embedded, stack
from picture.embedded import wait_until
from picture.stack import ROOT


def start(*command, **env):
    """Run a process that should refuse to start."""
    clean = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://localhost/x"),
        ("REDIS_URL", "http://localhost"),
        ("DEBUG", "perhaps"),
        ("MAX_PARALLEL_PER_USER", "0"),
        ("MAX_PARALLEL_GLOBAL", "many"),
        ("MAX_BATCH_SIZE", "-1"),
        ("RETRY_DELAYS", "5;15"),
        ("GENERATION_DEADLINE", "1"),
        ("LEASE_SECONDS", "soon"),
        ("CHANNEL_SETTLE_SECONDS", "0"),
        ("PUBLIC_URL", "example.org"),
        ("REPLICATE_BASE_URL", "ftp://x"),
        ("REPLICATE_API_TOKEN", "r8 with space"),
        ("RUNPOD_API_KEY", "rpa\u00e9"),
        ("RUNPOD_ENDPOINT_ID", "x" * 40),
        ("COMFYUI_URL", "http://user:secret@gpu:8188"),
        ("COMFYUI_URL", "http://gpu:8188/?key=1"),
    ],
)
def test_a_malformed_setting_stops_the_start_with_one_line(tmp_path, name, value):
    answer = start("manage.py", "check", PICTURE_DATA_DIR=str(tmp_path), **{name: value})
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"picture: {name} must be ")
    assert answer.stderr.count("\n") == 1


def test_a_missing_secret_key_stops_the_start_with_one_line():
    answer = start("manage.py", "check", DATABASE_URL="postgresql://nobody@127.0.0.1:9/x")
    assert (answer.returncode, answer.stderr) == (
        1,
        "picture: SECRET_KEY must be set where DATABASE_URL is\n",
    )


def test_a_data_folder_that_cannot_be_made_stops_the_start_with_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    answer = start("manage.py", "check", PICTURE_DATA_DIR=str(tmp_path / "file" / "data"))
    assert answer.returncode == 1
    assert answer.stderr.startswith("picture: PICTURE_DATA_DIR is not usable")
    assert answer.stderr.count("\n") == 1


def test_a_taken_port_stops_the_start_with_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        answer = start("manage.py", "run", PICTURE_DATA_DIR=str(tmp_path), PICTURE_PORT=port)
    assert answer.returncode == 1
    assert answer.stderr == f"picture: port {port} is taken (set PICTURE_PORT)\n"


def test_a_media_folder_that_cannot_be_written_stops_the_start_with_one_line(tmp_path):
    (tmp_path / "media").write_text("in the way")
    answer = start("manage.py", "check", PICTURE_DATA_DIR=str(tmp_path))
    assert answer.returncode == 1
    assert answer.stderr.startswith("picture: PICTURE_DATA_DIR is not usable")
    assert answer.stderr.count("\n") == 1


# --- The web process and its database -----------------------------------------------------------

TIMEOUT_S = 60


@pytest.fixture
def data_dir():
    """A folder that the servers' own user can reach; pytest closes its `tmp_path` to others."""
    with tempfile.TemporaryDirectory(prefix="picture-test-") as path:
        yield Path(path).resolve() / "data"


class Web:
    """A web server on a data folder, whether or not its database is there."""

    def __init__(self, data_dir, folder, **env):
        self.port = stack.free_port()
        self.stderr_path = folder / "stderr"
        given = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **env}
        serving = ("--port", str(self.port), "--lifespan", "off", "--log-level", "warning")
        with self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "picture.asgi:application", *serving],
                cwd=ROOT,
                env=stack.environment(given, data_dir, port=self.port, simulator_port=None),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )

    def lines(self):
        return self.stderr_path.read_text().splitlines()

    def says(self, count):
        """Whether it has written so many lines in time."""
        return wait_until(lambda: self.ended() or len(self.lines()) >= count, TIMEOUT_S)

    def serves(self):
        return stack.answers(f"http://127.0.0.1:{self.port}/health/live")

    def listens(self):
        return not stack.port_is_free(self.port)

    def ended(self):
        return self.process.poll() is not None


@pytest.fixture
def start_web(data_dir, tmp_path):
    started = []

    def start_one(**env):
        data_dir.mkdir(exist_ok=True)
        started.append(Web(data_dir, tmp_path, **env))
        return started[-1]

    yield start_one
    for one in started:
        one.process.kill()
        one.process.wait()


def test_the_web_waits_for_its_database_says_so_once_and_then_serves(start_web, data_dir):
    web = start_web()
    assert web.says(1)
    assert not web.listens()
    assert web.lines()[0].startswith("picture: waiting for the database: ")
    with embedded.services(data_dir, redis=False, durable=False):
        assert wait_until(lambda: web.ended() or web.serves(), TIMEOUT_S)
        assert web.serves()
        assert len(web.lines()) == 2
        assert web.lines()[1] == "picture: the database is there"
        web.process.send_signal(signal.SIGTERM)
        assert web.process.wait(TIMEOUT_S) == -signal.SIGTERM
    assert len(web.lines()) == 2


def test_a_web_whose_database_is_there_says_nothing(start_web, data_dir):
    with embedded.services(data_dir, redis=False, durable=False):
        web = start_web()
        assert wait_until(lambda: web.ended() or web.serves(), TIMEOUT_S)
        assert web.lines() == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_web_that_waits_ends_when_it_is_asked_to(signum, start_web):
    web = start_web()
    assert web.says(1)
    web.process.send_signal(signum)
    assert web.process.wait(TIMEOUT_S) == 128 + signum
    assert len(web.lines()) == 1


def test_a_web_that_waits_tries_again_and_again(start_web):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT_S)
        port = server.getsockname()[1]
        web = start_web(
            DATABASE_URL=f"postgresql://nobody:secret@127.0.0.1:{port}/x?sslmode=disable"
        )
        for _ in range(3):
            # What is no database: it takes the connection and ends it.
            server.accept()[0].close()
        assert web.says(1)
    assert len(web.lines()) == 1
    assert "secret" not in web.lines()[0]
    assert not web.ended()
