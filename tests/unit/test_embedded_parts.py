"""Parts of the embedded server that need no server: repository, log, checks before the start, restarts."""

import shutil
import socket
from pathlib import Path

import psutil
import pytest

from build_tools.embedded import guard, layout, log, preflight
from build_tools.embedded.options import Ports, PreflightError, ServerOptions
from build_tools.embedded.repository import assemble_repository
from build_tools.embedded.server import choose_ports

LOG = """\
2026-01-01T00:00:00Z E 7 server.cc:241] "CudaDriverHelper has not been initialized."
2026-01-01T00:00:01Z I 7 model_lifecycle.cc:839] "successfully loaded 'pre'"
2026-01-01T00:00:02Z E 7 model_lifecycle.cc:642] "failed to load 'x' version 1: Internal: none\\n\\nAt:\\n a.py\\n"
2026-01-01T00:00:03Z E 7 model_repository_manager.cc:703] "Invalid argument: ensemble 'e' depends on 'x'"
error: creating server: Internal - failed to load all models
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in ("face_analysis", "intake"):
        (tmp_path / "models" / name / "configs").mkdir(parents=True)
        (tmp_path / "models" / name / "config.pbtxt").write_text(f'name: "{name}"\n')
        (tmp_path / "models" / name / "configs" / "cpu.pbtxt").write_text("cpu\n")
    (tmp_path / "models" / "intake" / "1").mkdir()
    (tmp_path / "models" / "intake" / "1" / "model.py").write_text("pass\n")
    return tmp_path / "models"


def weights(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    (folder / "face_analysis.onnx").write_bytes(content)
    return folder / "face_analysis.onnx"


def test_repository_links_the_graph_of_its_weights(source: Path, tmp_path: Path) -> None:
    first = assemble_repository(source, weights(tmp_path / "a", b"a"), tmp_path / "run_a")
    second = assemble_repository(source, weights(tmp_path / "b", b"b"), tmp_path / "run_b")
    assert (first / "face_analysis/1/model.onnx").read_bytes() == b"a"
    assert (second / "face_analysis/1/model.onnx").read_bytes() == b"b"
    assert (first / "intake/1/model.py").read_text() == "pass\n"
    assert (first / "intake/configs/cpu.pbtxt").is_file()
    assert not (source / "face_analysis/1").exists()


def test_repository_is_made_anew(source: Path, tmp_path: Path) -> None:
    graph = weights(tmp_path / "a", b"a")
    output = assemble_repository(source, graph, tmp_path / "run")
    (output / "stale").mkdir()
    shutil.rmtree(source / "intake")
    assemble_repository(source, graph, output)
    assert sorted(path.name for path in output.iterdir() if path.is_dir()) == ["face_analysis"]
    assert graph.read_bytes() == b"a"


def test_repository_never_replaces_a_foreign_folder(source: Path, tmp_path: Path) -> None:
    graph = weights(tmp_path / "a", b"a")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="mine"):
        assemble_repository(source, graph, tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep"
    with pytest.raises(FileNotFoundError, match=r"no face graph at .*absent"):
        assemble_repository(source, tmp_path / "absent", tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="no model repository in"):
        assemble_repository(tmp_path / "absent", graph, tmp_path / "run")


def test_log_tells_models_and_their_errors() -> None:
    assert log.loaded_models(LOG) == ["pre"]
    assert log.load_errors(LOG) == {"x": "Internal: none\n\nAt:\n a.py"}
    assert log.errors(LOG)[-2:] == [
        "Invalid argument: ensemble 'e' depends on 'x'",
        "error: creating server: Internal - failed to load all models",
    ]
    assert not any("CudaDriverHelper" in message for message in log.errors(LOG))


def test_chosen_ports_are_free_and_differ() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ports = choose_ports("127.0.0.1", Ports(http=taken.getsockname()[1]))
        assert ports.http == taken.getsockname()[1]
        assert len({ports.grpc, ports.http, ports.metrics}) == 3


def test_this_machine_passes(tmp_path: Path) -> None:
    preflight.check(ServerOptions(tmp_path, tmp_path))


def test_every_lack_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "SHARED_MEMORY", tmp_path / "absent")
    monkeypatch.setattr(preflight, "version", lambda package: "2.1.0")
    monkeypatch.setattr(preflight, "stub_binary", lambda: layout.stub_binary().parents[1] / "3.99" / "stub")
    with pytest.raises(PreflightError) as caught:
        preflight.check(ServerOptions(tmp_path, tmp_path, minimum_memory=psutil.virtual_memory().total + 1))
    message = str(caught.value)
    for part in (
        "no stub for Python 3.",
        "it has 3.10, 3.11, 3.12",
        "numpy 2.1.0",
        "absent does not exist",
        "of memory",
    ):
        assert part in message


def test_small_shared_memory_is_named_with_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "SMALLEST_SHARED_MEMORY", shutil.disk_usage("/dev/shm").total + (1 << 20))
    with pytest.raises(PreflightError, match=r"/dev/shm has \d+ MiB free, \d+ MiB are needed"):
        preflight.check(ServerOptions(tmp_path, tmp_path))


def test_old_system_is_refused_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.confstr", lambda name: "glibc 2.31")
    with pytest.raises(PreflightError, match=r"glibc >= 2\.35 .*found glibc 2\.31"):
        preflight.check(ServerOptions(tmp_path, tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(PreflightError, match="Linux on x86-64; this is linux on aarch64"):
        preflight.check(ServerOptions(tmp_path, tmp_path))


def test_loader_names_the_library_it_cannot_find(tmp_path: Path) -> None:
    """The stub's libpython under a name that no machine has."""
    stub = tmp_path / "stub"
    wanted = layout.LIBPYTHON.encode()
    stub.write_bytes(layout.stub_binary().read_bytes().replace(wanted, wanted[:-1] + b"9"))
    stub.chmod(0o755)
    environment = layout.child_environment({})
    assert preflight.missing_libraries(stub, environment) == [layout.LIBPYTHON[:-1] + "9"]
    assert preflight.missing_libraries(layout.stub_binary(), environment) == []


def test_missing_libpython_comes_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "missing_libraries", lambda binary, environment: [layout.LIBPYTHON])
    package = layout.LIBPYTHON.removesuffix(".so.1.0")
    with pytest.raises(PreflightError, match=f"apt-get install {package}"):
        preflight.check(ServerOptions(tmp_path, tmp_path))


def test_only_own_shared_memory_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SHARED_MEMORY", tmp_path)
    for name in ("mine_1_a", "mine_1_b", "mine_2_a", "sem.other"):
        (tmp_path / name).touch()
    assert sorted(guard.remove_shared_memory("mine_1_")) == ["mine_1_a", "mine_1_b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine_2_a", "sem.other"]


def test_pauses_grow_and_end() -> None:
    assert [guard.pause_before_restart(n) for n in range(1, 7)] == [1, 2, 4, 8, 16, None]
