"""The stack's own work: ports, environment, and watching processes; here with trivial ones."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from picture import embedded, stack
from picture.embedded import wait_until
from picture.stack import Process, Program, Stack, StackError

GIVEN = {"DATABASE_URL": "postgresql://db/picture", "REDIS_URL": "redis://broker/0"}
SLEEPER = "import time; print('ready', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER
PARENT = (
    "import subprocess, sys; child = subprocess.Popen(['sleep', '600']); "
    "print('child', child.pid, flush=True); child.wait()"
)


def program(name: str, code: str, ready_line: str = "^ready$") -> Program:
    return Program(name, ("-c", code), ready_line=ready_line)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Program], Process]]:
    started: list[Process] = []

    def start_one(wanted: Program) -> Process:
        process = Process(wanted, os.environ, tmp_path / f"{wanted.name}.log")
        started.append(process)
        assert wait_until(process.ready, 30)
        return process

    yield start_one
    stack.end(started, timeout_s=0.1)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder that the servers' own user can reach; pytest closes its `tmp_path` to others."""
    with tempfile.TemporaryDirectory(prefix="picture-test-") as path:
        yield Path(path).resolve() / "data"


@pytest.fixture
def make_stack(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Stack]]:
    """Make stacks of trivial programs, on servers that somebody else provides."""
    made: list[Stack] = []

    def make(*wanted: Program, say: Callable[[str], None] | None = None) -> Stack:
        monkeypatch.setattr(stack, "programs", lambda *args, **options: list(wanted))
        monkeypatch.setattr(Stack, "_migrate", lambda self: None)
        one = Stack(data_dir, env=GIVEN, say=say)
        made.append(one)
        return one

    yield make
    for one in made:
        one.stop()


@contextmanager
def listener() -> Iterator[int]:
    with socket.create_server((stack.HOST, 0)) as server:
        yield server.getsockname()[1]


# --- ports and environment --------------------------------------------------------------------


def test_the_environment_brings_what_is_not_given(tmp_path: Path) -> None:
    env = stack.environment({"LANG": "C"}, tmp_path, port=8000, simulator_port=9000)

    assert env["LANG"] == "C"
    assert (env["DATABASE_URL"], env["REDIS_URL"]) == embedded.urls(tmp_path)
    assert env["PICTURE_DATA_DIR"] == str(tmp_path)
    assert len(env["SECRET_KEY"]) >= 50
    assert env["REPLICATE_BASE_URL"] == "http://127.0.0.1:9000"
    assert env["REPLICATE_API_TOKEN"] == "r8_simulated"
    assert env["RUNPOD_BASE_URL"] == "http://127.0.0.1:9000/v2"
    assert env["RUNPOD_API_KEY"] == "rpa_simulated"
    assert env["RUNPOD_ENDPOINT_ID"] == "simulated"
    assert env["COMFYUI_URL"] == "http://127.0.0.1:9000/comfyui"
    assert env["PROVIDER_OUTPUT_HOSTS"] == "127.0.0.1"
    assert env["PUBLIC_URL"] == "http://127.0.0.1:8000"


def test_the_environment_keeps_what_is_given(tmp_path: Path) -> None:
    given = {
        **GIVEN,
        "SECRET_KEY": "secret",
        "REPLICATE_API_TOKEN": "r8_real",
        "REPLICATE_BASE_URL": "https://provider.example",
    }

    env = stack.environment(given, tmp_path, port=8000, simulator_port=None)

    assert given.items() <= env.items()
    assert "PUBLIC_URL" not in env
    assert "PROVIDER_OUTPUT_HOSTS" not in env


def test_an_empty_variable_counts_as_not_given(tmp_path: Path) -> None:
    env = stack.environment({"REDIS_URL": " "}, tmp_path, port=8000, simulator_port=None)

    assert env["REDIS_URL"] == embedded.urls(tmp_path).redis_url


def test_the_mark_of_a_surrounding_stack_is_not_passed_on(tmp_path: Path) -> None:
    env = stack.environment({stack.MARK: "/other"}, tmp_path, port=8000, simulator_port=None)

    assert stack.MARK not in env


@pytest.mark.parametrize(("value", "port"), [("", None), (" ", None), ("1", 1), ("65535", 65535)])
def test_the_port_is_chosen_by_the_environment(value: str, port: int | None) -> None:
    assert stack.chosen_port({"PICTURE_PORT": value}) == port


@pytest.mark.parametrize("value", ["0", "65536", "-1", "http", "80.5", "٣"])
def test_a_malformed_port_is_named(value: str) -> None:
    with pytest.raises(StackError, match=r"^PICTURE_PORT must be a number from 1 to 65535$"):
        stack.chosen_port({"PICTURE_PORT": value})


def test_a_preferred_port_that_is_taken_gives_way_to_a_free_one() -> None:
    with listener() as taken:
        port = stack.free_port(taken)
        assert port != taken
        assert stack.port_is_free(port)


def test_a_port_whose_last_connection_has_just_ended_is_free() -> None:
    with socket.create_server((stack.HOST, 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection((stack.HOST, port)) as client, server.accept()[0] as served:
            served.close()  # the side that closes first keeps the port for a while
            assert client.recv(1) == b""

    assert stack.port_is_free(port)


def test_every_queue_has_a_worker(tmp_path: Path) -> None:
    wanted = stack.programs(tmp_path, port=8000, flower_port=5555, simulator_port=9000)

    names = [one.name for one in wanted]
    assert names[0] == "simulator"
    assert {"web", "beat", "flower"} < set(names)
    queues = [
        one.arguments[one.arguments.index("-Q") + 1] for one in wanted if "-Q" in one.arguments
    ]
    assert sorted(",".join(queues).split(",")) == ["control", "download", "generate", "webhooks"]


def test_flower_and_the_simulator_can_be_left_out(tmp_path: Path) -> None:
    wanted = stack.programs(tmp_path, port=8000, flower_port=None, simulator_port=None)

    assert not {"flower", "simulator"} & {one.name for one in wanted}


# --- one process ------------------------------------------------------------------------------


def test_a_process_that_ended_tells_its_code_and_last_words(
    start: Callable[[Program], Process],
) -> None:
    process = start(program("one", "print('ready'); print('  oh no \\n'); raise SystemExit(3)"))

    assert wait_until(process.ended, 30)
    assert process.exit_code == 3
    assert process.last_words() == "ready / oh no"


def test_a_running_process_has_no_exit_code(start: Callable[[Program], Process]) -> None:
    process = start(program("one", SLEEPER))

    assert process.exit_code is None
    process.send(signal.SIGTERM)
    assert wait_until(process.ended, 30)
    assert process.exit_code == -signal.SIGTERM
    process.send(signal.SIGTERM)


def test_children_end_with_a_killed_process(start: Callable[[Program], Process]) -> None:
    process = start(program("parent", PARENT, ready_line=r"^child \d+$"))
    child = psutil.Process(int(process.output().split()[1]))

    process.send(signal.SIGKILL)

    assert wait_until(process.ended, 30)
    assert wait_until(lambda: embedded.has_ended(child), 30)


def test_a_process_that_does_not_end_when_asked_is_killed(
    start: Callable[[Program], Process],
) -> None:
    stubborn, polite = start(program("stubborn", STUBBORN)), start(program("polite", SLEEPER))

    stack.end([stubborn, polite], timeout_s=0.5)

    assert stubborn.exit_code == -signal.SIGKILL
    assert polite.exit_code == -signal.SIGTERM


# --- the stack --------------------------------------------------------------------------------


def test_a_stack_starts_all_and_leaves_nothing_running(make_stack: Callable[..., Stack]) -> None:
    with make_stack(program("one", SLEEPER), program("two", SLEEPER)) as running:
        assert set(running.pids) == {"one", "two"}
        assert stack.running_url(running.data_dir) == running.url
        assert {process.pid for process in stack.leftovers(running.data_dir)} == set(
            running.pids.values()
        )
        running.check()

    assert running.pids == {}
    assert stack.leftovers(running.data_dir) == []
    assert stack.running_url(running.data_dir) is None


def test_a_stack_embeds_only_the_server_that_is_missing(
    make_stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GIVEN, "REDIS_URL", "")
    with make_stack(program("one", SLEEPER)) as running:
        first = running.pids["redis"]
        assert "postgres" not in running.pids

        running.kill("redis")
        assert "redis" not in running.pids

        running.restart("redis")
        assert running.pids["redis"] != first

    assert running.pids == {}


def test_a_taken_port_is_named_in_one_line(make_stack: Callable[..., Stack]) -> None:
    one = make_stack(program("one", SLEEPER))
    with listener() as one.port, pytest.raises(StackError) as failure:
        one.start()

    assert str(failure.value) == f"port {one.port} is taken (set PICTURE_PORT)"
    assert stack.running_url(one.data_dir) is None


def test_a_second_stack_on_the_same_data_folder_is_refused(
    make_stack: Callable[..., Stack],
) -> None:
    with make_stack(program("one", SLEEPER)) as running:
        with pytest.raises(StackError) as failure:
            make_stack(program("two", SLEEPER)).start()

        assert str(failure.value).startswith(f"a stack already runs on {running.data_dir} ")
        running.check()
        assert stack.running_url(running.data_dir) == running.url


def test_what_a_killed_stack_left_running_is_ended_by_the_next(
    make_stack: Callable[..., Stack],
) -> None:
    one = make_stack(program("one", SLEEPER))
    env = {**os.environ, stack.MARK: str(one.data_dir)}
    with subprocess.Popen([sys.executable, "-c", SLEEPER], env=env) as leftover, one:
        assert leftover.wait(30) == -signal.SIGKILL
        one.check()


def test_a_process_that_ends_at_the_start_is_reported_and_the_others_stop(
    make_stack: Callable[..., Stack],
) -> None:
    one = make_stack(
        program("good", SLEEPER), program("bad", "import sys; sys.exit('DEBUG must be on or off')")
    )
    with pytest.raises(StackError) as failure:
        one.start()

    assert str(failure.value) == "bad ended with 1: DEBUG must be on or off"
    assert one.pids == {}


def test_a_process_that_is_never_ready_is_reported(
    make_stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "START_TIMEOUT_S", 0.5)
    one = make_stack(program("slow", "import time; time.sleep(600)"))

    with pytest.raises(StackError, match=r"^slow is not ready after 0 s: no output$"):
        one.start()


def test_a_data_folder_that_cannot_be_written_is_named(
    make_stack: Callable[..., Stack], data_dir: Path
) -> None:
    data_dir.touch()

    with pytest.raises(StackError) as failure:
        make_stack(program("one", SLEEPER)).start()

    assert str(failure.value) == f"data folder {data_dir} is not writable: File exists"


def test_a_failed_migration_is_reported_with_its_last_line(tmp_path: Path) -> None:
    env = {**GIVEN, "DATABASE_URL": "mysql://db/picture"}
    one = Stack(tmp_path, env=env, without=["simulator"])

    with pytest.raises(StackError, match=r"^migrate failed: picture: DATABASE_URL must be like"):
        one.start()


def test_a_killed_process_is_noticed_and_can_be_started_again(
    make_stack: Callable[..., Stack],
) -> None:
    with make_stack(program("one", SLEEPER)) as running:
        first = running.pids["one"]
        running.kill("one")
        assert running.pids == {}
        with pytest.raises(StackError, match=r"^one ended with -9: ready$"):
            running.check()

        running.restart("one")

        assert running.pids["one"] != first
        running.check()
        assert running.log("one").read_text() == "ready\nready\n"


def test_a_supervised_process_starts_again_with_growing_pauses(
    make_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    once = f"import pathlib; pathlib.Path({str(tmp_path / 'once')!r}).touch(exist_ok=False); "
    told: list[str] = []

    def say(line: str) -> None:
        if line.startswith("picture "):
            told.append(line.partition("| ")[2])
            if len(told) == 2:
                raise KeyboardInterrupt

    with make_stack(program("one", once + SLEEPER), say=say) as running:
        running.kill("one")
        with pytest.raises(KeyboardInterrupt):
            running.supervise()

    assert told == [
        "one ended with -9, starts again in 1 s",
        "one ended with 1, starts again in 2 s",
    ]


def test_the_console_shows_each_line_with_the_name_of_its_process(
    make_stack: Callable[..., Stack],
) -> None:
    shown: list[str] = []
    code = "print('ready\\n'); print('half', end='', flush=True); import time; time.sleep(600)"
    with make_stack(program("one", code), say=shown.append):
        assert wait_until(lambda: shown, 30)

    assert shown == ["one              | ready"]
