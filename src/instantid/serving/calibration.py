"""What a denoiser measures of itself when it is loaded: step costs, and how many rows its memory holds."""

import hashlib
import logging
from pathlib import Path

import diffusers
import numpy as np
import torch

from instantid import contract
from instantid.engine import CostTable
from instantid.engine.calibrate import kept_costs, measure_costs
from instantid.engine.task import Size
from instantid.models.sdxl import Job, SdxlDenoiser, free_bytes, kept_bytes
from instantid.profile import Profile
from instantid.request import GenerationRequest
from instantid.settings import Settings

log = logging.getLogger(__name__)

ROWS = (1, 2, 4, 8, 16)
FREE_SHARE = {"cuda": 0.8, "cpu": 0.25}
"""Of the free memory, what started requests may keep where the operator says nothing."""


def plan_costs(denoiser: SdxlDenoiser, profile: Profile, settings: Settings) -> CostTable:
    """Step costs at the weights' native size and half its side, kept in the cache folder from start to start.

    Measured or checked, every network has made a real pass before the model is ready.
    """
    sizes = planned_sizes(profile)
    path = settings.cache_folder / f"costs-{fingerprint(denoiser)}.json"
    table = kept_costs(path, denoiser, make_job, (sizes[0], 2))
    if table is None:
        table = measure_costs(denoiser, make_job, sizes, [rows for rows in ROWS if rows <= settings.max_rows])
        _keep(table, path)
    return table


def planned_sizes(profile: Profile) -> list[Size]:
    """The weights' native size, and half its side where that is allowed."""
    native = _square(profile.native_area**0.5, profile)
    return sorted({native, _square(native[0] / 2, profile)}, reverse=True)


def plan_rows(
    denoiser: SdxlDenoiser, profile: Profile, settings: Settings, costs: CostTable, reserved: float = 0.0
) -> int:
    """Rows that fit into the memory budget, by what the largest request keeps for one row.

    `reserved` are bytes for somebody else, of what is free.
    """
    native = next(iter(costs.seconds))
    area = native[0] * native[1]
    budget = settings.memory_gb * 1e9
    if not budget:
        step = _step_bytes(denoiser, native, costs.max_rows(native)) * profile.max_area / area
        budget = FREE_SHARE[denoiser.device.type] * (free_bytes(denoiser.device) - step - reserved)
    per_row = kept_bytes(denoiser.start(make_job(_square(profile.max_area**0.5, profile))))
    rows = min(settings.max_rows, max(int(budget / per_row), 2))
    log.info("%.1f GB for requests, %.1f MB a row: %d rows", budget / 1e9, per_row / 1e6, rows)
    return rows


def fingerprint(denoiser: SdxlDenoiser) -> str:
    """Changes with whatever changes step costs: device, versions, dtype, threads, networks, what is compiled."""
    networks = denoiser.networks
    on_gpu = denoiser.device.type == "cuda"
    facts = (
        torch.cuda.get_device_name(denoiser.device) if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        torch.__version__,
        diffusers.__version__,
        str(networks.dtype),
        *sorted(str(tuple(shape)) for shape in denoiser.compiled),
        *(str(sorted(network.config.items())) for network in (networks.unet, networks.identitynet, networks.vae)),
    )
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def make_job(size: Size) -> Job:
    """A request of one row."""
    height, width = size
    request = GenerationRequest(prompt="a portrait", width=width, height=height, guidance_scale=1.0)
    embedding = np.ones(contract.EMBEDDING_SIZE, np.float32)
    return Job(request, embedding, np.zeros((height, width, 3), np.uint8))


def _square(side: float, profile: Profile) -> Size:
    side = min(max(side, profile.min_side), profile.max_side)
    rounded = int(side) // contract.SIDE_MULTIPLE * contract.SIDE_MULTIPLE
    return rounded, rounded


def _step_bytes(denoiser: SdxlDenoiser, size: Size, rows: int) -> int:
    """What the largest batch needs for the time of a step, on a GPU; a CPU's share leaves room for it."""
    if denoiser.device.type == "cpu":
        return 0
    states = [denoiser.start(make_job(size)) for _ in range(rows)]
    before = torch.cuda.memory_allocated(denoiser.device)
    torch.cuda.reset_peak_memory_stats(denoiser.device)
    denoiser.step(states)
    denoiser.decode(states[0])
    return torch.cuda.max_memory_allocated(denoiser.device) - before


def _keep(table: CostTable, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{id(table)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.save(partial)
        partial.replace(path)
    except OSError as error:
        log.info("step costs are not kept: %s", error)
