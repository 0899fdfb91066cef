"""An S3 server for tests: moto's, behind the rules of a private bucket that it does not know.

moto keeps the objects and speaks the protocol, but checks no signature in an address, nor its age.
So every request passes here first, as it would at Amazon's: it must be signed with the account's
key for the bucket's region, in a header or in its address; an address must not be older than it
says; and ACLs are refused, as where the owner of a bucket owns all that is in it. The clock that
this goes by can be moved. Nothing of botocore is used: what it signed is computed anew.

    python -m tests.s3_server PORT          ends with its standard input

`POST /_test/` sets `ahead_s` (the clock, seconds), `hang` (no request is answered) and `fail` (all
get 503), and forgets the requests so far; `GET /_test/` lists those since as [method, key, query].

Sources: Amazon S3 API Reference, "Authenticating Requests (AWS Signature Version 4)", "Error
responses"; moto's documentation "Server mode", read 2026-11-20
"""

import hashlib
import hmac
import io
import json
import re
import sys
import threading
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

ACCESS_KEY = "AKIAPICTURETESTS"
SECRET_KEY = "a secret/of+the tests"
REGION = "eu-central-1"
ALGORITHM = "AWS4-HMAC-SHA256"
MAX_SKEW = timedelta(minutes=15)
MAX_EXPIRES_S = 604_800
_HEADER = re.compile(
    rf"{ALGORITHM} Credential=(?P<credential>[^,]+), ?SignedHeaders=(?P<headers>[^,]+), ?"
    r"Signature=(?P<signature>[0-9a-f]{64})"
)


class Refused(Exception):
    def __init__(self, status, code, message):
        super().__init__(message)
        self.status, self.code = status, code


class Request:
    def __init__(self, environ):
        self.method = environ["REQUEST_METHOD"]
        self.path, _, query = environ["RAW_URI"].partition("?")
        pairs = (pair.partition("=") for pair in query.split("&") if pair)
        self.query = {unquote(name): unquote(value) for name, _, value in pairs}
        self.headers = {
            name.removeprefix("HTTP_").replace("_", "-").lower(): " ".join(value.split())
            for name, value in environ.items()
            if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")
        }
        self.body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))


def check(request, now):
    """Raises Refused unless the account has signed this request and it is in time."""
    if "x-amz-acl" in request.headers:
        raise Refused(400, "AccessControlListNotSupported", "The bucket does not allow ACLs")
    in_header = "authorization" in request.headers
    in_query = "X-Amz-Signature" in request.query
    if in_header and in_query:
        raise Refused(400, "InvalidArgument", "Only one auth mechanism allowed")
    if not in_header and not in_query:
        raise Refused(403, "AccessDenied", "Access Denied")
    if in_header:
        signed = _HEADER.fullmatch(request.headers["authorization"])
        if not signed:
            raise Refused(400, "AuthorizationHeaderMalformed", "The header is malformed")
        credential, names, signature = signed["credential"], signed["headers"], signed["signature"]
        date = request.headers["x-amz-date"]
        payload = request.headers["x-amz-content-sha256"]
        if payload != hashlib.sha256(request.body).hexdigest():
            raise Refused(400, "XAmzContentSHA256Mismatch", "The body is not what was signed")
    else:
        if request.query.get("X-Amz-Algorithm") != ALGORITHM:
            raise Refused(400, "AuthorizationQueryParametersError", "Not Signature Version 4")
        credential, names = (
            request.query["X-Amz-Credential"],
            request.query["X-Amz-SignedHeaders"],
        )
        signature, date = request.query["X-Amz-Signature"], request.query["X-Amz-Date"]
        payload = "UNSIGNED-PAYLOAD"

    key, _, scope = credential.partition("/")
    if key != ACCESS_KEY:
        raise Refused(403, "InvalidAccessKeyId", "The access key is not known")
    if scope != f"{date[:8]}/{REGION}/s3/aws4_request":
        raise Refused(400, "AuthorizationHeaderMalformed", f"The region is not {REGION}: {scope}")
    if not hmac.compare_digest(signature, _signature(request, names, date, scope, payload)):
        raise Refused(403, "SignatureDoesNotMatch", "The signature does not match")

    made_at = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if in_header:
        if abs(now - made_at) > MAX_SKEW:
            raise Refused(403, "RequestTimeTooSkewed", "The clocks are too far apart")
        return
    expires_s = int(request.query["X-Amz-Expires"])
    if not 0 < expires_s <= MAX_EXPIRES_S:
        raise Refused(400, "AuthorizationQueryParametersError", "X-Amz-Expires is out of range")
    if now > made_at + timedelta(seconds=expires_s):
        raise Refused(403, "AccessDenied", "Request has expired")


def _signature(request, names, date, scope, payload):
    query = sorted(
        (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
        for name, value in request.query.items()
        if name != "X-Amz-Signature"
    )
    canonical = "\n".join(
        (
            request.method,
            request.path,
            "&".join(f"{name}={value}" for name, value in query),
            *(f"{name}:{request.headers[name]}" for name in names.split(";")),
            "",
            names,
            payload,
        )
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{SECRET_KEY}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    to_sign = "\n".join((ALGORITHM, date, scope, digest))
    return hmac.new(key, to_sign.encode(), "sha256").hexdigest()


class PrivateBucket:
    def __init__(self, moto):
        self.moto = moto
        self.awake = threading.Event()
        self.set({})

    def set(self, state):
        self.ahead = timedelta(seconds=state.get("ahead_s", 0))
        self.fail = state.get("fail", False)
        self.awake.clear() if state.get("hang") else self.awake.set()
        self.seen = []

    def __call__(self, environ, start_response):
        request = Request(environ)
        if request.path == "/_test/":
            return self.control(request, start_response)
        self.seen.append([request.method, unquote(request.path).lstrip("/"), request.query])
        self.awake.wait()
        try:
            if self.fail:
                raise Refused(503, "SlowDown", "Please reduce your request rate")
            check(request, datetime.now(UTC) + self.ahead)
        except Refused as refused:
            start_response(f"{refused.status} Refused", [("Content-Type", "application/xml")])
            return [
                f"<Error><Code>{refused.code}</Code><Message>{refused}</Message></Error>".encode()
            ]
        environ["wsgi.input"] = io.BytesIO(request.body)
        # With an address that is signed, moto takes a missing key for a wrong signature.
        scope = f"{ACCESS_KEY}/{datetime.now(UTC):%Y%m%d}/{REGION}/s3/aws4_request"
        environ.setdefault("HTTP_AUTHORIZATION", f"{ALGORITHM} Credential={scope}")
        return self.moto(environ, start_response)

    def control(self, request, start_response):
        if request.method == "POST":
            self.set(json.loads(request.body))
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(self.seen).encode()]


if __name__ == "__main__":
    app = PrivateBucket(DomainDispatcherApplication(create_backend_app))
    server = make_server(
        "127.0.0.1", int(sys.argv[1]), app, threaded=True, request_handler=MotoRequestHandler
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until whoever started this has ended, however that came about
