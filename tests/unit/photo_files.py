"""Photos as files: small pictures, and colour profiles made by hand."""

import io
import struct

from PIL import Image


def encode(image, fmt="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def icc(space, tags, pcs=b"XYZ "):
    """A minimal ICC profile, version 2.4, with these tags."""
    head, table, body = b"", struct.pack(">I", len(tags)), b""
    start = 132 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s", start + len(body), 0x02400000, b"mntr", space, pcs, b"acsp")
    head = head.ljust(68, b"\0") + fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + table + body


def fixed(*values):
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def matrix_profile(columns, curve):
    colours = {
        name: b"XYZ " + bytes(4) + fixed(*xyz) for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)
    }
    return icc(b"RGB ", {**colours, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)})


def gamma(value):
    return b"curv" + struct.pack(">4xIH2x", 1, round(value * 256))


SRGB_CURVE = b"para" + struct.pack(">4xH2x", 3) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
PROFILES = {
    "P3": (((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)), SRGB_CURVE),
    "AdobeRGB": (((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)), gamma(2.2)),
    "ProPhoto": (((0.79767, 0.28804, 0), (0.13519, 0.71188, 0), (0.03134, 0.00009, 0.82491)), gamma(1.8)),
}
"""Red, green and blue in XYZ under D50, as the spaces' specifications give them, and the curve."""
SWATCHES = {"P3": ((200, 120, 90), (214, 116, 82)), "AdobeRGB": ((200, 120, 90), (224, 121, 88)),
            "ProPhoto": ((120, 100, 80), (160, 114, 95))}  # fmt: skip


def swatch(colour, mode="RGB"):
    return Image.new("RGB", (32, 32), colour).convert(mode)
