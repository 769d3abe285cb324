"""Intake under photos that cost much to decode: bounded, by deadlines, and without holding up the next good request."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from instantid_client import InstantIDClient, InvalidArgument, Overloaded

from .stages import infer

SHORT = {"num_inference_steps": 1, "seed": 1}
CALLERS = 60


@pytest.fixture(scope="module")
def bomb():
    """A legal photo of 200 kB that decodes to 64 megapixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (8000, 8000), (1, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def hear(client, photos):
    try:
        return client.generate(photos, "a portrait", **SHORT)
    except (InvalidArgument, Overloaded) as error:
        return error


def test_one_request_has_a_budget_of_pixels(client, bomb):
    heard = hear(client, [bomb] * 3)
    assert str(heard) == "photo[0], photo[1], photo[2]: 192000000 pixels to decode; must be at most 128000000 in all"


def test_nothing_is_decoded_for_callers_whose_deadline_passed_while_they_waited(server, client, bomb, astronaut):
    """The first of each process may be decoded; the others wait behind it for longer than their deadline."""
    tensors = {"photo": np.array([bomb, bomb], object), "prompt": np.array([b"a portrait"], object)}
    patient = triton.InferenceServerClient(server.grpc_url)

    def hear_server(_):
        with pytest.raises(InferenceServerException) as caught:
            infer(patient, "instantid", tensors, parameters={"deadline_ms": 50})
        return str(caught.value.message())

    with ThreadPoolExecutor(12) as pool:
        heard = list(pool.map(hear_server, range(12)))
    assert [text for text in heard if "deadline_ms: the deadline passed" not in text] == []
    assert sum("before photo[0] was decoded" in text for text in heard) >= 8
    assert hear(client, astronaut).images


def test_what_waits_to_be_read_is_bounded(server, bomb, astronaut):
    with InstantIDClient(server.grpc_url, timeout=300) as client, ThreadPoolExecutor(CALLERS) as pool:
        heard = list(pool.map(lambda _: hear(client, [bomb] * 2), range(CALLERS)))
        refused = [error for error in heard if "to be read" in str(error)]
        assert any("16 requests of" in str(error) for error in refused)
        assert all(type(error) is Overloaded for error in refused)
        read = [error for error in heard if error not in refused]
        assert {str(error).split(";")[0] for error in read} == {"photo[0]: no face found"}
        assert hear(client, astronaut).images
