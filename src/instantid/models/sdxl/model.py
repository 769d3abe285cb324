"""InstantID on SDXL as the engine calls it: plan a request, start it, do units of its work."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import diffusers
import numpy as np
import torch

from instantid import contract
from instantid.engine import Group, Plan
from instantid.models.memory import device_errors
from instantid.models.parts import kept_bytes, repeat
from instantid.models.predict import Execution
from instantid.models.sdxl.checkpoint import load_sdxl
from instantid.models.sdxl.condition import Condition
from instantid.models.sdxl.decode import Decode
from instantid.models.sdxl.denoise import Denoise
from instantid.models.sdxl.identity import LANDMARKS, IdentityCondition
from instantid.models.sdxl.kinds import Prediction
from instantid.models.sdxl.load import Networks, load_networks
from instantid.models.sdxl.prompts import CompelPrompt
from instantid.models.sdxl.schedules import Schedule, check_steps, training
from instantid.models.sdxl.state import Conditions, RequestTensors, State
from instantid.models.sdxl.text import ChunkedText, TextEmbedding, TextPart, time_ids
from instantid.models.unit import LaunchedUnit
from instantid.profile import Profile
from instantid.request import GenerationRequest

SMALL_TENSOR = 64


class SdxlModel:
    """One set of weights on one device. All that a request owns is in its State.

    `start` and `work` are called from one thread. They raise Overloaded where the device's memory does not suffice and
    DeviceFailure where the device cannot be used any more.
    """

    def __init__(self, networks: Networks, conditions: Sequence[Condition] | None = None) -> None:
        training(networks.scheduler_config)
        self.networks = networks
        self.device = networks.device
        self.conditions = tuple(conditions or [IdentityCondition(networks)])
        self.denoise = Denoise(networks, self.conditions)
        self.decode = Decode(networks.vae)
        self.phases = (self.denoise, self.decode)
        """In the order in which a request goes through them."""

    @classmethod
    def load(
        cls,
        weights: Path,
        device: torch.device,
        dtype: torch.dtype,
        *,
        checkpoint: Path | None = None,
        loras: Sequence[tuple[Path, float]] = (),
        profile: Profile | None = None,
        vae_dtype: torch.dtype | None = None,
        prediction: Prediction = "auto",
    ) -> "SdxlModel":
        """Load one set of weights; UNet, IdentityNet, adapter and text encoders in `dtype`.

        `checkpoint`, a diffusers folder or a single safetensors file, takes the place of the set's own SDXL. `loras`,
        files and their weights, are fused into it, and so is the LoRA of the profile's few-step mode. `vae_dtype` None
        means float32. `prediction` overrides what the checkpoint says that it predicts. Raises FileNotFoundError or
        ValueError, naming file and tensor, for a set that is not whole.
        """
        if profile and profile.lora:
            loras = [(weights / "lora" / profile.lora, 1.0), *loras]
        base, decoding = weights / "sdxl", vae_dtype or torch.float32
        sdxl = load_sdxl(base, checkpoint, device, dtype, decoding, loras, prediction)
        if profile and profile.timestep_spacing:
            changed = {**sdxl.scheduler_config, "timestep_spacing": profile.timestep_spacing}
            sdxl = sdxl._replace(scheduler_config=changed)
        return cls(load_networks(weights, sdxl, device, dtype))

    @cached_property
    def fingerprint(self) -> str:
        """Changes with whatever changes costs or compiled steps: device, versions, dtype, threads, networks, code.

        A compiler writes tensors of a few numbers into its code, so these count too.
        """
        networks, on_gpu = self.networks, self.device.type == "cuda"
        kept = [*networks.unet.state_dict().values(), *networks.identitynet.state_dict().values()]
        facts = [
            torch.cuda.get_device_name(self.device) if on_gpu else f"cpu, {torch.get_num_threads()} threads",
            torch.__version__,
            diffusers.__version__,
            str(networks.dtype),
            *(json.dumps(dict(n.config), default=str) for n in (networks.unet, networks.identitynet, networks.vae)),
            *(path.read_text() for path in sorted(Path(__file__).parents[1].rglob("*.py"))),
            *(str(tensor.flatten().tolist()) for tensor in kept if tensor.numel() <= SMALL_TENSOR),
        ]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]

    def plan(self, request: GenerationRequest) -> Plan:
        """The units of work of a request: all its steps, then the decoding of each picture.

        Raises InvalidArgument where the scheduler needs more steps with this checkpoint.
        """
        check_steps(request.scheduler, self.networks.scheduler_config, request.num_inference_steps)
        images = request.num_images_per_prompt
        rows = images * (2 if request.guidance else 1)
        area = request.height * request.width
        chunks = _chunks(self._read(request))
        fixed, per_pixel, per_chunk = self._row_bytes
        return Plan(
            Group(area, (request.height, request.width, chunks)),
            tuple(phase.plan(request, rows) for phase in self.phases),
            rows * int(fixed + per_pixel * area + per_chunk * chunks),
        )

    @torch.inference_mode()
    def start(self, request: GenerationRequest, given: RequestTensors) -> State:
        """Everything that is the same in all steps: text, face tokens, keys and values, landmarks, first noise."""
        with device_errors(self.device):
            networks, steps = self.networks, request.num_inference_steps
            schedule = Schedule(request.scheduler, networks.scheduler_config, steps, self.device)
            windows = tuple(condition.window(request, len(schedule.timesteps)) for condition in self.conditions)
            generators = tuple(torch.Generator("cpu").manual_seed(seed) for seed in request.seeds)
            shape = (1, networks.unet.config.in_channels, request.height // 8, request.width // 8)
            noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
            read = self._read(request)
            return State(
                request=request,
                schedule=schedule,
                windows=windows,
                timesteps=torch.stack(list(schedule.timesteps)).to(self.device, torch.float32),
                scales=tuple(torch.tensor(w, dtype=networks.dtype, device=self.device) for w in windows),
                generators=generators,
                latents=schedule.initial(noise.to(self.device)),
                conditions=Conditions(
                    self._text(request, read), tuple(c.start(request, given) for c in self.conditions)
                ),
                facts={"prompt": _facts(read)},
            )

    @torch.inference_mode()
    def work(self, kind: str, states: Sequence[State]) -> LaunchedUnit:
        """Launch one unit of a phase for states of one group. If it raises, none of them has advanced."""
        with device_errors(self.device):
            unit = LaunchedUnit(self.device)
            (phase,) = (phase for phase in self.phases if phase.kind == kind)
            return unit.launched(phase.work(states))

    def example(self, size: tuple[int, int], rows: int) -> list[State]:
        """Started requests of one row each, `size` (height, width) in pixels, to measure with."""
        height, width = size
        request = GenerationRequest(
            prompt="a portrait", height=height, width=width, guidance_scale=1.0, seed=0, pictures=(LANDMARKS,)
        )
        embeddings = np.ones((1, contract.EMBEDDING_SIZE), np.float32)
        given = RequestTensors(embeddings, np.zeros((1, height, width, 3), np.uint8))
        return [self.start(request, given) for _ in range(rows)]

    def use(self, execution: Execution) -> None:
        """Run the networks in this way from now on; what was prepared for the one before is dropped."""
        layout = torch.channels_last if execution.channels_last else torch.contiguous_format
        for network in (self.networks.unet, self.networks.identitynet, self.networks.vae):
            network.to(memory_format=layout)
        self.denoise.predictor.prepared.clear()
        self.denoise.predictor.execution = execution

    @cached_property
    def _row_bytes(self) -> tuple[float, float, float]:
        """What a row of a started request keeps: bytes, bytes for each pixel of the picture, and for each chunk of its
        text."""
        sides = (64, 128)
        states = [state for n in sides for state in self.example((n, n), 1)]
        kept = [kept_bytes((state.latents, state.conditions)) for state in states]
        per_pixel = (kept[1] - kept[0]) / (sides[1] ** 2 - sides[0] ** 2)
        text = states[0].conditions.text
        per_chunk = kept_bytes((text.tokens, text.context))
        return kept[0] - per_pixel * sides[0] ** 2 - per_chunk, per_pixel, per_chunk

    def _read(self, request: GenerationRequest) -> dict[str, ChunkedText | CompelPrompt]:
        """The prompts that act, by option. Raises InvalidArgument."""
        names = ("negative_prompt", "prompt") if request.guidance else ("prompt",)
        read = self.networks.text.read
        return {name: read(getattr(request, name), request.prompt_syntax, name) for name in names}

    def _text(self, request: GenerationRequest, read: Mapping[str, ChunkedText | CompelPrompt]) -> TextPart:
        images, networks = request.num_images_per_prompt, self.networks
        syntax, chunks = request.prompt_syntax, _chunks(read)
        encoded = [networks.text.encode(getattr(request, name), syntax, chunks, name) for name in read]
        if request.zero_negative_prompt:
            encoded[0] = TextEmbedding(torch.zeros_like(encoded[1].tokens), torch.zeros_like(encoded[1].pooled))
        tokens = torch.cat([embedding.tokens for embedding in encoded])
        return TextPart(
            tokens=repeat(tokens, images),
            pooled=repeat(torch.cat([embedding.pooled for embedding in encoded]), images),
            time_ids=time_ids(request.height, request.width, self.device).expand(len(encoded) * images, -1),
            context=repeat(networks.unet_text.project(tokens), images),
        )


def _chunks(read: Mapping[str, ChunkedText | CompelPrompt]) -> int:
    """All prompts of a request are encoded in as many chunks as the longest takes."""
    return max(text.chunks for text in read.values())


def _facts(read: Mapping[str, ChunkedText | CompelPrompt]) -> dict[str, int]:
    """What the report says of the prompts."""
    negative = {"negative_tokens": read["negative_prompt"].tokens} if "negative_prompt" in read else {}
    return {"tokens": read["prompt"].tokens, **negative, "chunks": _chunks(read)}
