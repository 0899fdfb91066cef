"""One stack of real processes for all acceptance tests, and a user's view of it."""

import itertools
import tempfile
import threading
from pathlib import Path

import pytest
import requests

from picture.stack import Stack
from tests.waiting import wait_until

RETRY_DELAYS_S = (1.0, 2.0, 4.0)
# What the test process has in its environment, and the stack is to bring along itself.
UNSET = (
    "DATABASE_URL",
    "REDIS_URL",
    "SECRET_KEY",
    "REPLICATE_API_TOKEN",
    "REPLICATE_BASE_URL",
    "RUNPOD_API_KEY",
    "COMFYUI_URL",
    "PROVIDER_OUTPUT_HOSTS",
)
_names = itertools.count(1)


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("stack"))


class Client:
    """One user of the API."""

    def __init__(self, stack):
        self.stack = stack
        self.username = f"user{next(_names)}"
        self.http = requests.Session()
        self.http.trust_env = False
        token = stack.manage("create_token", self.username).stdout.strip()
        self.http.headers["Authorization"] = f"Bearer {token}"

    def call(self, method, path, status=200, *, timeout_s=30, **kwargs):
        url = path if path.startswith("http") else f"{self.stack.url}/api/v1/{path}"
        answer = self.http.request(method, url, timeout=timeout_s, **kwargs)
        assert answer.status_code == status, answer.text
        return answer

    def submit(self, texts, **body):
        """A batch of these texts, each marked with the user for the simulator's books."""
        prompts = [{"text": f"[{self.username}] {text}"} for text in texts]
        return self.call("POST", "batches/", 202, json={"prompts": prompts, **body}).json()

    def finished(self, batch, timeout_s=60):
        def look():
            now = self.call("GET", f"batches/{batch['id']}/").json()
            return now if now["finished_at"] else None

        return wait_until(look, timeout_s=timeout_s)

    def item(self, batch, text):
        (item,) = [item for item in batch["items"] if item["prompt"].endswith(text)]
        return item


class Simulator:
    """The books and the controls of the simulated provider."""

    def __init__(self, url):
        self.url = url

    def _call(self, method, path, **kwargs):
        answer = requests.request(method, f"{self.url}/_sim/{path}", timeout=10, **kwargs)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def reset(self):
        self._call("POST", "reset")
        self._call("DELETE", "faults")

    def fault(self, kind, **options):
        self._call("POST", "faults", json={"kind": kind, **options})

    def settings(self, **values):
        self._call("POST", "settings", json=values)

    def charges(self, prompt=""):
        return self._call("GET", "ledger", params={"prompt": prompt})["charges"]

    def stats(self):
        return self._call("GET", "stats")

    def deliveries(self):
        return self._call("GET", "webhooks")["deliveries"]


def start_again_what_ends(stack, stopping):
    """As an operator's supervisor does: a worker may end when its broker goes away."""
    while not stopping.wait(0.2):
        for name, process in list(stack._processes.items()):
            if process.ended() and not stopping.is_set():
                stack._spawn(name)


@pytest.fixture(scope="session")
def stack():
    env = dict.fromkeys(UNSET, "") | {"RETRY_DELAYS": ",".join(map(str, RETRY_DELAYS_S))}
    # Not below pytest's own folder, which it closes to the user that PostgreSQL runs as.
    with (
        tempfile.TemporaryDirectory(prefix="picture-stack-") as folder,
        Stack(
            Path(folder),
            env=env,
            flower_login="watcher:secret",
            simulator_options=("--seed", "1"),
            durable=False,
        ) as running,
    ):
        stopping = threading.Event()
        supervisor = threading.Thread(target=start_again_what_ends, args=(running, stopping))
        supervisor.start()
        yield running
        stopping.set()
        supervisor.join()


@pytest.fixture
def simulator(stack):
    simulator = Simulator(stack.simulator_url)
    simulator.reset()
    simulator.settings(run_seconds=0.3, queue_seconds=0.0)
    yield simulator
    simulator.reset()


@pytest.fixture
def new_client(stack):
    """Makes clients; when the test is over, every invariant must hold."""
    yield lambda: Client(stack)
    answer = stack.manage("check_invariants")
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.fixture
def client(new_client):
    return new_client()
