"""INSTANTID_EXECUTION=compiled on the real server: what the job made serves, and pictures stay what they were."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from build_tools.embedded.serve import project_options
from build_tools.embedded.server import EmbeddedServer
from instantid_client import InstantIDClient

from .conftest import ROOT

pytestmark = pytest.mark.long


def picture(weights, place, astronaut, **environment):
    options = project_options(weights, place, ROOT / "model_repository", environment=environment)
    with EmbeddedServer(options) as server, InstantIDClient(server.grpc_url, timeout=120) as client:
        made = client.generate(astronaut, "a portrait", num_inference_steps=4, seed=7, output_format="png")
        return np.asarray(Image.open(io.BytesIO(made.images[0]))).astype(int), server.log_path.read_text()


@pytest.mark.timeout(1500)
def test_a_step_that_the_job_compiled_serves(weights, tmp_path, astronaut):
    cache = str(tmp_path / "cache")
    command = [sys.executable, "-m", "build_tools", "compile", "--weights", str(weights), "--only", "128x128-2"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "INSTANTID_CACHE": cache}, capture_output=True, text=True, check=True
    )
    assert "1 compiled, 0 there already" in done.stdout
    plain, _ = picture(weights, tmp_path / "plain", astronaut)
    found, log = picture(weights, tmp_path / "run", astronaut, INSTANTID_EXECUTION="compiled", INSTANTID_CACHE=cache)
    assert "compiled step 128x128-2 serves" in log
    assert "no compiled step 128x128-1" in log
    assert 0 < np.abs(found - plain).max() <= 2
