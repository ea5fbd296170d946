"""Applications under trace: scripts of apps/, each a process of its own."""

import json
import os
import subprocess
import sys

APPS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "apps")

FULL = sys.executable
LIGHT = os.environ.get("TRACESPOOL_TEST_PYTHON_LIGHT", "")


def run_app(script, directory, environment, python=FULL, arguments=(), prefix=(), timeout=180):
    """Runs the script with nothing but `environment` set of what SDKs read; returns its last line, which is JSON."""
    base = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "OTEL_", "DATABRICKS_"))}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    done = subprocess.run(
        [*prefix, python, os.path.join(APPS, script), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=directory,
        env={**base, **quiet, **environment},
    )
    report = f"{script} exited with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    assert done.returncode == 0 and done.stdout.strip(), report
    result = json.loads(done.stdout.strip().splitlines()[-1])
    result["stderr"] = done.stderr
    return result
