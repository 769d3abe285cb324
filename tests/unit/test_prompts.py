"""Prompts against diffusers and the text encoders themselves: chunks, weights, styles, and what the report says."""

import json
import time
from itertools import chain

import numpy as np
import pytest
import torch

from instantid import contract
from instantid.answer import finish
from instantid.errors import InvalidArgument
from instantid.models.parts import kept_bytes
from instantid.models.sdxl.prompts import parse_a1111

from .diffusing import make_job, make_request, relative, run, steps_left

HUNDRED = " ".join(["knight", "queen", "garden", "snow"] * 25)
HAT = ", wearing a red hat"
LENGTH = 77


@pytest.fixture
def pipeline(reference):
    return reference.pipeline


@torch.no_grad()
def by_hand(pipeline, pieces):
    """States of both encoders and the first chunk's pooled text, for chunks of token ids."""
    states, pooled = [], []
    for ids in pieces:
        parts = []
        for tokenizer, encoder in (
            (pipeline.tokenizer, pipeline.text_encoder),
            (pipeline.tokenizer_2, pipeline.text_encoder_2),
        ):
            row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
            row += [tokenizer.pad_token_id] * (LENGTH - len(row))
            output = encoder(torch.tensor([row]), output_hidden_states=True)
            parts.append(output.hidden_states[-2])
        states.append(torch.cat(parts, dim=-1))
        pooled.append(output.text_embeds)
    return torch.cat(states, dim=1), pooled[0]


def ids_of(pipeline, text):
    return pipeline.tokenizer(text).input_ids[1:-1]


@pytest.mark.parametrize("syntax", contract.PROMPT_SYNTAXES)
@pytest.mark.parametrize("text", ["", "a knight in a garden, soft light", "a " * 75])
def test_a_short_plain_prompt_keeps_its_bytes_in_every_syntax(model, pipeline, text, syntax):
    found = model.networks.text.encode(text, syntax)
    embeds, _, pooled, _ = pipeline.encode_prompt(text, do_classifier_free_guidance=False)
    assert torch.equal(found.tokens, embeds)
    assert torch.equal(found.pooled, pooled)


@pytest.mark.parametrize("count", [76, 150, 151, 600])
def test_a_long_prompt_is_encoded_in_chunks_of_75(model, pipeline, count):
    ids = (ids_of(pipeline, HUNDRED) * 7)[:count]
    text = pipeline.tokenizer.decode(ids)
    assert ids_of(pipeline, text) == ids
    states, pooled = by_hand(pipeline, [ids[i : i + 75] for i in range(0, count, 75)])
    found = model.networks.text.encode(text)
    assert found.tokens.shape[1] == LENGTH * -(-count // 75)
    torch.testing.assert_close(found.tokens, states, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.pooled, pooled, rtol=0, atol=1e-6)


def test_further_chunks_hold_no_text(model, pipeline):
    states, _ = by_hand(pipeline, [ids_of(pipeline, "a knight"), []])
    torch.testing.assert_close(model.networks.text.encode("a knight", chunks=2).tokens, states, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a knight", [("a knight", 1)]),
        ("a (red) hat", [("a ", 1), ("red", 1.1), (" hat", 1)]),
        ("[red] ((hat:1.5))", [("red", 1 / 1.1), (" ", 1), ("hat", 1.65)]),
        (r"a \(red\) hat", [("a (red) hat", 1)]),
        ("(red hat", [("red hat", 1.1)]),
        ("red) hat]: x (y:.5)", [("red) hat]: x ", 1), ("y", 0.5)]),
        ("[red:0.5]", [("red:0.5", 1 / 1.1)]),
        ("(a (b:2) c:-1)", [("a ", -1), ("b", -2), (" c", -1)]),
    ],
)
def test_a1111_attention(text, expected):
    found = parse_a1111(text)
    assert [fragment.text for fragment in found] == [words for words, _ in expected]
    assert [fragment.weight for fragment in found] == pytest.approx([weight for _, weight in expected])


def test_a1111_weights_move_states_away_from_the_last_one(model, pipeline):
    found = model.networks.text.encode("a (knight:1.4) in a [garden]", "a1111")
    ids = [ids_of(pipeline, text) for text in ("a", "knight", "in a", "garden")]
    states, pooled = by_hand(pipeline, [[*chain(*ids)]])
    weights = [1, *np.repeat([1, 1.4, 1, 1 / 1.1], [len(part) for part in ids])]
    for i, weight in enumerate(weights):
        states[0, i] = states[0, -1] + weight * (states[0, i] - states[0, -1])
    torch.testing.assert_close(found.tokens, states, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pooled, pooled, rtol=0, atol=1e-6)


def test_break_begins_a_chunk(model, pipeline):
    found = model.networks.text.encode("a knight BREAK (snow BREAK, queen:1)", "a1111")
    states, _ = by_hand(pipeline, [ids_of(pipeline, text) for text in ("a knight", "snow", ", queen")])
    torch.testing.assert_close(found.tokens, states, rtol=0, atol=1e-6)


def test_compel_is_the_package_s_own_result(model, pipeline):
    from compel import CompelForSDXL

    prompts = ("a (knight)1.4 in a garden--, snow++", '("a knight", "a queen").blend(1, 2)', '("snow", "stars").and()')
    for text in prompts:
        expected = CompelForSDXL(pipeline)(text, negative_prompt="blurry")
        found = model.networks.text.encode(text, "compel")
        torch.testing.assert_close(found.tokens, expected.embeds, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.pooled, expected.pooled_embeds, rtol=0, atol=1e-5)
        negative = model.networks.text.encode("blurry", "compel", found.tokens.shape[1] // LENGTH)
        torch.testing.assert_close(negative.tokens, expected.negative_embeds, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("syntax", "text", "message"),
    [
        ("plain", "好" * 1500, "chunks; must fit into 8 chunks of 75"),
        ("a1111", "a " + "BREAK a " * 8, "9 tokens in 9 chunks; must fit"),
        ("a1111", "(a:11)", "a weight of 11; must be within -10..10"),
        ("a1111", "(" * 999 + "a", "must be within -10..10"),
        ("compel", "a.swap(b)", "must not use .swap()"),
        ("compel", "a withLora(x, 1)", "must not use .swap()"),
        ("compel", "(a)11", "a weight of 11"),
        ("compel", "a" + "+" * 99, "must be within -10..10"),
        ("compel", '("a", "b").blend(1)', "compel cannot parse it"),
        ("compel", "(" * 999, "must have at most 500"),
        ("compel", "(" * 5, "5 open brackets; must have at most 4"),
    ],
)
def test_what_cannot_be_encoded_is_refused_before_any_work(model, syntax, text, message):
    for name in ("prompt", "negative_prompt"):
        with pytest.raises(InvalidArgument) as caught:
            model.plan(make_request(**{"prompt_syntax": syntax, name: text}))
        assert str(caught.value).startswith(f"{name}: ")
        assert message in str(caught.value)


def test_compel_parses_what_is_allowed_in_good_time(model):
    model.networks.text.read("warm up", "compel", "prompt")
    for text in ("(((())))" * 60, "a " * 250, '("a",' * 4 + "b" * 100, "(((a)1.1 b)1.1 c)1.1 " * 23):
        begun = time.perf_counter()
        model.networks.text.read(text[: contract.MAX_COMPEL_CHARACTERS], "compel", "prompt")
        assert time.perf_counter() - begun < 30


def test_the_red_hat_behind_100_words_changes_the_picture(model):
    jobs = [make_job(prompt=prompt, negative_prompt="blurry") for prompt in (HUNDRED, HUNDRED + HAT)]
    without, with_hat = (run(model, job)[0] for job in jobs)
    assert relative(without, with_hat) > 1e-3


def test_negative_and_positive_have_one_length(model):
    for prompt, negative in (("a knight", HUNDRED), (HUNDRED, "")):
        state = model.start(*make_job(prompt=prompt, negative_prompt=negative))
        assert state.conditions.text.tokens.shape[:2] == (2, 2 * LENGTH)


def test_texts_of_different_length_share_no_step(model):
    plans = [model.plan(make_request(prompt=prompt)) for prompt in ("a knight", "snow", HUNDRED)]
    assert plans[0].group == plans[1].group != plans[2].group
    keys = {model.denoise.inputs([model.start(*make_job(prompt=prompt))]).key for prompt in ("a knight", HUNDRED)}
    assert len(keys) == 2


@pytest.mark.parametrize("prompt", ["a knight", HUNDRED, " ".join([HUNDRED] * 4)])
def test_the_plan_counts_what_a_long_text_keeps(model, prompt):
    job = make_job(prompt=prompt)
    state = model.start(*job)
    kept = kept_bytes((state.latents, state.conditions))
    assert kept <= model.plan(job[0]).bytes <= 1.3 * kept


def test_the_negative_prompt_counts_with_guidance_only(model):
    request = make_request(negative_prompt=HUNDRED)
    assert model.plan(request).group != model.plan(make_request(negative_prompt=HUNDRED, guidance_scale=1.0)).group


@pytest.mark.parametrize("zeros", [0, 1])
def test_an_empty_negative_prompt_is_encoded_or_zeros(model, pipeline, zeros):
    state = model.start(*make_job(prompt="a knight", force_zeros_for_empty_prompt=zeros))
    given = None if zeros else ""
    _, embeds, _, pooled = pipeline.encode_prompt("a knight", negative_prompt=given)
    torch.testing.assert_close(state.conditions.text.tokens[:1], embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(state.conditions.text.pooled[:1], pooled, rtol=0, atol=1e-6)


def test_a_negative_prompt_with_text_is_never_zeros(model):
    state = model.start(*make_job(negative_prompt="blurry", force_zeros_for_empty_prompt=1))
    assert state.conditions.text.tokens[0].abs().max() > 0


def test_the_report_says_tokens_and_chunks(model):
    request, given = make_job(prompt=HUNDRED, negative_prompt="blurry", num_inference_steps=1)
    state = model.start(request, given)
    while steps_left(state):
        model.work("step", [state]).wait()
    model.work("decode", [state]).wait()
    _, (report,) = finish([state.pictures[0].numpy()], request, [lambda picture, *_: b""], state.facts)
    tokens = model.networks.text.read("blurry", "plain", "prompt").tokens
    found = json.loads(report)["prompt"]
    assert found == {"tokens": found["tokens"], "negative_tokens": tokens, "chunks": 2}
    assert 75 < found["tokens"] <= 150
