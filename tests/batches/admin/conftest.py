import pytest

from tests.factories import make_user


@pytest.fixture(autouse=True)
def room_for_all(settings):
    settings.MAX_PARALLEL_GLOBAL = 1_000
    settings.PROVIDER_POOLS = {"replicate": {"capacity": 1_000}}


@pytest.fixture
def operator(client, db):
    client.force_login(make_user("operator", is_staff=True, is_superuser=True))
    return client
