"""Every training of docs/miniature.md runs as its command for two steps, and the results can be shipped."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from miniature.faces import DATA

ROOT = Path(__file__).parents[2]
ALBUM = ["--people", "16"]
SHORT = {
    "train_detector": ["--batch", "2", "2", "--pool-size", "16", "--mine", "16", "--portraits", "8"],
    "train_recogniser": ["--batch", "8", "--people", "8", "--shots", "3"],
    **{name: ["--batch", "4", *ALBUM] for name in ("train_vae", "train_base", "train_identity")},
}


def test_the_page_names_every_training():
    named = re.findall(r"python -m miniature\.(train_\w+)", (ROOT / "docs/miniature.md").read_text())
    assert set(named) == set(SHORT) == {path.stem for path in (ROOT / "miniature").glob("train_*.py")}


def test_the_service_knows_nothing_of_the_miniature():
    for path in (ROOT / "src").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) (miniature|build_tools)\b", path.read_text(), re.MULTILINE), path


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_trainings_and_shipping_run(tmp_path):
    work, shipped = tmp_path / "work", tmp_path / "shipped"
    shipped.mkdir()
    for name, arguments in SHORT.items():
        run(f"miniature.{name}", work, "--steps", "2", *arguments)
    run("miniature.ship", work, "--output", shipped, *ALBUM)
    made = {path.name: path for folder in (work, shipped) for path in folder.glob("*.safetensors")}
    assert set(made) == {path.name for path in DATA.glob("*.safetensors")}
    for name, path in made.items():
        with safe_open(path, "pt") as ours, safe_open(DATA / name, "pt") as theirs:
            assert set(ours.keys()) == set(theirs.keys()), name


def run(module, *arguments):
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{module}\n{done.stderr[-4000:]}"
