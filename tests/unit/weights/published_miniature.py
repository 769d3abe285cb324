"""The miniature in the published layout: the files, names and forms that `build_tools/weights.toml` lists."""

import hashlib
import io
import json
import tomllib
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load, save

from build_tools.published.manifest import MANIFEST, PublishedFile, Source, load_manifest
from miniature.faces import write_detector, write_recogniser

from .hub import REVISION

ANTELOPE = ("1k3d68.onnx", "2d106det.onnx", "genderage.onnx")


def published_files(weights: Path, faces: Path) -> dict[str, dict[str, bytes]]:
    """Repositories as on the hub, from a set's `sdxl/`, `identitynet/` and `adapter/`; ONNX files go to `faces`."""
    write_detector(faces / "scrfd_10g_bnkps.onnx")
    write_recogniser(faces / "glintr100.onnx")
    manifest = load_manifest()
    return {
        source.repository: {file.path: _content(source, file, weights, faces) for file in source.files}
        for source in manifest.values()
    }


def write_manifest(path: Path, repositories: dict[str, dict[str, bytes]], faces: Path) -> Path:
    """The real manifest with the miniature's revision, sizes and checksums."""
    tables = tomllib.loads(MANIFEST.read_text())
    for table in tables.values():
        table["revision"] = REVISION
        for file in table["files"]:
            _fill(file, repositories[table["repository"]][file["path"]])
            for member in file.get("members", ()):
                _fill(member, (faces / member["path"]).read_bytes())
    path.write_text(toml(tables))
    return path


def toml(tables: dict[str, dict]) -> str:
    return "".join(f"[{name}]\n{_lines(table)}" for name, table in tables.items())


def _fill(entry: dict, content: bytes) -> None:
    entry |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _content(source: Source, file: PublishedFile, weights: Path, faces: Path) -> bytes:
    if file.members:
        return _archive(faces)
    if file.path == "ip-adapter.bin":
        return _pickle(load((weights / "adapter/ip-adapter.safetensors").read_bytes()))
    if source.name in ("lcm", "hyper"):
        return save({"lora_unet.down.weight": torch.ones(1, 4)})
    if "/tokenizer" in str(file.to):
        return _tokenizer_file(weights / "sdxl", file.path)
    content = (weights / str(file.to)).read_bytes()
    if ".fp16." in file.path or (source.name == "instantid" and file.path.endswith(".safetensors")):
        tensors = {_published_name(file.path, name): tensor.half() for name, tensor in load(content).items()}
        return save(tensors, metadata={"format": "pt"})
    return content


def _published_name(path: str, name: str) -> str:
    """transformers 5 writes the first text encoder's tensors without the prefix that the published file has."""
    return f"text_model.{name}" if path.startswith("text_encoder/") else name


def _archive(faces: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.mkdir("antelopev2")
        for name in ANTELOPE:
            archive.writestr(f"antelopev2/{name}", b"another network")
        for path in sorted(faces.glob("*.onnx")):
            archive.write(path, f"antelopev2/{path.name}")
    return packed.getvalue()


def _pickle(tensors: dict[str, torch.Tensor]) -> bytes:
    parts: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    pickled = io.BytesIO()
    torch.save(parts, pickled)
    return pickled.getvalue()


def _tokenizer_file(sdxl: Path, name: str) -> bytes:
    """The four files of CLIP's own tokenizer, which the hub has in place of `tokenizer.json`."""
    folder, _, file = name.partition("/")
    whole = json.loads((sdxl / folder / "tokenizer.json").read_text())
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    tokens["pad_token"] = "<|endoftext|>" if folder == "tokenizer" else "!"
    added = {
        key: {"content": tokens[key], "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for key in ("bos_token", "eos_token", "unk_token")
    }
    config = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    files = {
        "vocab.json": json.dumps(whole["model"]["vocab"]),
        "merges.txt": "#version: 0.2\n" + "".join(f"{' '.join(pair)}\n" for pair in whole["model"]["merges"]),
        "special_tokens_map.json": json.dumps({**added, "pad_token": tokens["pad_token"]}),
        "tokenizer_config.json": json.dumps(
            {
                **config,
                **{key: {**value, "__type": "AddedToken"} for key, value in added.items()},
                "pad_token": tokens["pad_token"],
                "tokenizer_class": "CLIPTokenizer",
            }
        ),
    }
    return files[file].encode()


def _lines(table: dict) -> str:
    return "".join(f"{key} = {_value(value)}\n" for key, value in table.items())


def _value(value) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)
