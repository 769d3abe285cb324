"""What docs/calling.md says to callers in other languages, on the real server."""

import re
import subprocess

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from .conftest import ROOT

PAGE = (ROOT / "docs" / "calling.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("script", BLOCKS)
def test_blocks_run(server, client, astronaut, tmp_path, script):
    (tmp_path / "astronaut.png").write_bytes(astronaut)
    assert "http://localhost:8000" in script
    script = script.replace("http://localhost:8000", server.http_url)
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, check=True, timeout=120)
    same = client.generate(astronaut, "a portrait in a garden", seed=7)
    assert (tmp_path / "out.png").read_bytes() == same.images[0]


def test_the_page_has_its_block():
    assert len(BLOCKS) == 1


@pytest.mark.parametrize("service", [b"", b"\x0a\x03any"])
def test_the_health_probe(server, service):
    """HealthCheckResponse with status 1 is SERVING."""
    with grpc.insecure_channel(server.grpc_url) as channel:
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(service, timeout=10) == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=10))
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_the_prefixes(server):
    photo = triton.InferInput("photo", [1], "BYTES")
    photo.set_data_from_numpy(np.array([b"no photo"], object))
    prompt = triton.InferInput("prompt", [1], "BYTES")
    prompt.set_data_from_numpy(np.array([b"x"], object))
    with triton.InferenceServerClient(server.grpc_url) as raw, pytest.raises(triton.InferenceServerException) as caught:
        raw.infer("instantid", [photo, prompt], request_id="mine", client_timeout=60)
    text = caught.value.message()
    assert re.match(r"in ensemble 'instantid', (\[request id: mine\] )?photo\[0\]: not a readable image", text), text


def test_outputs_have_an_order_of_their_own(server, astronaut):
    """Matched by name they are right in any order."""
    photo = triton.InferInput("photo", [1], "BYTES")
    photo.set_data_from_numpy(np.array([astronaut], object))
    prompt = triton.InferInput("prompt", [1], "BYTES")
    prompt.set_data_from_numpy(np.array([b"x"], object))
    steps = triton.InferInput("num_inference_steps", [1], "INT32")
    steps.set_data_from_numpy(np.array([1], np.int32))
    names = ["request_id", "seeds", "image"]
    with triton.InferenceServerClient(server.grpc_url) as raw:
        outputs = [triton.InferRequestedOutput(name) for name in names]
        answer = raw.infer("instantid", [photo, prompt, steps], outputs=outputs, request_id="mine", client_timeout=60)
    assert answer.as_numpy("request_id")[0] == b"mine"
    assert answer.as_numpy("image")[0].startswith(b"\x89PNG")
    assert {output.name for output in answer.get_response().outputs} == set(names)
