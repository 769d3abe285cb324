"""Triton's side of the first stage: everything that can be wrong with a request is found here."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from instantid import contract
from instantid.engine import Answer
from instantid.errors import Overloaded
from instantid.photos import Inputs
from instantid.profile import load_profile
from instantid.request import read_request
from instantid.serving.model import PythonModel
from instantid.serving.tensors import make_answer, make_response, read_id, read_inputs, read_parameters
from instantid.styles import load_styles

log = logging.getLogger(__name__)

MAX_WAITING = 16
"""Requests that may wait in one process."""
MAX_WAITING_BYTES = 256 << 20
"""What their files may take together, beside those of the first: one request has up to 80 MiB."""
MAX_WAIT = 30.0
"""Seconds after which a waiting request is refused: nothing is decoded for callers who have long given up."""


class Waiting(NamedTuple):
    """A Triton request: its tensors, copied, and their bytes; when it came, by `time.monotonic()`; its answer."""

    request: Any
    inputs: Inputs
    bytes: int
    at: float
    answer: Answer


class IntakeModel(PythonModel):
    """Takes requests at once and works them off on a thread, so that their deadlines count from their arrival."""

    signature = contract.INTAKE

    def initialize(self, args: Mapping[str, str]) -> None:
        super().initialize(args)
        profile = load_profile(self.settings.weights, self.settings.few_steps, load_styles(self.settings.styles))
        self.profile = profile if self.settings.compel else replace(profile, prompt_syntaxes=("plain", "a1111"))
        self._waiting: SimpleQueue[Waiting | None] = SimpleQueue()
        self._bytes_taken = self._bytes_read = 0
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._thread.start()
        self._board.start(self._thread.is_alive)

    def execute(self, requests: Sequence[Any]) -> None:
        """Returns as soon as it is this instance's turn; never raises (see the denoiser's)."""
        for request in requests:
            answer = make_answer(request)
            try:
                self._queue(request, answer)
            except Exception as error:  # noqa: BLE001 - answered, and only for this request
                self.watch.refused(request, error)
                answer.give(error)
        try:
            self._board.take()
            self._board.wait_turn()
        except Exception:
            log.exception("the turns of the instances are not kept")

    def _queue(self, request: Any, answer: Answer) -> None:
        inputs, waiting = read_inputs(request, self.signature), self._waiting.qsize()
        size = sum(map(_bytes, inputs.values()))
        held = self._bytes_taken - self._bytes_read
        if waiting >= MAX_WAITING or (waiting and held + size > MAX_WAITING_BYTES):
            raise Overloaded(f"{waiting} requests of {held >> 20} MiB wait to be read")
        self._bytes_taken += size
        self._waiting.put(Waiting(request, inputs, size, time.monotonic(), answer))

    def finalize(self) -> None:
        """Answers what is waiting, then ends."""
        self._waiting.put(None)
        self._thread.join(timeout=MAX_WAIT)
        super().finalize()

    def backlog(self) -> float:
        """Requests that wait behind the one that is being read: without any, execute() returns at once."""
        return self._waiting.qsize()

    def _run(self) -> None:
        while arrival := self._waiting.get():
            self._bytes_read += arrival.bytes
            self._board.refresh()
            try:
                with self.watch(arrival.request, arrival.at):
                    arrival.answer.give(self._respond(arrival))
            except Exception as error:  # noqa: BLE001 - answered, and only for this request
                arrival.answer.give(error)

    def _respond(self, arrival: Waiting) -> Any:
        request_id = read_id(arrival.request)
        if time.monotonic() - arrival.at > MAX_WAIT:
            raise Overloaded(f"the request waited {MAX_WAIT:g} s to be read")
        parameters = read_parameters(arrival.request)
        request, canvases = read_request(arrival.inputs, parameters, self.profile, request_id, arrival.at)
        values = {
            contract.IMAGES: canvases.images,
            contract.SIZES: canvases.sizes,
            contract.INPUT_PICTURES: np.zeros((0, request.height, request.width, 3), np.uint8),
            contract.REQUEST: [self.signer.sign(self.watch.marked(request).to_json())],
        }
        return make_response(self.signature, values)


def _bytes(array: NDArray[Any] | None) -> int:
    """What a tensor holds, the objects of BYTES too."""
    if array is None:
        return 0
    return sum(map(len, array.reshape(-1))) if array.dtype == np.object_ else array.nbytes
