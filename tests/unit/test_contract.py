"""The contract against what is written from it: the literal `config.pbtxt` files, and what one more option changes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from build_tools.configs import write_configs
from instantid import contract

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
CONFIGS = sorted(REPOSITORY.glob("*/config.pbtxt")) + sorted(REPOSITORY.glob("*/configs/*.pbtxt"))
TYPES = {
    "BYTES": "TYPE_STRING",
    "UINT8": "TYPE_UINT8",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "FP32": "TYPE_FP32",
}
MODELS = {model.name: model for model in contract.MODELS}


def parse(path):
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def declared(tensors):
    return [(t.name, TYPES[t.datatype], tuple(t.dims), t.optional) for t in tensors]


def configured(tensors):
    name = model_config_pb2.DataType.Name
    return [(t.name, name(t.data_type), tuple(t.dims), getattr(t, "optional", False)) for t in tensors]


def test_every_model_of_the_contract_has_its_folder():
    assert {path.parent.name for path in REPOSITORY.glob("*/config.pbtxt")} == set(MODELS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_config_repeats_the_contract(path):
    config = parse(path)
    model = MODELS[config.name]
    assert path.is_relative_to(REPOSITORY / config.name)
    assert configured(config.input) == declared(model.inputs)
    assert configured(config.output) == declared(model.outputs)


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"instantid"}))
def test_cpu_variant_differs_from_the_gpu_one_only_in_where_it_runs(name):
    gpu = parse(REPOSITORY / name / "config.pbtxt")
    cpu = parse(REPOSITORY / name / "configs" / "cpu.pbtxt")
    assert gpu.parameters["config_name"].string_value == "gpu"
    assert cpu.parameters["config_name"].string_value == "cpu"
    assert all(group.kind == model_config_pb2.ModelInstanceGroup.KIND_CPU for group in cpu.instance_group)
    for config in (gpu, cpu):
        config.ClearField("instance_group")
        config.ClearField("parameters")
    assert gpu == cpu


def test_a_gpu_cluster_runs_the_networks_on_gpus():
    for name in ("face_analysis", "denoiser"):
        (group,) = parse(REPOSITORY / name / "config.pbtxt").instance_group
        assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, 1)
    assert parse(REPOSITORY / "face_analysis" / "config.pbtxt").backend == "onnxruntime"


def test_the_ensemble_is_linear_and_the_denoiser_last():
    steps = parse(REPOSITORY / "instantid" / "config.pbtxt").ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["intake", "face_analysis", "face_conditioning", "denoiser"]
    given = {tensor.name for tensor in contract.INSTANTID.inputs}
    for step in steps:
        model = MODELS[step.model_name]
        assert dict(step.input_map) == {t.name: t.name for t in model.inputs}
        assert set(step.input_map.values()) <= given
        assert set(step.output_map) == {t.name for t in model.outputs}
        assert not given & set(step.output_map.values()), "inputs and outputs share one namespace"
        given |= set(step.output_map.values())
    assert {tensor.name for tensor in contract.INSTANTID.outputs} <= given


def test_only_the_first_stage_has_optional_inputs():
    for model in (contract.FACE_ANALYSIS, contract.FACE_CONDITIONING, contract.DENOISER):
        assert not any(tensor.optional for tensor in model.inputs)


def test_the_denoiser_queues_with_the_contracts_priorities():
    batching = parse(REPOSITORY / "denoiser" / "config.pbtxt").dynamic_batching
    assert batching.priority_levels == contract.PRIORITY_LEVEL.high
    assert batching.default_priority_level == contract.PRIORITY_LEVEL.default
    assert batching.default_queue_policy.max_queue_size > 0


def test_every_file_is_as_the_contract_writes_it():
    assert write_configs(check=True) == []


@pytest.fixture
def tree(tmp_path):
    """A copy of what the writer reads and writes."""
    for folder in ("src/instantid", "client/instantid_client", "build_tools", "model_repository", "docs"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.onnx", "*.jpg")
        )
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def run(tree, *command):
    path = os.pathsep.join(str(tree / folder) for folder in ("src", "client", "."))
    return subprocess.run(
        [sys.executable, *command], cwd=tree, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )


def test_the_writer_mends_what_was_edited_and_keeps_the_rest(tree):
    config = tree / "model_repository/denoiser/config.pbtxt"
    before = config.read_text()
    config.write_text(before.replace("TYPE_UINT8", "TYPE_FP32").replace("max_queue_size: 64", "max_queue_size: 65"))
    assert write_configs(tree, check=True) == [config]
    assert write_configs(tree) == [config]
    assert config.read_text() == before.replace("max_queue_size: 64", "max_queue_size: 65")


def test_the_writer_names_the_file_whose_part_is_gone(tree):
    page = tree / "README.md"
    page.write_text(page.read_text().replace("<!-- end of inputs -->", ""))
    with pytest.raises(ValueError, match=r"README\.md: must have one part from '<!-- inputs"):
        write_configs(tree)


USE_OF_THE_NEW_OPTION = """
import sys
import numpy as np
from instantid.errors import InvalidArgument
from instantid.profile import SDXL, Profile
from instantid.request import GenerationRequest, read_request
photo = np.array([open(sys.argv[1], "rb").read()], object)
def read(**inputs):
    inputs = {"photo": photo, "prompt": np.array([b"x"], object), **inputs}
    return read_request(inputs, {}, Profile("full", **SDXL))[0]
assert GenerationRequest(prompt="x", width=64, height=64).eta == read().eta == 0.25
request = read(eta=np.array([1.5], np.float32))
assert GenerationRequest.from_json(request.to_json()).public(1)["eta"] == 1.5
try:
    read(eta=np.array([2.5], np.float32))
except InvalidArgument as error:
    print(error)
"""


def test_a_new_numeric_option_is_one_edit_of_the_contract(tree):
    path = tree / "src/instantid/contract.py"
    last = "    NUM_IMAGES_PER_PROMPT,\n"
    assert last in path.read_text()
    option = '    Number("eta", "FP32", 0.25, 0.0, 2.0, "Noise that each step adds."),\n'
    path.write_text(path.read_text().replace(last, last + option))
    assert run(tree, "-m", "build_tools", "configs", "--check").returncode == 1
    written = run(tree, "-m", "build_tools", "configs")
    assert written.returncode == 0, written.stderr
    for name in ("instantid/config.pbtxt", "intake/config.pbtxt", "intake/configs/cpu.pbtxt"):
        (tensor,) = (t for t in parse(tree / "model_repository" / name).input if t.name == "eta")
        assert (tensor.data_type, tensor.optional) == (model_config_pb2.TYPE_FP32, True)
    steps = parse(tree / "model_repository/instantid/config.pbtxt").ensemble_scheduling.step
    assert [step.model_name for step in steps if "eta" in step.input_map] == ["intake"]
    assert "| `eta` | FP32 | 0.25 | 0..2 | Noise that each step adds. |" in (tree / "README.md").read_text()
    assert "    eta: float\n" in (tree / "client/instantid_client/_options.py").read_text()
    assert option in (tree / "client/instantid_client/contract.py").read_text()
    used = run(tree, "-c", USE_OF_THE_NEW_OPTION, str(ROOT / "docs/miniature/vae.jpg"))
    assert used.stdout == "eta: 2.5; must be within 0..2\n", used.stderr


def test_the_writer_needs_no_network_library(tree):
    script = (
        "import sys, build_tools.configs as c; c.write_configs(); assert not {'torch', 'diffusers'} & set(sys.modules)"
    )
    assert run(tree, "-c", script).returncode == 0
