"""Files that no test here can run: the container, compose and the list of settings."""

import re
from pathlib import Path

import yaml

from instantid.settings import Settings

ROOT = Path(__file__).parents[2]


def test_env_example_lists_every_setting_with_a_value_that_fits(monkeypatch):
    lines = [line for line in (ROOT / ".env.example").read_text().splitlines() if line and line[0] != "#"]
    values = dict(line.split("=", 1) for line in lines)
    assert set(values) == {f"INSTANTID_{name.upper()}" for name in Settings.model_fields}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    for name, field in Settings.model_fields.items():
        assert field.is_required() or getattr(settings, name) == field.default


def test_every_source_of_the_image_exists():
    for line in (ROOT / "deploy/docker/Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source


def test_compose_and_dockerfile_name_the_same_pinned_image():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    triton = compose["services"]["triton"]
    image = triton["build"]["args"]["TRITON_IMAGE"]
    assert re.fullmatch(r"nvcr\.io/nvidia/tritonserver:\d\d\.\d\d-py3", image)
    assert f"ARG TRITON_IMAGE={image}\n" in (ROOT / triton["build"]["dockerfile"]).read_text()
