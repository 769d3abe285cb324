"""A scenario: who sends what, how often, for how long, and what the answers must keep to. Read from a TOML file."""

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loadtest.slo import Objective

Level = tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0)]]
"""A point of a shape: share of the run that has passed, and the multiple of the base load from there on."""
STEADY: tuple[Level, ...] = ((0.0, 1.0), (1.0, 1.0))
NAME = r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}$"
SCENARIOS = Path(str(files("loadtest"))) / "data" / "scenarios"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RequestClass(Strict):
    """A kind of request: its share of a tenant's requests, and the options of the client's `generate`."""

    name: str = Field(pattern=NAME)
    share: float = Field(1.0, gt=0)
    options: Mapping[str, Any] = {}


class Tenant(Strict):
    """A tenant: its weight in the load, and how its callers behave; times in seconds.

    `think` is the pause between an answer and the next request in a closed loop; `classes` names the classes that it
    sends, all if empty; `shape` multiplies its own load, on top of the scenario's shape.
    """

    name: str = Field(pattern=NAME)
    weight: float = Field(1.0, gt=0)
    priority: int | None = Field(None, ge=1, le=3)
    deadline: float | None = Field(None, gt=0, le=3600)
    think: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (0.5, 2.0)
    shape: tuple[Level, ...] = STEADY
    classes: tuple[str, ...] = ()


class Scenario(Strict):
    """Exactly one of `users`, `rate` and `load` says how much is sent at level 1.

    `users`: callers of a closed loop, each waits for its answer. `rate`: requests a second of an open loop, Poisson.
    `load`: the same, as a share of what the server can do one request at a time, measured before the run.
    """

    name: str = ""
    description: str
    seconds: float = Field(60.0, gt=0)
    seed: int = 0
    users: float | None = Field(None, gt=0)
    rate: float | None = Field(None, gt=0)
    load: float | None = Field(None, gt=0)
    shape: tuple[Level, ...] = STEADY
    tenants: tuple[Tenant, ...] = Field(min_length=1)
    classes: tuple[RequestClass, ...] = Field(min_length=1)
    objectives: tuple[Objective, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "Scenario":
        if sum(value is not None for value in (self.users, self.rate, self.load)) != 1:
            raise ValueError("exactly one of users, rate and load must be given")
        for group in (self.tenants, self.classes):
            if len({entry.name for entry in group}) < len(group):
                raise ValueError("names of tenants and of classes must differ")
        known = {kind.name for kind in self.classes}
        for tenant in self.tenants:
            if unknown := set(tenant.classes) - known:
                raise ValueError(f"tenant {tenant.name!r}: no class {min(unknown)!r}")
            _check_shape(tenant.shape)
        _check_shape(self.shape)
        return self

    @property
    def is_closed(self) -> bool:
        return self.users is not None

    def mix(self, tenant: Tenant) -> dict[str, float]:
        """Share of each class in the tenant's requests, by its name; the shares add up to 1."""
        sent = [kind for kind in self.classes if not tenant.classes or kind.name in tenant.classes]
        return {kind.name: kind.share / sum(other.share for other in sent) for kind in sent}

    def part(self, tenant: Tenant) -> float:
        """The tenant's share of the base load."""
        return tenant.weight / sum(other.weight for other in self.tenants)

    def level(self, tenant: Tenant, at: float) -> float:
        """Multiple of the tenant's base load at `at` seconds; 0 outside the run."""
        if not 0 <= at < self.seconds:
            return 0.0
        return interpolate(self.shape, at / self.seconds) * interpolate(tenant.shape, at / self.seconds)

    def peak(self, tenant: Tenant) -> float:
        """The highest level of the tenant's run, or a bound above it."""
        return max(level for _, level in self.shape) * max(level for _, level in tenant.shape)

    def callers(self, tenant: Tenant, level: float) -> int:
        """Callers of a tenant in a closed loop at this level: at least one wherever there is load."""
        wanted = (self.users or 0.0) * self.part(tenant) * level
        return max(1, int(wanted + 0.5)) if wanted else 0

    def capacity_rate(self, alone: Mapping[str, float]) -> float:
        """Requests a second that one request at a time can serve; `alone` has the seconds of each class alone."""
        mean = sum(
            self.part(tenant) * share * alone[kind]
            for tenant in self.tenants
            for kind, share in self.mix(tenant).items()
        )
        return 1 / mean

    def changed(self, **changes: Any) -> "Scenario":
        """The scenario with other fields; one of users, rate and load replaces whichever was given."""
        given = {name: value for name, value in changes.items() if value is not None}
        if given.keys() & {"users", "rate", "load"}:
            given = {"users": None, "rate": None, "load": None, **given}
        return Scenario.model_validate({**self.model_dump(), **given})


def _check_shape(shape: Sequence[Level]) -> None:
    places = [place for place, _ in shape]
    if places != sorted(places) or not places or places[0] != 0.0 or places[-1] != 1.0:
        raise ValueError("a shape goes from 0 to 1 in rising order")
    if max(level for _, level in shape) == 0:
        raise ValueError("a shape needs a level above 0")


def interpolate(shape: Sequence[Level], place: float) -> float:
    """The level at a share of the run: straight lines between points; two points at one place are a jump."""
    for (start, low), (end, high) in itertools.pairwise(shape):
        if start <= place < end:
            return low + (high - low) * (place - start) / (end - start)
    return shape[-1][1]


def shipped() -> dict[str, Path]:
    """The scenarios of the package by name."""
    return {path.stem: path for path in sorted(SCENARIOS.glob("*.toml"))}


def load_scenario(name: str) -> Scenario:
    """A shipped scenario by its name, or one from a TOML file. Raises ValueError with what is wrong."""
    path = shipped().get(name, Path(name))
    if not path.is_file():
        raise ValueError(f"{name}: no such scenario or file; shipped are {', '.join(shipped())}")
    return Scenario.model_validate({"name": path.stem, **read_toml(path, Scenario)})


def read_toml(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    """What a TOML file says, checked against `model`. Raises ValueError, one line for each fault."""
    try:
        found = tomllib.loads(path.read_text())
        model.model_validate(found)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    except ValidationError as error:
        raise ValueError("\n".join(f"{path}: {fault}" for fault in _faults(error))) from None
    return found


def _faults(error: ValidationError) -> Iterator[str]:
    for fault in error.errors():
        place = ".".join(map(str, fault["loc"]))
        yield f"{place}: {fault['msg']}" if place else str(fault["msg"])
