"""Conversion and the folder of a set: what is refused, what is kept, and that a set appears complete or not at all."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from build_tools.convert import cast_floats, convert_adapter, convert_floats, has_floats_other_than
from build_tools.published.assemble import extract, place
from build_tools.published.checkpoint import diffusers_files
from build_tools.published.folder import changes, is_current, read_record, staged, write_record
from build_tools.published.manifest import PublishedFile, WeightsError
from build_tools.published.verify import verify
from build_tools.weights import make_miniature

MEMBERS = (PublishedFile("scrfd_10g_bnkps.onnx", len(b"detector"), None, "face/detector.onnx"),)


FOLDER = [
    *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder", "text_encoder_2")),
    *("scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer_2/vocab.json"),
    *("text_encoder/model.safetensors", "text_encoder_2/model.safetensors"),
    *("vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"),
    *("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"),
]
SHARDS = [
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
]


def test_float16_files_are_taken_but_the_whole_vae():
    chosen = diffusers_files([*FOLDER, "unet/model.onnx", "README.md"], "here")
    assert chosen["unet/diffusion_pytorch_model.fp16.safetensors"] == "unet/diffusion_pytorch_model.safetensors"
    assert "vae/diffusion_pytorch_model.safetensors" in chosen
    assert "text_encoder/model.safetensors" in chosen
    assert len(chosen) == len(FOLDER) - 2


def test_a_network_in_parts():
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    whole = [name for name in FOLDER if "unet/diffusion" not in name]
    chosen = diffusers_files([*whole, index, *SHARDS], "here")
    assert {name for name in chosen if name.startswith("unet/")} == {"unet/config.json", index, *SHARDS}


def test_names_that_lead_out_of_the_folder_are_not_taken():
    evil = ["scheduler/../../../.bashrc.json", "unet/diffusion_pytorch_model-/../../x.safetensors"]
    assert not set(evil) & set(diffusers_files([*FOLDER, *evil], "here"))


@pytest.mark.parametrize("nested", ["", "antelopev2/", "models/antelopev2/"])
def test_archive_members_are_found_in_any_folder(tmp_path, nested):
    extract(archive(tmp_path, {f"{nested}scrfd_10g_bnkps.onnx": b"detector"}), MEMBERS, tmp_path / "set")
    assert [path.name for path in (tmp_path / "set").rglob("*") if path.is_file()] == ["detector.onnx"]
    assert (tmp_path / "set/face/detector.onnx").read_bytes() == b"detector"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"antelopev2/det_10g.onnx": b"detector"}, "holds 0 files named scrfd_10g_bnkps.onnx"),
        ({"a/scrfd_10g_bnkps.onnx": b"detector", "b/scrfd_10g_bnkps.onnx": b"detector"}, "holds 2 files named"),
        ({"antelopev2/scrfd_10g_bnkps.onnx": b"other"}, "scrfd_10g_bnkps.onnx: is 5 bytes long, expected 8"),
    ],
)
def test_archive_of_other_content(tmp_path, content, message):
    with pytest.raises(WeightsError, match=message):
        extract(archive(tmp_path, content), MEMBERS, tmp_path / "set")


def archive(folder: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(folder / "antelopev2.zip", "w") as packed:
        for name, data in content.items():
            packed.writestr(name, data)
    return folder / "antelopev2.zip"


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"image_proj": Bomb(), "ip_adapter": {}}, "ip-adapter.bin")
    with pytest.raises(ValueError, match=r"ip-adapter\.bin: is not a plain pickle of tensors"):
        convert_adapter(Path("ip-adapter.bin"), Path("out.safetensors"))
    Path("old.bin").write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(ValueError, match=r"old\.bin: is not a plain pickle of tensors"):
        convert_adapter(Path("old.bin"), Path("out.safetensors"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ip-adapter.bin", "old.bin"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_floats_become_one_type_and_integers_stay(tmp_path, dtype):
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(5).half(), "c": torch.arange(3)}
    save_file(tensors, tmp_path / "in.safetensors")
    assert has_floats_other_than(tmp_path / "in.safetensors", dtype)
    convert_floats(tmp_path / "in.safetensors", tmp_path / "out.safetensors", dtype)
    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found["a"], tensors["a"].to(dtype))
    assert torch.equal(found["b"], tensors["b"].to(dtype))
    assert torch.equal(found["c"], tensors["c"])
    assert not has_floats_other_than(tmp_path / "out.safetensors", dtype)


def test_values_beyond_float16_are_refused_by_name():
    with pytest.raises(ValueError, match="unet: conv_in: holds values too large for"):
        cast_floats(torch.tensor([1.0, 7e4]), torch.float16, "unet: conv_in")
    assert cast_floats(torch.tensor([1.0, 7e4]), torch.bfloat16, "unet: conv_in").dtype == torch.bfloat16


def test_a_file_across_disks_is_copied(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("os.link", lambda *paths: (_ for _ in ()).throw(OSError("cross-device link")))
    place(tmp_path / "config.json", tmp_path / "set/unet/config.json", torch.float16)
    assert (tmp_path / "set/unet/config.json").read_text() == "{}"
    assert not (tmp_path / "set/unet/config.json").samefile(tmp_path / "config.json")


def test_a_set_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    old = tmp_path / "full"
    old.mkdir()
    (old / "profile.json").write_text("{}")
    with pytest.raises(FileExistsError), staged(old) as stage:
        [(stage / "half").mkdir() for _ in range(2)]
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "profile.json"]


def test_what_a_killed_run_left_is_cleared(tmp_path):
    (tmp_path / ".full.partial/sdxl").mkdir(parents=True)
    with staged(tmp_path / "full") as stage:
        assert not list(stage.iterdir())
        (stage / "profile.json").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "profile.json"]


def test_record_of_a_set(tmp_path):
    (tmp_path / "sdxl").mkdir()
    (tmp_path / "sdxl/unet").write_bytes(b"abc")
    write_record(tmp_path, {"dtype": "float16"})
    assert is_current(tmp_path, {"dtype": "float16"})
    assert not is_current(tmp_path, {"dtype": "bfloat16"})
    assert changes(tmp_path, read_record(tmp_path)) == []
    (tmp_path / "sdxl/unet").write_bytes(b"abd")
    assert is_current(tmp_path, {"dtype": "float16"})
    assert changes(tmp_path, read_record(tmp_path)) == ["sdxl/unet: was changed since the set was made"]
    (tmp_path / "sdxl/unet").write_bytes(b"ab")
    assert not is_current(tmp_path, {"dtype": "float16"})


def test_the_miniature_is_verified_by_the_same_command(tmp_path):
    assert verify(make_miniature(tmp_path / "miniature"), load=True) == []
