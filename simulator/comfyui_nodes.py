"""The nodes that the simulated ComfyUI knows: inputs, checks, and what comes out of them.

Nothing is diffused: what flows between the nodes says how a picture is to be drawn, and the
drawing is done when somebody looks at it.

Source: ComfyUI v0.3.64, its server and its nodes, read 2026-11-20.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from simulator.images import render

LARGEST_SIDE_PX = 16384
LARGEST_SEED = 2**64 - 1
LONGEST_LIST_SHOWN = 20
# Time for what is done to pixels outside of a sampler.
SECONDS_PER_PIXEL = 2e-8

SAMPLERS = ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "lcm", "ddim", "uni_pc"]
SCHEDULERS = ["simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal"]
UPSCALERS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
MODEL_FILES: dict[str, list[str]] = {
    "checkpoints": [
        "flux1-dev-fp8.safetensors",
        "flux1-schnell-fp8.safetensors",
        "sd_xl_base_1.0.safetensors",
        "v1-5-pruned-emaonly-fp16.safetensors",
    ],
    "diffusion_models": [
        "flux1-dev-kontext_fp8_scaled.safetensors",
        "flux1-dev.safetensors",
        "flux1-schnell.safetensors",
    ],
    "text_encoders": [
        "clip_l.safetensors",
        "t5xxl_fp16.safetensors",
        "t5xxl_fp8_e4m3fn.safetensors",
        "t5xxl_fp8_e4m3fn_scaled.safetensors",
    ],
    "vae": ["ae.safetensors", "sdxl_vae.safetensors"],
    "loras": ["sd_xl_offset_example-lora_1.0.safetensors"],
    "upscale_models": [],
}


class NodeFailure(Exception):
    """A node that fails while it runs; `kind` is the type of the exception as ComfyUI names it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of a batch: drawn from a prompt, of one colour, or read; `mode` tells which."""

    width_px: int
    height_px: int
    prompt: str = ""
    seed: int = 0
    model: str = ""
    colour: int | None = None
    data: bytes = b""

    def png(self) -> bytes:
        """Return the image as a PNG."""
        if not self.data and self.colour is None:
            size = (self.width_px, self.height_px)
            return render(self.prompt, self.seed, self.model, *size, "png")
        if self.data:
            with Image.open(io.BytesIO(self.data)) as source:
                image = source.convert("RGB").resize((self.width_px, self.height_px))
        else:
            rgb = tuple((self.colour or 0).to_bytes(3, "big"))
            image = Image.new("RGB", (self.width_px, self.height_px), rgb)
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Latent:
    """What a sampler works on; `sampled` once it has."""

    width_px: int
    height_px: int
    batch_size: int
    sampled: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Guider:
    """A model with the text that guides it."""

    model: str
    text: str


Values = dict[str, Any]
Run = Callable[[Values, "Folders"], tuple[Any, ...]]


@dataclass
class Folders:
    """The files of the server: by type (`input`, `output`, `temp`), then by path."""

    input: dict[str, bytes] = field(default_factory=dict)
    output: dict[str, Picture] = field(default_factory=dict)
    temp: dict[str, Picture] = field(default_factory=dict)


@dataclass(frozen=True)
class Node:
    """A class of nodes. The inputs are written as `/object_info` gives them."""

    required: Mapping[str, list[Any]]
    outputs: tuple[str, ...]
    run: Run
    category: str
    optional: Mapping[str, list[Any]] = field(default_factory=dict)
    is_output: bool = False
    # The input that tells how many steps are reported, for a node that samples.
    is_sampler: bool = False
    works_on_pixels: bool = False
    # Inputs that the node checks itself, so that the general rules do not apply to them.
    checks: Mapping[str, Callable[[Any, Folders], str | None]] = field(default_factory=dict)

    def input_type(self, name: str) -> list[Any] | None:
        """Return type and options of an input, or None."""
        return self.required.get(name) or self.optional.get(name)

    def info(self, name: str, folders: Folders) -> dict[str, Any]:
        """Return the entry of `/object_info`."""
        required = {key: list(value) for key, value in self.required.items()}
        if name == "LoadImage":
            required["image"] = [
                sorted(p for p in folders.input if "/" not in p),
                *required["image"][1:],
            ]
        sections = {"required": required}
        if self.optional:
            sections["optional"] = {key: list(value) for key, value in self.optional.items()}
        return {
            "input": sections,
            "input_order": {section: list(inputs) for section, inputs in sections.items()},
            "output": list(self.outputs),
            "output_is_list": [False] * len(self.outputs),
            "output_name": list(self.outputs),
            "name": name,
            "display_name": name,
            "description": "",
            "python_module": "nodes",
            "category": self.category,
            "output_node": self.is_output,
        }


def _int(default: int, least: int, most: int, step: int = 1) -> list[Any]:
    return ["INT", {"default": default, "min": least, "max": most, "step": step}]


def _float(default: float, least: float, most: float, step: float = 0.01) -> list[Any]:
    return ["FLOAT", {"default": default, "min": least, "max": most, "step": step}]


def _files(folder: str) -> list[Any]:
    return [MODEL_FILES[folder]]


def _side(default: int = 512, least: int = 16, step: int = 8) -> list[Any]:
    return _int(default, least, LARGEST_SIDE_PX, step)


def _seed() -> list[Any]:
    return ["INT", {"default": 0, "min": 0, "max": LARGEST_SEED, "control_after_generate": True}]


_TEXT = ["STRING", {"multiline": True, "dynamicPrompts": True}]
_STEPS = _int(20, 1, 10000)
_BATCH = _int(1, 1, 4096)
_DENOISE = _float(1.0, 0.0, 1.0)


def _checkpoint(values: Values, _: Folders) -> tuple[Any, ...]:
    return values["ckpt_name"], "clip", "vae"


def _empty_latent(values: Values, _: Folders) -> tuple[Any, ...]:
    # A latent pixel is eight by eight of the picture.
    width_px, height_px = (values[side] // 8 * 8 for side in ("width", "height"))
    return (Latent(width_px, height_px, values["batch_size"]),)


def _sample(model: str, text: str, seed: int, latent: Latent) -> tuple[Any, ...]:
    pictures = tuple(
        Picture(latent.width_px, latent.height_px, text, seed + index, model)
        for index in range(latent.batch_size)
    )
    return (replace(latent, sampled=pictures),)


def _ksampler(values: Values, _: Folders) -> tuple[Any, ...]:
    return _sample(values["model"], values["positive"], values["seed"], values["latent_image"])


def _custom_sampler(values: Values, _: Folders) -> tuple[Any, ...]:
    guider = values["guider"]
    latent = _sample(guider.model, guider.text, values["noise"], values["latent_image"])
    return latent + latent


def _decode(values: Values, _: Folders) -> tuple[Any, ...]:
    latent = values["samples"]
    blank = Picture(latent.width_px, latent.height_px, colour=0x7F7F7F)
    return (latent.sampled or (blank,) * latent.batch_size,)


def _encode(values: Values, _: Folders) -> tuple[Any, ...]:
    pictures = values["pixels"]
    width_px, height_px = pictures[0].width_px // 8 * 8, pictures[0].height_px // 8 * 8
    return (Latent(width_px, height_px, len(pictures), pictures),)


def _repeat(values: Values, _: Folders) -> tuple[Any, ...]:
    latent = values["samples"]
    return (replace(latent, batch_size=latent.batch_size * values["amount"]),)


def _load_image(values: Values, folders: Folders) -> tuple[Any, ...]:
    data = folders.input[input_path(values["image"])]
    try:
        with Image.open(io.BytesIO(data)) as image:
            width_px, height_px = image.size
    except OSError:
        text = f"cannot identify image file '/simulated/input/{values['image']}'"
        raise NodeFailure("PIL.UnidentifiedImageError", text) from None
    return (Picture(width_px, height_px, data=data),), "mask"


def _empty_image(values: Values, _: Folders) -> tuple[Any, ...]:
    picture = Picture(values["width"], values["height"], colour=values["color"])
    return ((picture,) * values["batch_size"],)


def _scale(values: Values, _: Folders) -> tuple[Any, ...]:
    return (_resized(values["image"], values["width"], values["height"]),)


def _scale_to_pixels(values: Values, _: Folders) -> tuple[Any, ...]:
    pictures = values["image"]
    width_px, height_px = pictures[0].width_px, pictures[0].height_px
    factor = (values["megapixels"] * 1024 * 1024 / (width_px * height_px)) ** 0.5
    return (_resized(pictures, round(width_px * factor), round(height_px * factor)),)


def _resized(pictures: tuple[Picture, ...], width: int, height: int) -> tuple[Picture, ...]:
    one = pictures[0]
    # A side of 0 follows from the other one.
    width_px = width or max(1, round(one.width_px * height / one.height_px))
    height_px = height or max(1, round(one.height_px * width / one.width_px))
    return tuple(replace(p, width_px=width_px, height_px=height_px) for p in pictures)


def _save(values: Values, folders: Folders) -> tuple[Any, ...]:
    return (_saved(values["images"], str(values["filename_prefix"]), folders.output, "output"),)


def _preview(values: Values, folders: Folders) -> tuple[Any, ...]:
    return (_saved(values["images"], "ComfyUI_temp_simul", folders.temp, "temp"),)


def _saved(
    pictures: tuple[Picture, ...], prefix: str, folder: dict[str, Picture], kind: str
) -> list[dict[str, str]]:
    subfolder, _, name = prefix.rpartition("/")
    if prefix.startswith("/") or ".." in prefix.split("/"):
        raise NodeFailure("Exception", "Saving image outside the output folder is not allowed.")
    stem = f"{subfolder}/{name}" if subfolder else name
    taken = [path[len(stem) + 1 :] for path in folder if path.startswith(f"{stem}_")]
    counter = 1 + max((int(n[:5]) for n in taken if n[:5].isdecimal()), default=0)
    saved = []
    for index, picture in enumerate(pictures):
        filename = f"{name}_{counter + index:05}_.png"
        folder[f"{subfolder}/{filename}" if subfolder else filename] = picture
        saved.append({"filename": filename, "subfolder": subfolder, "type": kind})
    return saved


def _check_image(value: Any, folders: Folders) -> str | None:
    if input_path(value) not in folders.input:
        return f"Invalid image file: {value}"
    return None


def input_path(value: Any) -> str:
    """Return the path of an input file, as `LoadImage` is given it."""
    return str(value).removesuffix(" [input]")


NODES: dict[str, Node] = {
    "CheckpointLoaderSimple": Node(
        {"ckpt_name": _files("checkpoints")}, ("MODEL", "CLIP", "VAE"), _checkpoint, "loaders"
    ),
    "UNETLoader": Node(
        {
            "unet_name": _files("diffusion_models"),
            "weight_dtype": [["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"]],
        },
        ("MODEL",),
        lambda values, _: (values["unet_name"],),
        "advanced/loaders",
    ),
    "CLIPLoader": Node(
        {
            "clip_name": _files("text_encoders"),
            "type": [["stable_diffusion", "sd3", "flux", "qwen_image"]],
        },
        ("CLIP",),
        lambda values, _: ("clip",),
        "advanced/loaders",
    ),
    "DualCLIPLoader": Node(
        {
            "clip_name1": _files("text_encoders"),
            "clip_name2": _files("text_encoders"),
            "type": [["sdxl", "sd3", "flux", "hunyuan_video", "hidream"]],
        },
        ("CLIP",),
        lambda values, _: ("clip",),
        "advanced/loaders",
        optional={"device": [["default", "cpu"], {"advanced": True}]},
    ),
    "VAELoader": Node({"vae_name": _files("vae")}, ("VAE",), lambda values, _: ("vae",), "loaders"),
    "LoraLoader": Node(
        {
            "model": ["MODEL"],
            "clip": ["CLIP"],
            "lora_name": _files("loras"),
            "strength_model": _float(1.0, -100.0, 100.0),
            "strength_clip": _float(1.0, -100.0, 100.0),
        },
        ("MODEL", "CLIP"),
        lambda values, _: (values["model"], values["clip"]),
        "loaders",
    ),
    "LoraLoaderModelOnly": Node(
        {
            "model": ["MODEL"],
            "lora_name": _files("loras"),
            "strength_model": _float(1.0, -100.0, 100.0),
        },
        ("MODEL",),
        lambda values, _: (values["model"],),
        "loaders",
    ),
    "CLIPTextEncode": Node(
        {"text": _TEXT, "clip": ["CLIP"]},
        ("CONDITIONING",),
        lambda values, _: (values["text"],),
        "conditioning",
    ),
    "ConditioningZeroOut": Node(
        {"conditioning": ["CONDITIONING"]},
        ("CONDITIONING",),
        lambda values, _: ("",),
        "advanced/conditioning",
    ),
    "FluxGuidance": Node(
        {"conditioning": ["CONDITIONING"], "guidance": _float(3.5, 0.0, 100.0, 0.1)},
        ("CONDITIONING",),
        lambda values, _: (values["conditioning"],),
        "advanced/conditioning/flux",
    ),
    "ReferenceLatent": Node(
        {"conditioning": ["CONDITIONING"]},
        ("CONDITIONING",),
        lambda values, _: (values["conditioning"],),
        "advanced/conditioning/edit_models",
        optional={"latent": ["LATENT"]},
    ),
    "ModelSamplingFlux": Node(
        {
            "model": ["MODEL"],
            "max_shift": _float(1.15, 0.0, 100.0),
            "base_shift": _float(0.5, 0.0, 100.0),
            "width": _side(1024),
            "height": _side(1024),
        },
        ("MODEL",),
        lambda values, _: (values["model"],),
        "advanced/model",
    ),
    "EmptyLatentImage": Node(
        {"width": _side(), "height": _side(), "batch_size": _BATCH},
        ("LATENT",),
        _empty_latent,
        "latent",
    ),
    "EmptySD3LatentImage": Node(
        {"width": _side(1024, step=16), "height": _side(1024, step=16), "batch_size": _BATCH},
        ("LATENT",),
        _empty_latent,
        "latent/sd3",
    ),
    "KSampler": Node(
        {
            "model": ["MODEL"],
            "seed": _seed(),
            "steps": _STEPS,
            "cfg": _float(8.0, 0.0, 100.0, 0.1),
            "sampler_name": [SAMPLERS],
            "scheduler": [SCHEDULERS],
            "positive": ["CONDITIONING"],
            "negative": ["CONDITIONING"],
            "latent_image": ["LATENT"],
            "denoise": _DENOISE,
        },
        ("LATENT",),
        _ksampler,
        "sampling",
        is_sampler=True,
    ),
    "BasicGuider": Node(
        {"model": ["MODEL"], "conditioning": ["CONDITIONING"]},
        ("GUIDER",),
        lambda values, _: (Guider(values["model"], values["conditioning"]),),
        "sampling/custom_sampling/guiders",
    ),
    "CFGGuider": Node(
        {
            "model": ["MODEL"],
            "positive": ["CONDITIONING"],
            "negative": ["CONDITIONING"],
            "cfg": _float(8.0, 0.0, 100.0, 0.1),
        },
        ("GUIDER",),
        lambda values, _: (Guider(values["model"], values["positive"]),),
        "sampling/custom_sampling/guiders",
    ),
    "RandomNoise": Node(
        {"noise_seed": _seed()},
        ("NOISE",),
        lambda values, _: (values["noise_seed"],),
        "sampling/custom_sampling/noise",
    ),
    "KSamplerSelect": Node(
        {"sampler_name": [SAMPLERS]},
        ("SAMPLER",),
        lambda values, _: (values["sampler_name"],),
        "sampling/custom_sampling/samplers",
    ),
    "BasicScheduler": Node(
        {"model": ["MODEL"], "scheduler": [SCHEDULERS], "steps": _STEPS, "denoise": _DENOISE},
        ("SIGMAS",),
        lambda values, _: (values["steps"],),
        "sampling/custom_sampling/schedulers",
    ),
    "SamplerCustomAdvanced": Node(
        {
            "noise": ["NOISE"],
            "guider": ["GUIDER"],
            "sampler": ["SAMPLER"],
            "sigmas": ["SIGMAS"],
            "latent_image": ["LATENT"],
        },
        ("LATENT", "LATENT"),
        _custom_sampler,
        "sampling/custom_sampling",
        is_sampler=True,
    ),
    "VAEDecode": Node({"samples": ["LATENT"], "vae": ["VAE"]}, ("IMAGE",), _decode, "latent"),
    "VAEEncode": Node({"pixels": ["IMAGE"], "vae": ["VAE"]}, ("LATENT",), _encode, "latent"),
    "RepeatLatentBatch": Node(
        {"samples": ["LATENT"], "amount": _int(1, 1, 64)}, ("LATENT",), _repeat, "latent/batch"
    ),
    "LoadImage": Node(
        {"image": [[], {"image_upload": True}]},
        ("IMAGE", "MASK"),
        _load_image,
        "image",
        checks={"image": _check_image},
    ),
    "EmptyImage": Node(
        {
            "width": _side(least=1, step=1),
            "height": _side(least=1, step=1),
            "batch_size": _BATCH,
            "color": _int(0, 0, 0xFFFFFF),
        },
        ("IMAGE",),
        _empty_image,
        "image",
        works_on_pixels=True,
    ),
    "ImageScale": Node(
        {
            "image": ["IMAGE"],
            "upscale_method": [UPSCALERS],
            "width": _side(least=0, step=1),
            "height": _side(least=0, step=1),
            "crop": [["disabled", "center"]],
        },
        ("IMAGE",),
        _scale,
        "image/upscaling",
        works_on_pixels=True,
    ),
    "ImageScaleToTotalPixels": Node(
        {
            "image": ["IMAGE"],
            "upscale_method": [UPSCALERS],
            "megapixels": _float(1.0, 0.01, 16.0),
        },
        ("IMAGE",),
        _scale_to_pixels,
        "image/upscaling",
        works_on_pixels=True,
    ),
    "ImageStitch": Node(
        {
            "image1": ["IMAGE"],
            "direction": [["right", "down", "left", "up"]],
            "match_image_size": ["BOOLEAN", {"default": True}],
            "spacing_width": _int(0, 0, 1024, 2),
            "spacing_color": [["white", "black", "red", "green", "blue"]],
        },
        ("IMAGE",),
        lambda values, _: (values["image1"],),
        "image/transform",
        optional={"image2": ["IMAGE"]},
    ),
    "FluxKontextImageScale": Node(
        {"image": ["IMAGE"]},
        ("IMAGE",),
        lambda values, _: (values["image"],),
        "advanced/conditioning/flux",
    ),
    "SaveImage": Node(
        {"images": ["IMAGE"], "filename_prefix": ["STRING", {"default": "ComfyUI"}]},
        (),
        _save,
        "image",
        is_output=True,
    ),
    "PreviewImage": Node({"images": ["IMAGE"]}, (), _preview, "image", is_output=True),
}

Workflow = dict[str, Any]
Problem = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checked:
    """A workflow after its check; `error` is None when at least one output can be made."""

    error: Problem | None
    outputs: list[str]
    node_errors: dict[str, Any]


def check(workflow: Workflow, folders: Folders, targets: list[str] | None = None) -> Checked:
    """Check a workflow as `POST /prompt` does; numbers written as text are converted in place."""
    for node_id, node in workflow.items():
        if not isinstance(node, dict) or "class_type" not in node:
            text = "Cannot execute because a node is missing the class_type property."
            return Checked(_problem("invalid_prompt", text, f"Node ID '#{node_id}'"), [], {})
        if node["class_type"] not in NODES:
            text = f"Cannot execute because node {node['class_type']} does not exist."
            return Checked(_problem("invalid_prompt", text, f"Node ID '#{node_id}'"), [], {})
    wanted = [
        node_id
        for node_id, node in workflow.items()
        if NODES[node["class_type"]].is_output and (targets is None or node_id in targets)
    ]
    if not wanted:
        return Checked(_problem("prompt_no_outputs", "Prompt has no outputs", ""), [], {})
    good: list[str] = []
    errors: list[Problem] = []
    node_errors: dict[str, Any] = {}
    checked: dict[str, tuple[bool, list[Problem]]] = {}
    for output in wanted:
        if _check_node(workflow, output, folders, checked):
            good.append(output)
            continue
        errors += checked[output][1]
        for node_id, (_, problems) in checked.items():
            if problems:
                class_type = workflow[node_id]["class_type"]
                entry = {"errors": problems, "dependent_outputs": [], "class_type": class_type}
                node_errors.setdefault(node_id, entry)["dependent_outputs"].append(output)
    if good:
        return Checked(None, good, node_errors)
    details = "\n".join(f"{error['message']}: {error['details']}" for error in errors)
    text = "Prompt outputs failed validation"
    return Checked(_problem("prompt_outputs_failed_validation", text, details), [], node_errors)


def run_order(workflow: Workflow, outputs: list[str]) -> list[str]:
    """Return the nodes that `outputs` need, each after those it depends on."""
    order: list[str] = []

    def visit(node_id: str) -> None:
        if node_id in order:
            return
        for value in workflow[node_id].get("inputs", {}).values():
            if is_link(value):
                visit(str(value[0]))
        order.append(node_id)

    for output in outputs:
        visit(output)
    return order


def run_node(
    workflow: Workflow, node_id: str, results: Mapping[str, tuple[Any, ...]], folders: Folders
) -> tuple[Any, ...]:
    """Return what one node gives, from the `results` of those before it.

    Raises:
        NodeFailure: when it fails.
    """
    node = NODES[workflow[node_id]["class_type"]]
    try:
        return node.run(node_values(workflow, node_id, results), folders)
    except NodeFailure:
        raise
    except Exception as error:
        raise NodeFailure(type(error).__name__, str(error)) from error


def node_values(workflow: Workflow, node_id: str, results: Mapping[str, tuple[Any, ...]]) -> Values:
    """Return the inputs of a node, with its links followed."""
    inputs = workflow[node_id].get("inputs", {})
    return {
        name: results[str(value[0])][int(value[1])] if is_link(value) else value
        for name, value in inputs.items()
    }


def run_all(workflow: Workflow, outputs: list[str], folders: Folders) -> dict[str, Any]:
    """Run a checked workflow at once; return the files of each output node.

    Each is a list of `{"filename", "subfolder", "type"}`; `folders.output` has the pictures by
    path (`subfolder/filename`).

    Raises:
        NodeFailure: when a node fails.
    """
    results: dict[str, tuple[Any, ...]] = {}
    for node_id in run_order(workflow, outputs):
        results[node_id] = run_node(workflow, node_id, results, folders)
    return {node_id: results[node_id][0] for node_id in outputs}


def prompt_text(workflow: Workflow) -> str:
    """Return the text that guides the first sampler, "" when there is none."""
    for node in workflow.values():
        inputs = node.get("inputs", {}) if isinstance(node, dict) else {}
        for name in ("positive", "conditioning"):
            text = _text_behind(workflow, inputs.get(name)) if isinstance(inputs, dict) else None
            if text is not None:
                return text
    return ""


def _text_behind(workflow: Workflow, link: Any) -> str | None:
    seen: set[str] = set()
    while is_link(link) and link and str(link[0]) not in seen:
        seen.add(str(link[0]))
        node = workflow.get(str(link[0]))
        inputs = node.get("inputs", {}) if isinstance(node, dict) else {}
        if isinstance(inputs.get("text"), str):
            return str(inputs["text"])
        link = inputs.get("conditioning")
    return None


def model_file(workflow: Workflow) -> str:
    """Return the file of the model that the workflow loads, "" when it loads none."""
    for node in workflow.values():
        inputs = node.get("inputs", {}) if isinstance(node, dict) else {}
        for name in ("ckpt_name", "unet_name"):
            if isinstance(inputs, dict) and isinstance(inputs.get(name), str):
                return str(inputs[name])
    return ""


def signature(workflow: Workflow, node_id: str, folders: Folders) -> str:
    """Return what a node's result depends on: its class, its inputs, all before it, its file."""
    node = workflow[node_id]
    parts = [node["class_type"]]
    for name, value in sorted(node.get("inputs", {}).items()):
        if is_link(value):
            value = (signature(workflow, str(value[0]), folders), value[1])
        parts.append(f"{name}={value!r}")
        if node["class_type"] == "LoadImage" and name == "image":
            data = folders.input.get(input_path(value), b"")
            parts.append(hashlib.sha256(data).hexdigest())
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()


def is_link(value: Any) -> bool:
    """Tell whether an input is taken from another node."""
    return isinstance(value, list)


def work_s(node: Node, values: Values) -> float:
    """Return how long a node takes that does not sample."""
    if not node.works_on_pixels:
        return 0.0
    count = len(values["image"]) if "image" in values else values["batch_size"]
    width, height = values.get("width", 0), values.get("height", 0)
    return float(SECONDS_PER_PIXEL * width * height * count)


def _problem(kind: str, message: str, details: str, **extra: Any) -> Problem:
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def _check_node(
    workflow: Workflow,
    node_id: str,
    folders: Folders,
    checked: dict[str, tuple[bool, list[Problem]]],
) -> bool:
    if node_id in checked:
        return checked[node_id][0]
    # Entered before those it depends on, so that the order is that of the real answer's nodes and
    # a circle ends.
    checked[node_id] = (False, [])
    inputs = workflow[node_id].get("inputs", {})
    node = NODES[workflow[node_id]["class_type"]]
    problems: list[Problem] = []
    is_good = True
    for name, info in {**node.required, **node.optional}.items():
        if name not in inputs:
            if name in node.required:
                problems.append(_missing(name))
        elif is_link(inputs[name]):
            problem = _check_link(workflow, name, info, inputs[name])
            if problem is not None:
                problems.append(problem)
            elif not _check_node(workflow, str(inputs[name][0]), folders, checked):
                is_good = False
        else:
            problem = _check_value(node, name, info, inputs)
            if problem is not None:
                problems.append(problem)
    for name, is_refused in node.checks.items():
        if name in inputs and (text := is_refused(inputs[name], folders)) is not None:
            kind, message = "custom_validation_failed", "Custom validation failed for node"
            problems.append(_problem(kind, message, f"{name} - {text}", input_name=name))
    checked[node_id] = (is_good and not problems, problems)
    return checked[node_id][0]


def _missing(name: str) -> Problem:
    message = "Required input is missing"
    return _problem("required_input_missing", message, name, input_name=name)


def _check_link(workflow: Workflow, name: str, info: list[Any], link: list[Any]) -> Problem | None:
    extra: dict[str, Any] = {"input_name": name, "input_config": info}
    if len(link) != 2:
        message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
        return _problem("bad_linked_input", message, name, **extra, received_value=link)
    source = workflow.get(str(link[0]))
    outputs = NODES[source["class_type"]].outputs if source else ()
    if not source or not 0 <= int(link[1]) < len(outputs):
        kind = "exception_during_inner_validation"
        message = "Exception when validating inner node"
        return _problem(kind, message, repr(str(link[0])), **extra, linked_node=link)
    received = outputs[int(link[1])]
    if received != info[0]:
        message, details = (
            "Return type mismatch between linked nodes",
            f"{name}, {received} != {info[0]}",
        )
        extra |= {"received_type": received, "linked_node": link}
        return _problem("return_type_mismatch", message, details, **extra)
    return None


def _check_value(node: Node, name: str, info: list[Any], inputs: Values) -> Problem | None:
    kind, options = info[0], info[1] if len(info) > 1 else {}
    value = inputs[name]
    extra: dict[str, Any] = {"input_name": name, "input_config": info, "received_value": value}
    convert = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}.get(
        kind if isinstance(kind, str) else ""
    )
    if convert is not None:
        try:
            value = inputs[name] = convert(value)
        except (TypeError, ValueError) as error:
            message = f"Failed to convert an input value to a {kind} value"
            details = f"{name}, {value}, {error}"
            extra["exception_message"] = str(error)
            return _problem("invalid_input_type", message, details, **extra)
    if name in node.checks:
        return None
    if "min" in options and value < options["min"]:
        message = f"Value {value} smaller than min of {options['min']}"
        return _problem("value_smaller_than_min", message, name, **extra)
    if "max" in options and value > options["max"]:
        message = f"Value {value} bigger than max of {options['max']}"
        return _problem("value_bigger_than_max", message, name, **extra)
    if isinstance(kind, list) and value not in kind:
        is_long = len(kind) > LONGEST_LIST_SHOWN
        shown = f"(list of length {len(kind)})" if is_long else str(kind)
        extra["input_config"] = None if is_long else info
        details = f"{name}: '{value}' not in {shown}"
        return _problem("value_not_in_list", "Value not in list", details, **extra)
    return None
