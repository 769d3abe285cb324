"""Train the miniature face detector on drawn faces, LFW's small faces, and pictures without faces.

`python -m miniature.train_detector WORK` goes on from its checkpoint. A pool of 8000 pictures takes 5 GB of memory
while it is drawn, and 2.5 GB afterwards.

Nothing of scikit-image's astronaut, camera, coffee, rocket and brick, nor of insightface's t1.jpg, is trained on. They
were looked at to choose the data's mix and the checkpoint: the detector's figures on them are an acceptance of a toy,
not an estimate of how it does elsewhere.

The weights that ship come from seven rounds, each begun with the weights of the one before (`--start`): 1900 steps
without `distractors.py`, 1500 with it, 600 with `--mine 1600` and 600 with `--mine 2400`; then, for near faces,
`--portraits 1500 --mine 1200 --pool-size 2400` 1200 steps with `--batch 6 6 --rate 1e-3`, and 900 with
`--batch 3 8 --rate 1.5e-3`; then 1300 such steps with softer light, `--portraits 2000`, whose weights are averaged with
those before them, 65 to 35. Those rounds had a one-cycle learning rate. So one run from nothing comes close to them but
does not repeat them.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from miniature.detector import Detector
from miniature.detector_loss import Anchors, detection_loss
from miniature.detector_pictures import Batch, crowds_of, hard_negatives, make_crowds, make_portraits, portraits_of
from miniature.training import Trainer, load_float16, make_optimizers, write_float16

LANDMARK_WEIGHT, NEAR_LANDMARK_WEIGHT = 4.0, 20.0


def main(
    work: Path,
    steps: int = 4000,
    batch: Annotated[tuple[int, int], typer.Option(help="Crowds, and portraits where there are any.")] = (16, 6),
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 3e-3,
    pool_size: int = 8000,
    start: Annotated[Path | None, typer.Option(help="Weights to start from.")] = None,
    mine: Annotated[int, typer.Option(help="Faceless pictures of which those that mislead are trained on.")] = 0,
    portraits: Annotated[int, typer.Option(help="Near faces to train on as well, for exact landmarks.")] = 0,
) -> None:
    torch.manual_seed(0)
    detector = load_float16(Detector(), start) if start else Detector()
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pools = [make_crowds(work, pool_size)]
    pools += [hard_negatives(work, detector, mine)] if mine else []
    near = make_portraits(work, portraits) if portraits else None

    def loss(step: int) -> Tensor:
        detector.train(near is None)
        total = detection_error(detector, crowds_of(pools, step, batch[0]), LANDMARK_WEIGHT)
        if near is not None:
            total = total + detection_error(detector, portraits_of(near, step, batch[1]), NEAR_LANDMARK_WEIGHT)
        return total

    modules = {"detector": detector}
    optimizers = make_optimizers(modules, rate)
    trainer = Trainer(work, "detector", modules, loss, optimizers=optimizers, steps=steps, clip=5.0)
    trainer.run()
    with trainer.averaged():
        write_float16(detector.state_dict(), work / "detector.safetensors")


def detection_error(detector: Detector, batch: Batch, landmark_weight: float) -> Tensor:
    images, faces = batch
    losses = detection_loss(detector(images), faces, Anchors.of(*images.shape[2:]))
    return losses["score"] + 2 * losses["box"] + landmark_weight * losses["landmark"]


if __name__ == "__main__":
    typer.run(main)
