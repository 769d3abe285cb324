"""Cancellation, deadlines, closing, and the answer that every request is given exactly once."""

import threading
import time

import pytest

from instantid.engine import Answer
from instantid.errors import Cancelled, EngineFailure, Overloaded

from .counting import LARGE, SMALL, Bench


@pytest.mark.parametrize("how", ["deadline", "is_cancelled", "cancel"])
def test_the_work_stops_at_the_next_tick(how):
    bench = Bench()
    gone = threading.Event()
    fields = {"deadline": {"deadline": 2.5}, "is_cancelled": {"is_cancelled": gone.is_set}, "cancel": {}}[how]
    bench.add("gone", 30, **fields)
    bench.add("stays", 40)
    bench.steps(3)
    gone.set()
    if how == "cancel":
        bench.engine.cancel("gone")
    bench.engine.poll_cancelled()
    heard = bench.finish()
    assert isinstance(heard["gone"], Cancelled)
    assert "28 of 31 units of work left" in str(heard["gone"])
    assert heard["stays"] == "stays 41"
    assert sum("gone" in batch for batch in bench.model.batches) == 3


def test_callers_are_not_asked_about_cancellation_on_the_engine_s_thread():
    bench = Bench()
    asked = []
    bench.add("a", 3, is_cancelled=lambda: asked.append(1))
    assert bench.finish() == {"a": "a 4"}
    assert not asked


def test_a_caller_that_cannot_be_asked_costs_no_other_the_poll():
    bench = Bench()

    def broken():
        raise RuntimeError("the connection is gone")

    bench.add("a", 3, is_cancelled=broken)
    bench.add("b", 3, is_cancelled=lambda: True)
    bench.engine.poll_cancelled()
    heard = bench.finish()
    assert isinstance(heard["a"], Cancelled)
    assert isinstance(heard["b"], Cancelled)
    assert bench.engine.admission.tasks == []


def test_a_request_is_never_asked_once_its_answer_is_under_way():
    """Triton 2.51 reads freed memory where `is_cancelled` runs beside the last response or after it."""
    heard, asked, may_return = [], threading.Event(), threading.Event()
    answer = Answer(heard.append)

    def question():
        asked.set()
        return may_return.wait(5)

    asking = threading.Thread(target=answer.ask, args=(question,))
    giving = threading.Thread(target=answer.give, args=("result",))
    asking.start()
    assert asked.wait(5)
    giving.start()
    giving.join(0.2)
    assert not heard
    may_return.set()
    giving.join(5)
    asking.join(5)
    assert heard == ["result"]
    assert not answer.ask(lambda: pytest.fail("asked after the answer"))


def test_a_request_whose_deadline_passes_while_it_waits_is_never_started():
    bench = Bench(max_rows=1)
    bench.add("running", 5)
    bench.add("late", 5, deadline=2.0)
    heard = bench.finish()
    assert isinstance(heard["late"], Cancelled)
    assert ["late"] not in bench.model.batches


def test_cancelling_an_unknown_id_is_harmless_later():
    bench = Bench()
    bench.engine.cancel("later")
    bench.add("later", 2)
    assert bench.finish() == {"later": "later 3"}


def test_a_request_that_is_dropped_with_its_last_unit_in_flight_leaves_the_engine_in_order():
    bench = Bench(asynchronous=True)
    bench.add("a", 1, deadline=0.5)
    bench.add("b", 3)
    bench.steps(2)
    heard = bench.finish()
    assert isinstance(heard["a"], Cancelled)
    assert heard["b"] == "b 4"
    assert bench.engine.lateness < 0


def test_closing_answers_what_is_left():
    bench = Bench(max_rows=1)
    bench.add("active", 5)
    bench.add("waiting", 5)
    bench.steps(1)
    bench.engine.close()
    heard = bench.finish()
    assert all(isinstance(outcome, Overloaded) for outcome in heard.values())


def test_a_lost_answer_reaches_its_caller():
    heard = []
    answer = Answer(heard.append)
    del answer
    assert isinstance(heard[0], EngineFailure)
    given = []
    Answer(given.append).give("result")
    assert given == ["result"]


def test_an_answer_that_cannot_be_sent_costs_nobody_else_theirs():
    bench = Bench()
    task = bench.add("a", 2)

    def broken(outcome):
        raise RuntimeError("no connection")

    task.answer._send = broken
    bench.add("b", 2)
    bench.steps(20)
    bench.engine.close()
    assert bench.heard["b"][0][0] == "b 3"
    assert bench.idle


def test_requests_of_many_threads_are_each_answered_once():
    bench = Bench(max_rows=6, tenant_rows=200, asynchronous=True)
    bench.model.failing["r7"] = EngineFailure("latents are not finite")
    bench.model.broken["r8"] = RuntimeError("an error of this one's batches")
    runner = threading.Thread(target=bench.engine.run, daemon=True)
    runner.start()

    def submit(numbers):
        for i in numbers:
            is_cancelled = (lambda: True) if i % 11 == 0 else (lambda: False)
            bench.add(f"r{i}", 2 + i % 5, SMALL if i % 3 else LARGE, tenant=f"t{i % 4}", is_cancelled=is_cancelled)
            bench.engine.poll_cancelled()

    senders = [threading.Thread(target=submit, args=(range(k, 200, 4),), daemon=True) for k in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    while not bench.idle:
        time.sleep(0.01)
    bench.engine.close()
    runner.join(10)
    assert not runner.is_alive()
    assert len(bench.heard) == 200
    assert all(len(said) == 1 for said in bench.heard.values())
    good = {name: said[0][0] for name, said in bench.heard.items() if isinstance(said[0][0], str)}
    assert all(answer == f"{name} {3 + int(name[1:]) % 5}" for name, answer in good.items())
    assert len(good) > 150
    assert isinstance(bench.heard["r7"][0][0], EngineFailure)
    assert isinstance(bench.heard["r8"][0][0], EngineFailure)
