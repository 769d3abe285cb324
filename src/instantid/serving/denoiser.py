"""Triton's side of the last stage: hands requests to the engine and answers through response senders."""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from instantid import contract
from instantid.engine import UNNAMED, Answer, CostTable, Engine, Policy, Room, Task
from instantid.models.sdxl import Job, SdxlDenoiser, count_steps
from instantid.photos import encode_picture
from instantid.profile import load_profile
from instantid.request import GenerationRequest
from instantid.serving.board import Board, server_folder
from instantid.serving.calibration import plan_costs, plan_rows
from instantid.serving.compiling import CompiledSteps
from instantid.serving.metrics import EngineMetrics
from instantid.serving.model import set_up
from instantid.serving.tensors import error_response, make_response, read_inputs
from instantid.settings import Settings

log = logging.getLogger(__name__)


class DenoiserModel:
    """One process and one engine per instance. Default (unary) mode: each request is answered by its sender."""

    model = contract.DENOISER
    make_policy: Callable[[CostTable], Policy] = Policy

    def initialize(self, args: Mapping[str, str]) -> None:
        self.settings = set_up(self.model, args)
        torch.set_num_threads(self.settings.cpu_threads)
        name, device = args["model_instance_name"], choose_device(args)
        dtype = choose_dtype(self.settings, device)
        denoiser = SdxlDenoiser.load(
            self.settings.weights, device, dtype, self.settings.checkpoint, self.settings.lora, self.settings.few_steps
        )
        profile = load_profile(self.settings.weights)
        self._compiled = CompiledSteps(denoiser, profile, self.settings) if self.settings.compile != "off" else None
        costs = plan_costs(denoiser, profile, self.settings)
        reserved = self._compiled.reserved if self._compiled else 0.0
        rows = plan_rows(denoiser, profile, self.settings, costs, reserved)
        self._board = Board(server_folder(os.getppid()), name, lambda: self.engine.load.backlog)
        encode = denoiser.networks.text.encode
        metrics = EngineMetrics(name, lambda: encode.cache_info()[:2], lambda backlog: self._board.refresh())
        room = Room(rows, max(int(rows * self.settings.tenant_share), 2))
        self.engine = Engine(denoiser, self.make_policy(costs), self._encode, room, observer=metrics)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        self._board.start(self._is_alive)
        if self._compiled:
            self._compiled.start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Returns once the engine has room again and it is this instance's turn; later requests wait in Triton.

        Never raises: after an answer was sent, an exception from here kills the whole server (seen on 2.51.0). A
        request that gets lost is answered by its Answer.
        """
        try:
            self._take([task for task in map(self._task, requests) if task is not None])
        except Exception:
            log.exception("requests were lost")
        self._board.wait_turn()

    def _take(self, tasks: Sequence[Task]) -> None:
        self.engine.offer(tasks)
        self._board.take()
        self.engine.wait_until_started(tasks)

    def finalize(self) -> None:
        if self._compiled:
            self._compiled.close()
        self._board.close()
        self.engine.close()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        """The engine's thread. Without it nobody would be answered again: its end stops the heartbeat."""
        try:
            self.engine.run()
        except Exception:
            log.exception("the engine stopped")
            raise

    def _is_alive(self) -> bool:
        return self._thread.is_alive() and self.engine.lateness < self.settings.step_timeout

    def _task(self, request: Any) -> Task | None:
        request_id = request.request_id()
        answer = self._make_answer(request.get_response_sender(), request_id)
        try:
            return self._read(request, answer)
        except Exception as error:  # noqa: BLE001 - answered, and only for this request
            answer.give(error)
            return None

    def _read(self, request: Any, answer: Answer) -> Task:
        tensors: dict[str, Any] = read_inputs(request, self.model)
        wanted = GenerationRequest.from_json(tensors[contract.REQUEST.name].item())
        embedding = tensors[contract.EMBEDDING.name][0]
        return Task(
            job=Job(wanted, embedding, tensors[contract.LANDMARK_PICTURE.name][0]),
            size=(wanted.height, wanted.width),
            rows=wanted.num_images_per_prompt * (2 if wanted.guidance else 1),
            steps=count_steps(wanted.scheduler, wanted.num_inference_steps),
            answer=answer,
            pictures=wanted.num_images_per_prompt,
            request_id=wanted.request_id,
            tenant=UNNAMED if wanted.tenant == contract.DEFAULT_TENANT else wanted.tenant,
            priority_level=wanted.priority_level,
            deadline=wanted.deadline,
            is_cancelled=request.is_cancelled,
        )

    def _make_answer(self, sender: Any, request_id: str) -> Answer:
        def send(response: Any) -> None:
            sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

        def answer(outcome: Any) -> None:
            try:
                send(error_response(outcome, request_id) if isinstance(outcome, Exception) else outcome)
            except Exception as error:  # noqa: BLE001 - a response that cannot be sent must still end the call
                send(error_response(error, request_id))

        return Answer(answer)

    def _encode(self, job: Job, pictures: Sequence[Any]) -> Any:
        """Runs on the engine's encoding threads."""
        wanted = job.request
        images = [
            encode_picture(
                picture,
                wanted.output_format,
                wanted.output_quality,
                wanted.public(seed) if self.settings.embed_metadata else None,
            )
            for picture, seed in zip(pictures, wanted.seeds, strict=True)
        ]
        return make_response(
            self.model,
            {
                contract.IMAGE: [images],
                contract.SEEDS: [wanted.seeds],
                contract.REQUEST_ID: [[wanted.request_id.encode()]],
            },
        )


def choose_device(args: Mapping[str, str]) -> torch.device:
    """The device of this instance: its `instance_group` kind and GPU.

    Raises RuntimeError where a GPU is configured and torch finds none; there is no silent fall-back to the CPU.
    """
    if args["model_instance_kind"] == "CPU":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError("configured for a GPU, but torch finds none; use --model-config-name=cpu without one")
    device = torch.device("cuda", int(args["model_instance_device_id"]))
    torch.cuda.set_device(device)
    return device


def choose_dtype(settings: Settings, device: torch.device) -> torch.dtype:
    name = settings.dtype
    if name == "auto":
        name = "float32" if device.type == "cpu" else "float16"
    dtype: torch.dtype = getattr(torch, name)
    return dtype
