"""Makes and checks what the server needs, and runs it embedded: `python -m build_tools --help`."""

import os

# onnxruntime 1.29 and later reports usage to its makers unless this is set before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
