"""Whose turn it is among the instances of one server: the one with the least work, with certainty."""

import queue
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from instantid.serving.board import PATIENCE_SECONDS, STALE_SECONDS


def test_idle_instances_are_open(join):
    assert all(board.try_open() for board in [join("denoiser_0_0"), join("denoiser_0_1")])


def test_an_instance_with_work_opens_once_it_has_less_than_the_open_one(join):
    mine, other = join("denoiser_0_0", 3.0), join("denoiser_0_1", 2.0)
    assert other.try_open()
    assert not mine.try_open()
    mine.work = 2.0
    assert not mine.try_open(), "as much is not less"
    mine.work = 1.9
    assert mine.try_open()


def test_the_next_request_waits_for_the_instance_that_has_least_though_it_is_still_taking_one(join, clock):
    mine, other = join("denoiser_0_0", 3.0), join("denoiser_0_1", 0.0)
    assert other.try_open()
    assert not mine.try_open()
    other.work = 0.1
    other.take()
    assert not mine.try_open()
    assert other.try_open()
    assert not mine.try_open()


def test_an_instance_without_room_is_not_waited_for(join, clock):
    mine, full = join("denoiser_0_0", 3.0), join("denoiser_0_1", 1.0)
    full.take()
    assert not mine.try_open()
    clock.now += PATIENCE_SECONDS + 0.1
    assert mine.try_open()
    assert full.try_open(), "it has less again than the open one"


def test_only_living_instances_of_the_same_model_count(join, clock):
    mine, other, dead = join("denoiser_0_0", 3.0), join("other_denoiser_0_0"), join("denoiser_0_1")
    assert other.try_open()
    assert not mine.try_open()
    clock.now += STALE_SECONDS + 0.1
    mine.beat()
    assert mine.try_open()
    dead.beat()
    assert not mine.try_open()


@pytest.mark.parametrize("change", ["own work done", "other takes"])
def test_a_waiting_instance_is_woken_by_what_makes_it_the_next(join, change):
    mine, other = join("denoiser_0_0", 3.0, time.monotonic), join("denoiser_0_1", 1.0, time.monotonic)
    assert other.try_open()
    for board in (mine, other):
        board.start(end=print)
    with ThreadPoolExecutor(1) as pool:
        turn = pool.submit(mine.wait_turn)
        time.sleep(0.1)
        assert not turn.done()
        began = time.monotonic()
        if change == "own work done":
            mine.work = 0.5
            mine.refresh()
        else:
            other.work = 5.0
            other.take()
        turn.result(timeout=5)
        assert time.monotonic() - began < PATIENCE_SECONDS / 2, "by the message, not by the timeout"


def test_waiting_costs_nothing(join):
    asked = []
    mine = join("denoiser_0_0", clock=time.monotonic, backlog=lambda: asked.append(1) or 3.0)
    other = join("denoiser_0_1", 1.0, time.monotonic)
    other.start(end=print)
    assert other.try_open()
    with ThreadPoolExecutor(1) as pool:
        turn = pool.submit(mine.wait_turn)
        time.sleep(PATIENCE_SECONDS / 4)
        mine.refresh()
        time.sleep(PATIENCE_SECONDS / 4)
        seen = len(asked)
        other.work = 5.0
        other.take()
        turn.result(timeout=5)
    assert seen == 4, "joining, waiting, the change, looking again"


class Triton:
    """Hands requests to whichever instance has returned, as Triton does; an engine's work shrinks as time passes."""

    def __init__(self, join, instances):
        self.requests, self.given = queue.Queue(), []
        self.ends = [0.0] * instances
        self.work = [lambda i=i: max(0.0, self.ends[i] - time.monotonic()) for i in range(instances)]
        self.boards = [join(f"denoiser_0_{i}", 0, time.monotonic, work) for i, work in enumerate(self.work)]
        self.threads = [threading.Thread(target=self._serve, args=(i,)) for i in range(instances)]
        for board, thread in zip(self.boards, self.threads, strict=True):
            board.start(end=print)
            thread.start()

    def _serve(self, i):
        while (seconds := self.requests.get()) is not None:
            loads = [work() for work in self.work]
            self.ends[i] = max(self.ends[i], time.monotonic()) + seconds
            self.given.append((i, seconds, loads))
            threading.Timer(self.work[i](), self.boards[i].refresh).start()
            self.boards[i].take()
            self.boards[i].wait_turn()

    def close(self):
        for _ in self.boards:
            self.requests.put(None)
        for thread in self.threads:
            thread.join(timeout=30)
            assert not thread.is_alive()


def test_short_requests_never_go_to_the_instance_with_a_long_one(join):
    triton = Triton(join, 3)
    triton.requests.put(1.5)
    for _ in range(60):
        time.sleep(0.01)
        triton.requests.put(0.002)
    triton.close()
    (busy,) = [i for i, seconds, _ in triton.given if seconds == 1.5]
    assert len(triton.given) == 61
    assert busy not in {i for i, seconds, _ in triton.given if seconds != 1.5}


def test_a_flood_is_shared_by_the_work_that_each_has(join):
    triton, rng = Triton(join, 4), random.Random(1)
    for _ in range(120):
        triton.requests.put(rng.uniform(0.005, 0.05))
    triton.close()
    assert len(triton.given) == 120
    totals = [sum(seconds for i, seconds, _ in triton.given if i == mine) for mine in range(4)]
    assert max(totals) < 1.5 * min(totals)
    assert all(loads[i] <= min(loads) + 0.1 for i, _, loads in triton.given), "with the least, within one request"
