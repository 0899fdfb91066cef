"""All configuration, from the environment. The only module that reads it.

A missing or malformed value stops the process with one line that names the variable.
"""

import base64
import errno
import os
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import environ

from picture import embedded

T = TypeVar("T")


def refuse(name: str, reason: str) -> NoReturn:
    sys.exit(f"picture: {name} {reason}")


def text(name: str, default: str = "") -> str:
    return os.environ.get(name, "").strip() or default


def read(name: str, parse: Callable[[str], T], default: T, *, form: str) -> T:
    """The parsed value of a variable; unset or empty means `default`."""
    value = text(name)
    if not value:
        return default
    try:
        return parse(value)
    except ValueError:
        refuse(name, f"must be {form}")


def whole_number(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not minimum <= (number := int(value)) <= maximum:
            raise ValueError
        return number

    return parse


def boolean(value: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    if value.lower() not in words:
        raise ValueError
    return words[value.lower()]


def names(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def delays(value: str) -> list[float]:
    parsed = [float(part) for part in value.split(",")]
    if any(not 0 <= delay <= 86_400 for delay in parsed):
        raise ValueError
    return parsed


def http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError
    return value.rstrip("/")


def plain_url(value: str) -> str:
    url = http_url(value)
    if set("@?#") & set(url):
        raise ValueError
    return url


def matching(pattern: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError
        return value

    return parse


# --- Where things are ------------------------------------------------------------------------
BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(text("PICTURE_DATA_DIR", str(BASE_DIR / "data"))).expanduser().absolute()
DEBUG = read("DEBUG", boolean, False, form="on or off")

# --- PostgreSQL and Redis: our own under DATA_DIR unless the environment names others ----------
EMBEDDED_POSTGRES = not text("DATABASE_URL")
EMBEDDED_REDIS = not text("REDIS_URL")
_embedded = embedded.urls(DATA_DIR)


def postgres(url: str) -> dict[str, Any]:
    if urlsplit(url).scheme not in ("postgres", "postgresql"):
        raise ValueError
    parsed: dict[str, Any] = environ.Env.db_url_config(url)
    if not parsed.get("NAME"):
        raise ValueError
    # A host that does not answer must not hold a thread for as long as the kernel would.
    parsed["OPTIONS"] = {"connect_timeout": 5, **parsed.get("OPTIONS", {})}
    # Kept open between requests and tasks, looked at once before each is served.
    return parsed | {"CONN_MAX_AGE": 300, "CONN_HEALTH_CHECKS": True}


def redis(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix") or not (parts.hostname or parts.path):
        raise ValueError
    return url


DATABASES = {
    "default": read(
        "DATABASE_URL",
        postgres,
        postgres(_embedded.database_url),
        form="like postgresql://user:password@host:5432/name",
    )
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

REDIS_URL = read(
    "REDIS_URL",
    redis,
    _embedded.redis_url,
    form="like redis://host:6379/0 or unix:///path?db=0",
)

# --- Secrets and hosts -----------------------------------------------------------------------


def local_secret_key() -> str:
    """The data folder's own key, made on first use."""
    path = DATA_DIR / "secret_key"
    try:
        if not path.exists():
            DATA_DIR.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(f".{os.getpid()}")
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_urlsafe(50))
            # Of two processes that start together, the first to link decides for both.
            try:
                path.hardlink_to(draft)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return path.read_text()
    except OSError as error:
        refuse("PICTURE_DATA_DIR", f"is not usable: {DATA_DIR}: {error.strerror}")


SECRET_KEY = text("SECRET_KEY")
if not SECRET_KEY:
    if not EMBEDDED_POSTGRES and not DEBUG:
        refuse("SECRET_KEY", "must be set where DATABASE_URL is")
    SECRET_KEY = local_secret_key()

PUBLIC_URL = read("PUBLIC_URL", http_url, "", form="an http or https URL")
# Where providers report to. They take https only; on the loopback address there is a simulator.
_public = urlsplit(PUBLIC_URL)
_reports = _public.scheme == "https" or _public.hostname in ("localhost", "127.0.0.1", "::1")
CALLBACK_URL = PUBLIC_URL if _reports else ""
ALLOWED_HOSTS = names(text("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]"))
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL] if PUBLIC_URL else []
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = PUBLIC_URL.startswith("https://")
SECURE_HSTS_SECONDS = 31_536_000 if PUBLIC_URL.startswith("https://") else 0
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

# --- Providers -------------------------------------------------------------------------------


REPLICATE_API_TOKEN = read(
    "REPLICATE_API_TOKEN", matching(r"[!-~]+"), "", form="printable ASCII without spaces"
)
REPLICATE_BASE_URL = read(
    "REPLICATE_BASE_URL", http_url, "https://api.replicate.com", form="an http or https URL"
)


def webhook_secret(value: str) -> str:
    kind, _, key = value.partition("_")
    if kind != "whsec" or not base64.b64decode(key, validate=True):
        raise ValueError
    return value


# Without it, the provider is asked for it when its first webhook comes.
REPLICATE_WEBHOOK_SECRET = read(
    "REPLICATE_WEBHOOK_SECRET", webhook_secret, "", form="whsec_ and a key in base64"
)
RUNPOD_API_KEY = read(
    "RUNPOD_API_KEY", matching(r"[!-~]+"), "", form="printable ASCII without spaces"
)
# Where a model names no endpoint of its own.
RUNPOD_ENDPOINT_ID = read(
    "RUNPOD_ENDPOINT_ID",
    matching(r"[A-Za-z0-9-]{1,39}"),
    "",
    form="1 to 39 letters, digits and dashes",
)
RUNPOD_BASE_URL = read(
    "RUNPOD_BASE_URL", http_url, "https://api.runpod.ai/v2", form="an http or https URL"
)
COMFYUI_URL = read(
    "COMFYUI_URL", plain_url, "", form="an http or https URL without credentials and query"
)
PROVIDER_OUTPUT_HOSTS = names(text("PROVIDER_OUTPUT_HOSTS"))
# Hosts that users may have reference images fetched from although they are not public.
REFERENCE_HOSTS = names(text("REFERENCE_HOSTS"))

# --- Channels --------------------------------------------------------------------------------
PRINTIFY_BASE_URL = read(
    "PRINTIFY_BASE_URL", plain_url, "https://api.printify.com/v1", form="an http or https URL"
)
# `{shop}` stands for the shop's domain.
SHOPIFY_BASE_URL = read(
    "SHOPIFY_BASE_URL", plain_url, "https://{shop}", form="an http or https URL"
)
SHOPIFY_API_VERSION = read(
    "SHOPIFY_API_VERSION",
    # Products can be made anew under the same handle from 2025-04 on.
    matching(r"2025-(04|07|10)|20(2[6-9]|[3-9][0-9])-(01|04|07|10)"),
    "2026-04",
    form="a quarter from 2025-04 on, such as 2026-04",
)


def fernet_keys(value: str) -> list[str]:
    keys = names(value)
    if any(len(base64.urlsafe_b64decode(key)) != 32 for key in keys):
        raise ValueError
    return keys


# What users' credentials are sealed with: the first seals, each opens. Without any it is a key
# that is made of SECRET_KEY.
CREDENTIALS_KEYS: list[str] = read(
    "CREDENTIALS_KEYS", fernet_keys, [], form="Fernet keys separated by commas"
)

# --- Limits ----------------------------------------------------------------------------------
MAX_PARALLEL_PER_USER = read(
    "MAX_PARALLEL_PER_USER", whole_number(1, 10_000), 3, form="a whole number from 1 to 10000"
)
MAX_PARALLEL_GLOBAL = read(
    "MAX_PARALLEL_GLOBAL", whole_number(1, 10_000), 20, form="a whole number from 1 to 10000"
)
# What each provider's pool starts with; from then on the row is the operator's to change.
PROVIDER_POOLS: dict[str, dict[str, Any]] = {
    # Takes 600 new predictions a minute and lets short bursts pass.
    "replicate": {"capacity": 1_000, "rate_per_s": 10.0, "burst": 60, "tokens": 60},
    # Takes 1,000 new jobs in ten seconds; more than its workers can do only waits there.
    "runpod": {"capacity": 100, "rate_per_s": 100.0, "burst": 200, "tokens": 200},
    # Does one at a time; the next waits at the server, so that it is never without work.
    "comfyui": {"capacity": 2},
}
MAX_BATCH_SIZE = read(
    "MAX_BATCH_SIZE", whole_number(1, 10_000), 25, form="a whole number from 1 to 10000"
)
RETRY_DELAYS = read(
    "RETRY_DELAYS",
    delays,
    [5.0, 15.0, 30.0],
    form="seconds from 0 to 86400 separated by commas, such as 5,15,30",
)
GENERATION_DEADLINE = read(
    "GENERATION_DEADLINE", whole_number(5, 86_400), 600, form="seconds from 5 to 86400"
)
LEASE_SECONDS = read("LEASE_SECONDS", whole_number(1, 86_400), 60, form="seconds from 1 to 86400")
CHANNEL_SETTLE_SECONDS = read(
    "CHANNEL_SETTLE_SECONDS", whole_number(1, 3_600), 60, form="seconds from 1 to 3600"
)
MAX_BODY_BYTES = 1_000_000
DATA_UPLOAD_MAX_MEMORY_SIZE = MAX_BODY_BYTES
MAX_OUTPUT_BYTES = 64 * 1024 * 1024
MAX_OUTPUT_PIXELS = read(
    "MAX_OUTPUT_PIXELS",
    whole_number(1, 268_435_456),
    40_000_000,
    form="a whole number from 1 to 268435456",
)
MAX_REFERENCE_BYTES = 20 * 1024 * 1024
MAX_REFERENCE_PIXELS = 40_000_000

# --- Files -----------------------------------------------------------------------------------
MEDIA_ROOT = DATA_DIR / "media"
STATIC_URL = "/static/"
# Serves the admin's and the API pages' assets out of their packages; no collectstatic step.
WHITENOISE_USE_FINDERS = True


def beside_bucket(name: str) -> str:
    return text(name) or refuse(name, "must be set where STORAGE_BUCKET is")


STORAGE_BUCKET = read(
    "STORAGE_BUCKET",
    matching(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"),
    "",
    form="the name of a bucket: 3 to 63 small letters, digits, dots and dashes",
)
_endpoint = read("STORAGE_ENDPOINT_URL", http_url, "", form="an http or https URL")
_addressing = read(
    "STORAGE_ADDRESSING",
    matching("path|virtual"),
    # Amazon signs for its regions' addresses in this form only; few others have such names.
    "path" if _endpoint else "virtual",
    form="path or virtual",
)
if _endpoint and not STORAGE_BUCKET:
    refuse("STORAGE_BUCKET", "must be set where STORAGE_ENDPOINT_URL is")
if STORAGE_BUCKET:
    _media: dict[str, Any] = {
        "BACKEND": "picture.storage.PrivateS3Storage",
        "OPTIONS": {
            "bucket_name": STORAGE_BUCKET,
            "endpoint_url": _endpoint or None,
            "addressing_style": _addressing,
            "region_name": read(
                "AWS_REGION" if text("AWS_REGION") else "AWS_DEFAULT_REGION",
                matching("[a-z0-9-]{1,40}"),
                "us-east-1",
                form="a region such as eu-central-1",
            ),
            "access_key": beside_bucket("AWS_ACCESS_KEY_ID"),
            "secret_key": beside_bucket("AWS_SECRET_ACCESS_KEY"),
            "security_token": text("AWS_SESSION_TOKEN") or None,
        },
    }
else:
    try:
        MEDIA_ROOT.mkdir(parents=True, exist_ok=True)
        if not os.access(MEDIA_ROOT, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        refuse("PICTURE_DATA_DIR", f"is not usable: {MEDIA_ROOT}: {error.strerror}")
    # A download that is run again writes its own key again instead of leaving a second file.
    _media = {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": MEDIA_ROOT, "allow_overwrite": True},
    }
STORAGES = {
    "default": _media,
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}

# --- Django ----------------------------------------------------------------------------------
INSTALLED_APPS = [
    # Before the admin, a template of which it extends under the same name.
    "batches.apps.BatchesConfig",
    "batches.apps.PictureAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "rest_framework",
    "channels",
    "django_filters",
    "knox",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "drf_standardized_errors",
    "picture",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "picture.urls"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
USE_I18N = False
USE_TZ = True
TIME_ZONE = "UTC"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"},
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {
        # Django logs every 4xx as a warning; the client has been told already.
        "django.request": {"level": "ERROR"},
        # Celery has two lines for every message, the beat's of each second among them; what
        # happens to a generation is logged by the tasks themselves.
        "celery.worker.strategy": {"level": "WARNING"},
        "celery.app.trace": {"level": "WARNING"},
    },
}

# --- API -------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "batches.api.authentication.BearerAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["batches.api.parsers.BoundedJSONParser"],
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_SCHEMA_CLASS": "batches.api.schema.ProblemAutoSchema",
    "EXCEPTION_HANDLER": "batches.api.errors.problem_response",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
REST_KNOX = {"AUTH_HEADER_PREFIX": "Bearer", "TOKEN_PREFIX": "pic_", "TOKEN_TTL": None}
SPECTACULAR_SETTINGS = {
    "TITLE": "Picture",
    "DESCRIPTION": "Batches of prompts in, stored and verified images out.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_NAME_OVERRIDES": {
        "BatchStatus": "batches.models.BatchStatus",
        "GenerationStatus": "batches.models.GenerationStatus",
        "ReviewStatus": "batches.models.ReviewStatus",
        "ResizeMode": "batches.forms.RESIZE_MODES",
        "PrintBatchStatus": "batches.api.pod.STATUSES",
        "PrintStatus": "batches.api.pod.STATUSES_OF_ONE",
        "PublicationStatus": "batches.models.PublicationStatus",
        "ChannelName": "batches.models.ChannelName",
    },
}
