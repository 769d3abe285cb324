"""Inputs of a request, as arrays, and what the service reads from them."""

import io

import numpy as np
from PIL import Image

from instantid.profile import FEW_STEPS, SDXL, Profile
from instantid.request import read_request

PROFILE = Profile("full", **SDXL)


def photo(width=64, height=64, value=128):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def texts(*values):
    return np.array(values, object)


def take(parameters=None, mode="none", **changes):
    inputs = {"photo": texts(photo()), "prompt": texts(b"a portrait"), **changes}
    return read_request(inputs, parameters or {}, Profile("full", **SDXL, **FEW_STEPS[mode]), "id-1")


def resolve(parameters=None, mode="none", **changes):
    return take(parameters, mode, **changes)[0]
