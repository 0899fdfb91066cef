"""The official client, unchanged, against the simulator."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError
from replicate.webhook import InvalidSignatureError, Webhooks, WebhookSigningSecret

from tests.simulator.support import (
    FLUX,
    FLUX_DEV,
    SDXL,
    SDXL_VERSION,
    TOKEN,
    Receiver,
    Simulator,
)


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


@pytest.mark.parametrize(("name", "extension"), [("flux-schnell", "webp"), ("sdxl", "png")])
def test_a_deployment_runs_to_its_end(client: Client, name: str, extension: str) -> None:
    prediction = client.deployments.predictions.create(
        f"simulated/{name}", input={"prompt": "a cat", "num_outputs": 2}
    )
    prediction.wait()
    assert prediction.status == "succeeded"
    files = [url.rpartition("/")[2] for url in prediction.output]
    assert files == [f"0.{extension}", f"1.{extension}"]


def test_a_deployment_that_is_not_there_raises(client: Client) -> None:
    with pytest.raises(ReplicateError) as raised:
        client.deployments.predictions.create("simulated/nothing", input={"prompt": "a cat"})
    assert raised.value.status == 404


def test_a_deployment_can_be_cancelled(sim: Simulator, client: Client) -> None:
    sim.configure(run_seconds=60)
    prediction = client.deployments.predictions.create(
        "simulated/flux-schnell", input={"prompt": "a cat"}
    )
    prediction.cancel()
    assert prediction.status == "canceled"


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
    prediction = client.models.predictions.create(FLUX_DEV, input=values)
    assert prediction.input is not None
    assert "/v1/files/" in prediction.input["image"]


def test_several_opened_files_are_uploaded_as_one_input(client: Client) -> None:
    contents = [b"one", b"two"]
    values = {"prompt": "a cat", "image_input": [io.BytesIO(content) for content in contents]}
    prediction = client.models.predictions.create("bytedance/seedream-4", input=values)
    assert prediction.input is not None
    ids = [url.rpartition("/")[2] for url in prediction.input["image_input"]]
    digests = [client.files.get(file_id).checksums["sha256"] for file_id in ids]
    assert digests == [hashlib.sha256(content).hexdigest() for content in contents]


def test_a_file_can_go_along_in_the_input(client: Client) -> None:
    prediction = client.models.predictions.create(
        FLUX_DEV,
        input={"prompt": "a cat", "image": io.BytesIO(b"x")},
        file_encoding_strategy="base64",
    )
    assert prediction.input is not None
    assert prediction.input["image"].endswith(";base64,eA==")
    prediction.wait()
    assert prediction.status == "succeeded"


def test_a_file_is_described_as_it_was_given(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "cat.webp"
    path.write_bytes(b"bytes of a cat")
    file = client.files.create(path, metadata={"of": "a cat"})
    assert (file.content_type, file.size) == ("image/webp", 14)
    assert file.checksums["sha256"] == hashlib.sha256(b"bytes of a cat").hexdigest()
    assert file.metadata == {"of": "a cat"}


def test_a_refused_file_raises(sim: Simulator, client: Client) -> None:
    sim.fault("upload_status", status=413, hits=1)
    with pytest.raises(ReplicateError) as raised:
        client.files.create(io.BytesIO(b"x"), filename="cat.png")
    assert raised.value.status == 413
    assert client.files.create(io.BytesIO(b"x"), filename="cat.png").size == 1


OUTPUTS: list[tuple[str, dict[str, object], int | str | None]] = [
    ("list of one", {}, 1),
    ("string", {"kind": "string_output"}, "string"),
    ("short list", {"kind": "short_output", "count": 2}, 2),
    ("empty list", {"kind": "empty_output"}, 0),
    ("null", {"kind": "empty_output", "null": True}, None),
]


@pytest.mark.parametrize(
    ("rule", "expected"), [o[1:] for o in OUTPUTS], ids=[o[0] for o in OUTPUTS]
)
def test_every_form_of_output_is_read(
    sim: Simulator, client: Client, rule: dict[str, object], expected: int | str | None
) -> None:
    if rule:
        sim.fault(**rule)
    values = {"prompt": "a cat", "num_outputs": 3 if rule else 1}
    output = client.run(FLUX, input=values)
    if expected is None:
        assert output is None
    elif expected == "string":
        assert httpx.get(output).headers["Content-Type"] == "image/webp"
    else:
        assert len(output) == expected
        assert all(httpx.get(url).status_code == 200 for url in output)


@pytest.mark.parametrize("count", [1, 2])
def test_files_in_the_answer_are_decoded(sim: Simulator, client: Client, count: int) -> None:
    sim.fault("data_uri_output")
    output = client.run(FLUX, input={"prompt": "a cat", "num_outputs": count})
    images = [Image.open(io.BytesIO(file.read())) for file in output]
    assert [image.format for image in images] == ["WEBP"] * count
    assert len({image.tobytes() for image in images}) == count


def test_the_data_are_removed_in_time(sim: Simulator, client: Client) -> None:
    sim.fault("expired")
    prediction = client.models.predictions.create(FLUX, input={"prompt": "a cat"})
    prediction.wait()
    prediction.reload()
    assert (prediction.status, prediction.output, prediction.input) == ("succeeded", None, {})


def test_metrics_and_progress_of_a_prediction_that_failed(sim: Simulator, client: Client) -> None:
    sim.configure(run_seconds=0.2)
    sim.fault("interrupt")
    prediction = client.models.predictions.create(FLUX, input={"prompt": "a cat"})
    prediction.wait()
    assert prediction.status == "failed"
    assert prediction.error == "Prediction interrupted; please retry (code: PA)"
    assert prediction.metrics is not None
    assert prediction.metrics["predict_time"] >= 0.2


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
