"""Steps of a batch: one pass of the networks for all rows, then each request's own scheduler on its own latents."""

import logging
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from instantid.engine import Phase
from instantid.errors import DeviceFailure, EngineFailure, ServiceError
from instantid.models.memory import device_errors
from instantid.models.parts import join
from instantid.models.predict import Predictor
from instantid.models.sdxl.condition import Condition, Pass, add
from instantid.models.sdxl.load import Networks
from instantid.models.sdxl.schedules import count_steps
from instantid.models.sdxl.state import Conditions, State, StepInputs
from instantid.models.unit import Check, to_host
from instantid.request import GenerationRequest

log = logging.getLogger(__name__)

NOT_FINITE = "the picture could not be made: its latents are not finite"


class Denoise:
    """The phase `step`. Modules are never changed by a request."""

    kind = "step"
    batched = True

    def __init__(self, networks: Networks, conditions: Sequence[Condition]) -> None:
        self._networks, self._conditions = networks, conditions
        self.predictor = Predictor(self._predict)
        self._batch: tuple[weakref.ref[State], ...] = ()
        self._joined: Conditions | None = None

    def plan(self, request: GenerationRequest, rows: int) -> Phase:
        return Phase(self.kind, rows, count_steps(request.scheduler, request.num_inference_steps))

    def work(self, states: Sequence[State]) -> Check:
        """Advance every state by one step; all have one size.

        Raises before any state has advanced. A state whose own advance fails gets a `failure`, and so does one whose
        latents are not finite, once the check that is returned was called.
        """
        noise = self.predictor(self.inputs(states))
        for state, predicted in zip(states, noise.split([state.rows for state in states]), strict=True):
            self._advance(state, predicted.float())
        return self._finite_check([state for state in states if state.failure is None])

    def inputs(self, states: Sequence[State]) -> StepInputs:
        latents = [state.schedule.scale(state.latents, state.index) for state in states]
        copies = [state.rows // len(state.latents) for state in states]
        return StepInputs(
            torch.cat([x.repeat(n, 1, 1, 1) for x, n in zip(latents, copies, strict=True)]),
            self._by_row(states, [state.timesteps[state.index] for state in states]),
            self._joined_conditions(states),
            tuple(self._scales(states, i) for i in range(len(self._conditions))),
        )

    def _scales(self, states: Sequence[State], condition: int) -> Tensor | None:
        if not any(state.windows[condition][state.index] for state in states):
            return None
        return self._by_row(states, [s.scales[condition][s.index] for s in states])[:, None, None, None]

    def _by_row(self, states: Sequence[State], values: Sequence[Tensor]) -> Tensor:
        return torch.cat([value.expand(state.rows) for state, value in zip(states, values, strict=True)])

    def _joined_conditions(self, states: Sequence[State]) -> Conditions:
        """The rows of all states; those of the batch before are kept for as long as it is the same."""
        if self._joined is None or [ref() for ref in self._batch] != list(states):
            self._joined = None
            self._joined = join([state.conditions for state in states])
            self._batch = tuple(weakref.ref(state) for state in states)
        return self._joined

    def _predict(self, inputs: StepInputs) -> Tensor:
        """Predicted noise [rows, 4, h, w] in the networks' dtype, from tensors only."""
        text, parts = inputs.conditions
        added = {"text_embeds": text.pooled, "time_ids": text.time_ids}
        networks_pass = Pass(inputs.latents.to(self._networks.dtype), inputs.timesteps, added)
        attention: dict[str, Any] = {"context": text.context}
        residuals = []
        for condition, part, scale in zip(self._conditions, parts, inputs.scales, strict=True):
            attention |= condition.attention(part)
            if scale is not None:
                residuals.append(condition.residuals(networks_pass, part, scale))
        added_residuals = add(residuals)
        return self._networks.unet(
            networks_pass.latents,
            networks_pass.timesteps,
            encoder_hidden_states=text.tokens,
            added_cond_kwargs=added,
            cross_attention_kwargs=attention,
            down_block_additional_residuals=added_residuals and added_residuals.down,
            mid_block_additional_residual=added_residuals and added_residuals.middle,
            return_dict=False,
        )[0]

    def _advance(self, state: State, noise: Tensor) -> None:
        try:
            with device_errors(self._networks.device):
                if state.request.guidance:
                    unconditional, conditional = noise.chunk(2)
                    noise = unconditional + state.request.guidance_scale * (conditional - unconditional)
                state.latents = state.schedule.step(noise, state.index, state.latents, state.generators)
                state.index += 1
        except DeviceFailure:
            raise
        except ServiceError as error:
            state.failure = error
        except Exception:
            log.exception("request %(request_id)r: its scheduler failed", {"request_id": state.request.request_id})
            state.failure = EngineFailure("the picture could not be made; the server's log has the reason")

    def _finite_check(self, states: Sequence[State]) -> Check:
        """One reduction over the latents of all states, read when the device is done with it."""
        latents = [state.latents for state in states]
        finite = to_host(torch.cat(latents).isfinite().flatten(1).all(dim=1)) if states else torch.empty(0)

        def check() -> None:
            for state, rows in zip(states, finite.split([len(x) for x in latents]), strict=True):
                if not bool(rows.all()):
                    state.failure = EngineFailure(NOT_FINITE)

        return check
