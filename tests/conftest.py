"""One PostgreSQL and one Redis for the whole run, from the same wheels as everywhere else, and one
simulator for all tests of a process that ask for one.

The environment is set before Django's settings are read: that is why the settings module is
named here and not in pyproject.toml.
"""

import os
import shutil
import socket
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import django
import pytest

from generation.http import HttpClient
from picture import embedded
from tests.faults.proxy import TcpProxy
from tests.simulator.support import Receiver, running_simulator

OWN = ("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "PUBLIC_URL", "STORAGE_BUCKET", "RETRY_DELAYS")
OWN += ("PRINTIFY_BASE_URL", "SHOPIFY_BASE_URL", "CREDENTIALS_KEYS")
HOLD = pytest.StashKey[embedded.Hold]()

worker_number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
if "PYTEST_XDIST_WORKER" not in os.environ:
    for name in (*OWN, "RUNPOD_API_KEY", "RUNPOD_ENDPOINT_ID", "RUNPOD_BASE_URL", "COMFYUI_URL"):
        os.environ.pop(name, None)
    os.environ["PICTURE_DATA_DIR"] = tempfile.mkdtemp(prefix="picture-tests-")
    os.environ["REPLICATE_API_TOKEN"] = "r8_tests"
    # Nothing answers there: a test that needs a provider starts a simulator.
    os.environ["REPLICATE_BASE_URL"] = "http://127.0.0.1:9"
    os.environ["PROVIDER_OUTPUT_HOSTS"] = "127.0.0.1"
DATA_DIR = Path(os.environ["PICTURE_DATA_DIR"])
# The database is made per test process by pytest-django; the Redis has one numbered for each.
os.environ["REDIS_URL"] = embedded.urls(DATA_DIR).redis_url.replace("db=0", f"db={worker_number}")
os.environ["DJANGO_SETTINGS_MODULE"] = "picture.settings"
django.setup()
# pytest-django would load the settings of each xdist worker before its own Redis is named above.
del os.environ["DJANGO_SETTINGS_MODULE"]


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.stash[HOLD] = embedded.acquire(DATA_DIR, durable=False)


def pytest_unconfigure(config: pytest.Config) -> None:
    if HOLD in config.stash:
        config.stash[HOLD].release()
        shutil.rmtree(DATA_DIR, ignore_errors=True)


@pytest.fixture(autouse=True)
def assets_on_demand(settings):
    """Without it, every test client has WhiteNoise scan the packages for static files."""
    settings.WHITENOISE_AUTOREFRESH = True


@pytest.fixture(autouse=True)
def media(settings, tmp_path):
    """Files of each test in a folder of its own."""
    settings.STORAGES = {
        **settings.STORAGES,
        "default": {
            "BACKEND": "django.core.files.storage.FileSystemStorage",
            "OPTIONS": {"location": tmp_path / "media", "allow_overwrite": True},
        },
    }
    return tmp_path / "media"


# --- A simulator, and the way to it -------------------------------------------------------------


@pytest.fixture(scope="session")
def simulator_process():
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture
def sim(simulator_process):
    """The simulator, as good as new for each test."""
    assert simulator_process.request("POST", "/_sim/reset").status_code == 204
    return simulator_process


@pytest.fixture
def network(sim):
    """A way to the simulator that can be made to fail."""
    parts = urlsplit(sim.url)
    with TcpProxy((parts.hostname, parts.port)) as proxy:
        yield proxy


@pytest.fixture
def receiver():
    """Takes webhooks."""
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def http():
    with HttpClient(timeout_s=5, connect_timeout_s=1) as client:
        yield client


@pytest.fixture
def refused_url():
    """A URL on a port where nothing listens, without a path."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}"
