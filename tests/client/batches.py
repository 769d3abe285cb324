"""Lines for `instantid batch`, and how it is called in this process."""

import json

from typer.testing import CliRunner

from instantid_client.__main__ import app

QUICK = {"num_inference_steps": 1, "guidance_scale": 1}


def line(output, **fields):
    return json.dumps({"photo": "ok.png", "prompt": "a", "output": output, **QUICK, **fields})


def batch(url, folder, lines, *arguments, stdin=None):
    """The exit code, what was printed for each line by its number, and the summary."""
    data = lines if isinstance(lines, bytes) else "\n".join(lines).encode()
    (folder / "jobs.jsonl").write_bytes(data)
    done = CliRunner().invoke(app, ["batch", str(folder / "jobs.jsonl"), "--url", url, *map(str, arguments)])
    assert "Traceback" not in done.output
    told = [json.loads(text) for text in done.stdout.splitlines()]
    assert len({answer["line"] for answer in told}) == len(told)
    return done.exit_code, {answer["line"]: answer for answer in told}, done.stderr
