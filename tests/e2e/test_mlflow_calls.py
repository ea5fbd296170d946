"""An application that has the daemon as its MLFLOW_TRACKING_URI: MLflow's own calls, with the real SDK and server."""

import json
import re
import subprocess
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from peers import PATIENCE, free_port, programs, wait_until
from peers.mlflow_server import comparable
from peers.programs import FULL, run_app

APP = "mlflow_calls_app.py"
# Spans of one round of the app.
SPANS = 10

# What the server has from a direct run, once per package.
_direct = {}


# --- reading back ---

# Set by whoever makes them, and different in every run; sizes depend on the digits of times.
_VOLATILE_METADATA = {"mlflow.trace.sizeBytes", "mlflow.trace.sizeStats"}
_ATTACHMENT = re.compile(r"mlflow-attachment://[0-9a-f-]+\?[^\"\\]*")


def same_everywhere(text):
    return _ATTACHMENT.sub("ATTACHMENT", text) if isinstance(text, str) else text


def everything(server, trace):
    """All that a trace has on the server but ids and times: `comparable` and every field of its info."""
    info = trace.info.to_dict()
    location = info["trace_location"]
    experiment = location["mlflow_experiment"]["experiment_id"]
    tags = dict(info["tags"])
    assert tags.pop("mlflow.artifactLocation") == f"mlflow-artifacts:/{experiment}/traces/{trace.info.trace_id}/artifacts"
    for a in info.get("assessments", []):
        assert a.pop("trace_id") == trace.info.trace_id
        for key in ("assessment_id", "create_time", "last_update_time"):
            assert a.pop(key)
    attachments = [attachment(server, trace, uri) for uri in _ATTACHMENT.findall(json.dumps([s.to_dict() for s in trace.data.spans]))]
    spans = comparable(trace)
    for s in spans["spans"].values():
        s["attributes"] = {k: same_everywhere(v) for k, v in s["attributes"].items()}
        # Line numbers and addresses of a stack trace are the SDK's own business.
        s["events"] = [(n, {k: v for k, v in a.items() if k != "exception.stacktrace"}) for n, a in s["events"]]
    return {
        "spans": spans["spans"],
        "tokens": spans["tokens"],
        "state": info["state"],
        "client_request_id": info.get("client_request_id"),
        "previews": [same_everywhere(info.get("request_preview")), same_everywhere(info.get("response_preview"))],
        "tags": tags,
        "metadata": {k: same_everywhere(v) for k, v in info["trace_metadata"].items() if k not in _VOLATILE_METADATA},
        "assessments": info.get("assessments", []),
        "attachments": attachments,
        "location": location["type"],
    }


def attachment(server, trace, uri):
    """The bytes of an attachment, as hex, and what is said about it."""
    parts = urlsplit(uri)
    query = parse_qs(parts.query)
    assert query.pop("trace_id") == [trace.info.trace_id]
    path = f"/api/2.0/mlflow-artifacts/artifacts/{trace.info.experiment_id}/traces/{trace.info.trace_id}/artifacts/attachments/{parts.netloc}"
    with urllib.request.urlopen(server.uri + path, timeout=PATIENCE) as r:
        content = r.read()
    assert query["size"] == [str(len(content))]
    return content.hex(), query


def read_back(server, experiment, made, timeout=90):
    """Waits until the app's traces are there with every span; then returns them by name, ready for comparison."""

    def complete():
        traces = server.traces(experiment)
        seen = {t.info.trace_id: len(t.data.spans) for t in traces}
        return seen == made and traces, f"{seen} instead of {made}"

    traces = [everything(server, t) for t in wait_until(complete, "the MLflow server has every trace", timeout, interval=0.3)]
    by_name = {t["tags"]["mlflow.traceName"]: t for t in traces}
    assert len(by_name) == len(traces), "two traces with one name"
    return by_name


def difference(ours, theirs):
    from test_mlflow import difference

    return difference(ours, theirs)


def assert_same(through, direct):
    if through != direct:
        pytest.fail("the traces differ:\n" + difference(through, direct), pytrace=False)


def direct(server, directory, python, package):
    """The same app, logging to the server itself."""
    if package not in _direct:
        experiment = server.new_experiment(f"calls, direct {package}")
        result = run_app(APP, directory, settings(server.uri, experiment, package), python, arguments=arguments(experiment, package))
        _direct[package] = read_back(server, experiment, result["traces"])
        assert _direct[package]["answer 0"]["tags"]["reviewed"] == "yes" and _direct[package]["picture 0"]["attachments"]
    return _direct[package]


def settings(uri, experiment, package, asynchronous=True):
    environment = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": str(asynchronous).lower()}
    if package == "light":
        environment["MLFLOW_TRACING_DESTINATION"] = experiment
    return environment


def arguments(experiment, package, rounds=1):
    how = ["destination"] if package == "light" else ["experiment-id", experiment]
    return [*how, str(rounds), "feedback"]


def backend(server, **more):
    return {"name": "mlflow", "kind": "mlflow", "endpoint": server.uri, "experiment_id": "0", **more}


# --- with the real SDK ---


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
@pytest.mark.parametrize("package", ["full", "light"])
def test_traces_read_back_as_if_logged_directly(make_daemon, mlflow_server, directory, light_python, package, asynchronous):
    python = FULL if package == "full" else light_python
    expected = direct(mlflow_server, directory, python, package)
    experiment = mlflow_server.new_experiment(f"calls through {package} {asynchronous}")
    daemon = make_daemon([backend(mlflow_server)]).start()

    environment = settings(daemon.http, experiment, package, asynchronous)
    result = run_app(APP, directory, environment, python, arguments=arguments(experiment, package))
    account = daemon.wait_drained()
    assert_same(read_back(mlflow_server, experiment, result["traces"]), expected)
    assert daemon.status()["received"]["spans"] == SPANS, "the SDK posts its spans once, and uploads none of them in files"
    assert account["dead"]["records"] == 0 and account["rejected"]["spans"] == 0, account
    assert "WARNING" not in result["stderr"], result["stderr"]


def test_an_app_uses_prompts_metrics_artifacts_and_search_through_the_daemon(make_daemon, mlflow_server, directory):
    import mlflow

    mlflow.MlflowClient(tracking_uri=mlflow_server.uri, registry_uri=mlflow_server.uri).register_prompt("greeting", "Hello {{name}}")
    experiment = mlflow_server.new_experiment("calls, all in one app")
    daemon = make_daemon([backend(mlflow_server)]).start()
    result = run_app(APP, directory, {"MLFLOW_TRACKING_URI": daemon.http}, arguments=["experiment", "calls, all in one app", "1", "feedback", "online"])
    online = result["online"]
    assert (online["metric"], online["text"], online["prompt"]) == (0.5, "hello", "Hello {{name}}")
    assert 1 <= online["traces"] <= 4, "the search is the server's own answer, which has what was delivered by then"
    daemon.wait_drained()
    traces = read_back(mlflow_server, experiment, result["traces"])
    assert json.loads(traces["greet"]["tags"]["mlflow.linkedPrompts"]) == [{"name": "greeting", "version": "1"}]
    assert "WARNING" not in result["stderr"], result["stderr"]


@pytest.mark.parametrize("package", ["full", "light"])
def test_a_server_that_is_down_and_a_kill_lose_nothing(make_daemon, mlflow_server, own_mlflow, directory, light_python, package):
    """An experiment by name, while there is no server; the daemon is killed; the server comes up."""
    python = FULL if package == "full" else light_python
    expected = direct(mlflow_server, directory, python, package)
    own_mlflow.down()
    daemon = make_daemon([backend(own_mlflow)]).start()
    name = f"made at delivery {package}"
    result = run_app(APP, directory, {"MLFLOW_TRACKING_URI": daemon.http}, python, arguments=["experiment", name, "1", "feedback"])
    before = daemon.backend()
    assert before["delivered"]["records"] == 0 and before["backlog"]["records"] > 3 * 2

    daemon.kill9()
    daemon.start()
    assert daemon.backend()["backlog"] == before["backlog"]
    # A second app of the same host asks for the same experiment, before it exists.
    again = run_app(APP, directory, {"MLFLOW_TRACKING_URI": daemon.http}, python, arguments=["experiment", name, "0"])
    assert again["traces"] == {}

    own_mlflow.up()
    account = daemon.wait_drained(timeout=120)
    assert account["dead"]["records"] == 0, account
    experiments = [e for e in own_mlflow.client().search_experiments() if e.name != "Default"]
    assert [e.name for e in experiments] == [name], "made once, and by this name"
    assert_same(read_back(own_mlflow, experiments[0].experiment_id, result["traces"]), expected)


def test_an_app_goes_on_when_the_server_goes_down_and_comes_back(make_daemon, own_mlflow, directory):
    """One process: its first half with a server, its second without; its experiment is one that was learned."""
    experiment = own_mlflow.new_experiment("learned")
    daemon = make_daemon([backend(own_mlflow)]).start()
    base = {k: v for k, v in programs.os.environ.items() if not k.startswith(("MLFLOW_", "OTEL_"))}
    app = subprocess.Popen(
        [FULL, programs.os.path.join(programs.APPS, APP), "experiment", "learned", "1", "feedback", "pause"],
        env={**base, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_TRACKING_URI": daemon.http},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=directory,
        text=True,
    )
    try:
        assert app.stdout.readline().strip() == "paused", app.stderr.read()
        daemon.wait_drained()
        own_mlflow.down()
        out, err = app.communicate("go on\n", timeout=PATIENCE * 2)
    finally:
        app.kill()
    assert app.returncode == 0, err
    made = json.loads(out.splitlines()[-1])["traces"]
    assert len(made) == 6
    # Another process finds the experiment by what the daemon learned, under its real id.
    found = get(daemon.http + "/api/2.0/mlflow/experiments/get-by-name?experiment_name=learned")
    assert found["experiment"]["experiment_id"] == experiment
    daemon.kill9()
    daemon.start()
    own_mlflow.up()
    account = daemon.wait_drained(timeout=120)
    assert account["dead"]["records"] == 0, account
    seen = {t.info.trace_id: len(t.data.spans) for t in own_mlflow.traces(experiment)}
    assert seen == made
    for t in own_mlflow.traces(experiment):
        if t.info.tags["mlflow.traceName"] == "answer 0":
            assert t.info.tags["reviewed"] == "yes" and "passing" not in t.info.tags
            assert [(a.name, a.value) for a in t.info.assessments] == [("helpful", False)]


# --- what is stored and what is answered ---


def ask(method, url, body=None, headers=None, timeout=PATIENCE):
    request = urllib.request.Request(url, method=method, data=body if body is None or isinstance(body, bytes) else json.dumps(body).encode())
    for name, value in (headers or {}).items():
        request.add_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as r:
            return r.status, dict(r.headers), r.read()
    except urllib.error.HTTPError as e:
        return e.code, dict(e.headers), e.read()


def get(url):
    status, _, content = ask("GET", url)
    assert status == 200, content
    return json.loads(content)


TRACE = "0123456789abcdef0123456789abcdef"


def trace_info(experiment="7", spans=2):
    return {
        "trace": {
            "trace_info": {
                "trace_id": f"tr-{TRACE}",
                "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}},
                "request_time": "2026-01-01T00:00:00.000Z",
                "execution_duration": "0.060s",
                "state": "OK",
                "trace_metadata": {"mlflow.trace.sizeStats": json.dumps({"num_spans": spans})},
                "tags": {"mlflow.traceName": "x"},
            }
        }
    }


def post_span(daemon, span_id, experiment="7"):
    span = {"traceId": TRACE, "spanId": span_id, "name": "x", "startTimeUnixNano": "1", "endTimeUnixNano": "2"}
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    headers = {"content-type": "application/json", "x-mlflow-experiment-id": experiment}
    assert ask("POST", daemon.http + "/v1/traces", body, headers)[0] == 200


def test_a_trace_has_its_spans_here_only_when_all_of_them_came(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()

    def answered():
        status, _, content = ask("POST", daemon.http + "/api/3.0/mlflow/traces", trace_info(), {"content-type": "application/json"})
        assert status == 200, content
        info = json.loads(content)["trace"]["trace_info"]
        assert info["tags"]["mlflow.artifactLocation"] == f"mlflow-artifacts:/7/traces/tr-{TRACE}/artifacts"
        assert {k: v for k, v in info.items() if k != "tags"} == {k: v for k, v in trace_info()["trace"]["trace_info"].items() if k != "tags"}
        return info["tags"].get("mlflow.trace.spansLocation")

    assert answered() is None, "no span came"
    post_span(daemon, "0000000000000001")
    assert answered() is None, "one of two came"
    post_span(daemon, "0000000000000002")
    assert answered() == "TRACKING_STORE"
    # The three trace infos have no place in OTLP; the spans have.
    account = daemon.wait_drained()
    assert (account["owed"], account["delivered"]["spans"], account["not_applicable"]) == (5, 2, 3)
    received = daemon.status()["received"]
    assert (received["requests"], received["spans"]) == (5, 2)


def test_a_promised_experiment_outlives_a_kill_and_a_new_name(make_daemon, own_mlflow):
    own_mlflow.down()
    daemon = make_daemon([backend(own_mlflow)]).start()
    query = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=" + "gr%C3%B6%C3%9Fer"
    promised = get(daemon.http + query)["experiment"]
    # It was durable before it was told.
    daemon.kill9()
    daemon.start()
    assert get(daemon.http + query)["experiment"] == promised and promised["name"] == "größer"
    post_span(daemon, "0000000000000001", promised["experiment_id"])
    own_mlflow.up()
    # The id is no server's; who has it may still ask.
    assert get(daemon.http + f"/api/2.0/mlflow/experiments/get?experiment_id={promised['experiment_id']}")["experiment"] == promised
    daemon.wait_drained()
    real = own_mlflow.client().get_experiment_by_name("größer").experiment_id
    # An app that lives on keeps the id, and the experiment is what it was.
    own_mlflow.client().rename_experiment(real, "größer, renamed")
    daemon.restart()
    post_span(daemon, "0000000000000002", promised["experiment_id"])
    account = daemon.wait_drained()
    assert account["dead"]["records"] == 0, account
    assert [len(t.data.spans) for t in own_mlflow.traces(real)] == [2]
    assert {e.name for e in own_mlflow.client().search_experiments()} == {"Default", "größer, renamed"}


def test_calls_that_are_repeated_have_no_second_effect(make_daemon, mlflow_server):
    """What was delivered just before a kill is delivered again; an app repeats what it got no answer to."""
    experiment = mlflow_server.new_experiment("repeated")
    daemon = make_daemon([backend(mlflow_server)]).start()
    info = trace_info(experiment, 1)
    feedback = {"assessment_name": "inside", "source": {"source_type": "HUMAN", "source_id": "ann"}, "feedback": {"value": True}}
    info["trace"]["trace_info"]["assessments"] = [dict(feedback)]
    post_span(daemon, "0000000000000001", experiment)
    trace = f"/mlflow/traces/tr-{TRACE}"

    def call(method, path, body):
        status, _, content = ask(method, daemon.http + path, body, {"content-type": "application/json"})
        assert status == 200, content
        return json.loads(content)

    # Without an id of the daemon's the server would make one, each time another.
    info = call("POST", "/api/3.0/mlflow/traces", info)
    inside = info["trace"]["trace_info"]["assessments"][0]["assessment_id"]
    own = {"assessment": {**feedback, "assessment_name": "own", "assessment_id": "a-of-the-app"}}
    for _ in range(2):
        call("POST", "/api/3.0/mlflow/traces", info)
        answered = call("POST", f"/api/3.0{trace}/assessments", own)["assessment"]
        assert (answered["assessment_id"], answered["valid"]) == ("a-of-the-app", True)
        call("PATCH", f"/api/2.0{trace}/tags", {"key": "gone", "value": "x"})
        call("DELETE", f"/api/2.0{trace}/tags", {"key": "gone"})
        call("DELETE", f"/api/2.0{trace}/tags", {"key": "gone"})
        call("POST", "/api/2.0/mlflow/traces/link-prompts", {"trace_id": f"tr-{TRACE}", "prompt_versions": [{"name": "p", "version": "1"}]})
    account = daemon.wait_drained()
    assert account["dead"]["records"] == 0 and account["delivered"]["records"] == 1 + 1 + 2 * 6, account
    (found,) = mlflow_server.traces(experiment)
    assert {a.assessment_id for a in found.info.assessments} == {inside, "a-of-the-app"}
    assert "gone" not in found.info.tags


def test_calls_about_a_trace_wait_for_its_spans(make_daemon, own_mlflow):
    """The spans are refused for a while (their experiment is deleted); a call about the trace must not be lost by it."""
    experiment = own_mlflow.new_experiment("deleted for a while")
    client = own_mlflow.client()
    daemon = make_daemon([backend(own_mlflow)]).start()
    missing = str(int(experiment) + 1)
    post_span(daemon, "0000000000000001", missing)
    tag = {"key": "k", "value": "v"}
    assert ask("PATCH", daemon.http + f"/api/2.0/mlflow/traces/tr-{TRACE}/tags", tag, {"content-type": "application/json"})[0] == 200
    # Another trace passes meanwhile.
    other = {"traceId": "f" * 32, "spanId": "0000000000000009", "name": "x", "startTimeUnixNano": "1", "endTimeUnixNano": "2"}
    headers = {"content-type": "application/json", "x-mlflow-experiment-id": experiment}
    assert ask("POST", daemon.http + "/v1/traces", {"resourceSpans": [{"scopeSpans": [{"spans": [other]}]}]}, headers)[0] == 200
    wait_until(lambda: daemon.backend()["delivered"]["records"] == 1, "the other trace is delivered")
    account = daemon.backend()
    assert account["attempts"] == 2 and account["backlog"]["records"] == 2, f"the call was tried before the spans: {account}"
    assert client.create_experiment("made at last") == missing
    account = daemon.wait_drained()
    assert account["dead"]["records"] == 0, account
    (found,) = own_mlflow.traces(missing)
    assert found.info.tags["k"] == "v"


def test_spans_that_are_uploaded_in_a_file_are_spans(make_daemon, receiver, mlflow_server, directory):
    """An SDK that could not ask for the version at its start posts no spans, and uploads them instead."""
    experiment = mlflow_server.new_experiment("uploaded")
    daemon = make_daemon([backend(mlflow_server), receiver.backend("otlp_http")]).start()
    spans = {"trace_id": "ASNFZ4mrze8BI0VniavN7w==", "span_id": "AAAAAAAAAAE=", "parent_span_id": None, "name": "uploaded"}
    spans |= {"start_time_unix_nano": 1, "end_time_unix_nano": 2, "status": {"code": "STATUS_CODE_OK", "message": ""}}
    spans |= {"attributes": {"mlflow.spanType": '"TOOL"', "n": "7"}, "events": []}
    path = f"/api/2.0/mlflow-artifacts/artifacts/{experiment}/traces/tr-{TRACE}/artifacts/traces.json"
    info = trace_info(experiment, 1)
    assert ask("POST", daemon.http + "/api/3.0/mlflow/traces", info, {"content-type": "application/json"})[0] == 200
    assert ask("PUT", daemon.http + path, {"spans": [spans]}, {"content-type": "application/json"})[0] == 200
    for name in ["mlflow", "otlp_http"]:
        account = daemon.wait_drained(name=name)
        assert account["dead"]["records"] == 0, account
    (span,) = receiver.spans
    assert (span.trace_id, span.name) == (TRACE, "uploaded")
    (found,) = mlflow_server.traces(experiment)
    assert [(s.name, s.span_type, s.get_attribute("n")) for s in found.data.spans] == [("uploaded", "TOOL", 7)]
    # And from then on they are here.
    answered = json.loads(ask("POST", daemon.http + "/api/3.0/mlflow/traces", info, {"content-type": "application/json"})[2])
    assert answered["trace"]["trace_info"]["tags"]["mlflow.trace.spansLocation"] == "TRACKING_STORE"
    # What is none is kept as a file.
    assert ask("PUT", daemon.http + path, {"something": "else"}, {"content-type": "application/json"})[0] == 200
    account = daemon.wait_drained(name="mlflow")
    assert account["dead"]["records"] == 0, account
    with urllib.request.urlopen(mlflow_server.uri + path, timeout=PATIENCE) as r:
        assert json.load(r) == {"something": "else"}


def test_the_token_of_the_door_is_not_forwarded(make_daemon, scripted, directory):
    token = f"{directory}/door"
    with open(token, "w") as f:
        f.write("the-doors-own-token-of-some-length")
    daemon = make_daemon([backend(scripted)], receive={"token_file": token}).start()
    path = daemon.http + "/api/2.0/mlflow/runs/search"
    assert ask("POST", path, {}, {"authorization": "Basic YTpi"})[0] == 401 and scripted.asked == []
    assert ask("POST", path, {}, {"authorization": "Bearer the-doors-own-token-of-some-length"})[0] == 200
    assert "the-doors-own" not in json.dumps(scripted.asked)


def test_calls_that_name_no_experiment_are_for_the_configured_one(make_daemon, mlflow_server):
    experiment = mlflow_server.new_experiment("the one for those that name none")
    daemon = make_daemon([backend(mlflow_server)], receive={"mlflow": {"experiment_id": experiment}}).start()
    post_span(daemon, "0000000000000001", experiment="")
    assert ask("POST", daemon.http + "/api/3.0/mlflow/traces", trace_info("", 1), {"content-type": "application/json"})[0] == 200
    account = daemon.wait_drained()
    assert account["dead"]["records"] == 0, account
    assert [t.info.trace_id for t in mlflow_server.traces(experiment)] == [f"tr-{TRACE}"]


def test_bad_calls_are_refused_as_the_server_would(make_daemon):
    daemon = make_daemon().start()
    json_type = {"content-type": "application/json"}
    for method, path, body in [
        ("POST", "/api/3.0/mlflow/traces", b"{"),
        ("POST", "/api/3.0/mlflow/traces", b"[]"),
        ("POST", "/api/3.0/mlflow/traces", {"trace": {}}),
        ("PATCH", f"/api/2.0/mlflow/traces/tr-{TRACE}/tags", {"value": "x"}),
        ("POST", f"/api/3.0/mlflow/traces/tr-{TRACE}/assessments", {}),
        ("POST", f"/api/3.0/mlflow/traces/tr-{TRACE}/assessments", {"assessment": {"assessment_id": "../x"}}),
        ("GET", "/api/2.0/mlflow/experiments/get-by-name", None),
    ]:
        status, _, content = ask(method, daemon.http + path, body, json_type)
        assert (status, json.loads(content)["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), (method, path, content)
    status, _, _ = ask("POST", daemon.http + "/api/3.0/mlflow/traces", trace_info(), {"origin": "https://evil.example"})
    assert status == 403
    assert daemon.status()["received"]["requests"] == 0


# --- forwarding ---


class Scripted(ThreadingHTTPServer):
    """A server that writes down what it is asked, and answers as it is told."""

    daemon_threads = True

    def __init__(self):
        self.asked, self.go_on, self.away = [], threading.Event(), False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self):
                length = int(self.headers.get("content-length", 0))
                received = 0
                while received < length:
                    piece = self.rfile.read(min(1 << 20, length - received))
                    received += len(piece)
                outer.asked.append((self.command, self.path, dict(self.headers.items()), received))
                if self.path == "/version":
                    content = b"3.9.1"
                elif self.path.startswith("/api/2.0/mlflow-artifacts/artifacts/slow"):
                    self.send_response(200)
                    self.send_header("content-length", "2")
                    self.end_headers()
                    self.wfile.write(b"a")
                    self.wfile.flush()
                    # Never without a word of the test: whoever waits for the whole gets nothing.
                    if outer.go_on.wait(PATIENCE / 2):
                        self.wfile.write(b"b")
                    self.close_connection = True
                    return
                else:
                    content = b'{"seen":true}'
                self.send_response(503 if outer.away else 418 if "teapot" in self.path else 200)
                self.send_header("content-length", str(len(content)))
                self.send_header("x-of-the-server", "1")
                self.send_header("connection", "x-hop")
                self.send_header("x-hop", "1")
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        super().__init__(("127.0.0.1", free_port()), Handler)
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def scripted():
    server = Scripted()
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()


def test_the_callers_credentials_are_forwarded_and_the_daemons_never(make_daemon, scripted, directory):
    token = f"{directory}/token"
    with open(token, "w") as f:
        f.write("the-daemons-own")
    daemon = make_daemon([backend(scripted, token_file=token, headers={"x-api-key": "the-daemons-key"})]).start()
    path = "/api/2.0/mlflow/runs/search?x=a%20b&y=%C3%A9"
    status, headers, content = ask("POST", daemon.http + path, {"a": 1}, {"authorization": "Basic YTpi", "x-mlflow-workspace": "blue"})
    assert (status, content, headers["x-of-the-server"]) == (200, b'{"seen":true}', "1")
    assert "x-hop" not in {name.lower() for name in headers}
    assert ask("GET", daemon.http + "/ajax-api/2.0/mlflow/teapot")[0] == 418
    (method, asked, first, received), (_, other, second, _) = scripted.asked
    first, second = ({k.lower(): v for k, v in h.items()} for h in (first, second))
    assert (method, asked, received) == ("POST", path, 8) and other == "/ajax-api/2.0/mlflow/teapot"
    assert (first["authorization"], first["x-mlflow-workspace"], first["host"]) == ("Basic YTpi", "blue", scripted.uri.removeprefix("http://"))
    assert "authorization" not in second
    assert "the-daemons" not in json.dumps([first, second])
    # A call that comes back is a loop.
    assert ask("GET", daemon.http + "/api/2.0/x", headers={"x-tracespool-via": first["x-tracespool-via"]})[0] == 403
    # What is spooled is the daemon's own to deliver.
    assert ask("PATCH", daemon.http + f"/api/2.0/mlflow/traces/tr-{TRACE}/tags", {"key": "a", "value": "b"}, {"authorization": "Basic YTpi"})[0] == 200
    daemon.wait_drained()
    headers = {k.lower(): v for k, v in scripted.asked[-1][2].items()}
    assert (scripted.asked[-1][0], headers["authorization"], headers["x-api-key"]) == ("PATCH", "Bearer the-daemons-own", "the-daemons-key")


def test_bodies_are_streamed_both_ways_and_not_bounded_by_a_requests_limit(make_daemon, scripted):
    limits = {"max_request_bytes": "1MiB", "max_in_flight_bytes": "4MiB"}
    daemon = make_daemon([backend(scripted)], receive=limits).start()
    size = 40 << 20
    status, _, _ = ask("PUT", daemon.http + "/api/2.0/mlflow-artifacts/artifacts/7/run/artifacts/model.bin", bytes(size))
    assert status == 200 and scripted.asked[-1][3] == size
    attachment = f"/api/2.0/mlflow-artifacts/artifacts/7/traces/tr-{TRACE}/artifacts/attachments/a"
    status, _, _ = ask("PUT", daemon.http + attachment, bytes(2 << 20))
    assert status == 200 and scripted.asked[-1][1:] == (attachment, scripted.asked[-1][2], 2 << 20), "too large to be spooled"
    assert daemon.status()["received"]["requests"] == 0
    with urllib.request.urlopen(daemon.http + "/api/2.0/mlflow-artifacts/artifacts/slow", timeout=PATIENCE) as r:
        assert r.read(1) == b"a", "the first piece comes before the second is there"
        scripted.go_on.set()
        assert r.read() == b"b"


def test_without_a_server_the_answer_says_why(make_daemon, scripted):
    calls = [("POST", "/api/2.0/mlflow/runs/log-metric"), ("POST", "/api/3.0/mlflow/traces/search"), ("GET", "/api/2.0/mlflow/registered-models/get")]

    def refused(daemon, status, code, words):
        for method, path in calls:
            got, _, content = ask(method, daemon.http + path, {} if method == "POST" else None)
            message = json.loads(content)
            assert (got, message["error_code"]) == (status, code) and words in message["message"], content

    away = make_daemon([{"name": "far", "kind": "mlflow", "endpoint": f"http://127.0.0.1:{free_port()}", "experiment_id": "0"}]).start()
    refused(away, 503, "TEMPORARILY_UNAVAILABLE", "backend far")
    assert ask("GET", away.http + "/version")[2] == b"3.17.2" and ask("GET", away.http + "/health")[0] == 200
    none = make_daemon().start()
    refused(none, 501, "NOT_IMPLEMENTED", "[[backend]]")
    experiment = get(none.http + "/api/2.0/mlflow/experiments/get-by-name?experiment_name=a%20name")["experiment"]
    assert experiment["name"] == "a name"
    assert get(none.http + f"/api/2.0/mlflow/experiments/get?experiment_id={experiment['experiment_id']}")["experiment"] == experiment
    off = make_daemon([backend(scripted)], receive={"mlflow": {"forward": False}}).start()
    refused(off, 501, "NOT_IMPLEMENTED", "receive.mlflow.forward")
    assert scripted.asked == []
    disabled = make_daemon([backend(scripted)], receive={"mlflow": {"enabled": False}}).start()
    for path in ["/version", "/health", "/api/2.0/mlflow/x"]:
        assert ask("GET", disabled.http + path)[0] == 404
    assert scripted.asked == []


def test_the_version_is_the_servers_and_stays_known_when_it_is_gone(make_daemon, scripted):
    daemon = make_daemon([backend(scripted)]).start()
    assert ask("GET", daemon.http + "/version")[2] == b"3.9.1"
    scripted.away = True
    assert ask("GET", daemon.http + "/version")[2] == b"3.9.1"
