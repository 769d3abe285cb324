"""The real Triton server from PyPI (`nvidia-pytriton`), started without Docker and without root.

`server.EmbeddedServer` starts and stops it, `repository.assemble_repository` makes the model repository it reads,
`serve.serve_command` is `make serve`. The package carries no onnxruntime backend: `onnxruntime_backend/` is ours.
"""
