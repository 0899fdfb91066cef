"""Output files: real images, of the size asked for, different, repeatable."""

from __future__ import annotations

import io
from xml.etree import ElementTree

import pytest
from PIL import Image, ImageChops

from tests.simulator.support import FLUX, FLUX_DEV, SDXL, Simulator

LIGHTNING = "bytedance/sdxl-lightning-4step:" + (
    "6f7a773af6fc3e8de9d5a3c00be77c17308914bf67772726aff83496ba1e3bbe"
)


def files_of(sim: Simulator, model: str, **values: object) -> list[bytes]:
    """Run a model and return its output files."""
    output = sim.run(model, **values)["output"]
    urls = output if isinstance(output, list) else [output]
    responses = [sim.request("GET", url) for url in urls]
    assert {response.status_code for response in responses} == {200}
    return [response.content for response in responses]


def opened(data: bytes) -> Image.Image:
    """Decode an image in full."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize(
    ("suffix", "pillow_format", "content_type"),
    [("webp", "WEBP", "image/webp"), ("jpg", "JPEG", "image/jpeg"), ("png", "PNG", "image/png")],
)
def test_the_output_has_the_format_asked_for(
    sim: Simulator, suffix: str, pillow_format: str, content_type: str
) -> None:
    (url,) = sim.run(output_format=suffix)["output"]
    response = sim.request("GET", url)
    assert url.endswith(f"/0.{suffix}")
    assert response.headers["Content-Type"] == content_type
    assert opened(response.content).format == pillow_format


@pytest.mark.parametrize(
    ("ratio", "size_px"),
    [
        ("1:1", (1024, 1024)),
        ("16:9", (1344, 768)),
        ("21:9", (1536, 640)),
        ("3:2", (1216, 832)),
        ("2:3", (832, 1216)),
        ("4:5", (896, 1088)),
        ("5:4", (1088, 896)),
        ("3:4", (896, 1152)),
        ("4:3", (1152, 896)),
        ("9:16", (768, 1344)),
        ("9:21", (640, 1536)),
    ],
)
def test_flux_sizes_follow_the_ratio_table(
    sim: Simulator, ratio: str, size_px: tuple[int, int]
) -> None:
    (full,) = files_of(sim, FLUX, aspect_ratio=ratio)
    (quarter,) = files_of(sim, FLUX_DEV, aspect_ratio=ratio, megapixels="0.25")
    assert opened(full).size == size_px
    assert opened(quarter).size == (size_px[0] // 2, size_px[1] // 2)


def test_sdxl_sizes_are_the_sides_asked_for(sim: Simulator) -> None:
    (default,) = files_of(sim, SDXL)
    (odd,) = files_of(sim, SDXL, width=648, height=1208)
    (lightning,) = files_of(sim, LIGHTNING, width=1280, height=256)
    assert opened(default).size == (1024, 1024)
    assert opened(odd).size == (648, 1208)
    assert opened(lightning).size == (1280, 256)


@pytest.mark.parametrize(
    ("model", "values", "size_px"),
    [
        ("black-forest-labs/flux-1.1-pro", {"aspect_ratio": "16:9"}, (1360, 768)),
        (
            "black-forest-labs/flux-1.1-pro",
            {"aspect_ratio": "custom", "width": 500, "height": 640},
            (512, 640),
        ),
        ("recraft-ai/recraft-v3", {"size": "1365x1024"}, (1365, 1024)),
        ("ideogram-ai/ideogram-v3-turbo", {"resolution": "512x1536"}, (512, 1536)),
        ("bytedance/seedream-4", {"size": "1K", "aspect_ratio": "1:1"}, (1024, 1024)),
        ("google/nano-banana-2", {"resolution": "2K"}, (2048, 2048)),
    ],
)
def test_other_models_name_their_sizes_in_other_ways(
    sim: Simulator, model: str, values: dict[str, object], size_px: tuple[int, int]
) -> None:
    assert opened(files_of(sim, model, **values)[0]).size == size_px


def test_a_model_with_a_single_output_answers_a_string(sim: Simulator) -> None:
    assert isinstance(sim.run("recraft-ai/recraft-v3")["output"], str)


def test_a_series_has_several_images_only_when_asked_for(sim: Simulator) -> None:
    model, values = "bytedance/seedream-4", {"max_images": 3, "size": "1K"}
    one = sim.run(model, **values)["output"]
    three = sim.run(model, **values, sequential_image_generation="auto")["output"]
    assert (len(one), len(three)) == (1, 3)


def test_an_svg_model_answers_svg(sim: Simulator) -> None:
    (data,) = files_of(sim, "recraft-ai/recraft-v3-svg", prompt="<script> & 'cats'")
    root = ElementTree.fromstring(data)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert (root.get("width"), root.get("height")) == ("1024", "1024")
    assert "SIMULATED" in "".join(root.itertext())
    assert root.find(".//{*}script") is None


@pytest.mark.parametrize("image_format", ["webp", "jpg", "png"])
def test_the_same_request_gives_the_same_bytes(sim: Simulator, image_format: str) -> None:
    values = {"prompt": "a red fox", "seed": 7, "output_format": image_format}
    assert files_of(sim, FLUX, **values) == files_of(sim, FLUX, **values)


@pytest.mark.parametrize("other", [{"prompt": "a blue fox"}, {"seed": 8}], ids=["prompt", "seed"])
def test_another_prompt_or_seed_looks_different(sim: Simulator, other: dict[str, object]) -> None:
    values = {"prompt": "a red fox", "seed": 7, "output_format": "png"}
    (one,) = files_of(sim, FLUX, **values)
    (two,) = files_of(sim, FLUX, **{**values, **other})
    difference = ImageChops.difference(opened(one).convert("L"), opened(two).convert("L"))
    changed = sum(difference.histogram()[16:])
    assert changed > 1024 * 1024 / 5


def test_several_images_differ_and_come_in_order(sim: Simulator) -> None:
    files = files_of(sim, FLUX, seed=7, num_outputs=4)
    assert len(set(files)) == 4
    (second,) = files_of(sim, FLUX, seed=8)
    assert files[1] == second


def test_a_missing_seed_is_picked_anew_each_time(sim: Simulator) -> None:
    assert files_of(sim, FLUX) != files_of(sim, FLUX)


@pytest.mark.parametrize("prompt", ["", "\x00\n\t", "猫の絵 🐈", "\ud800", "x" * 5000])
def test_any_prompt_can_be_drawn(sim: Simulator, prompt: str) -> None:
    assert opened(files_of(sim, FLUX, prompt=prompt)[0]).size == (1024, 1024)


def test_the_image_is_marked_as_simulated(sim: Simulator) -> None:
    (data,) = files_of(sim, FLUX, output_format="png")
    # The mark is yellow on a black band, large enough to be seen on a thumbnail.
    band = opened(data).crop((0, 0, 400, 72))
    colours = {colour for _, colour in band.getcolors(1 << 16) or []}
    assert {(0, 0, 0), (255, 255, 0)} <= colours
