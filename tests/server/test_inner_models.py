"""The inner models, called by somebody who is not the stage before: they believe only what that stage signed."""

import json
import stat
from functools import partial
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from instantid import contract
from instantid.serving.board import server_folder
from instantid.serving.signing import HEX_BYTES, Signer

from .stages import infer, inputs_of, photo_and_prompt

OPTIONS = {"num_inference_steps": 2, "width": 64, "height": 64}
ID = "a request's own id"


@pytest.fixture(scope="module")
def raw(server):
    with triton.InferenceServerClient(server.grpc_url) as client:
        yield client


@pytest.fixture(scope="module")
def signer(server):
    return Signer(server_folder(server.pid))


@pytest.fixture(scope="module")
def given(raw, astronaut):
    """For each of the two models what the stages before it give for one request."""
    inputs = partial(inputs_of, raw, given=photo_and_prompt(astronaut, **OPTIONS), request_id=ID)
    return {model: inputs(model) for model in ("face_conditioning", "denoiser")}


def refused(raw, model, tensors, status="INVALID_ARGUMENT", request_id=ID, **options):
    with pytest.raises(InferenceServerException) as caught:
        infer(raw, model, tensors, request_id=request_id, **options)
    message = caught.value.message()
    assert ".py" not in message
    assert caught.value.status() == f"StatusCode.{status}", message
    return message


def signed_anew(signer, model, tensors, change):
    """The tensors with a request that is changed and signed as if an earlier stage had done so; `change` gives the
    text from the text."""
    text = change(tensors["request"].item()[HEX_BYTES:])
    changed = {"request": signer.sign(text)}
    if model == "denoiser":
        changed["conditioned_request"] = signer.sign(text, tensors["embeddings"], tensors["pictures"])
    return tensors | {name: np.full_like(tensors[name], value) for name, value in changed.items()}


def with_fields(**changes):
    return lambda text: json.dumps({**json.loads(text), **changes}).encode()


MODELS = pytest.mark.parametrize("model", ["face_conditioning", "denoiser"])


@MODELS
def test_what_the_stages_before_have_signed_is_taken(raw, given, signer, model):
    assert infer(raw, model, given[model], request_id=ID)
    assert infer(raw, model, signed_anew(signer, model, given[model], bytes), request_id=ID)


@MODELS
@pytest.mark.parametrize("field", ["tenant", "priority_level", "deadline", "num_images_per_prompt"])
def test_no_field_of_a_signed_request_can_be_changed(raw, given, model, field):
    for name in {"request", "conditioned_request"} & given[model].keys():
        signed = given[model][name].item()
        value = {"tenant": "another", "priority_level": 1, "deadline": 1e9, "num_images_per_prompt": 4}[field]
        forged = signed[:HEX_BYTES] + with_fields(**{field: value})(signed[HEX_BYTES:])
        for text in (forged, forged[HEX_BYTES:], b"", b"0" * HEX_BYTES, "\u00e9".encode() * HEX_BYTES):
            changed = given[model] | {name: np.full_like(given[model][name], text)}
            assert "request: not signed by" in refused(raw, model, changed)


@pytest.mark.parametrize("name", ["embeddings", "pictures"])
def test_a_signed_request_cannot_be_sent_with_the_tensors_of_another(raw, given, name):
    tensors = given["denoiser"]
    assert "request: not signed by" in refused(
        raw, "denoiser", tensors | {name: tensors[name] + np.ones_like(tensors[name])}
    )
    unconditioned = tensors | {"conditioned_request": tensors["request"]}
    assert "request: not signed by" in refused(raw, "denoiser", unconditioned)


@pytest.mark.parametrize("model", ["intake", "face_conditioning", "denoiser"])
def test_an_id_that_is_too_long_is_refused(raw, given, astronaut, model):
    tensors = given.get(model) or photo_and_prompt(astronaut, **OPTIONS)
    assert "id: 300 characters; must have at most 256" in refused(raw, model, tensors, request_id="a" * 300)


@MODELS
def test_a_request_of_another_id_is_taken_for_a_mix_up(raw, given, model):
    assert "mixed up with another one" in refused(raw, model, given[model], "UNAVAILABLE", "another id")


def test_two_requests_without_an_id_cannot_be_mixed_up(raw, astronaut):
    one, other = (
        inputs_of(raw, "denoiser", photo_and_prompt(astronaut, prompt, **OPTIONS)) for prompt in (b"one", b"other")
    )
    mixed = one | {name: other[name] for name in ("conditioned_request", "embeddings", "pictures")}
    assert "mixed up with another one" in refused(raw, "denoiser", mixed, "UNAVAILABLE", "")


MALFORMED = {
    "no JSON": (lambda text: b"{", "request: "),
    "not an object": (lambda text: b"[5]", "request: "),
    "not UTF-8": (lambda text: b"\xff", "request: "),
    "deep": (lambda text: b"[" * 100_000, "request: "),
    "unknown field": (with_fields(more=1), "request.more: "),
    "a list for a tenant": (with_fields(tenant=["a"]), "request.tenant: "),
    "a control character in a tenant": (with_fields(tenant="a\nb"), "tenant: "),
    "text for a number": (with_fields(width="64"), "request.width: "),
    "ten million steps": (with_fields(num_inference_steps=10**7), "num_inference_steps: "),
    "a million pictures": (with_fields(num_images_per_prompt=10**6), "num_images_per_prompt: "),
    "a prompt of 1 MB": (with_fields(prompt="a" * 2**20), "prompt: "),
    "a priority that is none": (with_fields(priority_level=0), "priority_level: "),
    "a deadline that is none": (with_fields(deadline="soon"), "request.deadline: "),
}


@MODELS
@pytest.mark.parametrize("case", MALFORMED)
def test_even_a_signed_request_is_checked(raw, given, signer, model, case):
    change, message = MALFORMED[case]
    tensors = signed_anew(signer, model, given[model], change)
    assert message in refused(raw, model, tensors)


WRONG_TENSORS = {
    "no embedding": ("embeddings", np.zeros((0, 512), np.float32)),
    "two embeddings": ("embeddings", np.zeros((2, 512), np.float32)),
    "an embedding that is not finite": ("embeddings", np.full((1, 512), np.nan, np.float32)),
    "an embedding out of range": ("embeddings", np.full((1, 512), 1e30, np.float32)),
    "no picture": ("pictures", np.zeros((0, 64, 64, 3), np.uint8)),
    "a thousand small pictures": ("pictures", np.zeros((1000, 1, 1, 3), np.uint8)),
    "a picture of another size": ("pictures", np.zeros((1, 64, 128, 3), np.uint8)),
    "more scores than boxes": ("face_scores", np.zeros(7, np.float32)),
    "a box that is not finite": ("face_boxes", np.full((1, 4), np.inf, np.float32)),
    "landmarks that are not finite": ("face_landmarks", np.full((1, 5, 2), np.nan, np.float32)),
    "landmarks far away": ("face_landmarks", np.full((1, 5, 2), 1e30, np.float32)),
    "no detection size": ("face_detection_size", np.zeros(0, np.int64)),
    "no photo's face": ("face_photo_index", np.full(1, 99, np.int64)),
    "an input picture too many": ("input_pictures", np.zeros((1, 64, 64, 3), np.uint8)),
}


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_tensors_are_checked_against_the_request(raw, given, signer, case):
    name, value = WRONG_TENSORS[case]
    model = "denoiser" if name in ("embeddings", "pictures") else "face_conditioning"
    tensors = given[model] | {name: value[None] if model == "denoiser" else value}
    message = refused(raw, model, signed_anew(signer, model, tensors, bytes))
    assert {"no photo's face": "photo[0]: no face"}.get(case, name) in message


@pytest.mark.parametrize("model", ["instantid", "intake", "face_conditioning", "denoiser"])
def test_an_id_that_is_not_utf_8_is_refused_by_every_model(server, model):
    (signature,) = (found for found in contract.MODELS if found.name == model)
    inputs = [_empty(tensor, [1] if model == "denoiser" else []) for tensor in signature.inputs if not tensor.optional]
    body = json.dumps({"id": "a?", "inputs": inputs or [_empty(contract.PROMPT, [])]}).encode().replace(b"?", b"\xff")
    with pytest.raises(HTTPError) as caught:
        urlopen(Request(f"http://127.0.0.1:{server.ports.http}/v2/models/{model}/infer", body), timeout=60)
    assert caught.value.code == 400
    assert b"id: not UTF-8; byte 1 cannot be decoded" in caught.value.read()


def _empty(tensor, batch):
    shape = [*batch, *(abs(size) for size in getattr(tensor, "dims", (1,)))]
    fill = "" if tensor.datatype == "BYTES" else 0
    return {"name": tensor.name, "shape": shape, "datatype": tensor.datatype, "data": [fill] * int(np.prod(shape))}


def test_only_the_server_s_user_can_read_the_key_and_no_log_holds_it(server, signer):
    (key,) = server_folder(server.pid).glob("key*")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    log = server.log_path.read_bytes()
    assert key.read_bytes() not in log
    assert key.read_bytes().hex().encode() not in log
