"""The tables of `bench/gpu.py`, from the JSON that it keeps."""

from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 140


def show(results: dict[str, Any]) -> None:
    """Every part that has been run so far."""
    console = Console(width=WIDTH)
    makers = {"speed": _speed, "costs": _costs, "memory": _memory, "decode": _decode, "pieces": _pieces, "cold": _cold}
    console.print(" ".join(f"{name} {value}" for name, value in results["run"].items()), highlight=False)
    if "parity" in results:
        error, steps = results["parity"]["float32"], results["parity"]["steps"]
        console.print(f"float32 latents after {steps} steps, ours against diffusers' pipeline: {error:.1e}")
    for part, make in makers.items():
        if part in results:
            console.print(make(results[part]))


def _speed(found: dict[str, Any]) -> Table:
    side, steps = found["size"][0], found["steps"]
    title = f"one picture, {side}x{side}, {steps} steps, guidance 5, {found['dtype'].removeprefix('torch.')}"
    table = _table(
        title, "mode", "seconds", "plain, seconds", "plain / ours", "step, ms", "of 790 TFLOP/s", "first, s",
        "latents off", "peak, GiB",
    )  # fmt: skip
    for name, row in found["modes"].items():
        if "failed" in row:
            table.add_row(name, row["failed"])
            continue
        table.add_row(
            name, f"{row['seconds']:.3f}", f"{row['plain_seconds']:.3f}", f"{row['ratio']:.2f}",
            f"{row['step_ms']:.1f}", f"{row['share']:.0%}" if row["share"] == row["share"] else "-",
            f"{row['first_seconds']:.1f}", f"{row['error']:.1e}", f"{row['peak_gib']:.1f}",
        )  # fmt: skip
    plain = found["plain"]
    table.caption = (
        f"latents off: relative to float32; the plain loop's are off by {plain['error']:.1e}, "
        f"its memory is {plain['peak_gib']:.1f} GiB at most"
    )
    return table


def _pieces(found: dict[str, Any]) -> Table:
    table = _table("pieces", "piece", "ms", "remark")
    table.add_row("text, one prompt", f"{found['text_ms']:.1f}", "")
    table.add_row("start, new prompt and face", f"{found['start_ms']:.1f}", "")
    table.add_row("start, same prompt", f"{found['restart_ms']:.1f}", "")
    for name, kernels in found["attention"].items():
        for kernel, row in kernels.items():
            if row:
                table.add_row(f"{name}, {kernel}", f"{row['ms']:.3f}", f"off by {row['error']:.1e}")
    return table


def _memory(found: dict[str, Any]) -> Table:
    table = _table("memory", "what", "MiB")
    for name, value in found.items():
        table.add_row(name.removesuffix("_mib"), f"{value:.0f}")
    return table


def _decode(found: dict[str, Any]) -> Table:
    table = _table("decoding one picture", "way", "ms", "remark")
    for name, row in found.items():
        remark = f"off by {row['mean_difference']:.2f} on average, {row['largest_difference']} at most, of 255"
        table.add_row(name, f"{row['ms']:.1f}", remark)
    return table


def _costs(found: dict[str, Any]) -> Table:
    table = _table("milliseconds of one unit of work", "mode", "unit and side", "rows", "ms", "of as many single rows")
    for mode, sizes in found.items():
        for size, points in sizes.items():
            (first, one), *_ = points.items()
            for rows, seconds in points.items():
                share = seconds / (one * int(rows) / int(first))
                table.add_row(mode, size, str(rows), f"{seconds * 1000:.1f}", f"{share:.2f}")
    return table


def _cold(found: dict[str, Any]) -> Table:
    columns = [(mode, name) for mode, starts in found.items() for name in starts]
    table = _table("seconds from process start", "stage", *(f"{mode}, {name}" for mode, name in columns))
    for stage in found[columns[0][0]][columns[0][1]]:
        table.add_row(stage, *(f"{found[mode][name][stage]:.1f}" for mode, name in columns))
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table
