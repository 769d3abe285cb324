"""Triton's side of the first stage: everything that can be wrong with a request is found here."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from instantid import contract
from instantid.engine import Answer
from instantid.errors import Overloaded
from instantid.photos import Inputs
from instantid.profile import load_profile
from instantid.request import read_request
from instantid.serving.model import PythonModel
from instantid.serving.tensors import make_answer, make_response, read_id, read_inputs, read_parameters
from instantid.styles import load_styles

MAX_WAITING = 16
"""Requests that may wait in one process; their files are in memory, up to 96 MiB each."""
MAX_WAIT = 30.0
"""Seconds after which a waiting request is refused: nothing is decoded for callers who have long given up."""


class Arrival(NamedTuple):
    """A Triton request with its tensors copied, when it came (seconds of `time.monotonic()`), and its answer."""

    request: Any
    inputs: Inputs
    at: float
    answer: Answer


class IntakeModel(PythonModel):
    """Takes requests at once and works them off on a thread, so that their deadlines count from their arrival."""

    signature = contract.INTAKE

    def initialize(self, args: Mapping[str, str]) -> None:
        super().initialize(args)
        profile = load_profile(self.settings.weights, self.settings.few_steps, load_styles(self.settings.styles))
        self.profile = profile if self.settings.compel else replace(profile, prompt_syntaxes=("plain", "a1111"))
        self._waiting: SimpleQueue[Arrival | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._thread.start()
        self._board.start(self._thread.is_alive)

    def execute(self, requests: Sequence[Any]) -> None:
        """Returns at once and never raises: after an answer was sent, that would kill the server (seen on 2.51.0)."""
        for request in requests:
            answer = make_answer(request)
            try:
                if self._waiting.qsize() >= MAX_WAITING:
                    raise Overloaded(f"{MAX_WAITING} requests wait to be read")
                self._waiting.put(Arrival(request, read_inputs(request, self.signature), time.monotonic(), answer))
            except Exception as error:  # noqa: BLE001 - answered, and only for this request
                self.watch.refused(request, error)
                answer.give(error)

    def finalize(self) -> None:
        """Answers what is waiting, then ends."""
        self._waiting.put(None)
        self._thread.join(timeout=MAX_WAIT)
        super().finalize()

    def _run(self) -> None:
        while arrival := self._waiting.get():
            try:
                with self.watch(arrival.request, arrival.at):
                    arrival.answer.give(self._respond(arrival))
            except Exception as error:  # noqa: BLE001 - answered, and only for this request
                arrival.answer.give(error)

    def _respond(self, arrival: Arrival) -> Any:
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
