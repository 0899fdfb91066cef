"""A process that cannot run says why in one line, and exits with 1."""

import os
import socket
import subprocess
import sys

import pytest

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
        ("PUBLIC_URL", "example.org"),
        ("REPLICATE_BASE_URL", "ftp://x"),
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
