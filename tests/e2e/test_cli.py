"""The command line: exit codes, and what is said."""

import json
import os
import re
import socket
import stat
import subprocess

import pytest

from peers import free_port, wait_until
from peers.otlp import HttpClient, make_request, request_as_json


def exit_of(daemon, *arguments, **environment):
    """Starts a daemon that is expected to end by itself; returns its exit code."""
    process = daemon.spawn(*arguments, **environment)
    try:
        return process.wait(30)
    except subprocess.TimeoutExpired:
        pytest.fail("the daemon runs, where it should have ended by itself")


def test_status_tells_the_whole_story(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    request, ids = make_request(3)
    assert HttpClient(daemon.port).send(request).ok
    wait_until(lambda: receiver.has(ids), "delivered")
    daemon.wait_drained()
    status = daemon.status()
    # Every key of the contract: programs are written against these.
    assert {"version", "pid", "state", "started_at", "listen", "spool", "received", "backends"} <= status.keys()
    assert status["pid"] == daemon.process.pid
    assert status["listen"] == [daemon.grpc]
    spool = status["spool"]
    assert {"records", "traces", "spans", "bytes", "max_bytes", "oldest_at", "disk_free_bytes", "kept", "dead_letters", "damage"} <= spool.keys()
    assert spool["max_bytes"] == 10 * 1024**3 and spool["records"] == 0 and spool["bytes"] > 0 and spool["disk_free_bytes"] > 0
    assert {k: status["received"][k] for k in ["requests", "traces", "spans"]} == {"requests": 1, "traces": 1, "spans": 3}
    assert status["received"]["refused"] == {"full": 0, "invalid": 0, "too_large": 0}
    (backend,) = status["backends"]
    assert backend["name"] == backend["kind"] == "otlp_http" and backend["state"] == "up"
    assert backend["owed"] == 3 and backend["delivered"]["records"] == 1 and backend["delivered"]["spans"] == 3
    assert set(backend["backlog"]) >= {"records", "traces", "spans", "bytes", "oldest_at", "parked"}
    assert set(backend["discarded"]) >= {"retry_timeout", "queue_cap", "dead_letter_cap", "dead_letter_age", "purged"}
    assert {"in_flight", "rejected", "dead", "damaged", "not_applicable", "attempts", "last_error", "next_attempt_at"} <= backend.keys()
    human = daemon.cli("status")
    assert human.returncode == 0 and "otlp_http" in human.stdout


def test_port_0_takes_any_port_and_says_which(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")])
    daemon.config["receive"]["listen"] = ["127.0.0.1:0", "127.0.0.1:0"]
    daemon.write_config()
    daemon.start()
    ports = [int(address.rpartition(":")[2]) for address in daemon.status()["listen"]]
    assert len(set(ports)) == 2 and 0 not in ports
    for port in ports:
        assert str(port) in daemon.log(), "the log does not say which port was taken"
        assert HttpClient(port).send(make_request(1)[0]).ok
    wait_until(lambda: (len(receiver.ids()) == 2, receiver.ids()), "both spans arrived")


def test_files_are_private(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    assert HttpClient(daemon.port).send(make_request(1)[0]).ok
    modes = {p: stat.S_IMODE(os.stat(p).st_mode) for p in [daemon.state_dir, f"{daemon.directory}/spool.sock", f"{daemon.directory}/admin.sock"]}
    assert list(modes.values()) == [0o700, 0o660, 0o600], {p: oct(m) for p, m in modes.items()}
    for where, _, files in os.walk(daemon.state_dir):
        for f in files:
            mode = stat.S_IMODE(os.stat(os.path.join(where, f)).st_mode)
            assert mode & 0o007 == 0, f"{where}/{f} may be read by everybody: {oct(mode)}"


def test_a_second_daemon_is_told_who_holds_the_state_directory(make_daemon, receiver):
    first = make_daemon([receiver.backend("otlp_http")]).start()
    second = make_daemon([receiver.backend("otlp_http")], state_dir=first.state_dir)
    assert exit_of(second) == 75
    assert re.search(rf"\b{first.process.pid}\b", second.log()), f"the process id {first.process.pid} is not named"
    # The first one did not notice.
    assert HttpClient(first.port).send(make_request(1)[0]).ok
    # And nobody holds it after a kill.
    first.kill9()
    second.start()


def test_an_address_in_use_is_named(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", daemon.port))
        taken.listen()
        assert exit_of(daemon) == 71
    assert daemon.grpc in daemon.log(), "the address is not named"


def test_every_mistake_in_a_configuration_is_told_at_once(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")])
    with open(daemon.config_file, "a") as f:
        f.write('\n[log]\nlevle = "info"\nlevel = "loud"\n\n[delivery.nonsense]\n')
    with open(daemon.config_file) as f:
        lines = f.read().splitlines()
    assert exit_of(daemon) == 78
    done = daemon.cli("check")
    assert done.returncode == 78, done
    for said in [daemon.log(), done.stdout + done.stderr]:
        for key in ["levle", "level", "nonsense"]:
            assert key in said, f"the mistake at {key} is not told:\n{said}"
        assert daemon.config_file in said and str(lines.index('levle = "info"') + 1) in said, f"file and line are not told:\n{said}"
    assert not os.path.exists(daemon.state_dir), "a wrong configuration must not touch the disk"


def test_check_passes_a_good_configuration(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http", headers={"authorization": "Bearer s3cr3t-t0ken"})])
    done = daemon.cli("check")
    assert done.returncode == 0, done
    effective = daemon.cli("check", "--effective")
    assert effective.returncode == 0 and "retry_timeout" in effective.stdout, effective
    assert "s3cr3t" not in done.stdout + done.stderr + effective.stdout + effective.stderr


def test_an_unknown_state_format_is_left_alone(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    daemon.terminate()
    path = os.path.join(daemon.state_dir, "FORMAT")
    with open(path) as f:
        assert len(f.read().splitlines()) == 1
    newer = "tracespool 999999\n"
    with open(path, "w") as f:
        f.write(newer)
    assert exit_of(daemon) == 78
    with open(path) as f:
        assert f.read() == newer


@pytest.mark.parametrize("arguments", [["bogus"], ["status", "--bogus"], ["send"], ["run", "surplus"]], ids=" ".join)
def test_usage(make_daemon, arguments):
    done = make_daemon().cli(*arguments, timeout=20)
    assert done.returncode == 64 and done.stderr, done


def test_without_a_daemon(make_daemon, receiver, directory):
    daemon = make_daemon([receiver.backend("otlp_http")])
    path = os.path.join(directory, "one.json")
    with open(path, "w") as f:
        f.write(request_as_json(make_request(1)[0]))
    assert daemon.cli("send", path).returncode == 69
    receiver.down()
    daemon.start()
    assert HttpClient(daemon.port).send(make_request(2)[0]).ok
    daemon.terminate()
    # Offline, read-only: what waits is told, and that nobody works on it.
    done = daemon.cli("status", "--json")
    assert done.returncode == 69
    status = json.loads(done.stdout)
    assert status["state"] == "down" and status["backends"][0]["backlog"]["spans"] == 2, status


def test_send_writes_files(make_daemon, receiver, directory):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    (one, ids_one), (two, ids_two), (three, ids_three) = make_request(2), make_request(3), make_request(1)
    json_file, lines_file, bad_file = (os.path.join(directory, n) for n in ["one.json", "two.jsonl", "bad.json"])
    with open(json_file, "w") as f:
        f.write(request_as_json(one))
    with open(lines_file, "w") as f:
        f.write(request_as_json(two) + "\n")
    with open(bad_file, "w") as f:
        f.write('{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]}\n')

    done = daemon.cli("send", json_file, lines_file)
    assert done.returncode == 0, done
    done = daemon.cli("send", "-", stdin=request_as_json(three) + "\n")
    assert done.returncode == 0, done
    expected = ids_one + ids_two + ids_three
    wait_until(lambda: (receiver.ids() == dict.fromkeys(expected, 1), receiver.ids()), "the spans of every file arrived")

    missing = daemon.cli("send", os.path.join(directory, "missing.json"))
    assert missing.returncode == 66 and "missing.json" in missing.stderr, missing
    bad = daemon.cli("send", bad_file)
    assert bad.returncode == 65 and "bad.json" in bad.stderr, bad
    assert len(receiver.ids()) == 6


def test_send_test_reports_the_delivery(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_grpc"), receiver.backend("otlp_http")]).start()
    done = daemon.cli("send", "--test", "--wait", "30s")
    assert done.returncode == 0, done
    assert "otlp_grpc" in done.stdout and "otlp_http" in done.stdout, f"each backend is to be reported:\n{done.stdout}"
    assert receiver.ids() and set(receiver.ids().values()) == {2}, receiver.ids()
    receiver.down()
    done = daemon.cli("send", "--test", "--wait", "1s")
    assert done.returncode == 75, f"delivery was awaited in vain, which is not success: {done}"


def test_a_backend_from_the_environment(make_daemon, receiver):
    """The variables of the OpenTelemetry SDKs name a backend when the file names none."""
    daemon = make_daemon([])
    endpoint = f"http://127.0.0.1:{receiver.http_port}"
    daemon.start(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    request, ids = make_request(2)
    assert HttpClient(daemon.port).send(request).ok
    wait_until(lambda: receiver.has(ids), "the span arrived at the backend of the environment")


def test_its_own_address_in_the_environment_is_not_a_backend(make_daemon):
    """Environment files are shared with the apps: what points at the daemon is meant for them."""
    daemon = make_daemon([])
    daemon.start(OTEL_EXPORTER_OTLP_ENDPOINT=daemon.http)
    assert HttpClient(daemon.port).send(make_request(1)[0]).ok
    backends = [b for b in daemon.status()["backends"] if b["kind"].startswith("otlp")]
    assert backends == []
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in daemon.log(), "the log does not say that the variable is ignored"


def test_a_port_that_is_not_loopback_needs_a_guard(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")])
    daemon.config["receive"]["listen"] = [f"0.0.0.0:{free_port()}"]
    daemon.write_config()
    assert exit_of(daemon) == 78
    assert "insecure" in daemon.log()
