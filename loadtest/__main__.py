"""`python -m loadtest`: a bounded run without the web page; other options are locust's own.

Example: `python -m loadtest --photo astronaut.png --users 4 --run-time 60s --host localhost:8001`
"""

import sys
from importlib.resources import files

import locust.main

DEFAULTS = {"--users": "2", "--spawn-rate": "2", "--run-time": "30s", "--host": "localhost:8001"}


def arguments(given: list[str]) -> list[str]:
    """Locust's command line: headless, and bounded in time unless the caller says otherwise."""
    defaults = [word for name, value in DEFAULTS.items() if name not in given for word in (name, value)]
    return ["--headless", "--locustfile", str(files("loadtest") / "locustfile.py"), *defaults, *given]


def main() -> None:
    sys.argv = ["loadtest", *arguments(sys.argv[1:])]
    locust.main.main()


if __name__ == "__main__":
    main()
