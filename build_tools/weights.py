"""Makes the miniature's set of weights."""

from collections.abc import Callable
from pathlib import Path

from build_tools.face_graph import build_face_graph
from build_tools.published.folder import staged, write_record
from instantid.profile import Profile
from miniature.faces import write_detector, write_recogniser
from miniature.trained import write_trained_adapter, write_trained_identitynet, write_trained_sdxl

MINIATURE = Profile(
    name="miniature",
    native_area=128 * 128,
    min_side=64,
    max_side=256,
    max_area=256 * 256,
    licences=("all weights: Apache-2.0, made by this project",),
)

Progress = Callable[[str], None]


def make_miniature(output: Path, progress: Progress = lambda message: None) -> Path:
    """Write the miniature's networks in the published layouts into the folder `output`. Takes seconds."""
    with staged(output) as folder:
        _write_miniature(folder, progress)
        write_record(folder, {"miniature": True})
    return output


def _write_miniature(folder: Path, progress: Progress) -> None:
    progress("SDXL")
    write_trained_sdxl(folder / "sdxl")
    progress("IdentityNet and adapter")
    write_trained_identitynet(folder / "identitynet")
    write_trained_adapter(folder / "adapter")
    progress("face networks")
    faces = folder / "face"
    faces.mkdir()
    write_detector(faces / "detector.onnx")
    write_recogniser(faces / "recogniser.onnx")
    progress("face graph")
    networks = (faces / "detector.onnx", faces / "recogniser.onnx")
    build_face_graph(*networks, folder / "face_analysis.onnx", border="edge")
    MINIATURE.save(folder)
