"""Heartbeats on files; the module imports nothing of Triton, so it is loaded by its path's name."""

import os
import threading
import time

from instantid.serving.heartbeat import STALE_SECONDS, Heartbeat, Watch, server_folders, stale


def test_a_living_instance_is_not_stale_and_leaves_nothing(tmp_path):
    folder = tmp_path / "beats"
    beat = Heartbeat(folder, "denoiser_0", lambda: True)
    os.utime(folder / "denoiser_0", (0, 0))
    time.sleep(1.2)
    assert stale(folder, time.time()) == []
    beat.close()
    assert not folder.exists()


def test_an_instance_without_progress_grows_stale(tmp_path):
    beat = Heartbeat(tmp_path / "beats", "denoiser_0", lambda: False)
    assert stale(tmp_path / "beats", time.time()) == []
    assert stale(tmp_path / "beats", time.time() + STALE_SECONDS + 1) == ["denoiser_0"]
    beat.close()


def test_a_watch_reports_a_stopped_heart_once(tmp_path):
    said, heard = [], threading.Event()
    (tmp_path / "denoiser_1").touch()
    os.utime(tmp_path / "denoiser_1", (0, 0))
    watch = Watch(tmp_path, lambda name: (said.append(name), heard.set()))
    assert heard.wait(5)
    time.sleep(1.2)
    watch.close()
    assert said == ["denoiser_1"]


def test_servers_do_not_share_a_folder():
    assert len({*server_folders(1), *server_folders(2)}) == 4
