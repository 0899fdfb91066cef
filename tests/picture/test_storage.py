"""Where files are kept, by the environment: in a folder or in S3."""

import json
import os
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from picture.stack import ROOT
from picture.storage import PrivateS3Storage

KEYS = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "secret"}
BUCKET = {"STORAGE_BUCKET": "pictures", **KEYS}
ENDPOINT = {"STORAGE_ENDPOINT_URL": "https://minio.example:9000"}
SHOW = """
import json
from picture import settings
print(json.dumps(settings.STORAGES["default"], default=str))
"""


def start(data_dir, env):
    """Read the settings in a process that has this environment and no other."""
    clean = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    return subprocess.run(
        [sys.executable, "-c", SHOW],
        cwd=ROOT,
        env={**clean, "PICTURE_DATA_DIR": str(data_dir), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def storage(data_dir, env):
    """The S3 storage that the environment describes."""
    answer = start(data_dir, env)
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert told["BACKEND"] == "picture.storage.PrivateS3Storage"
    return PrivateS3Storage(**told["OPTIONS"])


@pytest.mark.parametrize(
    ("env", "line"),
    [
        (
            {"STORAGE_BUCKET": "pictures", "AWS_SECRET_ACCESS_KEY": "secret"},
            "AWS_ACCESS_KEY_ID must be set where STORAGE_BUCKET is",
        ),
        (
            {"STORAGE_BUCKET": "pictures", "AWS_ACCESS_KEY_ID": "AKIA"},
            "AWS_SECRET_ACCESS_KEY must be set where STORAGE_BUCKET is",
        ),
        (ENDPOINT | KEYS, "STORAGE_BUCKET must be set where STORAGE_ENDPOINT_URL is"),
        (
            BUCKET | {"STORAGE_BUCKET": "s3://pictures"},
            "STORAGE_BUCKET must be the name of a bucket: "
            "3 to 63 small letters, digits, dots and dashes",
        ),
        (
            BUCKET | {"STORAGE_ENDPOINT_URL": "minio:9000"},
            "STORAGE_ENDPOINT_URL must be an http or https URL",
        ),
        (BUCKET | {"STORAGE_ADDRESSING": "host"}, "STORAGE_ADDRESSING must be path or virtual"),
        (BUCKET | {"AWS_REGION": "Europe!"}, "AWS_REGION must be a region such as eu-central-1"),
    ],
)
def test_what_is_missing_or_malformed_stops_the_start_with_one_line(env, line, tmp_path):
    answer = start(tmp_path, env)
    assert (answer.returncode, answer.stderr) == (1, f"picture: {line}\n")


@pytest.mark.parametrize(
    ("env", "address"),
    [
        (BUCKET, "https://pictures.s3.amazonaws.com/1/0.png"),
        (
            BUCKET | {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_REGION": "eu-central-1"},
            "https://pictures.s3.eu-central-1.amazonaws.com/1/0.png",
        ),
        (
            BUCKET | {"STORAGE_BUCKET": "my.pictures", "AWS_DEFAULT_REGION": "eu-west-1"},
            "https://s3.eu-west-1.amazonaws.com/my.pictures/1/0.png",
        ),
        (BUCKET | ENDPOINT, "https://minio.example:9000/pictures/1/0.png"),
        (
            BUCKET | ENDPOINT | {"STORAGE_ADDRESSING": "virtual"},
            "https://pictures.minio.example:9000/1/0.png",
        ),
    ],
)
def test_addresses_have_the_form_that_the_endpoint_needs(env, address, tmp_path):
    url = urlsplit(storage(tmp_path, env).url("1/0.png"))
    assert url._replace(query="").geturl() == address
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url.query


def test_keys_that_last_for_a_while_bring_their_token(tmp_path):
    url = storage(tmp_path, BUCKET | {"AWS_SESSION_TOKEN": "for a while"}).url("1/0.png")
    assert "X-Amz-Security-Token=for+a+while" in url.replace("%20", "+")


def test_files_are_kept_in_a_folder_while_no_bucket_is_named(tmp_path):
    # Other programs' variables are not ours to judge.
    answer = start(tmp_path, KEYS | {"AWS_REGION": "Europe!"})
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert told["BACKEND"] == "django.core.files.storage.FileSystemStorage"
    assert told["OPTIONS"]["location"] == str(tmp_path / "media")
