"""What an operator relies on: a broker that goes away, health, logins."""

import time

import requests

from tests.waiting import wait_until


def test_a_batch_posted_while_the_broker_is_down_starts_when_it_is_back(stack, client, simulator):
    stack.kill("redis")
    before = time.monotonic()
    batch = client.submit(["patient one", "patient two"])
    assert time.monotonic() - before < 3
    assert client.call("GET", f"batches/{batch['id']}/").json()["status"] == "pending"
    stack.restart("redis")
    assert client.finished(batch, timeout_s=90)["status"] == "completed"
    assert len(simulator.charges(client.username)) == 2


def test_ready_says_which_part_is_missing(stack):
    def ready():
        return requests.get(f"{stack.url}/health/ready", timeout=30)

    wait_until(lambda: ready().status_code == 200)
    stack.kill("redis")
    answer = ready()
    assert answer.status_code == 503
    checks = answer.json()["checks"]
    assert checks["database"] == "ok"
    assert checks["broker"] != "ok"
    stack.restart("redis")
    wait_until(lambda: ready().status_code == 200)


def test_flower_asks_for_its_password_and_names_the_tasks(stack, client, simulator):
    client.finished(client.submit(["watched"]))
    assert requests.get(f"{stack.flower_url}/workers", timeout=10).status_code == 401
    login = ("watcher", "secret")
    assert requests.get(f"{stack.flower_url}/workers", auth=login, timeout=10).status_code == 200

    def names():
        tasks = requests.get(f"{stack.flower_url}/api/tasks", auth=login, timeout=10).json()
        return {task["name"] for task in tasks.values()} >= {"work.generate", "work.download"}

    wait_until(names)


def test_the_admin_asks_for_a_login(stack):
    answer = requests.get(f"{stack.url}/admin/batches/batch/", timeout=10)
    assert answer.url.startswith(f"{stack.url}/admin/login/")


def test_a_token_is_printed_and_nothing_else(stack):
    answer = stack.manage("create_token", "someone")
    assert answer.returncode == 0
    assert answer.stdout.startswith("pic_")
    assert answer.stdout.count("\n") == 1
    assert answer.stderr == ""
