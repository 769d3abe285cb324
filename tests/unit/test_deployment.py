"""The list of settings: what the packages read, and what the container and compose read beside it."""

import re
from pathlib import Path

from instantid.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
ENTRY_POINT = (ROOT / "deploy/docker/entrypoint.sh").read_text()


def listed():
    lines = [line for line in (ROOT / ".env.example").read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split("=", 1) for line in lines)


def test_env_example_lists_every_setting_with_a_value_that_fits(monkeypatch):
    names = {f"INSTANTID_{name.upper()}" for name in Settings.model_fields}
    values = {name: value for name, value in listed().items() if name in names}
    assert set(values) == names
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    for name, field in Settings.model_fields.items():
        assert field.is_required() or getattr(settings, name) == field.default


def test_env_example_lists_what_compose_and_the_entry_point_read_with_its_default():
    compose = dict(re.findall(r"(?<!\$)\$\{(\w+):-([^{}]*)\}", COMPOSE))
    triton = dict(re.findall(r"\$\{((?:TRITON|OTEL)_\w+):-([^}]*)\}", ENTRY_POINT))
    names = {f"INSTANTID_{name.upper()}" for name in Settings.model_fields}
    values = {name: value for name, value in listed().items() if name not in names}
    assert values == {**compose, **triton}
