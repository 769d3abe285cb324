"""The album's annotations are where the pictures say; words, people and places are told apart."""

import numpy as np
import pytest
import torch

from miniature.album import describe_identity, draw_page
from miniature.aligned_faces import align
from miniature.latents import Captions
from miniature.likeness import aligned
from miniature.people import random_identity
from miniature.pretraining import word_positions
from miniature.scenery import SCENERY, draw_scenery


def test_faces_are_cut_for_the_loss_as_the_face_graph_cuts_them():
    """Up to cv2's fixed-point sampling: at most 3 of 255 and 0.3 on average were seen, without the crop's edge."""
    page = draw_page(random_identity(5), 3)
    pixels = torch.from_numpy(page.picture).permute(2, 0, 1)[None].float()
    cut = aligned(pixels, torch.from_numpy(page.landmarks)[None].float())[0].permute(1, 2, 0).numpy()
    wrong = np.abs(cut - align(page.picture, page.landmarks))[8:-8, 8:-8]
    assert wrong.max() <= 4
    assert wrong.mean() <= 0.5


def test_a_person_s_states_are_those_of_the_words_that_describe():
    captions = Captions()
    text = "a photo of a pale-skinned person with long dark brown hair, green eyes, beard, thin glasses, wide nose"
    pieces = captions.tokenizer.convert_ids_to_tokens(captions.tokenizer(text).input_ids)
    said = [pieces[place] for place in word_positions(captions, text)]
    assert said[4:10] == ["brown</w>", "dark</w>", "hair</w>", "eyes</w>", "beard</w>", "glasses</w>"]
    assert said[12] == "nose</w>"
    assert {said[i] for i in (10, 11, 13, 14, 15)} == {"<|endoftext|>"}
    with pytest.raises(ValueError, match="not a description"):
        word_positions(captions, "a photo of a dog")


def test_words_have_the_ids_that_the_text_encoders_learned():
    ids = Captions().tokenizer("a photo of a tan-skinned person with short red hair, garden").input_ids
    assert ids == [927, 320, 888, 698, 320, 745, 268, 812, 883, 763, 897, 725, 667, 267, 871, 928]


def test_every_description_is_read_and_fits():
    captions = Captions()
    for person in range(200):
        text = f"a black and white photo of {describe_identity(random_identity(person))}"
        assert len(captions.tokenizer(f"{text}, smiling, white turtleneck, garden").input_ids) <= 77
        assert len(word_positions(captions, text)) == 16


def test_a_page_repeats_and_its_caption_names_the_place():
    pages = [draw_page(random_identity(3), 8, place="beach", style="photo") for _ in range(2)]
    assert (pages[0].picture == pages[1].picture).all()
    assert pages[0].who == "a photo of {}"
    assert pages[0].scene.endswith(", beach")
    assert pages[0].landmarks.min() > 0
    assert pages[0].landmarks.max() < 128


def test_places_are_told_apart_by_their_colours():
    rng = np.random.default_rng(0)
    means = np.array([draw_scenery(name, 64, rng).reshape(-1, 3).mean(0) for name in SCENERY])
    apart = np.linalg.norm(means[:, None] - means[None], axis=-1) + 999 * np.eye(len(SCENERY))
    assert apart.min() > 15
