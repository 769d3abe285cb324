"""Triton's entry to `instantid.serving.denoiser`."""

from instantid.serving.denoiser import DenoiserModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
