"""The photo decoder alone, with no server around it: millions of bytes are tried in the time of one request."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from instantid import contract
from instantid.decoding import decode_photo
from instantid.errors import InvalidArgument

from .fuzzing import PICTURES, broken_pictures

HARNESS = Path(__file__).with_name("photo_decoder.py")


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(broken_pictures())
def test_a_broken_picture_is_decoded_or_refused(data):
    try:
        photo = decode_photo(data, "photo[0]").pixels
    except InvalidArgument as error:
        refused = str(error)
    else:
        refused = ""
    assert refused.startswith("photo[0]: ") or photo.shape[0] * photo.shape[1] <= contract.MAX_PHOTO_PIXELS


@pytest.mark.long
def test_the_decoder_under_a_coverage_guided_fuzzer(tmp_path):
    """Fails on any other exception, an input that takes ten seconds, or 2 GiB of memory."""
    for i, picture in enumerate(PICTURES):
        (tmp_path / f"seed{i}").write_bytes(picture)
    limits = ["-runs=50000", "-max_total_time=240", "-timeout=10", "-rss_limit_mb=2048", "-max_len=40000"]
    command = [sys.executable, str(HARNESS), *limits, f"-artifact_prefix={tmp_path}/", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    print(done.stderr.splitlines()[-1])
