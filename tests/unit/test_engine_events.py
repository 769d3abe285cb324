"""What the engine tells: events to listeners, and how late its present unit of work is."""

import threading
import time

import pytest

from instantid.engine.events import Delivery

from .counting import Bench


def test_listeners_hear_of_everything_in_order():
    bench = Bench()
    bench.add("a", 2)
    bench.finish()
    told = [(e.name, e.kind, e.rows, round(e.seconds, 2), e.outcome, *e.load) for e in bench.events]
    assert told == [
        ("queued", "", 0, 0.0, None, 0, 0, 2.5),
        ("started", "", 0, 0.0, None, 1, 1, 2.5),
        ("worked", "step", 1, 1.0, None, 1, 1, 1.5),
        ("worked", "step", 1, 1.0, None, 1, 1, 0.5),
        ("worked", "decode", 1, 0.5, None, 1, 1, 0.0),
        ("ended", "", 0, 2.5, "a 3", 0, 0, 0.0),
    ]
    assert all(event.tasks[0].request_id == "a" for event in bench.events)


@pytest.mark.parametrize("inline", [False, True])
def test_a_listener_that_fails_stops_nobody(inline):
    heard = []

    def broken(event):
        raise RuntimeError("metrics are gone")

    delivery = Delivery([broken, heard.append], inline)
    delivery.tell("one")
    delivery.tell("two")
    delivery.close()
    assert heard == ["one", "two"]


def test_listeners_run_on_one_thread_of_their_own_and_are_drained_at_the_end():
    threads = []

    def slow(event):
        time.sleep(0.01)
        threads.append(threading.current_thread())

    delivery = Delivery([slow])
    tellers = [threading.Thread(target=delivery.tell, args=(i + 1,)) for i in range(5)]
    for teller in tellers:
        teller.start()
    for teller in tellers:
        teller.join()
    delivery.close()
    assert len(threads) == 5
    assert len(set(threads)) == 1
    assert threads[0].daemon
    assert threads[0] is not threading.current_thread()


def test_a_unit_of_work_is_late_only_beyond_what_it_should_take():
    bench = Bench()
    seen = []
    work = bench.model.work

    def slow(kind, states):
        for seconds in (15.0, 10.0) if kind == "step" else ():
            bench.model.now += seconds
            seen.append(bench.engine.lateness)
        return work(kind, states)

    bench.model.work = slow
    bench.add("a", 1)
    assert bench.engine.lateness < 0
    bench.steps(1)
    assert seen == [pytest.approx(-5.0), pytest.approx(5.0)]
    bench.finish()
    assert bench.engine.lateness < 0


def test_lateness_counts_from_the_launch_while_the_engine_waits_for_the_device():
    bench = Bench(asynchronous=True)
    bench.add("a", 2)
    bench.steps(1)
    bench.model.now += 25.0
    assert bench.engine.lateness == pytest.approx(5.0)
    bench.steps(1)
    assert bench.engine.lateness == pytest.approx(-20.0)
    bench.finish()
