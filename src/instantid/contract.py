"""The public contract: every option of a request, and the tensors of every model. Standard library only.

`python -m build_tools configs` writes the tensors in the `config.pbtxt` files, the fields of `GenerationRequest`, the
client's copy of this file, its `Options`, and README's tables from it. Names are diffusers' where it has one.
"""

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
    help: str = ""


@dataclass(frozen=True, slots=True)
class ModelSignature:
    """One folder of the model repository with its tensors; the ensemble puts `prefix` before its outputs' names."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Images:
    """An option that is one or more encoded photos; at least `low` are required, and `high` allowed."""

    name: str
    low: int
    high: int
    help: str
    datatype: DataType = "BYTES"
    default: None = None

    @property
    def bound(self) -> str:
        photo = f"{ANY_PHOTO_FORMAT}, at most {MAX_PHOTO_BYTES >> 20} MiB and {MAX_PHOTO_PIXELS // 10**6} megapixels"
        return photo if self.high == 1 else f"{max(self.low, 1)}..{self.high} of {photo}"


@dataclass(frozen=True, slots=True)
class Text:
    """An option that is UTF-8 text of `low` to `high` characters; required if there is no default."""

    name: str
    default: str | None
    low: int
    high: int
    help: str
    datatype: DataType = "BYTES"
    printable: bool = False

    @property
    def bound(self) -> str:
        return f"{self.low}..{self.high}{' printable' if self.printable else ''} characters"


@dataclass(frozen=True, slots=True)
class Choice:
    """An option that is one of a few names."""

    name: str
    default: str
    choices: tuple[str, ...]
    help: str
    datatype: DataType = "BYTES"

    @property
    def bound(self) -> str:
        return ", ".join(self.choices)


@dataclass(frozen=True, slots=True)
class Number:
    """A numeric option with its bounds, both included. Without a default, an absent seed is drawn at random."""

    name: str
    datatype: Literal["INT32", "INT64", "FP32"]
    default: float | None
    low: float
    high: float
    help: str

    @property
    def bound(self) -> str:
        return f"{self.low:g}..{self.high:g}" if abs(self.high) < 1e6 else f"{self.low}..{self.high}"


@dataclass(frozen=True, slots=True)
class Side:
    """Width or height of the picture: a multiple of 64 pixels. Each set of weights narrows the bounds."""

    name: str
    low: int
    high: int
    help: str
    datatype: DataType = "INT32"
    default: None = None

    @property
    def bound(self) -> str:
        return f"a multiple of {SIDE_MULTIPLE} within {self.low}..{self.high}"


Option = Images | Text | Choice | Number | Side

CANVAS = 1280
"""Side in pixels of the square canvas that carries one resized photo (the reference's `max_side`)."""
SIDE_MULTIPLE = 64
"""Sides of resized photos and of pictures are multiples of this."""
EMBEDDING_SIZE = 512
DETECTION_SIZES = (640, 128)
"""Detector input sides; the first is the reference's."""
MAX_PHOTO_BYTES = 16 * 1024 * 1024
MAX_PHOTO_PIXELS, MAX_REQUEST_PIXELS = 64_000_000, 128_000_000
MIN_PHOTO_SIDE = 16
MAX_PHOTO_ASPECT = 8.0
"""Longer side over shorter side; beyond it the resized photo would be thinner than a few cells."""
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP")
ANY_PHOTO_FORMAT = "JPEG, PNG or WEBP"
MIN_FACE_SIDE = 32.0
"""Shortest allowed side, in pixels of the 1280-pixel photo, of the face that is used."""
MAX_PROMPT_CHARACTERS = 2000
MAX_PROMPT_CHUNKS = 8
"""Of 75 tokens each: 600 hold 2000 characters of English, and at SDXL's size keep 0.2 GB a row in float16."""
MAX_COMPEL_CHARACTERS = 500
MAX_COMPEL_DEPTH = 4
"""Brackets in brackets. compel's parser takes milliseconds a character, and more with every bracket inside another."""
PROMPT_SYNTAXES = ("plain", "a1111", "compel")
MAX_ID_CHARACTERS = 256
"""Of the id that a caller gives a request."""
NO_STYLE = "none"
MAX_SIDE = 4096
OUTPUT_FORMATS = ("png", "jpeg", "webp")
SCHEDULERS = ("euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras", "ddim", "unipc", "heun", "lcm")
LCM_MAX_STEPS = 50
"""LCM is distilled on 50 steps of the teacher; it cannot take more (arXiv 2310.04378)."""

PHOTO = Images("photo", 1, 4, "Photos of one person; the largest face of each is used.")
PROMPT = Text("prompt", None, 1, MAX_PROMPT_CHARACTERS, "What the picture shows.")
NEGATIVE_PROMPT = Text("negative_prompt", "", 0, MAX_PROMPT_CHARACTERS, "What the picture avoids; needs guidance.")
PROMPT_SYNTAX = Choice("prompt_syntax", PROMPT_SYNTAXES[0], PROMPT_SYNTAXES, "How words get weights (docs/prompts.md).")
STYLE = Text("style", NO_STYLE, 1, 64, "Template for both prompts, one of the server's list (docs/prompts.md).")
POSE_PHOTO = Images("pose_photo", 0, 1, "Its largest face gives the landmarks; if left out, the first photo does.")
WIDTH = Side("width", SIDE_MULTIPLE, MAX_SIDE, "In pixels; if left out, it follows from the photo's aspect.")
HEIGHT = replace(WIDTH, name="height")
NUM_INFERENCE_STEPS = Number(
    "num_inference_steps", "INT32", 30, 1, 100, f"Denoising steps; the scheduler lcm takes at most {LCM_MAX_STEPS}."
)
GUIDANCE_SCALE = Number("guidance_scale", "FP32", 5.0, 1.0, 20.0, "How closely to follow the prompt; 1: no guidance.")
IP_ADAPTER_SCALE = Number("ip_adapter_scale", "FP32", 0.8, 0.0, 1.5, "Strength of the face tokens: likeness.")
CONTROLNET_CONDITIONING_SCALE = Number(
    "controlnet_conditioning_scale", "FP32", 0.8, 0.0, 1.5, "Strength of IdentityNet: likeness and the face's place."
)
NUM_IMAGES_PER_PROMPT = Number("num_images_per_prompt", "INT32", 1, 1, 4, "Pictures; picture i has `seed` + i.")
SCHEDULER = Choice("scheduler", SCHEDULERS[0], SCHEDULERS, "Solver of the denoising steps.")

OPTIONS: tuple[Option, ...] = (
    PHOTO,
    PROMPT,
    NEGATIVE_PROMPT,
    PROMPT_SYNTAX,
    STYLE,
    Number("force_zeros_for_empty_prompt", "INT32", 0, 0, 1, "1: an empty negative_prompt is zeros, not encoded."),
    POSE_PHOTO,
    WIDTH,
    HEIGHT,
    NUM_INFERENCE_STEPS,
    GUIDANCE_SCALE,
    IP_ADAPTER_SCALE,
    CONTROLNET_CONDITIONING_SCALE,
    Number("control_guidance_start", "FP32", 0.0, 0.0, 1.0, "Share of the steps after which IdentityNet begins."),
    Number("control_guidance_end", "FP32", 1.0, 0.0, 1.0, "Share of the steps after which IdentityNet ends."),
    NUM_IMAGES_PER_PROMPT,
    Number("seed", "INT64", None, 0, 2**53 - 1, "Seed of the first picture's noise; drawn at random if left out."),
    Number("output_quality", "INT32", 95, 1, 100, "Quality of JPEG and WebP files."),
    SCHEDULER,
    Choice("output_format", OUTPUT_FORMATS[0], OUTPUT_FORMATS, "File format of the pictures."),
)
"""In the order of the tensors."""
NUMBERS = tuple(option for option in OPTIONS if isinstance(option, Number))
REQUIRED = (PHOTO.name, PROMPT.name)
"""Required by us; optional for Triton, whose own message for a missing input misleads."""

TENANT = Text("tenant", "default", 1, 128, "Names the tenant, for fair scheduling and metrics.", printable=True)
DEADLINE_MS = Number("deadline_ms", "INT64", None, 0, 3_600_000, "Milliseconds from now after which the work stops.")
PRIORITY_LEVEL = Number("priority_level", "INT32", 2, 1, 3, "Urgency: 1 is the most, 3 the least.")
TRACEPARENT = Text("traceparent", "", 0, 55, "W3C trace context of the caller; one that is malformed is ignored.")
PARAMETERS = (TENANT, DEADLINE_MS, PRIORITY_LEVEL, TRACEPARENT)
"""Parameters of a request, beside its tensors. Triton forwards a header `traceparent` as the parameter."""

IMAGE = Tensor("image", "BYTES", (-1,), help="the encoded pictures")
SEEDS = Tensor("seeds", "INT64", (-1,), help="the seed of each picture")
"""Not `seed`: inputs and outputs of an ensemble share one namespace, and an input has that name."""
FACE = Tensor("face", "BYTES", help="JSON: box, landmarks and score of the face, in pixels of the photo sent")
REPORT = Tensor("report", "BYTES", (-1,), help="JSON for each picture: how it was made")
REQUEST_ID = Tensor("request_id", "BYTES", help="the id that the caller gave the request")

REQUEST = Tensor("request", "BYTES")
"""The resolved request, signed by intake."""
IMAGES = Tensor("images", "UINT8", (-1, CANVAS, CANVAS, 3))
SIZES = Tensor("sizes", "INT64", (-1, 2))
INPUT_PICTURES = Tensor("input_pictures", "UINT8", (-1, -1, -1, 3))
"""Every picture-shaped condition that came with the request, at the picture's size; there may be none."""
PICTURES = Tensor("pictures", "UINT8", (-1, -1, -1, 3))
"""The same, and the landmark picture after them; `GenerationRequest.pictures` says what each is."""
EMBEDDINGS = Tensor("embeddings", "FP32", (-1, EMBEDDING_SIZE))
"""One face embedding for each person."""
CONDITIONED_REQUEST = Tensor("conditioned_request", "BYTES")
"""The same request with its marks, signed by face conditioning together with the embeddings and pictures of it."""
MAX_INNER_VALUE = 1e5
"""Of FP32 tensors between the stages: pixels, scores and raw embeddings are far below."""

FOUND = (
    Tensor("boxes", "FP32", (-1, 4)),
    Tensor("scores", "FP32", (-1,)),
    Tensor("landmarks", "FP32", (-1, 5, 2)),
    EMBEDDINGS,
    Tensor("photo_index", "INT64", (-1,)),
    Tensor("detection_size", "INT64", (-1,)),
)
"""All faces of all photos, by the names of the ONNX file; the detection size is one for each photo."""
FACES = tuple(replace(tensor, name=f"face_{tensor.name}") for tensor in FOUND)

INPUTS = tuple(
    Tensor(option.name, option.datatype, (-1,) if isinstance(option, Images) and option.high > 1 else (1,), True)
    for option in OPTIONS
)
INTAKE = ModelSignature("intake", INPUTS, (IMAGES, SIZES, INPUT_PICTURES, REQUEST))
FACE_ANALYSIS = ModelSignature("face_analysis", (IMAGES, SIZES), FOUND, prefix="face_")
FACE_CONDITIONING = ModelSignature(
    "face_conditioning", (REQUEST, INPUT_PICTURES, *FACES), (CONDITIONED_REQUEST, EMBEDDINGS, PICTURES, FACE)
)
DENOISER = ModelSignature(
    "denoiser", (REQUEST, CONDITIONED_REQUEST, EMBEDDINGS, PICTURES), (IMAGE, SEEDS, REPORT, REQUEST_ID)
)
STEPS = (INTAKE, FACE_ANALYSIS, FACE_CONDITIONING, DENOISER)
"""The steps of the ensemble, in their order."""
INSTANTID = ModelSignature("instantid", INTAKE.inputs, (IMAGE, SEEDS, FACE, REPORT, REQUEST_ID))
MODELS = (INSTANTID, *STEPS)
