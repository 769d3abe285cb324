"""What a fuzzer sends: broken pictures, tensors of any type and shape, requests of any content."""

import io
import json
import struct
import zlib

import numpy as np
from hypothesis import strategies as st
from PIL import Image, ImageCms
from skimage import data

from instantid import contract
from instantid.contract import Choice, Images, Number, Side
from instantid.request import NUMPY_TYPES, GenerationRequest

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="/."), max_size=40)
"""Neither of the two characters by which a path of the server's would be known in a message that repeats the text."""
BYTES = st.binary(max_size=40) | TEXTS.map(str.encode) | st.just("\ud800".encode(errors="surrogatepass"))
NUMBERS = st.sampled_from([0, 1, -1, 2, 64, 2**31 - 1, -(2**31), 2**63 - 1, 1e30, float("nan"), float("inf")])
SMALL = {"num_inference_steps": 2, "width": 64, "height": 64, "num_images_per_prompt": 1}
"""Valid values that cost little; every case has them unless it has others."""


def _file(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _pictures():
    """Small files of every format and mode that photos come in."""
    face = Image.fromarray(data.astronaut()[:300, 80:380]).resize((96, 96))
    exif = Image.Exif()
    exif[0x0112] = 6
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = Image.fromarray(np.arange(96 * 96, dtype=np.uint16).reshape(96, 96) * 7)
    yield _file(face, "JPEG", exif=exif, icc_profile=icc)
    yield _file(face.convert("CMYK"), "JPEG", progressive=True)
    yield from (_file(face.convert(mode), "PNG") for mode in ("RGB", "RGBA", "P", "1", "LA"))
    yield _file(wide, "PNG")
    yield _file(face, "PNG", icc_profile=icc, save_all=True, append_images=[face.rotate(90)])
    yield _file(face, "WEBP", lossless=True, exif=exif)
    yield _file(face, "WEBP", save_all=True, append_images=[face.rotate(90)])


PICTURES = tuple(_pictures())
CRAFTED = (b"", b"\xff\xd8\xff", b"RIFF\xff\xff\xff\xffWEBPVP8 ", PICTURES[2][:8] * 3)


def with_checksums(png):
    """The file with the checksum of every chunk made right again, so that a decoder looks inside."""
    at, made = 8, png[:8]
    while at + 12 <= len(png):
        (size,) = struct.unpack_from(">I", png, at)
        body = png[at + 4 : at + 8 + size]
        made += png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return made


@st.composite
def broken_pictures(draw):
    broken = bytearray(draw(st.sampled_from(PICTURES + CRAFTED)))
    for _ in range(draw(st.integers(1, 4))):
        at, end = sorted(draw(st.integers(0, len(broken))) for _ in range(2))
        piece = draw(st.sampled_from([b"", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f", bytes(broken[at:end])]))
        how = draw(st.sampled_from(["overwrite", "insert", "delete", "cut"]))
        broken[at : {"overwrite": at + len(piece), "insert": at, "delete": end, "cut": len(broken)}[how]] = piece
    return with_checksums(bytes(broken)) if draw(st.booleans()) else bytes(broken)


def arrays(datatype, *shapes, values=NUMBERS):
    """Arrays of Triton's `datatype` of one of the shapes, filled with one value."""

    def fill(shape, value):
        if datatype == "BYTES":
            return np.full(shape, value, object)
        whole = value if datatype == "FP32" else int(np.clip(np.nan_to_num(value), -(2**62), 2**62))
        with np.errstate(all="ignore"):
            return np.full(shape, whole).astype(NUMPY_TYPES[datatype])

    return st.builds(fill, st.sampled_from(shapes), BYTES if datatype == "BYTES" else values)


ANY_ARRAY = st.sampled_from(["BYTES", *NUMPY_TYPES]).flatmap(lambda kind: arrays(kind, (0,), (1,), (2, 1), (1, 1, 7)))


def option_arrays(option):
    """Values of an option's tensor: of its own type near its bounds mostly, and anything else."""
    match option:
        case Images():
            own = st.lists(st.sampled_from(PICTURES) | broken_pictures(), max_size=option.high + 1).map(
                lambda photos: np.array(photos, object)
            )
        case Choice():
            own = (st.sampled_from(option.choices).map(str.encode) | BYTES).map(lambda text: np.array([text], object))
        case Number() | Side():
            near = [option.low, option.low - 1, option.high + 1, SMALL.get(option.name, option.default or option.low)]
            own = arrays(
                option.datatype, (1,), values=st.sampled_from(near) | NUMBERS.filter(lambda n: not 2 < n < 101)
            )
        case _:
            long = st.just(b"a" * (option.high + 1))
            own = (BYTES | long).map(lambda text: np.array([text], object))
    return own | own | own | ANY_ARRAY


PARAMETERS = st.dictionaries(
    st.sampled_from([option.name for option in contract.PARAMETERS] + ["another"]),
    TEXTS | st.booleans() | st.integers(-1, 2**31) | st.sampled_from(["1_000", "+5", " 5", "\u0665", "1", "a\nb"]),
)


@st.composite
def requests(draw, photo):
    """Tensors of `instantid` or `intake`; photo and prompt are good ones mostly."""
    chosen = draw(st.lists(st.sampled_from(contract.OPTIONS), max_size=4, unique_by=lambda option: option.name))
    tensors = {"photo": np.array([photo], object), "prompt": np.array([b"a portrait"], object)}
    tensors |= {name: np.array([value], np.int32) for name, value in SMALL.items()}
    return tensors | {option.name: draw(option_arrays(option)) for option in chosen}


@st.composite
def changed(draw, tensors, model):
    """What an inner model is given, with up to two tensors replaced."""
    names = draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, max_size=2, unique=True))
    types = {tensor.name: tensor.datatype for tensor in model.inputs}
    shapes = {name: [tensors[name].shape, *_other_shapes(tensors[name].shape)] for name in names}
    return tensors | {name: draw(arrays(types[name], *shapes[name]) | ANY_ARRAY) for name in names}


def _other_shapes(shape):
    yield from ((*shape[:i], size, *shape[i + 1 :]) for i in range(len(shape)) for size in (0, 1, shape[i] + 1))


FIELDS = sorted(json.loads(GenerationRequest(prompt="x", width=64, height=64).to_json()))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@st.composite
def request_texts(draw, text):
    """The JSON of a request with one field changed, or bytes that are something else."""
    fields = json.loads(text)
    field = draw(st.sampled_from(FIELDS))
    value = draw(JSON | NUMBERS.filter(lambda n: not 2 < n < 101))
    return draw(st.just(json.dumps({**fields, field: value}).encode()) | BYTES)
