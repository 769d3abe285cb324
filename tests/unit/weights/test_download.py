"""Downloads that fail: no incomplete file stays under its name, messages name the file, and the next run continues."""

import pytest

from build_tools.published.manifest import Source, WeightsError, load_manifest
from build_tools.published.transfer import Hub, check_downloads, fetch, hash_file, read_lock

from .downloads import BIG, CONTENT, SIZE, SMALL, WRITTEN, assert_whole, get, partial, place, source
from .hub import REVISION, Fault
from .published_miniature import toml


def assert_nothing_half_done(tmp_path, error):
    assert f"someone/weights/{BIG}: " in str(error.value)
    assert "1 of 2 files failed" in str(error.value)
    assert not place(tmp_path).exists()
    assert place(tmp_path, SMALL).read_bytes() == CONTENT[SMALL]


def test_files_arrive_once(hub, tmp_path):
    get(hub, tmp_path)
    assert_whole(tmp_path)
    assert hub.asked == {BIG: [0], SMALL: [0]}
    hub.reset()
    get(hub, tmp_path)
    assert not hub.asked


def test_a_changed_file_is_fetched_again(hub, tmp_path):
    get(hub, tmp_path)
    place(tmp_path).write_bytes(CONTENT[BIG][::-1])
    hub.reset()
    get(hub, tmp_path)
    assert_whole(tmp_path)
    assert hub.asked == {BIG: [0]}


def test_truncated_file_is_continued_by_the_next_run(hub, tmp_path):
    hub.faults[BIG] = Fault(content=CONTENT[BIG][:-1000])
    with pytest.raises(WeightsError) as error:
        get(hub, tmp_path)
    assert_nothing_half_done(tmp_path, error)
    get(hub, tmp_path)
    assert_whole(tmp_path)
    assert hub.asked[BIG] == [0, SIZE - 1000]


def test_wrong_checksum_leaves_nothing(hub, tmp_path):
    hub.faults[BIG] = Fault(content=CONTENT[BIG][:-1] + b"!")
    with pytest.raises(WeightsError) as error:
        get(hub, tmp_path)
    assert str(place(tmp_path)) + ": wrong checksum: sha256 is " in str(error.value)
    assert not place(tmp_path).exists()
    assert not partial(tmp_path).exists()
    get(hub, tmp_path)
    assert_whole(tmp_path)
    assert hub.asked[BIG] == [0, 0]


def test_dropped_connection_is_resumed_at_once(hub, tmp_path, no_waiting):
    hub.faults[BIG] = Fault(drop_at=SIZE // 2)
    get(hub, tmp_path)
    assert_whole(tmp_path)
    assert hub.asked[BIG] == [0, WRITTEN]
    assert hub.sent[BIG] == SIZE + SIZE // 2 - WRITTEN


def test_connection_that_stays_away_is_resumed_by_the_next_run(hub, tmp_path, no_waiting):
    hub.faults[BIG] = Fault(drop_at=SIZE // 2, times=100)
    with pytest.raises(WeightsError) as error:
        get(hub, tmp_path)
    assert_nothing_half_done(tmp_path, error)
    assert partial(tmp_path).stat().st_size == WRITTEN
    hub.reset()
    get(hub, tmp_path)
    assert_whole(tmp_path)
    assert hub.asked[BIG] == [WRITTEN]
    assert hub.sent[BIG] == SIZE - WRITTEN


def test_a_long_transfer_says_now_and_then_what_is_left(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("build_tools.published.transfer.REPORT_SECONDS", 0.2)
    hub.faults[BIG] = Fault(drop_at=SIZE // 2, pause=1)
    lines = []
    fetch([source()], tmp_path / "published", Hub(hub.url), lines.append)
    assert "0.01 GB left" in lines
    assert lines[-1] == f"have someone/weights/{BIG}"


@pytest.mark.parametrize(("left", "asked"), [(SIZE, []), (SIZE + 5, [0]), (SIZE - 5, [SIZE - 5])])
def test_what_an_earlier_run_left_behind(hub, tmp_path, left, asked):
    partial(tmp_path).parent.mkdir(parents=True)
    partial(tmp_path).write_bytes((CONTENT[BIG] + b"other")[:left])
    get(hub, tmp_path)
    assert_whole(tmp_path)
    assert hub.asked.get(BIG, []) == asked


def test_unreachable_hub(tmp_path, no_waiting):
    with pytest.raises(WeightsError, match=f"2 of 2 files failed:\nsomeone/weights/{SMALL}: .*refused"):
        fetch([source()], tmp_path / "published", Hub("http://127.0.0.1:9"), lambda line: None)


def test_revision_that_the_hub_does_not_know(hub, tmp_path):
    known = source()
    other = Source("sdxl", known.repository, "f" * 40, known.licence, False, known.files)
    with pytest.raises(WeightsError, match=f"someone/weights/{BIG}: .*Revision Not Found"):
        fetch([other], tmp_path / "published", Hub(hub.url), lambda line: None)


def test_unpublished_checksum_is_recorded_at_the_first_download(hub, tmp_path):
    chosen = get(hub, tmp_path, published=False)
    key = f"someone/weights@{REVISION}/{BIG}"
    known = hash_file(place(tmp_path))
    assert read_lock(tmp_path / "published") == {key: {"size": SIZE, "sha256": known}}
    place(tmp_path).write_bytes(CONTENT[BIG][:-1] + b"!")
    with pytest.raises(WeightsError, match=f"{BIG}: wrong checksum: .* expected {known}"):
        check_downloads([chosen], tmp_path / "published")
    hub.faults[BIG] = Fault(content=CONTENT[BIG][:-1] + b"!")
    with pytest.raises(WeightsError, match=f"expected {known}"):
        get(hub, tmp_path, published=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"revision": "main"}, "sdxl.revision: .* match pattern"),
        ({"licence": None}, "sdxl.licence: Field required"),
        ({"kind": "onnx"}, "sdxl.kind: Unexpected keyword argument"),
        ({"files": [{"path": "a", "size": 1, "sha256": "0" * 63, "to": "b"}]}, "files.0.sha256: .* match pattern"),
        ({"files": [{"path": "a", "size": 0, "sha256": "0" * 64, "to": "b"}]}, "files.0.size: .* greater than 0"),
        ({"files": [{"path": "a", "size": 1, "sha256": "0" * 64}]}, "files.0: .*a: needs either to or members"),
        ({"files": [{"path": "a", "size": 1, "to": "b"}]}, "files.0.sha256: Field required"),
    ],
)
def test_manifest_of_another_form(tmp_path, change, message):
    table = {"repository": "a/b", "revision": REVISION, "licence": "MIT", "must_accept": False, "files": [], **change}
    path = tmp_path / "weights.toml"
    path.write_text(toml({"sdxl": {key: value for key, value in table.items() if value is not None}}))
    with pytest.raises(WeightsError, match=message):
        load_manifest(path)
