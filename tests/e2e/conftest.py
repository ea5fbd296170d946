"""Fixtures. See peers/__init__.py for what stands where."""

import os
import pwd

import pytest

from peers import SEED, programs
from peers.daemon import Daemon, remove_directory, short_directory
from peers.door import REFUSED, Door
from peers.mlflow_server import MlflowServer
from peers.otlp_receiver import OtlpReceiver

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def pytest_addoption(parser):
    target = os.environ.get("CARGO_TARGET_DIR") or os.path.join(REPOSITORY, "target")
    parser.addoption("--tracespool", default=os.path.join(target, "debug", "tracespool"), help="the binary under test")
    parser.addoption("--tracespool-release", default=os.path.join(target, "release", "tracespool"), help="the binary that is measured")
    parser.addoption("--keep", action="store_true", help="keep the directories of the tests")


def pytest_report_header():
    return f"random seed: {SEED} (repeat with TRACESPOOL_TEST_SEED={SEED})"


def _binary(path):
    path = os.path.abspath(path)
    # Not a skip: without the binary nothing was tested.
    assert os.access(path, os.X_OK), f"{path} is missing: run tests/run, or cargo build"
    return path


@pytest.fixture(scope="session")
def binary(request):
    return _binary(request.config.getoption("--tracespool"))


@pytest.fixture(scope="session")
def release_binary(request):
    return _binary(request.config.getoption("--tracespool-release"))


@pytest.fixture(scope="session")
def light_python():
    assert os.access(programs.LIGHT, os.X_OK), f"{programs.LIGHT} is missing: run tests/run, or set TRACESPOOL_TEST_PYTHON_LIGHT"
    return programs.LIGHT


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Adds the logs of the daemons, and of MLflow, to the report of a failure, and lets fixtures see that it failed."""
    report = yield
    if report.failed:
        item.failed = True
        for name, read in getattr(item, "logs", []):
            report.sections.append((name, read()[-6000:]))
    return report


@pytest.fixture
def directory(request):
    """A directory of the test's own, with a short path because sockets live in it."""
    path = short_directory()
    yield path
    if request.config.getoption("--keep"):
        print(f"kept {path}")
    else:
        remove_directory(path)


def _show_on_failure(request, name, read):
    if not hasattr(request.node, "logs"):
        request.node.logs = []
    request.node.logs.append((name, read))


@pytest.fixture
def make_daemon(request, binary, directory):
    """make_daemon(backends, **config): a daemon that is not started yet; killed at the end whatever happens."""
    made = []

    def make(backends=(), binary=binary, **config):
        where = os.path.join(directory, f"d{len(made)}")
        os.makedirs(where)
        daemon = Daemon(binary, where, list(backends), **config)
        made.append(daemon)
        _show_on_failure(request, f"log of daemon {len(made)} ({where})", daemon.log)
        return daemon

    yield make
    for daemon in made:
        daemon.stop_anyway()


@pytest.fixture
def receiver():
    """An OTLP backend that is up."""
    r = OtlpReceiver().up()
    yield r
    r.down()


@pytest.fixture(scope="session")
def shared_mlflow(tmp_path_factory):
    """One MLflow server for all tests that only read and write; each uses an experiment of its own."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow")).up()
    yield server
    server.down()


@pytest.fixture
def mlflow_server(request, shared_mlflow):
    _show_on_failure(request, "log of the MLflow server", shared_mlflow.log)
    return shared_mlflow


@pytest.fixture
def own_mlflow(request, directory):
    """An MLflow server that the test may take down. Up at first: its database exists then."""
    server = MlflowServer(os.path.join(directory, "mlflow")).up()
    _show_on_failure(request, "log of the MLflow server", server.log)
    yield server
    server.down()


@pytest.fixture(scope="module")
def door(binary):
    """For the tests of obligations/: see peers/door.py."""
    directory = short_directory()
    receiver = OtlpReceiver().up()
    daemon = Daemon(binary, directory, [receiver.backend("otlp_http", compression="none")])
    daemon.listen_also()
    daemon.config["receive"]["max_request_bytes"] = "1MiB"
    daemon.write_config()
    try:
        daemon.start()
        yield Door(daemon, receiver)
        # Whatever was sent, nothing was lost and nothing of a refused request was shipped (R10).
        account = daemon.wait_drained()
        assert account["delivered"]["spans"] == account["owed"] == len(receiver.spans)
        assert not [s.name for s in receiver.spans if s.name == REFUSED]
    finally:
        daemon.stop_anyway()
        receiver.down()
        remove_directory(directory)


@pytest.fixture(autouse=True)
def _log_of_the_door(request):
    if "door" in request.fixturenames:
        _show_on_failure(request, "log of the daemon", request.getfixturevalue("door").daemon.log)


@pytest.fixture
def say(capsys):
    """Prints in spite of pytest's capture: for figures that are there to be seen, not asserted."""

    def say(*words):
        with capsys.disabled():
            print("\n  " + " ".join(str(w) for w in words), end="", flush=True)

    return say


@pytest.fixture(scope="session")
def nobody():
    """The ordinary user for tests that must not be root."""
    return pwd.getpwnam("nobody")
