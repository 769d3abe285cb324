"""Signatures between the stages: one key for the processes of a server, and nothing else is believed."""

import stat
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from instantid.errors import InvalidArgument
from instantid.serving.signing import HEX_BYTES, Signer

EMBEDDING, PICTURE = np.ones((1, 512), np.float32), np.zeros((1, 64, 64, 3), np.uint8)


def test_all_processes_of_a_server_have_one_key_that_others_cannot_read(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        signers = list(pool.map(lambda _: Signer(tmp_path), range(32)))
    assert {signer.sign(b"text") for signer in signers} == {signers[0].sign(b"text")}
    (key,) = tmp_path.iterdir()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert key.stat().st_size == 32


def test_what_was_signed_is_believed_with_its_tensors_alone(tmp_path):
    signer = Signer(tmp_path)
    signed = signer.sign(b"text", EMBEDDING, PICTURE)
    assert signer.verify(signed, EMBEDDING, PICTURE) == b"text"
    for tensors in ((), (EMBEDDING,), (PICTURE, EMBEDDING), (EMBEDDING + 1, PICTURE), (EMBEDDING, PICTURE[:, :32])):
        with pytest.raises(InvalidArgument, match="request: not signed"):
            signer.verify(signed, *tensors)


def test_bytes_cannot_move_between_text_and_tensors(tmp_path):
    signer = Signer(tmp_path)
    signed = signer.sign(b"text", np.frombuffer(b"tensor", np.uint8))
    with pytest.raises(InvalidArgument):
        signer.verify(signed[:HEX_BYTES] + b"tex", np.frombuffer(b"ttensor", np.uint8))


@pytest.mark.parametrize("forged", [b"", b"text", b"0" * HEX_BYTES + b"text", b"\xff" * HEX_BYTES + b"text"])
def test_a_forged_text_is_refused(tmp_path, forged):
    with pytest.raises(InvalidArgument, match="request: not signed"):
        Signer(tmp_path).verify(forged)


def test_the_key_of_another_server_does_not_fit(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    with pytest.raises(InvalidArgument):
        Signer(folders[1]).verify(Signer(folders[0]).sign(b"text"))
