"""What an application loses that is killed: the traces that are still in its own memory, before any spool.

The figures are in README.md, and are printed here; only what the settings promise is asserted.
"""

import os
import subprocess
import threading
import time

import pytest

from peers import PATIENCE, programs, wait_until

OTLP = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}
# Seconds between two traces; killed so long after the first one, longer than any default delay; so often.
PACE, KILLED_AFTER, KILLS = 0.02, 7.0, 1

SETTINGS = {
    "OTLP, as it comes": OTLP,
    "OTLP, OTEL_BSP_SCHEDULE_DELAY=200": OTLP | {"OTEL_BSP_SCHEDULE_DELAY": "200"},
    "MLflow's calls, as it comes": {},
    "MLflow's calls, MLFLOW_ASYNC_TRACE_LOGGING_MAX_INTERVAL_MILLIS=200": {"MLFLOW_ASYNC_TRACE_LOGGING_MAX_INTERVAL_MILLIS": "200"},
    "MLflow's calls, MLFLOW_ENABLE_ASYNC_TRACE_LOGGING=false": {"MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_killed_application_loses(make_daemon, directory, receiver, say, name):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    environment = dict(SETTINGS[name])
    if "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" in environment:
        environment |= {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": daemon.http, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
        arguments = []
    else:
        environment["MLFLOW_TRACKING_URI"] = daemon.http
        arguments = ["0"]
    ended, lost = 0, []
    for _ in range(KILLS):
        made = run_and_kill(directory, environment, arguments)
        ended += len(made)
        daemon.wait_drained()
        with receiver.lock:
            arrived = {s.trace_id for s in receiver.spans}
        assert arrived, "nothing came at all"
        lost.append(len(set(made) - arrived))
    say(f"{name}: killed {KILLS} times, {ended} traces ended, lost {', '.join(map(str, lost))}, at most {max(lost) * PACE:.1f} s of them")
    if "ASYNC_TRACE_LOGGING=false" in name:
        assert lost == [0] * KILLS, "a trace that has ended for the application is on disk"


def run_and_kill(directory, environment, arguments):
    base = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "OTEL_"))}
    app = subprocess.Popen(
        [programs.FULL, os.path.join(programs.APPS, "killed_app.py"), str(PACE), *arguments],
        env={**base, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=directory,
        text=True,
    )
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(app.stdout), daemon=True)
    reader.start()
    try:
        wait_until(lambda: lines, "the application made its first trace")
        began = time.monotonic()
        # The clock is what is measured against, not waited for: a trace lives in memory for seconds.
        wait_until(lambda: time.monotonic() - began > KILLED_AFTER, "it ran for a while", timeout=PATIENCE)
    finally:
        app.kill()
        app.wait(PATIENCE)
    reader.join(PATIENCE)
    return [line.strip() for line in lines if line.endswith("\n")]
