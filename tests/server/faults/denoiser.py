"""The denoiser, failing as the prompt says."""

import time

from instantid.errors import DeviceFailure
from instantid.serving.denoiser import DenoiserModel


class TritonPythonModel(DenoiserModel):
    def initialize(self, args):
        super().initialize(args)
        denoiser = self.engine._denoiser
        self._step = denoiser.step
        denoiser.step = self._faulty_step

    def _task(self, request):
        task = super()._task(request)
        prompt = task.job.request.prompt if task else ""
        if prompt == "execution raises":
            raise RuntimeError("/secret/path")
        return None if prompt == "lost on the way to the engine" else task

    def _read(self, request, answer):
        task = super()._read(request, answer)
        if task.job.request.prompt == "cannot be read":
            raise RuntimeError("/secret/path")
        return task

    def _encode(self, job, pictures):
        if job.request.prompt == "response that cannot be sent":
            return "no response"
        if job.request.prompt == "encoding thread ends":
            raise SystemExit
        return super()._encode(job, pictures)

    def _faulty_step(self, states):
        prompts = {state.request.prompt for state in states}
        if "the device fails" in prompts:
            raise DeviceFailure("the device failed; the server is restarting")
        if "the engine's thread ends" in prompts:
            raise SystemExit
        if "the step is stuck" in prompts:
            time.sleep(600)
        if "memory" in prompts:
            raise RuntimeError("can't allocate memory: you tried to allocate 1 bytes")
        self._step(states)
