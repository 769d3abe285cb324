"""Triton's side of the last stage: hands requests to the engine and answers through response senders."""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from instantid import contract
from instantid.answer import encoder, finish
from instantid.engine import UNNAMED, Admission, Answer, CostTable, Engine, Policy, Task
from instantid.models.measure import memory_budget, plan_costs
from instantid.models.sdxl import RequestTensors
from instantid.models.setup import load_model, prepare
from instantid.profile import load_profile
from instantid.request import GenerationRequest
from instantid.serving.board import Board, server_folder
from instantid.serving.model import set_up
from instantid.serving.signing import Signer
from instantid.serving.tensors import (
    check_same,
    check_tensor,
    make_answer,
    make_response,
    read_id,
    read_inputs,
)
from instantid.serving.watch import EngineWatch

log = logging.getLogger(__name__)

CANCELLATION_SECONDS = 0.02
"""How often it is asked, off the engine's thread, whether callers have cancelled."""


class DenoiserModel:
    """One process and one engine per instance. Default (unary) mode: each request is answered by its sender."""

    signature = contract.DENOISER
    make_policy: Callable[..., Policy] = Policy

    def initialize(self, args: Mapping[str, str]) -> None:
        self.settings = set_up(args)
        torch.set_num_threads(self.settings.cpu_threads)
        name, self.device = args["model_instance_name"], choose_device(args)
        profile = load_profile(self.settings.weights, self.settings.few_steps)
        self.model = load_model(self.settings, self.device, profile)
        prepare(self.model, profile, self.settings)
        costs = plan_costs(self.model, profile, self.settings)
        self._profile = profile
        self._finishers = [encoder(self.settings.png_level, self.settings.embed_metadata)]
        self.engine = self._make_engine(name, costs, memory_budget(self.model, profile, self.settings, costs))
        folder = server_folder(os.getppid())
        self._board = Board(folder, name, lambda: self.engine.load.backlog)
        self._signer = Signer(folder)
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=title, daemon=True)
            for title, run in (("engine", self._run), ("cancellation", self._poll_cancelled))
        ]
        for thread in self._threads:
            thread.start()
        self._board.start(self._is_alive)

    def _make_engine(self, name: str, costs: CostTable, max_bytes: float) -> Engine:
        rows = self.settings.max_rows
        admission = Admission(rows, max_bytes, max(int(rows * self.settings.tenant_share), 2))
        cache = self.model.networks.text.encode_chunk.cache_info
        self._watch = EngineWatch(name, self.settings, lambda: cache()[:2])
        policy = self.make_policy(costs, admission.tenant_rows)
        return Engine(self.model, policy, admission, self._finish, listeners=[self._watch, self._refresh])

    def execute(self, requests: Sequence[Any]) -> None:
        """Returns as soon as the engine has room and it is this instance's turn; later requests wait in Triton.

        Never raises: after an answer was sent, an exception from here kills the whole server (seen on 2.51.0). A
        request that gets lost is answered by its Answer. While Triton waits for this call, a process that is frozen for
        a second counts as dead (docs/operations.md).
        """
        try:
            self._take([task for task in map(self._task, requests) if task is not None])
        except Exception:
            log.exception("requests were lost")
        try:
            self._board.wait_turn()
        except Exception:
            log.exception("the turns of the instances are not kept")

    def _take(self, tasks: Sequence[Task]) -> None:
        self.engine.submit(tasks)
        self._board.take()
        self.engine.wait_for_room()

    def finalize(self) -> None:
        self._board.close()
        self.engine.close()
        self._closed.set()
        for thread in self._threads:
            thread.join(timeout=30)

    def _run(self) -> None:
        """The engine's thread. Without it nobody would be answered again: its end stops the heartbeat."""
        try:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            self.engine.run()
        except Exception:
            log.exception("the engine stopped")
            raise

    def _poll_cancelled(self) -> None:
        while not self._closed.wait(CANCELLATION_SECONDS):
            self.engine.poll_cancelled()

    def _refresh(self, event: Any) -> None:
        self._board.refresh()

    def _is_alive(self) -> bool:
        return self._threads[0].is_alive() and self.engine.lateness < self.settings.step_timeout

    def _task(self, request: Any) -> Task | None:
        answer = make_answer(request)
        try:
            return self._read(request, read_id(request), answer)
        except Exception as error:  # noqa: BLE001 - answered, and only for this request
            self._watch.refused(request, error)
            answer.give(error)
            return None

    def _read(self, request: Any, request_id: str, answer: Answer) -> Task:
        tensors: Any = read_inputs(request, self.signature)
        inner = (contract.REQUEST, contract.CONDITIONED_REQUEST, contract.EMBEDDINGS, contract.PICTURES)
        signed, conditioned, embeddings, pictures = (tensors[tensor.name][0] for tensor in inner)
        text = self._signer.verify(conditioned.item(), embeddings, pictures)
        resolved = GenerationRequest.from_json(text, self._profile)
        check_same(resolved, request_id, resolved == GenerationRequest.from_json(self._signer.verify(signed.item())))
        check_tensor(contract.EMBEDDINGS, embeddings, 1, contract.EMBEDDING_SIZE)
        check_tensor(contract.PICTURES, pictures, len(resolved.pictures), resolved.height, resolved.width, 3)
        return Task(
            request=resolved,
            given=RequestTensors(embeddings, pictures),
            plan=self.model.plan(resolved),
            answer=answer,
            request_id=resolved.request_id,
            tenant=UNNAMED if resolved.tenant == contract.TENANT.default else resolved.tenant,
            priority_level=resolved.priority_level,
            deadline=resolved.deadline,
            is_cancelled=request.is_cancelled,
        )

    def _finish(self, task: Task) -> Any:
        """Runs on the engine's finishing threads."""
        state: Any = task.state
        pictures = [picture.numpy() for picture in state.pictures]
        images, reports = finish(pictures, task.request, self._finishers, state.facts)
        return make_response(
            self.signature,
            {
                contract.IMAGE: [images],
                contract.SEEDS: [task.request.seeds],
                contract.REPORT: [reports],
                contract.REQUEST_ID: [[task.request.request_id.encode()]],
            },
        )


def choose_device(args: Mapping[str, str]) -> torch.device:
    """The device of this instance: its `instance_group` kind and GPU.

    Raises RuntimeError where a GPU is configured and torch finds none; there is no silent fall-back to the CPU.
    """
    if args["model_instance_kind"] == "CPU":
        return torch.device("cpu")
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if not torch.cuda.is_available():
        raise RuntimeError("configured for a GPU, but torch finds none; use --model-config-name=cpu without one")
    device = torch.device("cuda", int(args["model_instance_device_id"]))
    torch.cuda.set_device(device)
    return device
