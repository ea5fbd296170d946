"""Applications under trace: scripts of apps/, each a process of its own."""

import json
import os
import subprocess
import sys

from . import wait_until
from .mlflow_server import comparable
from .otlp import Span

APPS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "apps")

FULL = sys.executable
# tests/run makes both environments side by side in target/.
LIGHT = os.environ.get("TRACESPOOL_TEST_PYTHON_LIGHT") or sys.prefix + "-light/bin/python"


# tests/run makes these, too.
PEERS = os.path.join(os.path.dirname(os.path.abspath(sys.prefix)), "peers")


def peer(*path):
    """A program or script that tests/run made in target/peers."""
    path = os.path.join(PEERS, *path)
    assert os.path.exists(path), f"{path} is missing: run tests/run"
    return path


def run_app(script, directory, environment, python=FULL, arguments=(), prefix=(), timeout=180):
    """Runs a script of apps/; see run_program."""
    return run_program([*prefix, python, os.path.join(APPS, script), *arguments], directory, environment, timeout)


def run_program(command, directory, environment, timeout=180):
    """Runs it with nothing but `environment` set of what SDKs read; returns its last line, which is JSON."""
    base = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "OTEL_", "DATABRICKS_"))}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=directory,
        env={**base, **quiet, **environment},
    )
    report = f"{' '.join(command)} exited with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    assert done.returncode == 0 and done.stdout.strip(), report
    result = json.loads(done.stdout.strip().splitlines()[-1])
    result["stderr"] = done.stderr
    return result


def as_spans(result):
    """The spans of an app's report in the form in which they are received."""
    found = {}
    for s in result["spans"]:
        s["start"], s["end"] = int(s["start"]), int(s["end"])
        s["status"] = tuple(s["status"])
        s["events"] = [(name, int(time), attributes) for name, time, attributes in s["events"]]
        s["links"] = [tuple(link) for link in s["links"]]
        found[s["span_id"]] = Span(**s)
    return found


def otel_environment(protocol, endpoint, compression=None):
    env = {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    return env | ({"OTEL_EXPORTER_OTLP_COMPRESSION": compression} if compression else {})


def direct_traces(server, directory, python, experiment_name):
    """Runs the MLflow app against the server itself, and returns its traces by name, ready for comparison."""
    experiment = server.new_experiment(experiment_name)
    environment = {"MLFLOW_TRACKING_URI": server.uri}
    if python == FULL:
        environment["MLFLOW_EXPERIMENT_ID"] = experiment
    else:
        # The light package loses every trace when the experiment is named in the usual way.
        environment["MLFLOW_TRACING_DESTINATION"] = experiment
    made = run_app("mlflow_app.py", directory, environment, python)["traces"]
    return read_back(server, experiment, made)


def read_back(server, experiment, made, timeout=90):
    """Waits until the app's traces are there, complete; then returns them by name, ready for comparison."""

    def complete():
        traces = server.traces(experiment)
        seen = {t.info.trace_id.removeprefix("tr-"): len(t.data.spans) for t in traces}
        return seen == made, f"{seen} instead of {made}"

    wait_until(complete, "the MLflow server has every trace with every span", timeout, interval=0.3)
    traces = [comparable(t) for t in server.traces(experiment)]
    by_name = {next(iter(t["spans"])) if t["name"] is None else t["name"]: t for t in traces}
    assert len(by_name) == len(traces), "two traces with one name"
    return by_name
