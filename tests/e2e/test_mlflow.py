"""From a real MLflow application, through the disk, to a real MLflow server."""

import difflib
import json

import pytest

from peers import wait_until
from peers.programs import FULL, direct_traces, read_back, run_app

# What the server has from a direct run, once per package.
_direct = {}


def difference(ours, theirs):
    """The first lines in which two results differ; a dict of this size says nothing in an assertion."""
    a = json.dumps(ours, indent=1, sort_keys=True, ensure_ascii=False).splitlines()
    b = json.dumps(theirs, indent=1, sort_keys=True, ensure_ascii=False).splitlines()
    return "\n".join(list(difflib.unified_diff(b, a, "logged directly", "through the daemon", lineterm="", n=4))[:80])


def otlp_environment(daemon, protocol, package):
    """The settings of MLflow's production page, literally, but for the port. Its http/protobuf example names 4317 too."""
    environment = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{daemon.http}/v1/traces", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": protocol}
    if package == "light":
        # Without any tracking URI the light package loses every trace; nobody has to listen there.
        environment["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    return environment


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("package", ["full", "light"])
def test_traces_read_back_as_if_logged_to_the_server(make_daemon, mlflow_server, directory, light_python, package, protocol):
    python = FULL if package == "full" else light_python
    if package not in _direct:
        _direct[package] = direct_traces(mlflow_server, directory, python, f"direct {package}")
    experiment = mlflow_server.new_experiment(f"through {package} {protocol}")
    daemon = make_daemon([{"name": "mlflow", "kind": "mlflow", "endpoint": mlflow_server.uri, "experiment_id": experiment}]).start()

    result = run_app("mlflow_app.py", directory, otlp_environment(daemon, protocol, package), python)
    assert daemon.status()["received"]["spans"] == 7, "the daemon did not get the app's seven spans:\n" + result["stderr"][-2000:]
    through = read_back(mlflow_server, experiment, result["traces"])

    if through != _direct[package]:
        pytest.fail("the traces differ:\n" + difference(through, _direct[package]), pytrace=False)
    account = daemon.wait_drained()
    assert account["delivered"]["spans"] == 7 and account["dead"]["records"] == 0 and account["rejected"]["spans"] == 0


def test_an_outage_and_a_kill_lose_nothing(make_daemon, own_mlflow, directory):
    """The server is down while the app runs and exits; the daemon is killed and started again; the server comes up."""
    experiment = own_mlflow.new_experiment("outage")
    own_mlflow.down()
    daemon = make_daemon([{"name": "mlflow", "kind": "mlflow", "endpoint": own_mlflow.uri, "experiment_id": experiment}]).start()

    # Sixty traces over two processes, so that more than one record waits.
    made = {}
    for protocol in ["grpc", "http/protobuf"]:
        made |= run_app("mlflow_app.py", directory, otlp_environment(daemon, protocol, "full"), arguments=["10"])["traces"]
    spans = sum(made.values())
    assert (len(made), spans) == (60, 140)
    before = daemon.backend()
    assert before["backlog"]["spans"] == spans and before["delivered"]["spans"] == 0

    daemon.kill9()
    daemon.start()
    after = daemon.backend()
    assert after["backlog"]["spans"] == spans and after["owed"] == spans, after

    own_mlflow.up()
    found = {t.info.trace_id.removeprefix("tr-"): t for t in _when_complete(own_mlflow, experiment, made)}
    # Once: the same span twice in one request would count its tokens twice.
    for t in found.values():
        tokens = t.info.token_usage
        assert tokens is None or tokens["total_tokens"] in (120, 4), f"tokens counted more than once: {tokens}"
    account = daemon.wait_drained()
    assert account["delivered"]["spans"] == spans and account["dead"]["records"] == 0


def _when_complete(server, experiment, made):
    def complete():
        traces = server.traces(experiment)
        seen = {t.info.trace_id.removeprefix("tr-"): len(t.data.spans) for t in traces}
        return traces if seen == made else (False, f"{len(seen)} of {len(made)} traces, {sum(seen.values())} spans")

    return wait_until(complete, "the server has every trace, each once, with every span", timeout=120, interval=0.3)
