"""Training that was interrupted goes on as if it had not been; what is learnt from, and what is kept of it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from miniature import training
from miniature.album import FACE_WEIGHT, draw_page, face_weights
from miniature.faces import DATA
from miniature.latents import HIGH_NOISE, Noise, cached_tensors, moments, whiten
from miniature.muon import Muon
from miniature.people import random_identity
from miniature.trained import load_vae
from miniature.training import Trainer, load_averaged, make_optimizers


def trainer(folder, steps):
    torch.manual_seed(5)
    module = nn.Linear(16, 20)
    return Trainer(
        folder,
        "t",
        {"m": module},
        lambda step: module(torch.randn(8, 16)).square().mean(),
        optimizers=make_optimizers({"m": module}, 1e-2),
        steps=steps,
        decay=0.9,
    )


def sheet():
    return np.zeros((4, 4, 3), np.uint8)


def test_a_training_goes_on_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 5)
    monkeypatch.setattr(Trainer, "_rate", lambda self, step: 1.0)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = trainer(tmp_path / "a", 15)
    whole.run(sheet)
    trainer(tmp_path / "b", 10).run(sheet)
    resumed = trainer(tmp_path / "b", 15)
    assert resumed.step == 10
    resumed.run(sheet)
    for name, value in whole.parameters.items():
        assert torch.equal(value, resumed.parameters[name])
        assert torch.equal(whole.average[name], resumed.average[name])
    assert whole.curve == resumed.curve


SHARED = """
import sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
from miniature.training import Trainer, init_distributed, make_optimizers, own_rows

torch.set_num_threads(1)
torch.manual_seed(5)
init_distributed()
module = nn.Sequential(nn.Linear(16, 20), nn.Linear(20, 16))


def loss(step):
    return module(torch.randn(8, 16)[own_rows()]).square().mean()


optimizers = make_optimizers({"m": module}, 1e-2)
trainer = Trainer(Path(sys.argv[1]), "t", {"m": module}, loss, optimizers=optimizers, steps=20)
trainer.run(lambda: np.zeros((4, 4, 3), np.uint8))
"""


def test_two_processes_learn_what_one_learns(tmp_path):
    """Up to the order of sums."""
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    both = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    states = []
    for name, launcher in {"one": [], "two": both}.items():
        (tmp_path / name).mkdir()
        subprocess.run([sys.executable, *launcher, script, tmp_path / name], check=True, timeout=120)
        states.append(torch.load(tmp_path / name / "t.pt", weights_only=True))
    one, two = states
    torch.testing.assert_close(one["modules"]["m"], two["modules"]["m"], rtol=0, atol=1e-6)
    torch.testing.assert_close(one["average"], two["average"], rtol=0, atol=1e-6)
    assert one["curve"][0][1] == pytest.approx(two["curve"][0][1], rel=1e-5)


def test_muon_is_torch_s_own():
    """Which rounds to bfloat16: after three steps each, within a hundredth of the way gone."""
    torch.manual_seed(1)
    start, inputs = torch.randn(24, 40), torch.randn(3, 64, 40)
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))
    theirs_by = torch.optim.Muon([theirs], lr=1e-2, weight_decay=1e-3, adjust_lr_fn="match_rms_adamw")
    for weight, optimizer in ((ours, Muon([{"params": [ours], "lr": 1e-2}], 1e-3)), (theirs, theirs_by)):
        for rows in inputs:
            optimizer.zero_grad()
            functional.linear(rows, weight).square().mean().backward()
            optimizer.step()
    assert (ours - theirs).norm() <= 0.02 * (theirs - start).norm()


def test_a_convolution_goes_as_its_matrix():
    torch.manual_seed(1)
    kernel = torch.randn(16, 8, 3, 3)
    moved = []
    for weight in (kernel.clone(), kernel.reshape(16, -1).clone()):
        weight.requires_grad_()
        optimizer = Muon([{"params": [weight], "lr": 1e-2}], 1e-3)
        weight.reshape(-1).cumsum(0).square().mean().backward()
        optimizer.step()
        moved.append(weight.detach().flatten())
    assert torch.equal(*moved)
    assert not torch.equal(moved[0], kernel.flatten())


def test_averaged_weights_are_what_is_loaded(tmp_path):
    trained = trainer(tmp_path, 20)
    trained.run(sheet)
    module = nn.Linear(16, 20)
    load_averaged(tmp_path / "t.pt", {"m": module})
    assert torch.equal(module.weight, trained.average["m.weight"])
    assert not torch.equal(module.weight, trained.parameters["m.weight"])


def test_the_vae_that_ships_shows_people_it_was_not_trained_on():
    """Mean error of pixels, and of colours over 16x16 pixels, in steps of 255; 3 to 4.6 and at most 1.5 were seen."""
    vae = load_vae()
    for person in range(90000, 90004):
        picture = draw_page(random_identity(person), person).picture
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            shown = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        wrong = 127.5 * (shown - pixels)
        assert wrong.abs().mean() <= 6
        assert functional.avg_pool2d(wrong, 16).abs().mean() <= 2.5


def test_all_weights_together_are_at_most_forty_megabytes():
    assert sum(path.stat().st_size for path in DATA.glob("*.safetensors")) <= 40e6


def test_the_face_counts_more_than_what_is_around_it():
    page = draw_page(random_identity(3), 8)
    places = face_weights(torch.from_numpy(page.landmarks).float()[None], 16)
    assert places.shape == (1, 1, 16, 16)
    for x, y in page.landmarks.astype(int) // 8:
        assert places[0, 0, y, x] == FACE_WEIGHT
    assert places[0, 0, 0, 0] == 1.0


def test_whitened_latents_are_white_and_show_the_same():
    torch.manual_seed(2)
    vae, pixels = load_vae(), torch.rand(6, 3, 128, 128) * 2 - 1
    with torch.inference_mode():
        before = vae.encode(pixels).latent_dist.mode()
        shown = vae.decode(before).sample
        mean, matrix = moments(before[None])
        whiten(vae, mean, matrix)
        after = vae.encode(pixels).latent_dist.mode()
        torch.testing.assert_close(vae.decode(after).sample, shown, rtol=0, atol=1e-3)
    rows = after.permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(8), rtol=0, atol=1e-3)
    torch.testing.assert_close(rows.cov(), torch.eye(8), rtol=0, atol=1e-3)


def test_the_clean_latents_are_found_under_the_noise():
    torch.manual_seed(3)
    noise, latents = Noise("cpu"), torch.randn(4, 8, 16, 16)
    noisy, velocity, timesteps = noise.add(latents)
    torch.testing.assert_close(noise.clean(noisy, velocity, timesteps), latents, rtol=0, atol=1e-5)
    assert noise.loss(velocity, velocity, timesteps) == 0


def test_noisy_rows_are_where_it_is_decided_what_is_painted():
    torch.manual_seed(4)
    timesteps = [Noise("cpu", share).add(torch.zeros(4000, 1, 1, 1))[2] for share in (0.0, 0.5)]
    plain, noisy = ((part >= HIGH_NOISE[0]).float().mean() for part in timesteps)
    assert plain == pytest.approx(0.4, abs=0.03)
    assert noisy == pytest.approx(0.7, abs=0.03)


def test_what_networks_find_is_kept_until_they_change(tmp_path):
    network, made = nn.Linear(2, 2), []

    def make():
        made.append(1)
        return (torch.ones(3),)

    for _ in range(2):
        assert torch.equal(cached_tensors(tmp_path / "kept.pt", [network], make)[0], torch.ones(3))
    assert len(made) == 1
    nn.init.constant_(network.weight, 7)
    cached_tensors(tmp_path / "kept.pt", [network], make)
    assert len(made) == 2
