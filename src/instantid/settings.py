"""What an operator sets: environment variables with the prefix `INSTANTID_`, listed in `.env.example`."""

import csv
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, FiniteFloat
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

CACHE_FOLDER = ".cache"
"""In a set of weights: what was measured on this machine."""
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


def _read_loras(value: Any) -> Any:
    """`a.safetensors, "b, c.safetensors": 0.6` to paths and weights; names with commas are quoted, as in CSV."""
    if not isinstance(value, str):
        return value
    items = [item.strip() for row in csv.reader(value.splitlines(), skipinitialspace=True) for item in row]
    found = [re.fullmatch(rf"(.+\.safetensors)\s*(?::\s*({NUMBER}))?", item, re.IGNORECASE) for item in items]
    if wrong := [item for item, match in zip(items, found, strict=True) if match is None]:
        raise ValueError(f"{wrong[0]!r}: must be the path of a .safetensors file, with `:weight` or without")
    return tuple((match[1], match[2] or 1.0) for match in found if match)


def _read_names(value: Any) -> Any:
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


class Settings(BaseSettings):
    """Read once by each model when it is loaded.

    Raises pydantic's ValidationError, naming the variable and its bound, for a value that does not fit.
    """

    model_config = SettingsConfigDict(env_prefix="INSTANTID_", env_ignore_empty=True, extra="ignore")

    weights: Path = Field(description="Folder of one set of weights.")
    checkpoint: Path | None = Field(
        None,
        description="Another SDXL in place of the set's own: a diffusers folder, or one safetensors file.",
    )
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = Field(
        "auto", description="What the checkpoint's UNet predicts; auto: what its file or folder says."
    )
    lora: Annotated[tuple[tuple[Path, FiniteFloat], ...], NoDecode, BeforeValidator(_read_loras)] = Field(
        (),
        description="LoRA files to fuse into UNet and text encoders: paths, each with `:weight` where it is not 1; "
        "a path with a comma is quoted.",
    )
    few_steps: Literal["none", "hyper", "lcm"] = Field(
        "none", description="Fuse the set's own Hyper-SD or LCM LoRA; defaults and bounds of requests follow."
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description="Of UNet, IdentityNet and text encoders; auto: float16 on a GPU, float32 on a CPU.",
    )
    vae_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of decoding; auto: float32, as the reference, on a GPU of at least 20 GB and on a CPU."
    )
    tf32: bool = Field(False, description="Let float32 products on a GPU round to TF32: faster decoding, less exact.")
    memory_gb: float = Field(
        0.0,
        ge=0,
        le=1024,
        description="For what started requests keep, per instance; 0: four fifths of what is free on a GPU once the "
        "weights are loaded and the largest step has run, a quarter on a CPU.",
    )
    max_rows: int = Field(
        128, ge=2, le=1024, description="UNet rows of started requests, per instance, however much memory there is."
    )
    tenant_share: float = Field(
        0.25, gt=0, le=1, description="Share of the rows that one tenant who names itself may have in work."
    )
    cpu_threads: int = Field(1, ge=1, le=256, description="Torch threads of one denoiser process.")
    step_timeout: float = Field(
        3.0,
        ge=1,
        le=600,
        description="Seconds beyond 20 times its measured cost after which a step is stuck and the server is ended.",
    )
    execution: Literal["auto", "eager", "graphs", "compiled"] = Field(
        "auto",
        description="How steps of the planned sizes run: as CUDA graphs (auto on a GPU), eagerly (auto on a CPU), or "
        "from the packages of `python -m build_tools compile`. Other sizes run eagerly.",
    )
    cache: Path | None = Field(
        None, description="Folder for what was measured on this machine; default: `.cache` in the weights' folder."
    )
    styles: Path | None = Field(
        None, description="TOML file with style templates of the server's own, beside the eight that are built in."
    )
    compel: bool = Field(
        True, description="Take prompt_syntax compel, whose parser needs up to 5 s of one core for a hostile prompt."
    )
    png_level: int = Field(
        1, ge=0, le=9, description="zlib level of PNG files; 4 takes nearly three times as long for 15 % fewer bytes."
    )
    embed_metadata: bool = Field(True, description="Write the parameters into PNG and WebP files.")
    metrics_tenants: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_read_names)] = Field(
        (), description="Tenants that metrics tell apart, separated by commas; all others are counted as `other`."
    )
    usage_records: str = Field(
        "", description="File to which one JSON line per request is appended; -: the server's output; empty: none."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Of what the Python models log; json: one object a line, with the request's id."
    )

    @property
    def cache_folder(self) -> Path:
        return self.cache or self.weights / CACHE_FOLDER
