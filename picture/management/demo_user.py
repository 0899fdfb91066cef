"""The user for trying things out on one's own machine, with a login and a token that stay."""

import io
import json
import secrets
from pathlib import Path

import requests
from django.contrib.auth import get_user_model
from django.core.management import call_command

USERNAME = "demo"


class DemoUser:
    """The demo user's secrets, kept in `<data folder>/demo.json`, readable by its owner only."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "demo.json"
        try:
            kept = json.loads(self._path.read_text())
        except (OSError, ValueError):
            kept = {}
        self.password: str = kept.get("password") or secrets.token_urlsafe(12)
        self._token: str | None = kept.get("token")

    def enable_login(self) -> None:
        """Let the user into the admin with its password; the user is created if missing."""
        user, _ = get_user_model().objects.get_or_create(username=USERNAME)
        if not (user.is_staff and user.is_superuser and user.check_password(self.password)):
            user.is_staff = user.is_superuser = True
            user.set_password(self.password)
            user.save()
        self._keep()

    def token(self, session: requests.Session, url: str) -> str:
        """Return an API token that the web server at `url` accepts, a new one if need be."""
        if self._token is None or not _accepted(session, url, self._token):
            output = io.StringIO()
            call_command("create_token", USERNAME, stdout=output)
            self._token = output.getvalue().strip()
            self._keep()
        return self._token

    def _keep(self) -> None:
        self._path.touch(mode=0o600)
        self._path.write_text(json.dumps({"password": self.password, "token": self._token}))


def _accepted(session: requests.Session, url: str, token: str) -> bool:
    headers = {"Authorization": f"Bearer {token}"}
    return session.get(f"{url}/api/v1/batches/", headers=headers, timeout=30).status_code == 200
