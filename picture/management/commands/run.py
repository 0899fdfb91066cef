"""Run the whole product in the foreground."""

import os
import sys
from typing import Any

import requests
from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import connections

from picture.embedded import EmbeddedError
from picture.management.demo_user import USERNAME, DemoUser
from picture.stack import DEFAULT_PORT, Stack, StackError, chosen_port, interrupt_on_signals


class Command(BaseCommand):
    help = "Run web, workers, beat and Flower, with what they need, until Ctrl-C."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        interrupt_on_signals()
        user = DemoUser(settings.DATA_DIR)
        try:
            with Stack(
                settings.DATA_DIR,
                port=chosen_port(os.environ) or DEFAULT_PORT,
                env={"SECRET_KEY": settings.SECRET_KEY},
                flower_login=f"{USERNAME}:{user.password}",
                say=self.say,
            ) as stack:
                self.announce(stack, user)
                stack.supervise()
        except KeyboardInterrupt:
            self.say("stopped")
        except (StackError, EmbeddedError) as error:
            sys.exit(f"picture: {error}")

    def say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()

    def announce(self, stack: Stack, user: DemoUser) -> None:
        user.enable_login()
        with requests.Session() as session:
            session.trust_env = False
            token = user.token(session, stack.url)
        connections.close_all()
        lines = [
            "",
            "Picture is running; stop it with Ctrl-C.",
            f"  API docs  {stack.url}/api/docs/",
            f"  admin     {stack.url}/admin/",
            f"  Flower    {stack.flower_url}/",
            f"  login     {USERNAME} {user.password}",
            f"  token     {token}",
        ]
        if stack.simulator_url:
            lines.append("  No provider is configured: a simulator answers, its images say so.")
        self.say("\n".join([*lines, ""]))
