"""Seconds to decode one photo of 64 megapixels, whole and at half its sides, for each format.

python bench/photo_cost.py
"""

import io
import time

from PIL import Image
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from instantid import contract, decoding

SIDE = 8000
ROUNDS = 3


def encode(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (200, 100, 50)).save(buffer, form)
    return buffer.getvalue()


def seconds(data: bytes, halved_pixels: int) -> float:
    """The shortest of a few decodings, with photos of more than `halved_pixels` at half their sides."""
    decoding.HALVED_PIXELS = halved_pixels
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        decoding.decode_photo(data, "photo[0]")
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    table = Table("format", "bytes", "whole, s", "at half its sides, s", box=box.MARKDOWN)
    halved = decoding.HALVED_PIXELS
    for form in track(contract.PHOTO_FORMATS, "decoding", console=Console(stderr=True)):
        data = encode(form)
        whole, half = (seconds(data, limit) for limit in (contract.MAX_PHOTO_PIXELS, halved))
        table.add_row(form, str(len(data)), f"{whole:.2f}", f"{half:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
