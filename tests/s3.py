"""A bucket of its own for tests, on a server that is as strict as Amazon's: see `s3_server`."""

import functools
import os
import subprocess
import sys
from contextlib import contextmanager

import boto3
import requests
from botocore.config import Config

from picture import stack
from picture.embedded import wait_until
from picture.storage import PrivateS3Storage
from tests import s3_server

BUCKET = "pictures"
START_TIMEOUT_S = 60
# So that a handful of objects fills several pages of a list.
PAGE = 3


class S3:
    """The server, seen from outside of the product."""

    def __init__(self, url):
        self.url = url
        self.http = requests.Session()
        self.http.trust_env = False
        self.client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name=s3_server.REGION,
            aws_access_key_id=s3_server.ACCESS_KEY,
            aws_secret_access_key=s3_server.SECRET_KEY,
            config=Config(s3={"addressing_style": "path"}, signature_version="s3v4"),
        )

    @property
    def env(self):
        """What an operator sets."""
        return {
            "STORAGE_BUCKET": BUCKET,
            "STORAGE_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": s3_server.ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": s3_server.SECRET_KEY,
            "AWS_REGION": s3_server.REGION,
            "AWS_SESSION_TOKEN": "",
        }

    @property
    def options(self):
        """The same as the storage's options."""
        return {
            "bucket_name": BUCKET,
            "endpoint_url": self.url,
            "addressing_style": "path",
            "region_name": s3_server.REGION,
            "access_key": s3_server.ACCESS_KEY,
            "secret_key": s3_server.SECRET_KEY,
        }

    def set(self, **state):
        """Move its clock (`ahead_s`), let it `hang` or `fail`; without any, be as usual."""
        self.http.post(f"{self.url}/_test/", json=state, timeout=10).raise_for_status()

    def seen(self):
        """The requests since the last `set`, as [method, bucket and key, query]."""
        return self.http.get(f"{self.url}/_test/", timeout=10).json()

    def stored(self):
        """All keys."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", ()))

    def put(self, *keys, body=b"x"):
        for key in keys:
            self.client.put_object(Bucket=BUCKET, Key=key, Body=body)

    def get(self, url, **kwargs):
        """As a browser would, with nothing but the address."""
        return self.http.get(url, timeout=10, allow_redirects=False, **kwargs)

    def empty(self):
        for key in self.stored():
            self.client.delete_object(Bucket=BUCKET, Key=key)

    def close(self):
        self.client.close()
        self.http.close()


@functools.cache
def storage(**options):
    """A storage backend that is made once, as in a process of the product: it takes a while."""
    return PrivateS3Storage(**options)


@contextmanager
def running():
    """The server with an empty bucket."""
    port = stack.free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.s3_server", str(port)],
        cwd=stack.ROOT,
        env={**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        s3 = S3(f"http://{stack.HOST}:{port}")
        try:
            assert wait_until(lambda: stack.answers(f"{s3.url}/_test/"), START_TIMEOUT_S)
            region = {"LocationConstraint": s3_server.REGION}
            s3.client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=region)
            yield s3
        finally:
            s3.close()
            process.kill()
