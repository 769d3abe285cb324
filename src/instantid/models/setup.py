"""Makes the model that an operator's settings ask for, and prepares the ways to run it that they name."""

import logging
from collections.abc import Sequence

import torch

from instantid.models.compiled import load_compiled
from instantid.models.measure import Size, planned_sizes, use_fastest_execution
from instantid.models.memory import release
from instantid.models.predict import EXECUTIONS, GraphedCall
from instantid.models.sdxl import SdxlModel
from instantid.profile import Profile
from instantid.settings import Settings

log = logging.getLogger(__name__)

PREPARED_ROWS = ((2, 1), (2, 4, 8, 1))
"""Rows of a step that get a CUDA graph or a compiled package, the most usual first: at the native size, where a batch
gains nothing, and at half its side, where it does."""
FLOAT32_DECODE_BYTES = 20e9
"""A device with at least so much memory decodes in float32: at 1024x1024 that takes about 4.8 GB (twice bfloat16's,
from tensor shapes), beside 10.3 GB of weights in 16 bits."""


def load_model(settings: Settings, device: torch.device, profile: Profile) -> SdxlModel:
    """The networks, in the types that the settings name. Raises FileNotFoundError or ValueError as `SdxlModel.load`."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.tf32
    return SdxlModel.load(
        settings.weights,
        device,
        choose_dtype(settings.dtype, device),
        checkpoint=settings.checkpoint,
        loras=settings.lora,
        profile=profile,
        vae_dtype=choose_vae_dtype(settings.vae_dtype, device),
        prediction=settings.prediction_type,
    )


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto`: float16 on a GPU, float32 on a CPU."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else "float16"
    return getattr(torch, name)


def choose_vae_dtype(setting: str, device: torch.device) -> torch.dtype:
    """float32, as the reference decodes, unless the operator says bfloat16 or the device is small."""
    if setting == "auto":
        large = device.type == "cpu" or torch.cuda.get_device_properties(device).total_memory >= FLOAT32_DECODE_BYTES
        setting = "float32" if large or not torch.cuda.is_bf16_supported() else "bfloat16"
    return getattr(torch, setting)


def prepare(model: SdxlModel, profile: Profile, settings: Settings) -> None:
    """Choose how the networks run, and prepare the planned sizes and rows where the setting asks for it.

    `auto` means CUDA graphs on a GPU and eager on a CPU. What cannot be prepared runs eagerly.
    """
    on_gpu, wanted = model.device.type == "cuda", settings.execution
    shapes = prepared_shapes(planned_sizes(profile))
    if wanted == "compiled":
        use_as_compiled(model)
        load_compiled(model, settings.cache_folder, shapes)
    elif on_gpu:
        use_fastest_execution(model, shapes[0][0])
    if on_gpu and wanted != "eager":
        capture_graphs(model, shapes)


def use_as_compiled(model: SdxlModel) -> None:
    """Lay the weights out as packages are compiled for, whose code depends on it."""
    model.use(EXECUTIONS["channels_last" if model.device.type == "cuda" else "eager"])


def prepared_shapes(sizes: Sequence[Size]) -> list[tuple[Size, int]]:
    """Sizes and rows that get a graph or a package."""
    return [(size, rows) for i, size in enumerate(sizes) for rows in PREPARED_ROWS[min(i, 1)]]


def capture_graphs(model: SdxlModel, shapes: Sequence[tuple[Size, int]]) -> None:
    """One CUDA graph for each shape that is not prepared yet, until memory runs out."""
    predictor, pool = model.denoise.predictor, torch.cuda.graph_pool_handle()
    for size, rows in shapes:
        with torch.inference_mode():
            inputs = model.denoise.inputs(model.example(size, rows))
            if inputs.key in predictor.prepared:
                continue
            try:
                predictor.prepared[inputs.key] = GraphedCall(predictor.eager, inputs, pool)
            except RuntimeError as error:
                log.warning("no CUDA graph for %s, %d rows: %s", size, rows, str(error).splitlines()[0])
                release(model.device)
                return
