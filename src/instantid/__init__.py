"""InstantID for Triton Inference Server: everything that the models in `model_repository/` run."""

__version__ = "0.1.0"
