"""Triton's entry to `instantid.serving.intake`."""

from instantid.serving.intake import IntakeModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
