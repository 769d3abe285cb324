"""Chooses the files that a set needs from a user's SDXL checkpoint, a diffusers folder on this disk or on the hub."""

from collections.abc import Collection
from pathlib import Path

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

from build_tools.published.manifest import PublishedFile, Source, WeightsError
from build_tools.published.transfer import Hub

NETWORKS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
PLAIN = ("scheduler", "tokenizer", "tokenizer_2")


def diffusers_files(names: Collection[str], where: str) -> dict[str, str]:
    """The files of a diffusers SDXL folder that a set needs, with their names in the set.

    Float16 files are preferred, except for the VAE. Raises WeightsError, naming `where` and the part, if a part is
    missing or only there as a pickle.
    """
    names = [name for name in names if name.count("/") == 1]
    chosen: dict[str, str] = {}
    for folder in PLAIN:
        chosen |= {name: name for name in names if name.startswith(f"{folder}/") and name.endswith((".json", ".txt"))}
        if not any(name.startswith(f"{folder}/") for name in chosen):
            raise WeightsError(f"{where}: {folder} is missing: not a diffusers SDXL folder")
    for folder, stem in NETWORKS.items():
        chosen |= _network(names, folder, stem, where)
    return chosen


def local_files(folder: Path) -> dict[Path, str]:
    """`diffusers_files` for a folder on this disk."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return {folder / name: to for name, to in diffusers_files(names, str(folder)).items()}


def hub_source(spec: str, hub: Hub) -> Source:
    """The files of `owner/name` or `owner/name@revision` on the hub, pinned to its current commit.

    Raises WeightsError if the hub has no such repository or it is not a diffusers SDXL folder.
    """
    repository, _, revision = spec.partition("@")
    try:
        info = HfApi(hub.endpoint).model_info(repository, revision=revision or None, files_metadata=True)
    except (OSError, httpx2.HTTPError, HFValidationError, OfflineModeIsEnabled) as error:
        raise WeightsError(f"checkpoint {spec}: neither here nor on the hub: {' '.join(str(error).split())}") from error
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    files = tuple(
        PublishedFile(name, siblings[name].size, getattr(siblings[name].lfs, "sha256", None), f"sdxl/{to}")
        for name, to in diffusers_files(siblings, repository).items()
    )
    licence = info.card_data.get("license") if info.card_data else None
    return Source("sdxl", repository, str(info.sha), licence or "none declared on its card", False, files)


def _network(names: Collection[str], folder: str, stem: str, where: str) -> dict[str, str]:
    config = f"{folder}/config.json"
    whole, half = f"{folder}/{stem}.safetensors", f"{folder}/{stem}.fp16.safetensors"
    for name in (whole, half) if folder == "vae" else (half, whole):
        if name in names and config in names:
            return {config: config, name: whole}
    if f"{whole}.index.json" in names and config in names:
        parts = [name for name in names if name.startswith(f"{folder}/{stem}-") and name.endswith(".safetensors")]
        return {name: name for name in (config, f"{whole}.index.json", *parts)}
    pickled = any(name.startswith(f"{folder}/") and name.endswith((".bin", ".ckpt", ".pt")) for name in names)
    reason = "only there as a pickle: save it as safetensors" if pickled else "missing: not a diffusers SDXL folder"
    raise WeightsError(f"{where}: {folder} is {reason}")
