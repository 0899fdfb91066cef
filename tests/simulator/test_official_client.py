"""The official client, unchanged, against the simulator."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import httpx
import pytest
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError
from replicate.webhook import InvalidSignatureError, Webhooks, WebhookSigningSecret

from tests.simulator.support import FLUX, SDXL, SDXL_VERSION, TOKEN, Receiver, Simulator


@pytest.fixture
def client(sim: Simulator) -> Iterator[Client]:
    client = Client(api_token=TOKEN, base_url=sim.url)
    client.poll_interval = 0.02
    yield client
    client._client.close()


def test_run_returns_the_urls_of_an_official_model(client: Client) -> None:
    output = client.run(FLUX, input={"prompt": "a cat", "num_outputs": 2})
    assert [url.rpartition("/")[2] for url in output] == ["0.webp", "1.webp"]


def test_run_takes_the_version_of_a_community_model(client: Client) -> None:
    (url,) = client.run(f"{SDXL}:{SDXL_VERSION}", input={"prompt": "a cat"})
    assert httpx.get(url).headers["Content-Type"] == "image/png"


def test_run_takes_processing_with_output_for_done(sim: Simulator, client: Client) -> None:
    sim.configure(wait_says_processing=True)
    (url,) = client.run(FLUX, input={"prompt": "a cat"})
    assert url.endswith("/0.webp")


def test_run_polls_when_it_does_not_wait(client: Client) -> None:
    (url,) = client.run(FLUX, input={"prompt": "a cat"}, wait=False)
    assert url.endswith("/0.webp")


def test_run_raises_when_the_model_fails(sim: Simulator, client: Client) -> None:
    sim.fault("nsfw")
    with pytest.raises(ModelError, match="NSFW content detected") as raised:
        client.run(FLUX, input={"prompt": "a cat"})
    assert raised.value.prediction.status == "failed"


def test_create_wait_and_progress(sim: Simulator, client: Client) -> None:
    sim.configure(run_seconds=0.3)
    prediction = client.models.predictions.create(FLUX, input={"prompt": "a cat"})
    assert (prediction.status, prediction.version) == ("starting", "hidden")
    prediction.wait()
    assert prediction.status == "succeeded"
    assert prediction.progress is not None
    assert (prediction.progress.current, prediction.progress.total) == (4, 4)
    assert prediction.metrics is not None
    assert prediction.metrics["predict_time"] == pytest.approx(0.3, abs=0.1)


def test_create_can_wait_in_the_request(client: Client) -> None:
    prediction = client.models.predictions.create(FLUX, input={"prompt": "a cat"}, wait=5)
    assert prediction.status == "succeeded"


def test_predictions_are_created_by_version_and_by_deployment(client: Client) -> None:
    by_version = client.predictions.create(version=SDXL_VERSION, input={"prompt": "a cat"})
    by_deployment = client.deployments.predictions.create(
        "simulated/sdxl", input={"prompt": "a cat"}
    )
    assert (by_version.model, by_deployment.model) == (SDXL, SDXL)


def test_cancel(sim: Simulator, client: Client) -> None:
    sim.configure(run_seconds=60)
    prediction = client.models.predictions.create(FLUX, input={"prompt": "a cat"})
    prediction.cancel()
    assert prediction.status == "canceled"
    prediction.reload()
    assert prediction.status == "canceled"


def test_list_pages(client: Client) -> None:
    for _ in range(101):
        client.models.predictions.create(FLUX, input={"prompt": "a cat"})
    first = client.predictions.list()
    assert (len(first), first.previous) == (100, None)
    assert first.next is not None
    assert len(client.predictions.list(first.next)) == 1


def test_refused_input_raises(client: Client) -> None:
    with pytest.raises(ReplicateError) as raised:
        client.models.predictions.create(FLUX, input={"prompt": "x", "num_outputs": 9})
    assert (raised.value.status, raised.value.title) == (422, "Input validation failed")


def test_a_read_is_retried_on_503(sim: Simulator, client: Client) -> None:
    sim.fault("get_status", status=503, hits=2)
    prediction = client.models.predictions.create(FLUX, input={"prompt": "a cat"})
    prediction.wait()
    assert prediction.status == "succeeded"


def test_models_versions_account_and_files(client: Client) -> None:
    model = client.models.get(SDXL)
    assert model.latest_version is not None
    assert model.latest_version.id == SDXL_VERSION
    assert [version.id for version in model.versions.list()] == [SDXL_VERSION]
    assert client.accounts.current().username == "simulated"
    file = client.files.create(io.BytesIO(b"x"), filename="cat.png")
    assert [listed.id for listed in client.files.list()] == [file.id]
    assert client.files.get(file.id).content_type == "image/png"
    assert client.files.delete(file.id)


def test_an_opened_file_is_uploaded_as_input(client: Client) -> None:
    values = {"prompt": "a cat", "image": io.BytesIO(b"x")}
    prediction = client.models.predictions.create("black-forest-labs/flux-dev", input=values)
    assert prediction.input is not None
    assert "/v1/files/" in prediction.input["image"]


def test_webhooks_pass_its_validation(client: Client, receiver: Receiver) -> None:
    client.models.predictions.create(FLUX, input={"prompt": "a cat"}, webhook=receiver.url)
    secret = client.webhooks.default.secret()
    for webhook in receiver.wait_for(2):
        Webhooks.validate(
            headers=webhook.headers, body=webhook.body.decode(), secret=secret, tolerance=60
        )
        assert json.loads(webhook.body)["model"] == FLUX


def test_forged_webhooks_do_not_pass_its_validation(
    sim: Simulator, client: Client, receiver: Receiver
) -> None:
    sim.fault("webhook_bad_signature")
    client.models.predictions.create(FLUX, input={"prompt": "a cat"}, webhook=receiver.url)
    webhook = receiver.wait_for(1)[0]
    with pytest.raises(InvalidSignatureError):
        Webhooks.validate(
            headers=webhook.headers,
            body=webhook.body.decode(),
            secret=client.webhooks.default.secret(),
        )


def test_the_published_vector_passes_its_validation() -> None:
    Webhooks.validate(
        headers={
            "webhook-id": "msg_test_1",
            "webhook-timestamp": "1700000000",
            "webhook-signature": "v1,yVLdtJq3jIz36ov6oPRhF5qA+oPqErm0U8sBoVx3ZPk=",
        },
        body='{"id":"p1","status":"succeeded"}',
        secret=WebhookSigningSecret(key="whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="),
    )
