"""The denoiser, failing as the prompt says."""

import time

from instantid.errors import DeviceFailure
from instantid.serving.denoiser import DenoiserModel


class TritonPythonModel(DenoiserModel):
    def initialize(self, args):
        super().initialize(args)
        self._work = self.model.work
        self.model.work = self._faulty_work

    def _task(self, request):
        task = super()._task(request)
        prompt = task.request.prompt if task else ""
        if prompt == "execution raises":
            raise RuntimeError("/secret/path")
        return None if prompt == "lost on the way to the engine" else task

    def _read(self, request, request_id, answer):
        task = super()._read(request, request_id, answer)
        if task.request.prompt == "cannot be read":
            raise RuntimeError("/secret/path")
        return task

    def _finish(self, task):
        if task.request.prompt == "response that cannot be sent":
            return "no response"
        if task.request.prompt == "finishing thread ends":
            raise SystemExit
        return super()._finish(task)

    def _faulty_work(self, kind, states):
        prompts = {state.request.prompt for state in states}
        if "the device fails" in prompts:
            raise DeviceFailure("the device failed; the server is restarting")
        if "the engine's thread ends" in prompts:
            raise SystemExit
        if "the step is stuck" in prompts:
            time.sleep(600)
        if "memory" in prompts:
            raise RuntimeError("can't allocate memory: you tried to allocate 1 bytes")
        return self._work(kind, states)
