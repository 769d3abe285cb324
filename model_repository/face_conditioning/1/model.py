"""Triton's entry to `instantid.serving.face_conditioning`."""

from instantid.serving.face_conditioning import FaceConditioningModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
