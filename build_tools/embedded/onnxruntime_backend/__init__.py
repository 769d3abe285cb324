"""Folder that Triton reads as its `onnxruntime` backend; `model.py` is loaded by the stub, not imported by us."""
