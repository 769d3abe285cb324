"""The model repository as the server reads it: literal folders, and one link to the chosen set of weights."""

import shutil
from pathlib import Path

FACE_GRAPH = Path("face_analysis/1/model.onnx")
_MARKER = ".assembled"


def assemble_repository(source: Path, face_graph: Path, output: Path) -> Path:
    """Copy the model folders of `source` to `output` and link the fused face graph into `face_analysis`.

    `output` is replaced if an earlier call made it. The link points at the graph where it lies, so that each set
    of weights keeps its own. Returns `output`.

    Raises FileNotFoundError if `source` holds no model or `face_graph` does not exist, and FileExistsError if
    `output` holds something that this function did not make.
    """
    models = sorted(config.parent for config in source.glob("*/config.pbtxt"))
    if not models:
        raise FileNotFoundError(f"no model repository in {source}: no folder there has a config.pbtxt")
    if not face_graph.is_file():
        raise FileNotFoundError(f"no face graph at {face_graph}: build or download a set of weights first")
    _clear(output)
    for model in models:
        target = output / model.name
        shutil.copytree(model, target, ignore=shutil.ignore_patterns("*.onnx", "__pycache__"))
        (target / "1").mkdir(exist_ok=True)
    link = output / FACE_GRAPH
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(face_graph.resolve())
    return output


def _clear(output: Path) -> None:
    marker = output / _MARKER
    if output.exists() and not marker.is_file() and any(output.iterdir()):
        raise FileExistsError(f"{output} exists and is not a repository assembled earlier: choose another folder")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    marker.touch()
