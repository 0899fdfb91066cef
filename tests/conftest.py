"""One PostgreSQL and one Redis for the whole run, from the same wheels as everywhere else.

The environment is set before Django's settings are read: that is why the settings module is
named here and not in pyproject.toml.
"""

import os
import shutil
import tempfile
from pathlib import Path

import django
import pytest

from picture import embedded

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
