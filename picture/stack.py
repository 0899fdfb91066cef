"""The product as a set of processes: started together, watched, and stopped together.

`manage.py run` and `manage.py demo`, the acceptance tests and the benchmarks all use this. Each
process is the one an operator would run in a container of its own; what the environment does
not name (PostgreSQL, Redis, a provider) is brought along.

    simulator, PostgreSQL, Redis  →  migrations  →  web, three workers, beat, Flower

Every process leads a session of its own, so that Ctrl-C reaches only this one, and writes to
`<data folder>/logs/<name>.log`. A file and not a pipe: the processes must neither block nor
break when their parent is stopped or killed. What a killed stack left running is ended by the
next one on the same data folder.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, NoReturn, Self

import psutil
import requests

from picture import embedded
from picture.embedded import has_ended, wait_until

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
DEFAULT_PORT = 8000
FLOWER_PORT = 5555
SIMULATOR = "simulator"
# With one of these set, nothing is simulated.
PROVIDER_VARIABLES = ("REPLICATE_API_TOKEN", "RUNPOD_API_KEY", "COMFYUI_URL")
SERVICES = ("postgres", "redis")
# In the environment of every process of a stack; names the data folder. Tells leftovers apart.
MARK = "PICTURE_STACK"

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05
RESTART_PAUSE_MAX_S = 30.0
STEADY_AFTER_S = 60.0
LOG_LINES_IN_ERRORS = 5


class StackError(Exception):
    """Say in one line why the stack cannot start or go on."""


@dataclass(frozen=True)
class Program:
    """How a process is started, and how one knows that it is ready."""

    name: str
    arguments: tuple[str, ...]
    ready_line: str = ""  # a regular expression for a line of its log
    ready_url: str = ""  # answers 200
    nice: int = 0  # how far it stands back for the others on a machine that is busy


# --- what runs --------------------------------------------------------------------------------


def programs(
    data_dir: Path, *, port: int, flower_port: int | None, simulator_port: int | None
) -> list[Program]:
    """Return the programs of a stack in the order they start; ``None`` leaves one out."""
    celery = ("-m", "celery", "-A", "picture")

    def worker(name: str, queues: str, pool: str, concurrency: int) -> Program:
        options = ("-Q", queues, "--pool", pool, "--concurrency", str(concurrency))
        quiet = ("--loglevel", "INFO", "--without-gossip", "--without-mingle")
        # Flower asks workers for their events every few seconds; so it sees the first tasks too.
        watched = ("--task-events",) if flower_port is not None else ()
        # Its banner and a warning to root would bury what `run` has to say.
        silent = ("-W", "ignore:::celery.platforms", "-m", "celery", "--quiet", "-A", "picture")
        arguments = (*silent, "worker", "-n", f"{name}@%h", *options, *quiet, *watched)
        return Program(f"worker-{name}", arguments, ready_line=rf"\b{name}@\S+ ready\.")

    wanted = []
    if simulator_port is not None:
        arguments = ("-m", "simulator", "--host", HOST, "--port", str(simulator_port))
        wanted.append(Program(SIMULATOR, arguments, ready_line=r"^simulator ready "))
    address = ("--host", HOST, "--port", str(port))
    serving: tuple[str, ...] = (
        "--no-access-log",
        "--lifespan",
        "off",
        "--timeout-graceful-shutdown",
        "5",
    )
    # Clients send pings only, and compression would take more memory for each than all else.
    serving += ("--ws-max-size", "1024", "--ws-per-message-deflate", "false")
    wanted += [
        Program(
            "web",
            ("-m", "uvicorn", "picture.asgi:application", *address, *serving),
            ready_url=f"http://{HOST}:{port}/health/live",
            nice=4,  # work that was accepted goes before work that comes
        ),
        worker("generate", "generate", "threads", 20),
        worker("download", "download", "prefork", 2),
        worker("control", "control,webhooks", "threads", 4),
        Program(
            "beat",
            (*celery, "beat", "--schedule", str(data_dir / "beat/schedule"), "--pidfile="),
            ready_line=r"is starting\.",
        ),
    ]
    if flower_port is not None:
        options = (f"--conf={ROOT / 'picture/flowerconfig.py'}", f"--address={HOST}")
        wanted.append(
            Program(
                "flower",
                (*celery, "flower", *options, f"--port={flower_port}"),
                ready_url=f"http://{HOST}:{flower_port}/healthcheck",
            )
        )
    return wanted


def environment(
    given: Mapping[str, str], data_dir: Path, *, port: int, simulator_port: int | None
) -> dict[str, str]:
    """Return the environment of a stack's processes: what is given, completed.

    Without `simulator_port` the provider's variables stay as they are given.
    """
    urls = embedded.urls(data_dir)
    defaults = {
        "DATABASE_URL": urls.database_url,
        "REDIS_URL": urls.redis_url,
        "SECRET_KEY": secrets.token_urlsafe(50),
    }
    fixed = {
        "PICTURE_DATA_DIR": str(data_dir),
        "DJANGO_SETTINGS_MODULE": "picture.settings",
        "PYTHONUNBUFFERED": "1",
    }
    if simulator_port is not None:
        # No real provider calls back to a loopback address, so only the simulator is told one.
        defaults |= {"PUBLIC_URL": f"http://{HOST}:{port}", "PROVIDER_OUTPUT_HOSTS": HOST}
        simulator = f"http://{HOST}:{simulator_port}"
        fixed |= {
            "REPLICATE_BASE_URL": simulator,
            "REPLICATE_API_TOKEN": "r8_simulated",
            "RUNPOD_BASE_URL": f"{simulator}/v2",
            "RUNPOD_API_KEY": "rpa_simulated",
            "RUNPOD_ENDPOINT_ID": "simulated",
            "COMFYUI_URL": f"{simulator}/comfyui",
            "PRINTIFY_BASE_URL": f"{simulator}/printify/v1",
            "SHOPIFY_BASE_URL": f"{simulator}/shopify/{{shop}}",
        }
    kept = {name: value for name, value in given.items() if name != MARK and value.strip()}
    return {**defaults, **kept, **fixed}


def chosen_port(given: Mapping[str, str]) -> int | None:
    """Return the web port that the environment chooses; ``None`` if it leaves the choice.

    Raises:
        StackError: PICTURE_PORT is not a port number.
    """
    value = given.get("PICTURE_PORT", "").strip()
    if not value:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", value) or not 1 <= int(value) <= 65535:
        raise StackError("PICTURE_PORT must be a number from 1 to 65535")
    return int(value)


def free_port(preferred: int = 0) -> int:
    """Return a TCP port of the loopback address that is free now, the preferred one if it is."""
    if preferred and port_is_free(preferred):
        return preferred
    # Below those that the kernel gives to clients: one of these might take it before its server.
    return next(port for port in iter(_any_port, 0) if port_is_free(port))


def _any_port() -> int:
    return secrets.choice(range(20_000, 32_000))


def port_is_free(port: int) -> bool:
    """Tell whether a server could listen on a TCP port of the loopback address."""
    with socket.socket() as listener:
        # As servers do, so that connections of a server that has ended do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True


# --- one process ------------------------------------------------------------------------------


class Process:
    """A program that has been started."""

    def __init__(
        self, program: Program, env: Mapping[str, str], log: Path, *, fresh: bool = True
    ) -> None:
        self.program = program
        self.log = log
        self.started_s = time.monotonic()
        self._log_start_bytes = 0 if fresh or not log.exists() else log.stat().st_size
        with log.open("wb" if fresh else "ab") as output:
            self._popen = subprocess.Popen(
                [sys.executable, *program.arguments],
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._process = psutil.Process(self._popen.pid)
        # Its threads and children, which come later, inherit it.
        if program.nice:
            self._process.nice(program.nice)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; ``None`` while it runs."""
        return self._popen.returncode if self.ended() else None

    def ended(self) -> bool:
        """Tell whether it has ended; what is left of its children ends with it."""
        if self._popen.returncode is not None:
            return True
        if not has_ended(self._process):
            return False
        # Before the zombie is reaped: until then nobody else can have its process group's id.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        return True

    def send(self, signum: int) -> None:
        """Signal it, not its children; nothing happens when it has ended."""
        if not self.ended():
            self._process.send_signal(signum)

    def ready(self) -> bool:
        """Tell whether it does its work, by its log or its HTTP answer."""
        if self.program.ready_url:
            return answers(self.program.ready_url)
        return re.search(self.program.ready_line, self.output(), re.MULTILINE) is not None

    def output(self) -> str:
        """Return what it has written since it was started."""
        with self.log.open("rb") as log:
            log.seek(self._log_start_bytes)
            return log.read().decode(errors="replace")

    def last_words(self) -> str:
        """Return its last lines of output as one line."""
        lines = [line.strip() for line in self.output().splitlines() if line.strip()]
        return " / ".join(lines[-LOG_LINES_IN_ERRORS:]) or "no output"


def answers(url: str) -> bool:
    """Tell whether a URL on this machine answers 200."""
    with requests.Session() as session:
        session.trust_env = False  # a proxy must not be asked about this machine
        try:
            return session.get(url, timeout=2).status_code == 200
        except requests.RequestException:
            return False


def end(processes: Sequence[Process], timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Ask processes to end, all at once, and kill those that have not when the time is up."""
    try:
        for process in processes:
            process.send(signal.SIGTERM)
        wait_until(lambda: all(process.ended() for process in processes), timeout_s)
    finally:
        for process in processes:
            process.send(signal.SIGKILL)
        wait_until(lambda: all(process.ended() for process in processes), timeout_s)


def leftovers(data_dir: Path) -> list[psutil.Process]:
    """Return the processes of stacks on a data folder, whoever started them."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(data_dir) and process.pid != os.getpid():
                found.append(process)
    return found


def interrupt_on_signals() -> None:
    """Make a request to end raise `KeyboardInterrupt`, as Ctrl-C does, so that stacks stop."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup
            signal.signal(signum, signal.default_int_handler)


class _Console:
    """Prints the lines that are added to log files, each with the name of its process."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._logs: dict[str, Path] = {}
        self._read_bytes: dict[str, int] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="console", daemon=True)
        self._thread.start()

    def follow(self, name: str, log: Path) -> None:
        self._logs[name] = log

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _follow(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(0.1)
            for name, log in list(self._logs.items()):
                self._print_new(name, log)

    def _print_new(self, name: str, log: Path) -> None:
        with log.open("rb") as file:
            file.seek(self._read_bytes.get(name, 0))
            # The rest of an unfinished line is printed when it is complete.
            complete, newline, _ = file.read().rpartition(b"\n")
        self._read_bytes[name] = self._read_bytes.get(name, 0) + len(complete) + len(newline)
        for line in filter(str.strip, complete.decode(errors="replace").splitlines()):
            self._say(f"{name:<16} | {line}")


# --- the stack --------------------------------------------------------------------------------


def running_url(data_dir: Path) -> str | None:
    """Return the URL of the stack that runs on a data folder now; ``None`` if there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        with (data_dir / ".stack.lock").open("rb") as lock:
            if _try_lock(lock, fcntl.LOCK_SH):
                return None
        return str(json.loads((data_dir / "stack.json").read_text())["url"])
    return None


def _try_lock(lock: IO[bytes], kind: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
        return True
    return False


class Stack:
    """All processes of the product on one data folder; a context manager.

    `env` overrides the inherited environment; a variable that is empty counts as not set.
    `port` is the web port, by default a free one. Flower runs if it is given a login, as
    `user:password`. `without` names processes to leave out.
    `say` receives lines for a console: each process's output, and what the stack does itself.
    `durable=False` is for tests: see `embedded.acquire`.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        env: Mapping[str, str] | None = None,
        port: int | None = None,
        flower_login: str | None = None,
        without: Collection[str] = (),
        simulator_options: Sequence[str] = (),
        say: Callable[[str], None] | None = None,
        durable: bool = True,
    ) -> None:
        given = {**os.environ, **(env or {})}
        simulated = not any(given.get(name, "").strip() for name in PROVIDER_VARIABLES)
        self.data_dir = data_dir.resolve()
        self.port = port or free_port()
        # A known place for people; any place for what is started many times at once.
        self.flower_port = free_port(FLOWER_PORT if port else 0) if flower_login else None
        self.simulator_port = free_port() if simulated else None
        self.env = environment(
            given, self.data_dir, port=self.port, simulator_port=self.simulator_port
        )
        if flower_login:
            self.env["FLOWER_BASIC_AUTH"] = flower_login
        self._programs = {
            program.name: program
            for program in programs(
                self.data_dir,
                port=self.port,
                flower_port=self.flower_port,
                simulator_port=self.simulator_port,
            )
            if program.name not in without
        }
        if SIMULATOR in self._programs:
            plain = self._programs[SIMULATOR]
            arguments = (*plain.arguments, *simulator_options)
            self._programs[SIMULATOR] = replace(plain, arguments=arguments)
        embeds = {
            "postgres": not given.get("DATABASE_URL", "").strip(),
            "redis": not given.get("REDIS_URL", "").strip(),
        }
        self._embeds = tuple(name for name in SERVICES if embeds[name])
        self._durable = durable
        self._holds: list[embedded.Hold] = []
        self._processes: dict[str, Process] = {}
        self._say = say
        self._console: _Console | None = None
        self._cleanup = contextlib.ExitStack()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def flower_url(self) -> str | None:
        return f"http://{HOST}:{self.flower_port}" if self.flower_port else None

    @property
    def simulator_url(self) -> str | None:
        return self.env["REPLICATE_BASE_URL"] if SIMULATOR in self._programs else None

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name, of what runs now; the embedded servers are among them."""
        servers = embedded.running(self.data_dir)._asdict()
        return {
            **{name: pid for name in self._embeds if (pid := servers[name])},
            **{name: one.pid for name, one in self._processes.items() if not one.ended()},
        }

    def log(self, name: str) -> Path:
        return self.data_dir / "logs" / f"{name}.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and wait until it is ready; after an error nothing is left running.

        Raises:
            StackError: one line: a port is taken, another stack runs on the data folder, the
                migrations fail, or a process ends or is not ready in time.
            embedded.EmbeddedError: see `embedded.acquire`.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self._claim_data_dir()
        if not port_is_free(self.port):
            raise StackError(f"port {self.port} is taken (set PICTURE_PORT)")
        if self._say:
            self._console = _Console(self._say)
            self._cleanup.callback(self._console.close)
        self._cleanup.callback(self._release_services)
        self._cleanup.callback(self._end, [SIMULATOR])
        # It needs no database, so it gets ready while that starts.
        if SIMULATOR in self._programs:
            self._spawn(SIMULATOR)
        if self._embeds:
            self._hold_services()
        self._migrate()
        self._cleanup.callback(self._end, [one for one in self._programs if one != SIMULATOR])
        for name in self._programs:
            if name not in self._processes:
                self._spawn(name)
        self._await_ready(list(self._programs))

    def stop(self) -> None:
        """Stop everything that was started: the simulator and the servers last."""
        self._cleanup.close()

    def check(self) -> None:
        """Raise `StackError` when a process has ended that should run."""
        for name, process in self._processes.items():
            if process.ended():
                reason = f"{name} ended with {process.exit_code}: {process.last_words()}"
                raise StackError(reason)

    def kill(self, name: str, signum: int = signal.SIGKILL) -> None:
        """Send a signal to a process or an embedded server; await the end if it is SIGKILL.

        The children of a process that has ended are killed as well.
        """
        ended: Callable[[], bool]
        if name in self._embeds:
            server = psutil.Process(self.pids[name])
            server.send_signal(signum)
            ended = partial(has_ended, server)
        else:
            self._processes[name].send(signum)
            ended = self._processes[name].ended
        if signum == signal.SIGKILL:
            wait_until(ended, STOP_TIMEOUT_S)

    def restart(self, name: str) -> None:
        """Stop a process if it runs, start it again and await it; start a dead embedded server."""
        if name in self._embeds:
            self._hold_services()
            return
        end([self._processes[name]])
        self._spawn(name)
        self._await_ready([name])

    def manage(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a management command in the stack's environment and return its captured output."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=self.env,
            text=True,
            capture_output=True,
            timeout=timeout_s,
        )

    def supervise(self) -> NoReturn:
        """Start again whatever ends, with growing pauses, until an exception ends the loop."""
        failures: dict[str, int] = {}
        restart_at_s: dict[str, float] = {}
        while True:
            for name, process in self._processes.items():
                if not process.ended():
                    if time.monotonic() - process.started_s > STEADY_AFTER_S:
                        failures.pop(name, None)
                elif name not in restart_at_s:
                    pause_s = min(2.0 ** failures.get(name, 0), RESTART_PAUSE_MAX_S)
                    failures[name] = failures.get(name, 0) + 1
                    restart_at_s[name] = time.monotonic() + pause_s
                    code = process.exit_code
                    self._tell(f"{name} ended with {code}, starts again in {pause_s:.0f} s")
                elif time.monotonic() >= restart_at_s[name]:
                    del restart_at_s[name]
                    self._spawn(name)
            if missing := [name for name in self._embeds if name not in self.pids]:
                self._tell(f"{' and '.join(missing)} ended, starting again")
                self._hold_services()
            time.sleep(0.5)

    def _tell(self, line: str) -> None:
        if self._say:
            self._say(f"{'picture':<16} | {line}")

    def _claim_data_dir(self) -> None:
        """Make sure that this is the only stack on its data folder, and that it can be found."""
        try:
            for folder in (self.data_dir, self.data_dir / "logs", self.data_dir / "beat"):
                folder.mkdir(parents=True, exist_ok=True)
            lock = self._cleanup.enter_context((self.data_dir / ".stack.lock").open("wb"))
        except OSError as exc:
            reason = f"data folder {self.data_dir} is not writable: {exc.strerror}"
            raise StackError(reason) from exc
        # Not at once: `running_url` holds the lock for a moment.
        if not wait_until(partial(_try_lock, lock, fcntl.LOCK_EX), 0.5):
            reason = f"a stack already runs on {self.data_dir} (set PICTURE_DATA_DIR for another)"
            raise StackError(reason)
        left = leftovers(self.data_dir)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until(lambda: all(has_ended(process) for process in left), STOP_TIMEOUT_S)
        card = self.data_dir / "stack.json"
        card.write_text(json.dumps({"url": self.url}))
        self._cleanup.callback(card.unlink, missing_ok=True)

    def _hold_services(self) -> None:
        """Start the embedded servers that do not run, and hold all of them."""
        self._holds.append(
            embedded.acquire(
                self.data_dir,
                postgres="postgres" in self._embeds,
                redis="redis" in self._embeds,
                durable=self._durable,
            )
        )
        for hold in self._holds[:-1]:
            hold.release()
        del self._holds[:-1]

    def _release_services(self) -> None:
        while self._holds:
            self._holds.pop().release()

    def _migrate(self) -> None:
        done = self.manage("migrate", "--noinput", timeout_s=START_TIMEOUT_S)
        self.log("migrate").write_text(done.stdout + done.stderr)
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
            raise StackError(f"migrate failed: {lines[-1]}")

    def _spawn(self, name: str) -> None:
        env = {**self.env, MARK: str(self.data_dir)}
        fresh = name not in self._processes
        process = Process(self._programs[name], env, self.log(name), fresh=fresh)
        self._processes[name] = process
        if self._console:
            self._console.follow(name, process.log)

    def _await_ready(self, names: Sequence[str]) -> None:
        waiting = [self._processes[name] for name in names]

        def all_ready() -> bool:
            self.check()
            waiting[:] = [process for process in waiting if not process.ready()]
            return not waiting

        if not wait_until(all_ready, START_TIMEOUT_S):
            slow = waiting[0]
            reason = f"{slow.program.name} is not ready after {START_TIMEOUT_S:.0f} s"
            raise StackError(f"{reason}: {slow.last_words()}")

    def _end(self, names: Collection[str]) -> None:
        end([process for name, process in self._processes.items() if name in names])
