"""Runs a scenario with locust as a library: users, shape, web page, and what its statistics are told."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
from locust.env import Environment
from locust.event import Events

from loadtest.record import Request
from loadtest.run import Run, Target, measure_alone
from loadtest.scenario import Scenario
from loadtest.users import Progress, ScenarioShape, user_classes


class BadOutcome(Exception):
    """A request that was not answered well; locust counts failures by their text."""


@dataclass(frozen=True)
class Session:
    """Where runs are written and who is told; `about` is kept with each run.

    `finished` gets the folder of a run that has ended. `web_port` shows locust's page, on which a run can be repeated.
    """

    output: Path
    about: Mapping[str, Any]
    say: Callable[[str], None]
    finished: Callable[[Path], None]
    web_port: int | None = None


def drive(scenario: Scenario, target: Target, session: Session) -> None:
    """Measure each class alone, then run the scenario; with a web page, until Ctrl-C.

    Raises the client's errors where the server does not answer before the run.
    """
    events = Events()
    run = Run(scenario, target, lambda request: _count(events, request))
    run.alone = measure_alone(scenario, run.callers, session.say)
    session.say(_opening(run))
    users = user_classes(run)
    shape = ScenarioShape(run, sum(user.fixed_count for user in users))
    environment = Environment(user_classes=users, shape_class=shape, events=events, host=target.url)
    runner: Any = environment.create_local_runner()
    events.test_start.add_listener(lambda **_: run.begin(_folder(session.output, scenario), session.about))
    events.test_stop.add_listener(lambda **_: _finish(run, session))
    if session.web_port:
        # The page parses the process' arguments as locust's own.
        del sys.argv[1:]
        environment.create_web_ui("127.0.0.1", session.web_port)
        session.say(f"web page: http://127.0.0.1:{session.web_port}; Ctrl-C ends it")
    runner.start_shape()
    progress = gevent.spawn(Progress(run, session.say))
    try:
        runner.shape_greenlet.join()
        if session.web_port:
            gevent.sleep(float("inf"))
    except KeyboardInterrupt:
        session.say("stopped")
    finally:
        progress.kill()
        runner.quit()


def _opening(run: Run) -> str:
    alone = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in run.alone.seconds.items())
    scenario = run.scenario
    sent = f"{scenario.users:g} callers" if scenario.is_closed else f"{run.rate:.2f} requests a second at level 1"
    return f"alone: {alone}\n{scenario.name}: {sent} from {len(scenario.tenants)} tenants, {scenario.seconds:g} s"


def _folder(output: Path, scenario: Scenario) -> Path:
    return output / f"{scenario.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _finish(run: Run, session: Session) -> None:
    session.say(Progress(run, session.say).line())
    run.end()
    session.finished(run.writer.folder)


def _count(events: Events, request: Request) -> None:
    """Locust's statistics: seconds count from when the request was due."""
    failure = None if request.outcome == "ok" else BadOutcome(f"{request.outcome}: {request.note.split(':')[0]}")
    events.request.fire(
        request_type=request.tenant,
        name=request.kind,
        response_time=1000 * request.seconds,
        response_length=request.received,
        exception=failure,
    )
