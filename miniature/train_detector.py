"""Train the miniature face detector on drawn faces, LFW's small faces, and pictures without faces.

Nothing of scikit-image's astronaut, camera, coffee, rocket and brick, nor of insightface's t1.jpg, is trained
on. They were looked at to choose the data's mix and the checkpoint: the detector's figures on them are an
acceptance of a toy, not an estimate of how it does elsewhere.

Run `python -m miniature.train_detector WORKDIR`; started again it goes on from its checkpoint.
A pool of 8000 pictures takes 3 GB of memory. The committed weights come from six rounds, each begun with
the weights of the one before (`--start`): 1900 steps without `distractors.py`, 1500 with it, 600 with
`--mine 1600` and 600 with `--mine 2400`; then, for near faces, `--portraits 1500 --mine 1200 --pool-size 2400`
1200 steps with `--batch 6 --peak 1e-3`, and 900 with `--batch 3 --portrait-batch 8 --peak 1.5e-3`; then 1300 such
steps with softer light, `--portraits 2000`, whose weights are averaged with those before them, 65 to 35. So one run
from nothing comes close to them but does not repeat them.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from miniature.detector import Detector
from miniature.detector_loss import Anchors, detection_loss
from miniature.detector_pictures import batch_of, hard_negatives, make_pool, make_portraits, portraits_of
from miniature.training import make_optimizers, note_loss

LANDMARK_WEIGHT, NEAR_LANDMARK_WEIGHT = 4.0, 20.0


class Trainer:
    """Muon and AdamW with a one-cycle learning rate; an average of the weights over the last steps is what is kept."""

    def __init__(self, steps: int, peak: float = 3e-3) -> None:
        torch.manual_seed(0)
        self.detector = Detector()
        self.detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = torch.optim.swa_utils.AveragedModel(
            self.detector, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
        )
        self.optimizers = make_optimizers({"detector": self.detector}, {"detector": peak})
        self.schedules = [
            torch.optim.lr_scheduler.OneCycleLR(each, peak, steps, pct_start=0.05, cycle_momentum=False)
            for each in self.optimizers
        ]
        self.step = 0

    def learn(self, *batches: tuple[Tensor, list[Tensor]]) -> dict[str, float]:
        """One step on a batch of crowds, and one of portraits where given, which leaves the norms as they are."""
        self.detector.train(len(batches) == 1)
        total, told = torch.zeros(()), {}
        for (images, faces), weight in zip(batches, (LANDMARK_WEIGHT, NEAR_LANDMARK_WEIGHT), strict=False):
            outputs = self.detector(images.contiguous(memory_format=torch.channels_last))
            losses = detection_loss(outputs, faces, Anchors.of(*images.shape[2:]))
            total = total + losses["score"] + 2 * losses["box"] + weight * losses["landmark"]
            told = {name: told.get(name, 0.0) + float(loss.detach()) for name, loss in losses.items()}
        self.detector.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.detector.parameters(), 5.0)
        for part in (*self.optimizers, *self.schedules):
            part.step()
        self.average.update_parameters(self.detector)
        self.step += 1
        return told

    def begin_with(self, path: Path) -> None:
        weights = {name: value.float() for name, value in load_file(path).items()}
        self.detector.load_state_dict(weights, strict=False)
        self.average.module.load_state_dict(weights, strict=False)

    def save(self, path: Path) -> None:
        state = {name: part.state_dict() for name, part in self._parts().items()} | {"step": self.step}
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.step = state.pop("step")
        parts = self._parts()
        for name, values in state.items():
            parts[name].load_state_dict(values)

    def _parts(self) -> dict[str, Any]:
        parts = {"detector": self.detector, "average": self.average}
        return parts | {str(i): part for i, part in enumerate((*self.optimizers, *self.schedules))}


def save_weights(detector: torch.nn.Module, path: Path) -> None:
    """Float16 safetensors of all weights and BatchNorm statistics."""
    weights = {name: value.half() for name, value in detector.state_dict().items() if value.is_floating_point()}
    save_file({name: value.contiguous() for name, value in weights.items()}, path)


@dataclass(frozen=True)
class Plan:
    """How to train: the defaults begin from nothing."""

    steps: int = 4000
    batch: int = 16
    peak: float = 3e-3
    pool_size: int = 8000
    start: Path | None = None
    mine: int = 0
    portraits: int = 0
    portrait_batch: int = 6
    workers: int = 2


def train(folder: Path, plan: Plan) -> Path:
    """Train in `folder`, from the weights in `start` if given, and return the path of the new weights.

    With `mine` that many faceless pictures are drawn and those that mislead `start` most are trained on too; with
    `portraits` that many near faces, for exact landmarks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pools = [make_pool(folder, plan.pool_size, plan.workers)]
    trainer, checkpoint = Trainer(plan.steps, plan.peak), folder / "detector.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    elif plan.start is not None:
        trainer.begin_with(plan.start)
    if plan.mine:
        pools.append(hard_negatives(folder, trainer.detector, plan.mine, plan.workers))
    near = make_portraits(folder, plan.portraits, plan.workers) if plan.portraits else None
    totals: list[float] = []
    with tqdm(total=plan.steps, initial=trainer.step, desc="training", mininterval=5) as progress:
        while trainer.step < plan.steps:
            batches = [batch_of(pools, trainer.step, plan.batch)]
            batches += [portraits_of(near, trainer.step, plan.portrait_batch)] if near else []
            losses = trainer.learn(*batches)
            totals.append(sum(losses.values()))
            progress.update()
            progress.set_postfix({name: f"{value:.3f}" for name, value in losses.items()}, refresh=False)
            if trainer.step % 200 == 0 or trainer.step == plan.steps:
                trainer.save(checkpoint)
                note_loss(folder / "detector.json", trainer.step, fmean(totals))
                totals.clear()
                save_weights(trainer.average.module, folder / "detector.safetensors")
    return folder / "detector.safetensors"


def main(  # noqa: PLR0913 - one parameter for each option
    folder: Path,
    steps: int = Plan.steps,
    batch: int = Plan.batch,
    peak: Annotated[float, typer.Option(help="Highest learning rate.")] = Plan.peak,
    pool_size: int = Plan.pool_size,
    start: Annotated[Path | None, typer.Option(help="Weights to start from.")] = None,
    mine: Annotated[int, typer.Option(help="Faceless pictures to seek hard negatives in.")] = Plan.mine,
    portraits: Annotated[int, typer.Option(help="Near faces to train on as well.")] = Plan.portraits,
    portrait_batch: int = Plan.portrait_batch,
    workers: int = Plan.workers,
    threads: int = 2,
) -> None:
    torch.set_num_threads(threads)
    print(train(folder, Plan(steps, batch, peak, pool_size, start, mine, portraits, portrait_batch, workers)))


if __name__ == "__main__":
    typer.run(main)
