"""The binary under test as a process."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

from . import PATIENCE, free_port, wait_until


def toml(value):
    """A dict as TOML: plain values first, then tables, then lists of tables. JSON's scalars and lists are TOML's."""
    lines = []

    def table(path, content):
        later = []
        for key, v in content.items():
            if isinstance(v, dict) or (isinstance(v, list) and v and isinstance(v[0], dict)):
                later.append((key, v))
            else:
                lines.append(f"{key} = {json.dumps(v)}")
        for key, v in later:
            name = ".".join([*path, key])
            for one in [v] if isinstance(v, dict) else v:
                lines.append(f"\n[{name}]" if isinstance(v, dict) else f"\n[[{name}]]")
                table([*path, key], one)

    table([], value)
    return "\n".join(lines) + "\n"


class Daemon:
    """A tracespool daemon with a configuration, a state directory, and an address that outlives restarts.

    `config` is merged over a base in which every path and port is private to this instance.
    """

    def __init__(self, binary, directory, backends, **config):
        self.binary = str(binary)
        self.directory = str(directory)
        self.port = free_port()
        self.state_dir = os.path.join(self.directory, "state")
        self.config_file = os.path.join(self.directory, "tracespool.toml")
        self.log_file = os.path.join(self.directory, "daemon.log")
        self.process = None
        self.starts = 0
        base = {
            "state_dir": self.state_dir,
            "receive": {
                "listen": [f"127.0.0.1:{self.port}"],
                "socket": {"path": os.path.join(self.directory, "spool.sock")},
                "directory": {"path": os.path.join(self.directory, "drop"), "rescan": "1s"},
            },
            # Small machines run these tests too.
            "spool": {"min_free_disk": "64MiB"},
            "admin": {"socket": os.path.join(self.directory, "admin.sock")},
            # Tests wait for retries: keep them short. The shape of the backoff is tested elsewhere.
            "delivery": {"backoff_initial": "100ms", "backoff_max": "1s", "blocked_retry": "2s"},
            "backend": backends,
        }
        for key, value in config.items():
            if isinstance(value, dict):
                base.setdefault(key, {}).update(value)
            else:
                base[key] = value
        self.config = base
        self.write_config()

    # --- addresses ---

    @property
    def http(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc(self):
        return f"127.0.0.1:{self.port}"

    def listen_also(self):
        """A second TCP listener, at `second_port`."""
        self.second_port = free_port()
        self.config["receive"]["listen"].append(f"127.0.0.1:{self.second_port}")
        self.write_config()

    # --- life ---

    def write_config(self):
        with open(self.config_file, "w") as f:
            f.write(toml({k: v for k, v in self.config.items() if v != []}))

    def environment(self, **more):
        """The caller's, without what the daemon reads: settings of SDKs, and what systemd tells its children."""
        mine = ("TRACESPOOL_", "OTEL_", "MLFLOW_", "DATABRICKS_", "NOTIFY_", "WATCHDOG_", "LISTEN_")
        systemd = {"JOURNAL_STREAM", "INVOCATION_ID", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CONFIGURATION_DIRECTORY", "CREDENTIALS_DIRECTORY"}
        env = {k: v for k, v in os.environ.items() if not k.startswith(mine) and k not in systemd}
        return {**env, **more}

    def spawn(self, *arguments, **environment):
        """Starts the process without waiting for anything."""
        assert self.process is None or self.process.poll() is not None, "it is running already"
        self.starts += 1
        log = open(self.log_file, "ab")
        log.write(f"--- start {self.starts} ---\n".encode())
        log.flush()
        self.process = subprocess.Popen(
            [self.binary, "run", "--config", self.config_file, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.directory,
            env=self.environment(**environment),
        )
        log.close()
        return self.process

    def start(self, *arguments, **environment):
        """Starts the process and returns when its doors are open."""
        self.spawn(*arguments, **environment)
        self.wait_ready()
        return self

    def wait_ready(self):
        def ready():
            if self.process.poll() is not None:
                raise RuntimeError(f"the daemon ended with exit code {self.process.returncode} instead of getting ready")
            state = self.status(allow_down=True).get("state")
            return state == "ready", f"state {state}"

        wait_until(ready, "the daemon is ready")

    def kill9(self):
        self.process.kill()
        self.process.wait(PATIENCE)

    def terminate(self, timeout=10.0):
        """SIGTERM: exit code 0 within the ten seconds of the contract. Returns how long it took."""
        assert self.process.poll() is None, f"the daemon had already ended with exit code {self.process.returncode}"
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"SIGTERM did not stop the daemon within {timeout} s") from None
        assert code == 0, f"after SIGTERM the daemon exited with {code}"
        return time.monotonic() - began

    def restart(self):
        self.terminate()
        return self.start()

    def stop_anyway(self):
        """For the end of a test, whatever happened in it."""
        if self.process is not None and self.process.poll() is None:
            self.kill9()

    def log(self):
        try:
            with open(self.log_file, errors="replace") as f:
                return f.read()
        except FileNotFoundError:
            return ""

    # --- questions ---

    def cli(self, *arguments, stdin=None, timeout=PATIENCE):
        """Runs another command of the binary against this daemon; returns the completed process."""
        try:
            return subprocess.run(
                [self.binary, *arguments, "--config", self.config_file],
                input=stdin if stdin is not None else "",
                capture_output=True,
                text=True,
                timeout=timeout,
                cwd=self.directory,
                env=self.environment(),
            )
        except subprocess.TimeoutExpired as e:
            raise AssertionError(f"`tracespool {' '.join(arguments)}` did not end within {timeout} s; it said {e.stdout} {e.stderr}") from None

    def status(self, allow_down=False):
        done = self.cli("status", "--json")
        if not allow_down:
            assert done.returncode == 0, f"status exited with {done.returncode}: {done.stderr}"
        try:
            return json.loads(done.stdout)
        except json.JSONDecodeError:
            assert allow_down, f"status --json printed no JSON: {done.stdout!r} {done.stderr!r}"
            return {}

    def backend(self, name=None):
        """The status of one backend; the only one when there is one."""
        backends = self.status()["backends"]
        if name is None:
            assert len(backends) == 1, f"expected one backend, found {[b['name'] for b in backends]}"
            return backends[0]
        return next(b for b in backends if b["name"] == name)

    def wait_drained(self, timeout=PATIENCE, name=None):
        """Waits until nothing waits for the backend, checks its accounts, and returns its status."""

        def drained():
            b = self.backend(name)
            return b["backlog"]["records"] == 0 and b["in_flight"] == 0, b

        wait_until(drained, "the backlog is delivered", timeout, interval=0.1)
        b = self.backend(name)
        assert_balanced(b)
        return b


def assert_balanced(backend):
    """The accounts of the contract, in spans; only meaningful while nothing moves."""
    parts = {
        "delivered": backend["delivered"]["spans"],
        "rejected": backend["rejected"]["spans"],
        "waiting": backend["backlog"]["spans"],
        "dead": backend["dead"]["spans"],
        "discarded": sum(backend["discarded"].values()),
        "damaged": backend["damaged"],
        "not_applicable": backend["not_applicable"],
    }
    assert backend["owed"] == sum(parts.values()), f"backend {backend['name']}: owed {backend['owed']} is not the sum of {parts}"


def short_directory():
    """A directory whose path leaves room for the names of Unix sockets (108 bytes in all), unlike pytest's own."""
    return tempfile.mkdtemp(prefix="tracespool-")


def remove_directory(path):
    shutil.rmtree(path, ignore_errors=True)
