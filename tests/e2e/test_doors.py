"""The doors beside the usual ones: JSON lines, activated sockets, guarded listeners, and what is passed on."""

import base64
import contextlib
import gzip
import json
import os
import pty
import shlex
import socket
import subprocess
import threading

import grpc
import pytest

from peers import PATIENCE, free_port, wait_until
from peers.otlp import HttpClient, make_request, request_as_json, service_grpc
from peers.programs import FULL, as_spans, read_back, run_app

DATA = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data")

# What the SDK makes of a trace, as it is written down: Trace.to_json(), and the object behind it.
MAKE_A_TRACE = """
import json, sys, mlflow
from mlflow.entities import SpanType
mlflow.set_experiment(experiment_id=sys.argv[1])
with mlflow.start_span(name="question", span_type=SpanType.CHAIN) as root:
    mlflow.update_current_trace(tags={"team": "bär"}, metadata={"mlflow.trace.session": "42", "mlflow.trace.user": "ada"})
    root.set_inputs({"q": "Wie groß?"})
    with mlflow.start_span(name="answer", span_type=SpanType.TOOL) as span:
        span.set_attribute("app.ratio", 0.5)
        span.add_event(mlflow.entities.SpanEvent("miss", attributes={"tries": 2, "hot": False}))
    root.set_outputs("groß")
mlflow.flush_trace_async_logging()
print(mlflow.get_trace(root.trace_id).to_json())
"""

READ_A_TRACE = """
import json, sys, mlflow
trace = mlflow.get_trace(sys.argv[1])
print(json.dumps({"spans": [s.to_dict() for s in trace.data.spans], "tags": trace.info.tags, "metadata": trace.info.trace_metadata,
                  "experiment": trace.info.experiment_id}))
"""


def spool_socket(daemon):
    return os.path.join(daemon.directory, "spool.sock")


def lines(daemon, text):
    """What a shell script does, with the very line of the manual."""
    command = f"printf '%s\\n' {shlex.quote(text)} | socat -t 30 - UNIX-CONNECT:{spool_socket(daemon)}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_shell_script_writes_traces(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    (one, ids_one), (two, ids_two) = make_request(2), make_request(1)
    answers = lines(daemon, "\n".join([request_as_json(one), "no json", "{}", request_as_json(two)]))
    error = answers[1].pop("error")
    assert "line 1, column 1" in error, error
    assert answers == [{"ok": True, "record": 1}, {"ok": False, "retry": False}, {"ok": True, "record": None}, {"ok": True, "record": 2}]
    wait_until(lambda: receiver.has(ids_one + ids_two), "the spans of both lines arrived")


def test_a_trace_of_mlflow_is_what_the_sdk_would_have_sent(make_daemon, mlflow_server, receiver, directory):
    """Goal: a trace as MLflow writes it down arrives at an MLflow server as if its own SDK had sent it there."""
    first = mlflow_server.new_experiment("made")
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow_server.uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    made = subprocess.run([FULL, "-c", MAKE_A_TRACE, first], capture_output=True, text=True, timeout=180, env=environment, cwd=directory)
    assert made.returncode == 0, made.stderr[-3000:]
    trace = json.loads(made.stdout.strip().splitlines()[-1])

    second = mlflow_server.new_experiment("sent")
    trace["info"]["trace_location"]["mlflow_experiment"]["experiment_id"] = second
    # Another trace of the same content: the server knows the ids of the first.
    text = json.dumps(trace)
    old = trace["info"]["trace_id"].removeprefix("tr-")
    new = os.urandom(16)
    text = text.replace(old, new.hex()).replace(base64.b64encode(bytes.fromhex(old)).decode(), base64.b64encode(new).decode())
    daemon = make_daemon(
        [
            {"name": "mlflow", "kind": "mlflow", "endpoint": mlflow_server.uri, "experiment_id": first},
            receiver.backend("otlp_grpc"),
        ]
    ).start()
    (answer,) = lines(daemon, text)
    assert answer == {"ok": True, "record": 1}
    daemon.wait_drained(name="mlflow")
    daemon.wait_drained(name="otlp_grpc")
    assert len(receiver.ids()) == 2

    def read(trace_id):
        done = subprocess.run([FULL, "-c", READ_A_TRACE, trace_id], capture_output=True, text=True, timeout=180, env=environment, cwd=directory)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.strip().splitlines()[-1])

    before, after = read(f"tr-{old}"), read(f"tr-{new.hex()}")
    assert after["experiment"] == second, "the trace says where it belongs"

    def plain(span):
        kept = {k: v for k, v in span["attributes"].items() if not k.startswith(("mlflow.traceTag.", "session.", "user.", "mlflow.traceRequestId"))}
        return {**{k: span[k] for k in ("name", "start_time_unix_nano", "end_time_unix_nano", "status", "events")}, "attributes": kept}

    key = lambda s: s["name"]
    assert sorted(map(plain, after["spans"]), key=key) == sorted(map(plain, before["spans"]), key=key)
    assert after["tags"]["team"] == "bär" and after["tags"]["mlflow.traceName"] == "question", after["tags"]
    assert after["metadata"]["mlflow.trace.session"] == "42" and after["metadata"]["mlflow.trace.user"] == "ada", after["metadata"]


def test_send_takes_every_format(make_daemon, receiver, directory):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    request, ids = make_request(3)
    paths = []

    def write(name, content):
        paths.append(os.path.join(directory, name))
        with open(paths[-1], "wb") as f:
            f.write(content)

    def data(name):
        with open(os.path.join(DATA, name), "rb") as f:
            return f.read()

    write("a.json", request_as_json(request).encode())
    write("a.jsonl.gz", gzip.compress((request_as_json(make_request(1)[0]) + "\n").encode() * 200))
    write("nested.json", data("nested.mlflow-trace.json"))
    write("traces.json", data("error.mlflow-traces.json"))
    write("traces.json.gz", gzip.compress(data("llm.mlflow-traces.json")))
    write("a.pb", make_request(2)[0].SerializeToString())
    write("a.pb.zst", subprocess.run(["zstd", "-c"], input=data("llm.otlp.pb"), capture_output=True, check=True).stdout)
    done = daemon.cli("send", *paths)
    assert done.returncode == 0, done
    assert "206 documents are on disk as records from 1 to 206" in done.stdout, done.stdout
    daemon.wait_drained()
    # The 200 lines are one span, and the last file holds the spans of the one before the last.
    assert len(receiver.ids()) == 3 + 1 + 4 + 2 + 3 + 2, receiver.ids()
    assert daemon.status()["received"]["spans"] == 3 + 200 + 4 + 2 + 3 + 2 + 3


def test_send_shows_progress_on_a_terminal(make_daemon, receiver, directory):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    path = os.path.join(directory, "a.jsonl")
    with open(path, "w") as f:
        f.write((request_as_json(make_request(1)[0]) + "\n") * 50)
    primary, secondary = pty.openpty()
    command = [daemon.binary, "send", path, "--config", daemon.config_file]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=secondary, env=daemon.environment(), timeout=PATIENCE, text=True)
    os.close(secondary)
    shown = ""
    with open(primary, "rb", buffering=0) as terminal:
        # A terminal that nobody holds any more ends in an error.
        with contextlib.suppress(OSError):
            while piece := terminal.read(1 << 16):
                shown += piece.decode()
    assert done.returncode == 0 and "50 documents are on disk" in done.stdout, done
    assert "on disk, " in shown and shown.endswith("\x1b[K"), repr(shown)


def test_grpc_over_the_socket_needs_no_option(make_daemon, receiver, directory):
    """gRPC's C core sends the path of the socket as the authority."""
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    expected = []
    for options in [], [("grpc.default_authority", "localhost")]:
        with grpc.insecure_channel(f"unix:{spool_socket(daemon)}", options=options) as channel:
            stub = service_grpc.TraceServiceStub(channel)
            # Several calls: the second refers to headers that the first brought.
            for _ in range(3):
                request, ids = make_request(2)
                stub.Export(request, timeout=PATIENCE)
                expected += ids
    # And the OpenTelemetry SDK, which offers no such option.
    environment = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT": f"unix://{spool_socket(daemon)}", "OTEL_EXPORTER_OTLP_INSECURE": "true"}
    spans = as_spans(run_app("otel_app.py", directory, environment, arguments=["3"]))
    wait_until(lambda: receiver.has([*expected, *spans]), "every span arrived")


# --- systemd ---


def activate(daemon, *addresses, options=()):
    """The daemon behind systemd's own tool for trying activation out, which waits for a client before it starts it."""
    command = ["systemd-socket-activate", *(f"--listen={a}" for a in addresses), *options, daemon.binary, "run", "--config", daemon.config_file]
    log = open(daemon.log_file, "ab")
    daemon.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=daemon.directory, env=daemon.environment())
    log.close()


def test_activated_sockets_win_and_stay(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")])
    port, path = free_port(), os.path.join(daemon.directory, "activated.sock")
    activate(daemon, f"127.0.0.1:{port}", path)
    wait_until(lambda: os.path.exists(path), "systemd listens")
    request, ids = make_request(2)
    client = HttpClient(port)
    # The first client starts the daemon, and is served by it.
    wait_until(lambda: connected(port), "somebody listens")
    assert client.send(request).ok
    daemon.wait_ready()
    assert daemon.status()["listen"] == [f"127.0.0.1:{port}"], "the configured address is not taken as well"
    assert not connected(daemon.port) and not os.path.exists(spool_socket(daemon))
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        more, more_ids = make_request(1)
        s.sendall(request_as_json(more).encode() + b"\n")
        assert json.loads(s.makefile().readline())["ok"]
    wait_until(lambda: receiver.has(ids + more_ids), "both arrived")
    daemon.terminate()
    assert os.path.exists(path), "what systemd made is systemd's to remove"


def connected(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except OSError:
        return False


def test_activated_sockets_are_guarded_too(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")])
    port = free_port()
    activate(daemon, f"0.0.0.0:{port}")
    wait_until(lambda: connected(port), "systemd listens")
    assert daemon.process.wait(PATIENCE) == 78
    assert "can be reached from other machines" in daemon.log(), daemon.log()
    daemon.config["receive"]["insecure"] = True
    daemon.write_config()
    activate(daemon, f"0.0.0.0:{port}")
    wait_until(lambda: connected(port), "systemd listens")
    daemon.wait_ready()
    assert HttpClient(port).send(make_request(1)[0]).ok


def test_sockets_for_another_process_are_not_taken(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")])
    daemon.start(LISTEN_FDS="1", LISTEN_PID="1")
    assert HttpClient(daemon.port).send(make_request(1)[0]).ok


# --- guards ---


def test_sdks_pass_tls_and_token(make_daemon, receiver, directory):
    """What an operator tells an app behind a guarded door, told to a real SDK."""
    ca, key = os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem")
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*new, *names, "-keyout", key, "-out", ca], check=True, capture_output=True)
    token = os.path.join(directory, "token")
    with open(token, "w") as f:
        f.write("s3cret-token\n")
    daemon = make_daemon([receiver.backend("otlp_http")])
    daemon.config["receive"] |= {"tls": {"cert": ca, "key": key}, "token_file": token}
    daemon.write_config()
    daemon.start()
    for protocol, path in ("http/protobuf", "/v1/traces"), ("grpc", ""):
        environment = {
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"https://localhost:{daemon.port}{path}",
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": ca,
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "authorization=Bearer%20s3cret-token",
            # Where the machine has these set, the library below the exporter heeds them more than the exporter.
            "REQUESTS_CA_BUNDLE": ca,
            "CURL_CA_BUNDLE": ca,
        }
        spans = as_spans(run_app("otel_app.py", directory, environment, arguments=["2"]))
        wait_until(lambda: receiver.has(spans), f"every span arrived over {protocol}")
    assert "s3cret" not in daemon.log()
    out = daemon.cli("env", "--for", "otel")
    assert out.returncode == 0 and f"https://127.0.0.1:{daemon.port}" in out.stdout and "s3cret" not in out.stdout, out


def test_check_looks_into_the_files_of_the_doors(make_daemon, receiver, directory):
    wrong = os.path.join(directory, "wrong")
    with open(wrong, "w") as f:
        f.write("not one word\n")
    daemon = make_daemon([receiver.backend("otlp_http")])
    daemon.config["receive"] |= {"tls": {"cert": wrong, "key": wrong}, "token_file": wrong}
    daemon.write_config()
    done = daemon.cli("check")
    assert done.returncode == 78, done
    assert "receive.tls" in done.stderr and "receive.token_file" in done.stderr and "one word" not in done.stderr, done
    assert daemon.spawn().wait(PATIENCE) == 78, "and the daemon does not start with them"


def test_other_signals_are_said_once(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    for path in ["/v1/metrics", "/v1/logs"] * 3:
        assert HttpClient(daemon.port, path).send(b"").ok
    assert daemon.log().count("an app sends metrics") == 1 and daemon.log().count("an app sends logs") == 1, daemon.log()
    assert daemon.status()["spool"]["records"] == 0


# --- what is passed on ---


@pytest.mark.parametrize("kind", ["otlp_http", "otlp_grpc"])
def test_kept_headers_go_on_and_are_never_mixed(make_daemon, receiver, kind):
    receiver.down()
    daemon = make_daemon([{**receiver.backend(kind), "headers": {"x-fixed": "mine"}}])
    daemon.config["receive"]["keep_headers"] = ["X-Tenant", "x-fixed"]
    daemon.write_config()
    daemon.start()
    client = HttpClient(daemon.port)
    expected = {}
    for n in range(30):
        request, ids = make_request(1)
        headers = {"X-Tenant": f"t{n % 3}", "X-Other": "o", "Authorization": "Bearer s3cret"}
        if n % 4 == 0:
            headers = {"x-fixed": "theirs"}
        assert client.send(request, headers=headers.items()).ok
        expected[ids[0]] = headers.get("X-Tenant")
    receiver.up()
    wait_until(lambda: receiver.has(expected), "every span arrived")
    daemon.wait_drained()
    seen = {}
    for _, headers, answer in receiver.requests:
        headers = {k.lower(): v for k, v in dict(headers).items()}
        assert headers["x-fixed"] == "mine", "the operator's own header wins"
        assert "x-other" not in headers and "authorization" not in headers, headers
        assert len(headers["x-tracespool-via"]) == 16, headers
        if answer is None:
            seen.setdefault(headers.get("x-tenant"), 0)
            seen[headers.get("x-tenant")] += 1
    assert set(seen) == {None, "t0", "t1", "t2"}, seen
    assert sum(seen.values()) < 30, "those with the same header still travel together"
    assert len(receiver.ids()) == 30


def test_two_daemons_pointed_at_each_other_stop_at_once(make_daemon):
    first, second = make_daemon(), make_daemon()
    for daemon, other, kind in (first, second, "otlp_grpc"), (second, first, "otlp_http"):
        daemon.config["backend"] = [{"name": "other", "kind": kind, "endpoint": f"http://127.0.0.1:{other.port}"}]
        daemon.write_config()
    first.start()
    second.start()
    request, _ = make_request(3)
    assert HttpClient(first.port).send(request).ok

    # The first sends it to the second, whose attempt to send it back is refused.
    def blocked():
        status = second.backend("other")
        return status["state"] == "blocked", status

    status = wait_until(blocked, "the second daemon is told")
    error = second.backend("other")["last_error"]
    assert error["status"] == "403" and "x-tracespool-via" in error["message"], error
    assert "ship to each other" in error["advice"], error
    assert "ship to each other" in first.log(), "the one that refuses says why"
    assert "x-tracespool-via" in second.log(), "and so does the one that is refused"
    human = second.cli("status").stdout
    assert "BLOCKED" in human and "ship to each other" in human, human
    first.wait_drained()
    # It went round once, was stored once at each, and stays where it is; also after a restart.
    second.restart()
    wait_until(blocked, "the second daemon is told again")
    assert first.status()["received"]["spans"] == 3 and second.status()["received"]["spans"] == 3, status
    assert first.backend("other")["delivered"]["spans"] == 3 and second.backend("other")["backlog"]["spans"] == 3


# --- env ---


def variables(daemon, *arguments):
    """The settings as a shell understands them, and as systemd does; both must be the same."""
    shell = daemon.cli("env", *arguments)
    assert shell.returncode == 0, shell
    script = shell.stdout + "\nenv -0"
    out = subprocess.run(["env", "-i", "PATH=/usr/bin:/bin", "sh", "-c", script], capture_output=True, check=True).stdout
    found = dict(v.split("=", 1) for v in out.decode().split("\0") if v)
    found = {k: v for k, v in found.items() if k not in ("PATH", "PWD", "SHLVL", "_", "OLDPWD")}
    systemd = daemon.cli("env", *arguments, "--format", "systemd")
    pairs = [line.split("=", 1) for line in systemd.stdout.splitlines() if not line.startswith("#")]
    assert found == {k: json.loads(v) for k, v in pairs}, (found, systemd.stdout)
    return found


@pytest.mark.parametrize("package", ["mlflow", "mlflow-light"])
def test_an_mlflow_app_with_exactly_the_settings_of_env(make_daemon, mlflow_server, light_python, directory, package):
    experiment = mlflow_server.new_experiment(f"env {package}")
    daemon = make_daemon([{"name": "mlflow", "kind": "mlflow", "endpoint": mlflow_server.uri, "experiment_id": experiment}]).start()
    python = FULL if package == "mlflow" else light_python
    made = run_app("mlflow_app.py", directory, variables(daemon, "--for", package), python)["traces"]
    assert len(read_back(mlflow_server, experiment, made)) == len(made)


@pytest.mark.parametrize("package", ["mlflow", "mlflow-light"])
def test_an_mlflow_app_without_a_server_with_exactly_the_settings_of_env(make_daemon, receiver, light_python, directory, package):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    python = FULL if package == "mlflow" else light_python
    made = run_app("mlflow_app.py", directory, variables(daemon, "--for", package), python)["traces"]
    wait_until(lambda: (len(receiver.ids()) == sum(made.values()), receiver.ids()), "every span arrived")


def test_an_otel_app_with_exactly_the_settings_of_env(make_daemon, receiver, directory):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    spans = as_spans(run_app("otel_app.py", directory, variables(daemon, "--for", "otel"), arguments=["3"]))
    wait_until(lambda: receiver.has(spans), "every span arrived")


def test_send_stops_on_a_daemon_that_goes_away_and_goes_on_when_it_is_back(make_daemon, receiver, directory):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    command = [daemon.binary, "send", "-", "--config", daemon.config_file, "--timeout", "60s"]
    sender = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=daemon.environment())
    expected = []

    def write(count):
        for _ in range(count):
            request, ids = make_request(1)
            expected.extend(ids)
            sender.stdin.write(request_as_json(request) + "\n")
        sender.stdin.flush()

    write(200)
    wait_until(lambda: (daemon.status()["received"]["spans"] > 0, daemon.status()), "some are there")
    daemon.kill9()
    # As long as nothing is taken, it reads no further: that would be memory.
    writer = threading.Thread(target=write, args=(200,), daemon=True)
    writer.start()
    daemon.start()
    writer.join(PATIENCE)
    out, err = sender.communicate(timeout=PATIENCE)
    assert sender.returncode == 0 and "400 documents are on disk" in out, (out, err)
    wait_until(lambda: receiver.has(expected), "every span arrived, some perhaps twice")
