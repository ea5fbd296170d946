"""`tracespool run` alone, as an ordinary user: the embedded default."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from peers import wait_until
from peers.programs import APPS, otel_environment, run_app


@pytest.fixture
def home(directory, nobody, binary):
    """A home of the ordinary user's own, with a copy of the binary that the user may run."""
    path = os.path.join(directory, "home")
    os.makedirs(path)
    shutil.copy(binary, os.path.join(directory, "tracespool"))
    os.chmod(os.path.join(directory, "tracespool"), 0o755)
    os.chmod(directory, 0o755)
    if os.geteuid() == 0:
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    return path


def private_network(*options):
    """As root: a network of its own, because the default ports may well be taken here, and the ordinary user."""
    return [sys.executable, os.path.join(APPS, "in_private_network.py"), *options, "--"] if os.geteuid() == 0 else []


def test_run_alone_listens_stores_and_writes_a_file(request, directory, home):
    binary = os.path.join(directory, "tracespool")
    environment = {"HOME": home, "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    log_file = os.path.join(directory, "daemon.log")

    def log():
        with open(log_file) as f:
            return f.read()

    request.node.logs = [("log of the daemon", log)]
    with open(log_file, "wb") as out:
        command = [*private_network("--user", "nobody"), binary, "run"]
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=home, env=environment)
    try:

        def cli(*arguments):
            command = [*private_network("--join", str(daemon.pid), "--user", "nobody"), binary, *arguments]
            return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=home, env=environment)

        def ready():
            assert daemon.poll() is None, f"the daemon ended with {daemon.returncode}"
            done = cli("status", "--json")
            status = json.loads(done.stdout) if done.returncode == 0 else {}
            return status if status.get("state") == "ready" else (False, done)

        status = wait_until(ready, "the daemon is ready")
        assert status["listen"] == ["127.0.0.1:4317", "127.0.0.1:4318"]

        # State under the user's own directory; the log says where everything is, and how to go on.
        state = os.path.join(home, ".local/state/tracespool")
        assert os.path.isdir(state)
        traces = os.path.join(state, "traces.jsonl")
        beginning = "\n".join(log().splitlines()[:20])
        for word in ["127.0.0.1:4317", "127.0.0.1:4318", state, "traces.jsonl", "tracespool send --test"]:
            assert word in beginning, f"the first lines of the log do not name {word}"

        done = cli("send", "--test", "--wait", "30s")
        assert done.returncode == 0, done

        # An app on each port, with nothing but the usual settings.
        made = {}
        for protocol, port in [("grpc", 4317), ("http/protobuf", 4318)]:
            where = {"prefix": private_network("--join", str(daemon.pid))}
            result = run_app("otel_app.py", directory, otel_environment(protocol, f"http://127.0.0.1:{port}"), arguments=["10"], **where)
            made |= {s["span_id"]: s["name"] for s in result["spans"]}
        assert len(made) == 60

        def written():
            found = {}
            with open(traces) as f:
                for line in f:
                    for rs in json.loads(line)["resourceSpans"]:
                        for ss in rs["scopeSpans"]:
                            found |= {s["spanId"]: s["name"] for s in ss["spans"]}
            return made.items() <= found.items(), f"{len(made.keys() & found.keys())} of 60 spans"

        wait_until(written, "every span is in traces.jsonl")
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(10) == 0
    finally:
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()
