"""docker-compose.yml, as Docker Compose itself reads it. Nothing is started."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from instantid import contract
from instantid.models.sdxl.schedules import count_steps

ROOT = Path(__file__).parents[2]
COMPOSE = Path(sys.executable).with_name("docker-compose")
SECONDS_A_ROW = 0.15
"""One UNet row with IdentityNet, one megapixel, float16, on the slowest GPU that the default exit timeout is for."""


def compose(*arguments, **environment):
    command = [COMPOSE, "--env-file", "/dev/null", "--profile", "*", "config", "--format", "json", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "level=warn" not in result.stderr, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def project():
    return compose()


@pytest.fixture(scope="module")
def services(project):
    return project["services"]


def test_a_key_that_the_specification_does_not_know_is_refused(tmp_path):
    broken = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    broken["services"]["triton"]["shm_sise"] = "1gb"
    (tmp_path / "compose.yml").write_text(yaml.safe_dump(broken))
    result = subprocess.run([COMPOSE, "config", "--quiet"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert "shm_sise" in result.stderr


def test_the_order_of_starting(services):
    conditions = {
        (name, other): condition["condition"]
        for name, service in services.items()
        for other, condition in service.get("depends_on", {}).items()
    }
    assert conditions == {
        ("triton", "weights"): "service_completed_successfully",
        ("grafana", "prometheus"): "service_healthy",
        ("client", "triton"): "service_healthy",
        ("loadtest", "triton"): "service_healthy",
    }
    assert {name for name, service in services.items() if "profiles" not in service} == {
        *("weights", "triton", "prometheus", "grafana")
    }


def test_triton_gets_every_gpu_and_the_rest_none(services):
    devices = {name: service.get("deploy", {}).get("resources", {}) for name, service in services.items()}
    (device,) = devices.pop("triton")["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", -1, ["gpu"])
    assert not any(devices.values())


def test_nothing_can_write_to_its_image_or_gain_rights(services):
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(mount["target"] != "/var/run/docker.sock" for mount in service.get("volumes", [])), name


def test_only_this_machine_reaches_it_unless_the_operator_says_otherwise(services):
    def addresses(found):
        return {port["host_ip"] for service in found.values() for port in service.get("ports", [])}

    assert addresses(services) == {"127.0.0.1"}
    opened = compose(INSTANTID_BIND="0.0.0.0")["services"]
    assert {port["host_ip"] for port in opened["triton"]["ports"] if port["target"] == 8001} == {"0.0.0.0"}
    assert addresses({name: opened[name] for name in ("prometheus", "grafana")}) == {"127.0.0.1"}


def test_secrets_are_files_and_an_empty_one_stands_for_none(project):
    assert {secret["file"] for secret in project["secrets"].values()} == {"/dev/null"}
    given = compose(INSTANTID_ADMIN_KEY_FILE="/etc/key")
    assert given["secrets"]["admin_key"]["file"] == "/etc/key"
    for service in project["services"].values():
        assert not any("PASSWORD" in name or name.endswith(("TOKEN", "KEY")) for name in service.get("environment", {}))


def test_weights_come_from_a_volume_or_from_the_operators_folder(services):
    def mounts(found):
        return {
            name: next(mount for mount in found[name]["volumes"] if mount["target"] == "/weights")
            for name in ("weights", "triton")
        }

    ours, theirs = mounts(services), mounts(compose(INSTANTID_WEIGHTS_DIR="./weights")["services"])
    assert {mount["type"] for mount in ours.values()} == {"volume"}
    assert {mount["source"] for mount in theirs.values()} == {str(ROOT / "weights")}
    assert ours["triton"]["read_only"]
    assert not ours["weights"].get("read_only")


def test_options_of_the_weights_job_are_words(services):
    job = ["build_tools", "weights", "full", "--output", "/weights/full"]
    assert services["weights"]["command"] == job
    given = compose(INSTANTID_WEIGHTS_OPTIONS="--with hyper")["services"]
    assert given["weights"]["command"] == [*job, "--with", "hyper"]


def test_the_weights_job_and_the_load_test_know_their_options(services):
    from typer.testing import CliRunner

    from build_tools.__main__ import app
    from loadtest.__main__ import app as loadtest

    options = [word for word in services["weights"]["command"][1:] if word != "/weights/full"]
    shown = CliRunner().invoke(app, [*options[:2], "--help"]).output
    assert all(option in shown for option in options if option.startswith("--"))
    module, command, *options, scenario = services["loadtest"]["command"]
    shown = CliRunner().invoke(loadtest, [command, "--help"]).output
    assert (module, scenario) == ("loadtest", "steady")
    assert all(option in shown for option in options if option.startswith("--"))


def test_every_mounted_file_exists_and_prometheus_reads_the_mounted_rules(services):
    for service in services.values():
        for mount in service.get("volumes", []):
            assert mount["type"] != "bind" or Path(mount["source"]).exists(), mount
    config = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yml").read_text())
    targets = {mount["target"] for mount in services["prometheus"]["volumes"]}
    assert set(config["rule_files"]) <= targets
    provider = yaml.safe_load((ROOT / "deploy/monitoring/dashboards.yml").read_text())["providers"][0]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(provider["options"]["path"])
    assert home in {mount["target"] for mount in services["grafana"]["volumes"]}


def test_images_of_others_are_pinned(services):
    for name, service in services.items():
        if "build" not in service:
            assert service["image"].partition(":")[2].count(".") >= 2, name


def test_a_stopping_server_has_time_for_the_longest_picture(services):
    """The longest that may still wait, then every step of the largest request; compose waits longer than Triton."""
    script = (ROOT / "deploy/docker/entrypoint.sh").read_text()
    exit_timeout = int(script.split("TRITON_EXIT_TIMEOUT:-")[1].split("}")[0])
    steps = max(count_steps(name, 50 if name == "lcm" else 100) for name in contract.SCHEDULERS)
    rows = 2 * contract.NUM_IMAGES_PER_PROMPT.high
    longest = steps * rows * 2 * SECONDS_A_ROW
    assert exit_timeout >= 60 + longest
    assert services["triton"]["stop_grace_period"] == "11m0s"
    assert exit_timeout < 11 * 60
