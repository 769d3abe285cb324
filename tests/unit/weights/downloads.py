"""Two files to download, the manifest that names them, and what a finished or failed download leaves."""

import hashlib

import numpy as np

from build_tools.published.manifest import PublishedFile, Source
from build_tools.published.transfer import Hub, fetch

from .hub import REVISION
from .published_miniature import toml

SIZE = 24_000_000
WRITTEN = 10 << 20
"""huggingface_hub writes to disk in pieces of this size; what a lost connection sent beyond them is requested again."""
BIG, SMALL = "unet/big.safetensors", "config.json"
CONTENT = {BIG: np.random.default_rng(0).bytes(SIZE), SMALL: b"{}"}


def source(published=True):
    files = [PublishedFile(name, len(data), hashlib.sha256(data).hexdigest(), name) for name, data in CONTENT.items()]
    files = files if published else [PublishedFile(BIG, None, None, BIG), *files[1:]]
    return Source("sdxl", "someone/weights", REVISION, "MIT", False, tuple(files))


def get(hub, tmp_path, published=True):
    chosen = source(published)
    fetch([chosen], tmp_path / "published", Hub(hub.url), lambda line: None)
    return chosen


def place(tmp_path, name=BIG):
    return tmp_path / "published/someone/weights" / name


def partial(tmp_path):
    return place(tmp_path, BIG + ".partial")


def assert_whole(tmp_path):
    for name, content in CONTENT.items():
        assert place(tmp_path, name).read_bytes() == content
    assert not list(tmp_path.rglob("*.partial"))


def entry(name):
    return {"path": name, "size": "unpublished", "sha256": "unpublished", "to": name}


def write_manifest(folder, file):
    table = {"repository": "someone/weights", "revision": REVISION, "licence": "MIT", "must_accept": False}
    (folder / "weights.toml").write_text(toml({"sdxl": {**table, "files": [file]}}))
    return folder / "weights.toml"


def download(output, manifest):
    return ["weights", "download", "--output", str(output), "--manifest", str(manifest)]
