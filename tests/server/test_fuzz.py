"""Anything at all, sent to every model of the real server: it is refused or served, and the server stays as it was.

The short form sends a few hundred cases, always the same; the long one thousands, others each time. Figures:
docs/reliability.md.
"""

import re
import time
from collections import Counter
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from instantid import contract
from instantid.serving.board import server_folder
from instantid.serving.signing import HEX_BYTES, Signer

from .fuzzing import PARAMETERS, TEXTS, broken_pictures, changed, request_texts, requests
from .stages import infer, inputs_of, photo_and_prompt
from .test_soak import resident_bytes

STATUSES = {"OK", "INVALID_ARGUMENT", "UNAVAILABLE", "CANCELLED"}
INTERNALS = re.compile(r"(/[\w.-]+){2,}|\.py\b|Traceback|0x[0-9a-f]{6}")
GROWTH = 1.1
"""The memory bound: how much of its processes' memory the server may have gained."""
FORMS = pytest.mark.parametrize("cases", [50, pytest.param(600, marks=pytest.mark.long)])
MODELS = {signature.name: signature for signature in contract.MODELS}


class Fuzzer:
    """Sends cases to one server and holds what they were answered."""

    def __init__(self, server, photo):
        self.server, self.photo = server, photo
        self.raw = triton.InferenceServerClient(server.grpc_url)
        self.signer = Signer(server_folder(server.pid))
        request = photo_and_prompt(photo, num_inference_steps=2, width=64, height=64)
        self.given = {step.name: inputs_of(self.raw, step.name, request) for step in contract.STEPS}
        self.heard = Counter()

    @property
    def processes(self):
        root = psutil.Process(self.server.pid)
        return {process.pid for process in (root, *root.children(recursive=True))}

    def send(self, model, tensors, **options):
        try:
            infer(self.raw, model, tensors, **options)
            self.note(model, "OK", "")
        except InferenceServerException as error:
            self.note(model, error.status().removeprefix("StatusCode."), error.message())

    def note(self, model, status, message):
        self.heard[model, status] += 1
        assert status in STATUSES, f"{model}: {status} {message}"
        assert not INTERNALS.search(message), message

    def signed(self, tensors, text):
        """The tensors of an inner model with a request that an earlier stage seems to have signed."""
        conditioned = (
            self.signer.sign(text, tensors["embeddings"], tensors["pictures"]) if "pictures" in tensors else b""
        )
        for name, value in {"request": self.signer.sign(text), "conditioned_request": conditioned}.items():
            if name in tensors:
                tensors = tensors | {name: tensors[name].copy()}
                tensors[name].reshape(-1)[:1] = value
        return tensors


@pytest.fixture(scope="module")
def fuzzer(server, astronaut):
    return Fuzzer(server, astronaut)


@pytest.fixture(autouse=True)
def unharmed(fuzzer, client, astronaut, capsys):
    """After each test the server has the processes that it had, about their memory, and serves."""
    before, resident, began = fuzzer.processes, resident_bytes(fuzzer.server), time.monotonic()
    fuzzer.heard.clear()
    yield
    assert client.generate(astronaut, "a portrait", num_inference_steps=2, seed=3).seeds == (3,)
    assert fuzzer.processes == before
    after = resident_bytes(fuzzer.server)
    with capsys.disabled():
        print(f"\n{dict(fuzzer.heard)} {time.monotonic() - began:.0f} s, {resident >> 20} to {after >> 20} MiB")
    assert after <= GROWTH * resident


def fuzz(test, cases, **strategies):
    """Run `test` for so many cases."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    limits = settings(
        max_examples=cases, deadline=None, derandomize=cases < 600, database=None, phases=[Phase.generate],
        suppress_health_check=checks,
    )  # fmt: skip
    limits(given(**strategies)(test))()


OPTIONS = st.fixed_dictionaries(
    {}, optional={"request_id": TEXTS, "priority": st.integers(0, 9), "timeout": st.integers(0, 10**7)}
)


@FORMS
@pytest.mark.parametrize("model", ["instantid", "intake"])
def test_options_photos_and_parameters(fuzzer, model, cases):
    def test(tensors, parameters, options):
        fuzzer.send(model, tensors, parameters=parameters, **options)

    fuzz(test, cases, tensors=requests(fuzzer.photo), parameters=PARAMETERS, options=OPTIONS)


@FORMS
def test_broken_pictures(fuzzer, cases):
    def test(photo):
        fuzzer.send("intake", photo_and_prompt(photo))

    fuzz(test, cases, photo=broken_pictures())


@FORMS
@pytest.mark.parametrize("model", ["face_analysis", "face_conditioning", "denoiser"])
def test_tensors_of_inner_models(fuzzer, model, cases):
    base = fuzzer.given[model]
    text = base["request"].item()[HEX_BYTES:] if "request" in base else b""

    def test(tensors, options, signed):
        signable = signed and text and all(tensors[name].dtype == base[name].dtype for name in base)
        fuzzer.send(model, fuzzer.signed(tensors, text) if signable else tensors, **options)

    fuzz(test, cases, tensors=changed(base, MODELS[model]), options=OPTIONS, signed=st.booleans())


@FORMS
@pytest.mark.parametrize("model", ["face_conditioning", "denoiser"])
def test_requests_to_inner_models(fuzzer, model, cases):
    base = fuzzer.given[model]

    def test(text, signed, options):
        unsigned = base | {"request": np.full_like(base["request"], text)}
        fuzzer.send(model, fuzzer.signed(base, text) if signed else unsigned, **options)

    fuzz(test, cases, text=request_texts(base["request"].item()[HEX_BYTES:]), signed=st.booleans(), options=OPTIONS)


BODY = b'{"id": "%s", "parameters": {"tenant": "%s", "deadline_ms": "%s"}, "inputs": [%s]}'
PROMPT = b'{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["%s"]}'
IN_QUOTES = st.binary(max_size=8).filter(lambda text: not re.search(rb'[\0-\x1f"\\]', text))
"""Whatever does not end the text: JSON that is none gets Triton's own answer, a 500."""


@FORMS
def test_texts_that_are_not_utf_8(fuzzer, cases):
    """Ids, parameters and texts over HTTP: gRPC's are UTF-8 always."""

    def test(model, texts):
        body = BODY % (*texts[:3], PROMPT % texts[3])
        url = f"http://127.0.0.1:{fuzzer.server.ports.http}/v2/models/{model}/infer"
        try:
            urlopen(Request(url, body), timeout=60)
        except HTTPError as error:
            status = {400: "INVALID_ARGUMENT", 503: "UNAVAILABLE"}.get(error.code, str(error.code))
            fuzzer.note(model, status, error.read().decode(errors="replace"))

    models = st.sampled_from(["instantid", "intake", "face_conditioning", "denoiser"])
    fuzz(test, cases, model=models, texts=st.tuples(*[IN_QUOTES] * 4))
