"""The embedded servers, as real processes in a temporary data folder."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis

from picture import embedded

ROOT = Path(__file__).parents[2]
NOTHING = embedded.Running(None, None)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the servers' own user can reach; pytest closes its `tmp_path` to others."""
    with tempfile.TemporaryDirectory(prefix="picture-test-") as path:
        yield Path(path).resolve()


@pytest.fixture
def data_dir(folder: Path) -> Iterator[Path]:
    yield folder / "data"
    embedded.stop(folder / "data")


def query(urls: embedded.Urls, sql: str) -> str:
    """Run a statement in its own transaction and return its first value, if it has one."""
    with contextlib.closing(psycopg2.connect(urls.database_url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql)
            row = cursor.fetchone() if cursor.description else None
            return str(row[0]) if row else ""


def broker(urls: embedded.Urls) -> "contextlib.closing[redis.Redis]":
    return contextlib.closing(redis.Redis.from_url(urls.redis_url, decode_responses=True))


def store(urls: embedded.Urls) -> None:
    query(urls, "CREATE TABLE kept AS SELECT 'row' AS value")
    with broker(urls) as client:
        client.set("kept", "key")


def assert_stored(urls: embedded.Urls) -> None:
    assert query(urls, "SELECT value FROM kept") == "row"
    with broker(urls) as client:
        assert client.get("kept") == "key"


def kill(pid: int | None) -> None:
    assert pid is not None
    process = psutil.Process(pid)
    process.kill()
    assert embedded.wait_until(lambda: embedded.has_ended(process), 10)


def user_process(data_dir: Path, then: str) -> subprocess.Popen[str]:
    """Start a Python process that acquires the servers after a line on its standard input."""
    script = f"""
import os, signal, sys
from pathlib import Path
from picture import embedded
sys.stdin.readline()
data_dir = Path({str(data_dir)!r})
hold = embedded.acquire(data_dir)
print(*embedded.running(data_dir), flush=True)
{then}
"""
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_urls_are_known_without_starting_or_creating_anything(tmp_path: Path) -> None:
    urls = embedded.urls(tmp_path / "data")

    assert urls.database_url.startswith("postgresql://postgres@/picture?host=/")
    assert urls.redis_url.startswith("unix:///")
    assert urls.redis_url.endswith("?db=0")
    assert embedded.running(tmp_path / "data") == NOTHING
    assert not (tmp_path / "data").exists()


def test_first_use_creates_a_utf8_database_that_keeps_utc(data_dir: Path) -> None:
    with embedded.services(data_dir) as urls:
        assert query(urls, "SHOW server_encoding") == "UTF8"
        assert query(urls, "SHOW timezone") == "UTC"
        assert query(urls, "SHOW fsync") == "on"
        assert query(urls, "SHOW listen_addresses") == ""
        with broker(urls) as client:
            assert client.config_get("append*")["appendonly"] == "yes"
            assert client.config_get("port") == {"port": "0"}

    assert embedded.running(data_dir) == NOTHING


def test_data_survives_a_clean_stop(data_dir: Path) -> None:
    with embedded.services(data_dir) as urls:
        store(urls)

    with embedded.services(data_dir) as urls:
        assert_stored(urls)


def test_the_last_user_out_stops_the_servers(data_dir: Path) -> None:
    first = embedded.acquire(data_dir)
    running = embedded.running(data_dir)
    second = embedded.acquire(data_dir)
    assert embedded.running(data_dir) == running

    first.release()
    first.release()
    assert embedded.running(data_dir) == running

    second.release()
    assert embedded.running(data_dir) == NOTHING


def test_each_server_is_held_on_its_own(data_dir: Path) -> None:
    with embedded.services(data_dir, postgres=False):
        assert embedded.running(data_dir).postgres is None
        with embedded.services(data_dir, redis=False):
            assert None not in embedded.running(data_dir)
        assert embedded.running(data_dir).postgres is None
        assert embedded.running(data_dir).redis is not None
    assert embedded.running(data_dir) == NOTHING


def test_two_processes_that_start_at_once_share_the_servers(data_dir: Path) -> None:
    users = [user_process(data_dir, "sys.stdin.readline(); hold.release()") for _ in range(2)]
    seen = []
    for user in users:
        assert user.stdin
        user.stdin.write("start\n")
        user.stdin.flush()
    for user in users:
        assert user.stdout
        seen.append(user.stdout.readline())
    for user in users:
        user.communicate("release\n", timeout=60)

    assert seen[0] == seen[1] != ""
    assert [user.returncode for user in users] == [0, 0]
    assert embedded.running(data_dir) == NOTHING


def test_a_killed_user_leaves_servers_that_the_next_one_reuses_and_stops(data_dir: Path) -> None:
    killed = user_process(data_dir, "os.kill(os.getpid(), signal.SIGKILL)")
    output, _ = killed.communicate("start\n", timeout=60)
    assert killed.returncode == -signal.SIGKILL

    with embedded.services(data_dir):
        assert output.split() == [str(pid) for pid in embedded.running(data_dir)]
    assert embedded.running(data_dir) == NOTHING


def test_a_forked_child_cannot_give_up_its_parents_claim(data_dir: Path) -> None:
    fork = """
child = os.fork()
if child == 0:
    hold.release()
    os._exit(0)
os.waitpid(child, 0)
print(*embedded.running(data_dir), flush=True)
hold.release()
"""
    user = user_process(data_dir, fork)
    output, _ = user.communicate("start\n", timeout=60)

    before, after = output.splitlines()
    assert before == after
    assert embedded.running(data_dir) == NOTHING


def test_stop_ends_the_servers_under_their_users(data_dir: Path) -> None:
    hold = embedded.acquire(data_dir)
    embedded.stop(data_dir)
    assert embedded.running(data_dir) == NOTHING
    hold.release()


def test_killed_servers_start_again_with_their_data(data_dir: Path) -> None:
    with embedded.services(data_dir) as urls:
        store(urls)
        before = embedded.running(data_dir)
        kill(before.postgres)
        kill(before.redis)

        with embedded.services(data_dir) as urls_again:
            assert urls_again == urls
            assert_stored(urls)
            assert not set(before) & set(embedded.running(data_dir))


def test_a_child_that_outlives_a_killed_postgres_does_not_prevent_a_start(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ORPHAN_GRACE_S", 0.5)
    with embedded.services(data_dir, redis=False) as urls:
        postgres = psutil.Process(embedded.running(data_dir).postgres)
        orphan = postgres.children()[0]
        orphan.suspend()
        kill(postgres.pid)

        with embedded.services(data_dir, redis=False):
            assert embedded.has_ended(orphan)
            assert query(urls, "SELECT 1") == "1"


def test_pid_files_that_name_an_unrelated_process_are_not_believed(data_dir: Path) -> None:
    with embedded.services(data_dir) as urls:
        store(urls)
    stale = [str(os.getpid()), str(data_dir), "1", "5432", str(data_dir), "", "1 1", "ready"]
    (data_dir / "postgres/postmaster.pid").write_text("\n".join(stale) + "\n")
    (data_dir / "redis/redis.pid").write_text(f"{os.getpid()}\n")
    assert embedded.running(data_dir) == NOTHING

    with embedded.services(data_dir) as urls:
        assert_stored(urls)


def test_redis_loads_a_log_whose_last_write_was_cut_off(data_dir: Path) -> None:
    with embedded.services(data_dir, postgres=False) as urls, broker(urls) as client:
        client.set("kept", "key")
        client.set("lost", "key")
    log = data_dir / "redis/appendonly.aof"
    os.truncate(log, log.stat().st_size - 5)

    with embedded.services(data_dir, postgres=False) as urls, broker(urls) as client:
        assert client.get("kept") == "key"
        assert client.get("lost") is None


def test_redis_that_lost_its_socket_is_replaced(data_dir: Path) -> None:
    with embedded.services(data_dir, postgres=False) as urls:
        before = embedded.running(data_dir).redis
        Path(urls.redis_url.removeprefix("unix://").removesuffix("?db=0")).unlink()

        with embedded.services(data_dir, postgres=False), broker(urls) as client:
            assert client.ping()
            assert embedded.running(data_dir).redis != before


@pytest.mark.parametrize("name", ["d" * 120, "a folder, with (odd) names?"])
def test_a_data_folder_with_a_long_or_odd_path_is_served_from_a_short_one(
    folder: Path, name: str
) -> None:
    data_dir = folder / name
    with embedded.services(data_dir) as urls:
        store(urls)
        assert_stored(urls)
        sockets = Path(urls.database_url.partition("?host=")[2])
        assert len(str(sockets / ".s.PGSQL.5432")) <= 103
        assert sockets.stat().st_mode & 0o077 == 0
    sockets.rmdir()


def test_a_cluster_half_created_by_a_killed_process_is_created_anew(data_dir: Path) -> None:
    (data_dir / "postgres.new/base").mkdir(parents=True)
    (data_dir / "postgres.new/PG_VERSION").write_text("18\n")

    with embedded.services(data_dir, redis=False) as urls:
        assert query(urls, "SELECT 1") == "1"


def test_the_callers_postgres_variables_do_not_mislead_the_server(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGPORT": "5999", "PGDATA": "/nowhere", "PGOPTIONS": "-c bad=1"}.items():
        monkeypatch.setenv(name, value)
    with embedded.services(data_dir, redis=False) as urls:
        monkeypatch.undo()
        assert query(urls, "SHOW port") == "5432"


def test_servers_for_tests_may_trade_durability_for_speed(data_dir: Path) -> None:
    with embedded.services(data_dir, redis=False, durable=False) as urls:
        assert query(urls, "SHOW fsync") == "off"


def test_a_data_folder_that_cannot_be_written_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(embedded.EmbeddedError) as failure:
        embedded.acquire(tmp_path / "file/data")

    assert (
        str(failure.value) == f"data folder {tmp_path}/file/data is not writable: Not a directory"
    )


def test_a_missing_binary_is_named_in_one_line(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_package", lambda name: data_dir)

    with pytest.raises(embedded.EmbeddedError) as failure:
        embedded.acquire(data_dir, postgres=False)

    message = str(failure.value)
    assert message.startswith(str(data_dir))
    assert message.endswith("is missing")
    assert "\n" not in message


def test_a_server_that_cannot_start_is_reported_with_its_last_words(data_dir: Path) -> None:
    with embedded.services(data_dir):
        pass
    (data_dir / "postgres/postgresql.conf").write_text("nonsense = [\n")
    (data_dir / "redis/appendonly.aof").write_text("nonsense\n" * 9)

    with pytest.raises(embedded.EmbeddedError) as postgres:
        embedded.acquire(data_dir, redis=False)
    with pytest.raises(embedded.EmbeddedError) as broken_redis:
        embedded.acquire(data_dir, postgres=False)

    assert str(postgres.value).startswith("PostgreSQL did not start: ")
    assert "contains errors" in str(postgres.value)
    assert str(broken_redis.value).startswith("Redis did not start: ")
    assert "Bad file format" in str(broken_redis.value)
    assert "\n" not in str(postgres.value) + str(broken_redis.value)
    assert embedded.running(data_dir) == NOTHING
