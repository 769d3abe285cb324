"""The public contract and the tensors between the models: names, types, shapes, bounds and defaults.

`config.pbtxt` files repeat these facts by hand (Triton reads nothing else); a test compares the two.
Names are diffusers' where diffusers has one. Nothing here needs more than the standard library.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

DataType = Literal["BYTES", "UINT8", "INT32", "INT64", "FP32"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a model as Triton sees it; `dims` excludes the batch dimension, -1 is any size."""

    name: str
    datatype: DataType
    dims: tuple[int, ...] = (1,)
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """One folder of the model repository with its tensors."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Number:
    """A numeric option: its default and its bounds, both included."""

    name: str
    datatype: Literal["INT32", "INT64", "FP32"]
    default: float | None
    low: float
    high: float

    @property
    def bound(self) -> str:
        return f"{self.low:g}..{self.high:g}" if abs(self.high) < 1e6 else f"{self.low}..{self.high}"


CANVAS = 1280
"""Side in pixels of the square canvas that carries one resized photo (the reference's `max_side`)."""
SIDE_MULTIPLE = 64
"""Sides of resized photos and of pictures are multiples of this."""
EMBEDDING_SIZE = 512
DETECTION_SIZES = (640, 128)
"""Detector input sides, in the order in which they are tried."""

MAX_PHOTOS = 4
MAX_PHOTO_BYTES = 16 * 1024 * 1024
MAX_PHOTO_PIXELS = 64_000_000
MIN_PHOTO_SIDE = 16
MAX_PHOTO_ASPECT = 8.0
"""Longer side over shorter side; beyond it the resized photo would be thinner than a few cells."""
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP")
MIN_FACE_SIDE = 32.0
"""Shortest allowed side, in pixels of the 1280-pixel photo, of the face that is used."""

MIN_PROMPT_CHARACTERS = 1
MAX_PROMPT_CHARACTERS = 2000
MAX_TENANT_CHARACTERS = 128
OUTPUT_FORMATS = ("png", "jpeg", "webp")
SCHEDULERS = ("euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras", "ddim", "unipc", "heun", "lcm")
LCM_MAX_STEPS = 50
"""LCM is distilled on 50 steps of the teacher; it cannot take more (arXiv 2310.04378)."""

NUM_INFERENCE_STEPS = Number("num_inference_steps", "INT32", 30, 1, 100)
GUIDANCE_SCALE = Number("guidance_scale", "FP32", 5.0, 1.0, 20.0)
IP_ADAPTER_SCALE = Number("ip_adapter_scale", "FP32", 0.8, 0.0, 1.5)
CONTROLNET_CONDITIONING_SCALE = Number("controlnet_conditioning_scale", "FP32", 0.8, 0.0, 1.5)
CONTROL_GUIDANCE_START = Number("control_guidance_start", "FP32", 0.0, 0.0, 1.0)
CONTROL_GUIDANCE_END = Number("control_guidance_end", "FP32", 1.0, 0.0, 1.0)
NUM_IMAGES_PER_PROMPT = Number("num_images_per_prompt", "INT32", 1, 1, 4)
SEED = Number("seed", "INT64", None, 0, 2**53 - 1)
OUTPUT_QUALITY = Number("output_quality", "INT32", 95, 1, 100)
NUMBERS = (
    NUM_INFERENCE_STEPS,
    GUIDANCE_SCALE,
    IP_ADAPTER_SCALE,
    CONTROLNET_CONDITIONING_SCALE,
    CONTROL_GUIDANCE_START,
    CONTROL_GUIDANCE_END,
    NUM_IMAGES_PER_PROMPT,
    SEED,
    OUTPUT_QUALITY,
)

DEFAULT_NEGATIVE_PROMPT = ""
DEFAULT_SCHEDULER = SCHEDULERS[0]
DEFAULT_OUTPUT_FORMAT = "png"


@dataclass(frozen=True, slots=True)
class Mode:
    """What the loaded weights were made for; the first scheduler is the default."""

    schedulers: tuple[str, ...] = SCHEDULERS
    num_inference_steps: Number = NUM_INFERENCE_STEPS
    guidance_scale: Number = GUIDANCE_SCALE
    timestep_spacing: str | None = None
    """In place of the checkpoint's own."""

    @property
    def numbers(self) -> tuple[Number, ...]:
        own = {number.name: number for number in (self.num_inference_steps, self.guidance_scale)}
        return tuple(own.get(number.name, number) for number in NUMBERS)


MODES: Mapping[str, Mode] = {
    "none": Mode(),
    "hyper": Mode(
        schedulers=("ddim",),
        num_inference_steps=replace(NUM_INFERENCE_STEPS, default=8, low=4, high=16),
        guidance_scale=replace(GUIDANCE_SCALE, high=10.0),
        timestep_spacing="trailing",
    ),
    "lcm": Mode(
        schedulers=("lcm",),
        num_inference_steps=replace(NUM_INFERENCE_STEPS, default=8, low=2, high=12),
        guidance_scale=replace(GUIDANCE_SCALE, default=1.0, high=2.0),
    ),
}
"""Few-step modes: Hyper-SD's 8-step LoRA that keeps guidance (arXiv 2404.13686; DDIM with trailing timesteps, guidance
5 to 8), and LCM-LoRA (arXiv 2311.05556; 2 to 8 steps, 10 in InstantID's own example, guidance 1 to 2)."""

PARAMETER_TENANT = "tenant"
"""Request parameter: names the tenant, for fair scheduling and metrics."""
PARAMETER_DEADLINE_MS = "deadline_ms"
"""Request parameter: milliseconds that the caller will still wait; the work stops once they have passed."""
PARAMETER_PRIORITY_LEVEL = "priority_level"
"""Request parameter: Triton's `priority` again, which Python backends cannot read; 1 is the most urgent."""
PRIORITY_LEVELS = 3
DEFAULT_PRIORITY_LEVEL = 2
DEFAULT_TENANT = "default"
MAX_DEADLINE_MS = 3_600_000

PHOTO = Tensor("photo", "BYTES", (-1,), optional=True)
PROMPT = Tensor("prompt", "BYTES", optional=True)
OPTIONS = (
    Tensor("negative_prompt", "BYTES", optional=True),
    Tensor("pose_photo", "BYTES", optional=True),
    Tensor("width", "INT32", optional=True),
    Tensor("height", "INT32", optional=True),
    *(Tensor(number.name, number.datatype, optional=True) for number in NUMBERS),
    Tensor("scheduler", "BYTES", optional=True),
    Tensor("output_format", "BYTES", optional=True),
)
REQUIRED = (PHOTO.name, PROMPT.name)
"""Required by us; optional for Triton, whose own message for a missing input misleads (TRITON.md A1)."""

IMAGE = Tensor("image", "BYTES", (-1,))
SEEDS = Tensor("seeds", "INT64", (-1,))
"""Not `seed`: inputs and outputs of an ensemble share one namespace, and an input has that name."""
FACE = Tensor("face", "BYTES")
REQUEST_ID = Tensor("request_id", "BYTES")

REQUEST = Tensor("request", "BYTES")
IMAGES = Tensor("images", "UINT8", (-1, CANVAS, CANVAS, 3))
SIZES = Tensor("sizes", "INT64", (-1, 2))
BOXES = Tensor("boxes", "FP32", (-1, 4))
SCORES = Tensor("scores", "FP32", (-1,))
LANDMARKS = Tensor("landmarks", "FP32", (-1, 5, 2))
EMBEDDINGS = Tensor("embeddings", "FP32", (-1, EMBEDDING_SIZE))
PHOTO_INDEX = Tensor("photo_index", "INT64", (-1,))
DETECTION_SIZE = Tensor("detection_size", "INT64", (-1,))
EMBEDDING = Tensor("embedding", "FP32", (EMBEDDING_SIZE,))
LANDMARK_PICTURE = Tensor("landmark_picture", "UINT8", (-1, -1, 3))

FACES = (BOXES, SCORES, LANDMARKS, EMBEDDINGS, PHOTO_INDEX, DETECTION_SIZE)

INTAKE = Model("intake", (PHOTO, PROMPT, *OPTIONS), (IMAGES, SIZES, REQUEST))
FACE_ANALYSIS = Model("face_analysis", (IMAGES, SIZES), FACES)
FACE_CONDITIONING = Model("face_conditioning", (REQUEST, SIZES, *FACES), (EMBEDDING, LANDMARK_PICTURE, FACE))
DENOISER = Model("denoiser", (REQUEST, EMBEDDING, LANDMARK_PICTURE), (IMAGE, SEEDS, REQUEST_ID))
INSTANTID = Model("instantid", INTAKE.inputs, (IMAGE, SEEDS, FACE, REQUEST_ID))
MODELS = (INSTANTID, INTAKE, FACE_ANALYSIS, FACE_CONDITIONING, DENOISER)
