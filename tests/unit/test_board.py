"""What the processes of a server tell each other: who is alive, and in which folder."""

import os
import queue
import threading
import time

import pytest

from instantid.serving.board import BEAT_SECONDS, STALE_SECONDS, Board, server_folder


def test_nobody_else_can_enter_the_folder_and_nothing_stays(tmp_path, join):
    first, second = join("intake_0_0"), join("intake_0_1")
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    first.close()
    second.close()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("trap", ["open", "link"])
def test_a_folder_that_somebody_else_laid_out_is_refused(tmp_path, trap):
    (tmp_path / "trap").mkdir(mode=0o755)
    if trap == "link":
        (tmp_path / "trap").chmod(0o700)
        (tmp_path / "s").symlink_to(tmp_path / "trap")
    else:
        (tmp_path / "trap").rename(tmp_path / "s")
    with pytest.raises(PermissionError, match="not a folder of this user alone"):
        Board(tmp_path / "s", "intake_0_0")


def test_servers_of_one_process_id_do_not_share_a_folder(tmp_path, monkeypatch):
    assert server_folder(os.getpid()) != server_folder(os.getppid())
    assert server_folder(os.getpid()) == server_folder(os.getpid())
    assert server_folder(os.getpid()).name.startswith(f"instantid-{os.getpid()}-")


def looks(board, others, clock, seconds):
    """What `board` finds in a look every half second for so long, while `others` beat."""
    found = []
    for _ in range(round(seconds / BEAT_SECONDS)):
        clock.now += BEAT_SECONDS
        for other in (board, *others):
            other.beat()
        found += board.look()
    return found


def test_an_instance_that_beats_no_more_is_found_by_the_second_look_at_its_stale_row(join, clock):
    watch, living, dead = join("intake_0_0"), join("denoiser_0_0"), join("denoiser_0_1")
    dead.beat(lambda: False)
    assert looks(watch, [living], clock, STALE_SECONDS + BEAT_SECONDS) == []
    assert looks(watch, [living], clock, BEAT_SECONDS) == ["denoiser_0_1"]
    dead.beat()
    assert looks(watch, [living, dead], clock, 1) == []


def test_an_instance_that_was_never_ready_or_has_left_is_not_missed(join, clock, tmp_path):
    watch, gone = join("intake_0_0"), join("denoiser_0_0")
    gone.close()
    loading = Board(tmp_path / "s", "denoiser_0_0", clock=clock)
    assert looks(watch, [], clock, 10) == []
    loading.close()


def test_a_pause_of_the_whole_machine_is_nobody_s_death(join, clock):
    watch, other = join("intake_0_0"), join("denoiser_0_0")
    assert looks(watch, [other], clock, 1) == []
    clock.now += 60
    assert watch.look() == [], "the other's beat is a minute old, but so is our last look"
    assert looks(watch, [], clock, BEAT_SECONDS) == [], "it may come to its next beat after our next look"
    assert looks(watch, [other], clock, 5) == []


def test_the_running_watch_ends_a_server_whose_engine_stands_still(tmp_path):
    alive, said = threading.Event(), queue.Queue()
    alive.set()
    engine, intake = Board(tmp_path / "s", "denoiser_0_0"), Board(tmp_path / "s", "intake_0_0")
    engine.start(alive.is_set, said.put)
    intake.start(end=said.put)
    time.sleep(4 * BEAT_SECONDS)
    assert said.empty()
    alive.clear()
    began = time.monotonic()
    assert said.get(timeout=10) == "denoiser_0_0"
    assert STALE_SECONDS < time.monotonic() - began < STALE_SECONDS + 4 * BEAT_SECONDS
    engine.close()
    intake.close()
