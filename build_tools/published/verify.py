"""Checks that a set of weights is complete, unchanged and loadable."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPTokenizer

from build_tools.face_graph import INPUTS, OUTPUTS
from build_tools.published.folder import changes, read_record
from build_tools.published.manifest import WeightsError
from instantid.contract import CANVAS
from instantid.models.sdxl import SdxlModel, attention
from instantid.models.sdxl.load import ADAPTER, adapter_projections
from instantid.models.sdxl.resampler import Resampler
from instantid.profile import load_profile

GRAPH = "face_analysis.onnx"
LEGACY_VAE = ".query.weight"
"""The end of tensor names in VAE files from before diffusers 0.15; the loader renames these tensors."""

Check = Callable[[Path], None]


def verify(folder: Path, load: bool = False) -> list[str]:
    """All problems of a set, one line each.

    Every file is compared with the hash recorded when the set was made, every network's tensor names and shapes with
    its configuration, the adapter with the UNet, and the face graph with the ONNX standard. With `load`, the networks
    are also loaded as serving does it and the face graph runs once. Raises FileNotFoundError if there is no set.
    """
    load_profile(folder)
    problems = []
    try:
        problems += changes(folder, read_record(folder))
    except WeightsError as error:
        problems.append(str(error))
    checks: list[tuple[str, Check]] = [
        ("sdxl/unet", lambda path: _check_network(UNet2DConditionModel, path)),
        ("identitynet", lambda path: _check_network(ControlNetModel, path)),
        ("sdxl/vae", lambda path: _check_network(AutoencoderKL, path)),
        ("sdxl/text_encoder", _check_text_encoder),
        ("sdxl/text_encoder_2", _check_text_encoder),
        ("sdxl/tokenizer", _check_tokenizer),
        ("sdxl/tokenizer_2", _check_tokenizer),
        ("sdxl/scheduler/scheduler_config.json", lambda path: json.loads(path.read_text())),
        (ADAPTER, lambda path: _check_adapter(path, folder / "sdxl/unet")),
        (GRAPH, _check_graph),
    ]
    if load:
        checks += [("", _load_networks), (GRAPH, _run_graph)]
    return problems + [
        f"{name or folder}: {reason}" for name, check in checks for reason in _reasons(check, folder / name)
    ]


def _reasons(check: Check, path: Path) -> Iterator[str]:
    try:
        check(path)
    except Exception as error:  # noqa: BLE001 - a broken file may fail in any library that reads it
        yield f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _check_network(kind: Any, folder: Path) -> None:
    found = {name: shape for path in _tensor_files(folder) for name, shape in shapes(path).items()}
    if any(name.endswith(LEGACY_VAE) for name in found):
        return
    with torch.device("meta"):
        network = kind.from_config(kind.load_config(folder, local_files_only=True))
    _compare({name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}, found)


def _check_text_encoder(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    found = {name: shape for path in _tensor_files(folder) for name, shape in shapes(path).items()}
    embedding = (config["vocab_size"], config["hidden_size"])
    if embedding not in found.values():
        raise ValueError(f"no token embedding of shape {embedding}")


def _check_tokenizer(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError("is missing")
    if len(CLIPTokenizer.from_pretrained(folder)("a portrait").input_ids) < len("be"):
        raise ValueError("encodes nothing")


def _check_adapter(path: Path, unet: Path) -> None:
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, shape in shapes(path).items():
        part, _, rest = name.partition(".")
        parts[part][rest] = torch.empty(shape, device="meta")
    with torch.device("meta"):
        Resampler(parts["image_proj"])
        network = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(unet, local_files_only=True))
    adapter_projections(parts["ip_adapter"], attention.install(network))


def _check_graph(path: Path) -> None:
    onnx.checker.check_model(str(path))
    graph = onnx.load(str(path), load_external_data=False).graph
    for kind, values, expected in (("inputs", graph.input, INPUTS), ("outputs", graph.output, OUTPUTS)):
        if (found := [value.name for value in values]) != (names := [name for name, *_ in expected]):
            raise ValueError(f"{kind} are {found}, expected {names}")


def _load_networks(folder: Path) -> None:
    SdxlModel.load(folder, torch.device("cpu"), torch.bfloat16)


def _run_graph(path: Path) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    photo = np.zeros((1, CANVAS, CANVAS, 3), np.uint8)
    session.run(None, {"images": photo, "sizes": np.array([[CANVAS, CANVAS]], np.int64)})


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a safetensors file; reads the header only."""
    try:
        with safe_open(path, "pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from error


def _tensor_files(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError("no safetensors file")
    return paths


def _compare(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if wrong:
        name, count = wrong[0], len(wrong)
        sides = f"{name} is {found.get(name)}, expected {expected.get(name)}"
        raise ValueError(f"{count} tensors do not fit the configuration: {sides}")
