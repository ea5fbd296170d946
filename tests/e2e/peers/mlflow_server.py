"""A real `mlflow server` on SQLite."""

import os
import signal
import subprocess
import sys
import urllib.request

from . import free_port, wait_until


class MlflowServer:
    """One worker on a fixed port, so that the server can go down and come up again with all it knew."""

    def __init__(self, directory):
        self.directory = str(directory)
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log_file = os.path.join(self.directory, "mlflow.log")
        self.process = None
        os.makedirs(self.directory, exist_ok=True)

    def up(self):
        assert self.process is None
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "OTEL_"))}
        environment |= {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # evaluation jobs: processes that nobody needs here
        }
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
                + ["--backend-store-uri", f"sqlite:///{self.directory}/mlflow.db"]
                + ["--artifacts-destination", f"{self.directory}/artifacts"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=environment,
                start_new_session=True,  # the server has children; down() ends the group
            )

        def healthy():
            if self.process.poll() is not None:
                raise RuntimeError(f"mlflow server ended with {self.process.returncode}:\n{self.log()[-3000:]}")
            with urllib.request.urlopen(self.uri + "/health", timeout=5) as r:
                return r.status == 200

        # The first start makes the database, which takes long on a busy machine.
        wait_until(healthy, "the MLflow server is up", timeout=180, interval=0.2)
        return self

    def down(self):
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                pass
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(15)
        self.process = None

    def log(self):
        with open(self.log_file, errors="replace") as f:
            return f.read()

    # --- reading back ---

    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def new_experiment(self, name):
        return self.client().create_experiment(name)

    def traces(self, experiment_id):
        """Every trace of the experiment with its spans."""
        client, found, token = self.client(), [], None
        while True:
            page = client.search_traces(locations=[experiment_id], max_results=100, page_token=token, include_spans=True)
            found.extend(page)
            token = page.token
            if not token:
                return found


# Set by whoever ingests, and different in every run.
_VOLATILE = {"mlflow.traceRequestId"}


def comparable(trace):
    """What must be equal however a trace came to the server: everything but ids and times."""
    spans = [s.to_dict() for s in trace.data.spans]
    names = {s["span_id"]: s["name"] for s in spans}

    def path(span):
        """The names from the root down; names are unique in the apps' traces."""
        parent = span["parent_span_id"]
        assert parent is None or parent in names, f"span {span['name']!r} hangs on a parent that is not there"
        return span["name"] if parent is None else names[parent] + " > " + span["name"]

    return {
        "name": trace.info.tags.get("mlflow.traceName"),
        "state": str(trace.info.state),
        "tokens": trace.info.token_usage,
        "request_preview": trace.info.request_preview,
        "response_preview": trace.info.response_preview,
        "spans": {
            path(s): {
                "status": s["status"],
                # JSON text, as stored: 0 and "0" differ. The trace's tags travel on the root span; they are compared as tags.
                "attributes": {
                    k: v for k, v in s["attributes"].items() if k not in _VOLATILE and not k.startswith("mlflow.traceTag.")
                },
                "events": [(e["name"], e["attributes"]) for e in s["events"]],
            }
            for s in spans
        },
    }
