"""Makes the miniature's set of weights."""

from pathlib import Path

from build_tools.face_graph import build_face_graph
from build_tools.published.folder import staged, write_record
from build_tools.published.transfer import Progress
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


def make_miniature(output: Path, progress: Progress = lambda message: None) -> Path:
    """Write the miniature's networks in the published layouts into the folder `output`. Takes seconds."""
    with staged(output) as folder:
        progress("SDXL")
        write_trained_sdxl(folder / "sdxl")
        progress("IdentityNet and adapter")
        write_trained_identitynet(folder / "identitynet")
        write_trained_adapter(folder / "adapter")
        progress("face networks")
        detector, recogniser = folder / "face" / "detector.onnx", folder / "face" / "recogniser.onnx"
        detector.parent.mkdir()
        write_detector(detector)
        write_recogniser(recogniser)
        progress("face graph")
        build_face_graph(detector, recogniser, folder / "face_analysis.onnx", border="edge")
        MINIATURE.save(folder)
        write_record(folder, {"miniature": True})
    return output
