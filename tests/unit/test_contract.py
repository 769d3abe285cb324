"""The literal `config.pbtxt` files against the contract."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from instantid import contract

REPOSITORY = Path(__file__).parents[2] / "model_repository"
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
    for step in steps:
        model = MODELS[step.model_name]
        assert dict(step.input_map) == {t.name: t.name for t in model.inputs}
        assert dict(step.output_map) == {t.name: t.name for t in model.outputs}


def test_only_the_first_stage_has_optional_inputs():
    for model in (contract.FACE_ANALYSIS, contract.FACE_CONDITIONING, contract.DENOISER):
        assert not any(tensor.optional for tensor in model.inputs)


def test_the_denoiser_queues_with_the_contracts_priorities():
    batching = parse(REPOSITORY / "denoiser" / "config.pbtxt").dynamic_batching
    assert batching.priority_levels == contract.PRIORITY_LEVELS
    assert batching.default_priority_level == contract.DEFAULT_PRIORITY_LEVEL
    assert batching.default_queue_policy.max_queue_size > 0
