"""The stages one after the other, as the ensemble calls them; for tests that call an inner model directly.

A test that changes what a stage signed needs the server's key: `Signer(server_folder(server.pid))` reads it, for the
tests run as the server's user.
"""

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from instantid import contract


def to_inputs(tensors):
    return [
        triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype)).set_data_from_numpy(values)
        for name, values in tensors.items()
    ]


def infer(client, model, tensors, **options):
    """The model's outputs by name."""
    result = client.infer(model, to_inputs(tensors), client_timeout=60, **options)
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def inputs_of(client, model, given, **options):
    """What the ensemble would send to one of its steps for a request with the tensors `given`."""
    tensors = dict(given)
    for step in contract.STEPS:
        inputs = {tensor.name: tensors[tensor.name] for tensor in step.inputs if tensor.name in tensors}
        if step.name == model:
            return {name: values[None] for name, values in inputs.items()} if model == "denoiser" else inputs
        tensors |= {step.prefix + name: values for name, values in infer(client, step.name, inputs, **options).items()}
    raise AssertionError(f"no step {model}")


def photo_and_prompt(photo, prompt=b"a portrait", **numbers):
    """The tensors of a request; text as bytes, numbers of 32 bits."""
    texts = {name: value for name, value in numbers.items() if isinstance(value, bytes)}
    return {
        "photo": np.array([photo], object),
        **{name: np.array([value], object) for name, value in {"prompt": prompt, **texts}.items()},
        **{name: np.array([value], np.int32) for name, value in numbers.items() if name not in texts},
    }
