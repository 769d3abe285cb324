"""What a stage may believe: later stages take only what an earlier stage of the same server signed.

Every model can be called by whoever reaches the port. Intake decides tenant, priority and deadline, and signs them.
The key is drawn when the server starts and lies in the folder of its board, which only the server's user can enter.
"""

import fcntl
import hmac
import os
import secrets
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from instantid.errors import InvalidArgument

KEY_FILE = "key"
KEY_BYTES = 32
HEX_BYTES = 64
"""A signature is HMAC-SHA256 (RFC 2104) in hexadecimal, before the text."""


class Signer:
    """Signs with the key in `folder`; the first process of a server draws it. Raises OSError without the folder."""

    def __init__(self, folder: Path) -> None:
        with open(os.open(folder / KEY_FILE, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._key = file.read() or secrets.token_bytes(KEY_BYTES)
            file.seek(0)
            file.write(self._key)

    def sign(self, text: bytes, *tensors: NDArray[np.generic]) -> bytes:
        """The text with its signature in front, which also holds for the tensors that belong to it."""
        return self._signature(text, tensors) + text

    def verify(self, signed: bytes, *tensors: NDArray[np.generic]) -> bytes:
        """The text that `sign` was given together with these tensors. Raises InvalidArgument for anything else."""
        text = signed[HEX_BYTES:]
        if not hmac.compare_digest(signed[:HEX_BYTES], self._signature(text, tensors)):
            raise InvalidArgument("request", "not signed by the stage before, with these tensors", "call instantid")
        return text

    def _signature(self, text: bytes, tensors: tuple[NDArray[np.generic], ...]) -> bytes:
        code = hmac.new(self._key, digestmod="sha256")
        for part in (np.frombuffer(text, np.uint8), *tensors):
            code.update(part.nbytes.to_bytes(8, "big"))
            code.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        return code.hexdigest().encode()
