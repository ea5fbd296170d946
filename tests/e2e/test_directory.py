"""The drop directory: what is put there arrives exactly once, whatever happens; and what cannot be taken stays in sight.

Records wait in the spool while no backend is configured. Tests that kill the daemon deliver only at their end, to a file
and without another kill: so a span that stands there twice was taken twice.
"""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from peers import SEED, wait_until
from peers.daemon import Daemon
from peers.otlp import HttpClient, make_request, request_as_json


class Drop:
    """The producers' side of the directory, and what they put there."""

    def __init__(self, daemon):
        self.path = daemon.config["receive"]["directory"]["path"]
        os.makedirs(self.path, exist_ok=True)
        self.sent = []

    def __call__(self, name):
        return os.path.join(self.path, name)

    def line(self, spans=1, **more):
        """A line of JSON, without its end, whose spans are expected to arrive."""
        request, ids = make_request(spans, **more)
        self.sent += ids
        return request_as_json(request)

    def rename_in(self, name, content):
        data = content if isinstance(content, bytes) else content.encode()
        # Made where no event can be seen, on the same file system.
        unfinished = os.path.join(os.path.dirname(self.path), f"unfinished-{threading.get_ident()}")
        with open(unfinished, "wb") as f:
            f.write(data)
        os.rename(unfinished, self(name))

    def is_empty(self):
        """No file is left; directories may be."""
        left = [e.name for e in os.scandir(self.path) if not e.is_dir(follow_symlinks=False)]
        return not left, left[:5]

    def rejected(self, name):
        """What lies in rejected/ under that name, and the reason beside it."""
        with open(self(os.path.join("rejected", name)), "rb") as f:
            content = f.read()
        with open(self(os.path.join("rejected", name + ".reason.json"))) as f:
            return content, json.load(f)


def span_ids(path):
    """How often each span stands in a file of OTLP JSON lines."""
    counts = {}
    with open(path) as f:
        for line in f:
            for rs in json.loads(line)["resourceSpans"]:
                for ss in rs["scopeSpans"]:
                    for s in ss["spans"]:
                        counts[s["spanId"]] = counts.get(s["spanId"], 0) + 1
    return counts


def deliver(daemon, timeout=120):
    """Starts the daemon, which has had no backend so far, with a file; returns how often each span came out."""
    out = os.path.join(daemon.directory, "out.jsonl")
    daemon.config["backend"] = [{"name": "file", "kind": "file", "path": out, "rotate_bytes": "10GiB"}]
    daemon.write_config()
    daemon.start()
    wait_until(lambda: daemon.backend()["delivered"]["records"] > 0, "delivery began")
    daemon.wait_drained(timeout)
    return span_ids(out)


def assert_exactly_once(counts, sent):
    expected = dict.fromkeys(sent, 1)
    lost = expected.keys() - counts.keys()
    again = {i: n for i, n in counts.items() if n > 1}
    assert len(expected) == len(sent), "the test itself sent a span twice"
    assert not lost and not again and counts == expected, f"{len(lost)} of {len(sent)} lost, {len(again)} taken twice"


def directory(daemon):
    return daemon.status()["directory"]


def left(daemon):
    return {f["name"]: f["reason"] for f in directory(daemon)["left_files"]}


def block_removal(drop):
    """Puts a file where the directory for files to be removed should be, so that nothing can be removed."""

    def blocked():
        # The daemon makes it again when it looks for it.
        os.rmdir(drop(".taken"))
        os.close(os.open(drop(".taken"), os.O_CREAT | os.O_EXCL))
        return True

    wait_until(blocked, "nothing can be removed", interval=0)


def zstd_stored(data):
    """A zstd frame of raw blocks (RFC 8878): nothing that compresses is needed for it."""
    frame = b"\x28\xb5\x2f\xfd\x00\x38"
    for at in range(0, len(data), 100_000):
        block = data[at : at + 100_000]
        frame += (len(block) << 3 | (at + 100_000 >= len(data))).to_bytes(3, "little") + block
    return frame


def high_water_mib(daemon):
    with open(f"/proc/{daemon.process.pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM:")) / 1024


# --- what is taken ---


def test_every_form_arrives_once_and_is_gone(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")])
    drop = Drop(daemon)
    pack = {"": lambda b: b, ".gz": gzip.compress, ".zst": zstd_stored}

    def put_all(prefix):
        for ending, packed in pack.items():
            lines = "\n".join([drop.line(2), "", drop.line(1) + "\r", drop.line(3)])  # and no end of the last line
            drop.rename_in(f"{prefix}-a.jsonl{ending}", packed(lines.encode()))
            document = json.dumps({"resourceSpans": [json.loads(drop.line(2))["resourceSpans"][0] for _ in range(3)]}, indent=2)
            drop.rename_in(f"{prefix}-b.json{ending}", packed((document + "\n" + drop.line(1)).encode()))
            message = b""
            for _ in range(3):
                request, ids = make_request(2)
                drop.sent += ids
                message += request.SerializeToString()
            drop.rename_in(f"{prefix}-c.pb{ending}", packed(message))

    put_all("before")  # there before the start
    daemon.start()
    put_all("renamed")
    with open(drop("closed.jsonl"), "w") as f:
        f.write(drop.line() + "\n")
    with open(drop("linked.tmp"), "w") as f:
        f.write(drop.line() + "\n")
    os.link(drop("linked.tmp"), drop("linked.jsonl"))
    os.unlink(drop("linked.tmp"))
    wait_until(lambda: (receiver.ids() == dict.fromkeys(drop.sent, 1), len(receiver.ids())), "every span arrived once")
    wait_until(drop.is_empty, "the files are gone")
    assert directory(daemon)["files"] == 20 and directory(daemon)["state"] == "watching"
    assert not os.listdir(drop(".taken"))


def test_what_is_not_complete_is_not_touched(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")])
    # So that nothing but events tells that a file is complete.
    daemon.config["receive"]["directory"]["rescan"] = "1h"
    daemon.write_config()
    drop = Drop(daemon)
    daemon.start()
    wait_until(lambda: directory(daemon)["state"] == "watching", "the directory is watched")
    open_file = open(drop("open.jsonl"), "w")
    open_file.write(drop.line() + "\n" + '{"resourceSpans"')
    open_file.flush()
    for name in [".a.jsonl", "a.jsonl.tmp", "a.jsonl.part"]:
        with open(drop(name), "w") as f:
            f.write("not to be looked at\n")
    drop.rename_in("done.jsonl", drop.line())
    # Files are taken in order: those that were there before it were not.
    wait_until(lambda: receiver.has(drop.sent[1:]), "what is complete arrived")
    assert receiver.ids() == {drop.sent[1]: 1}
    assert sorted(drop.is_empty()[1]) == [".a.jsonl", "a.jsonl.part", "a.jsonl.tmp", "open.jsonl"]
    open_file.write(":[]}\n" + drop.line())
    open_file.close()
    wait_until(lambda: (receiver.ids() == dict.fromkeys(drop.sent, 1), receiver.ids()), "it was taken when it was closed")
    assert sorted(wait_until(lambda: len(drop.is_empty()[1]) == 3 and drop.is_empty()[1], "three are left")) == [".a.jsonl", "a.jsonl.part", "a.jsonl.tmp"]


def test_bad_lines_are_set_aside_with_their_reason_and_the_good_ones_are_shipped(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")], receive={"max_request_bytes": "64KiB"})
    drop = Drop(daemon)
    daemon.start()
    secret = "a secret of the payload"
    long_line = json.dumps({"resourceSpans": [], "x": "y" * 70_000})
    metrics = '{"resourceMetrics":[{}]}'
    bad = ['{"resourceSpans":[{"scopeSpans":"%s"}]}' % secret, long_line, metrics, "{"]
    lines = [drop.line(), bad[0], drop.line(), bad[1], drop.line(), bad[2], bad[3]]
    drop.rename_in("mixed.jsonl", "\n".join(lines) + "\n" + drop.line())
    drop.rename_in("mixed.json.gz", gzip.compress(('{"resourceSpans":[%s,\n{"scopeSpans":1},%s]}' % tuple(
        drop.line()[len('{"resourceSpans": [') : -len("]}")] for _ in range(2))).encode()))
    for name, content in {"log.pb": b"\xff\xff no message", "list.json": "[1]", "empty.json": "", "cut.jsonl.gz": gzip.compress(b"{}")[:-4]}.items():
        drop.rename_in(name, content)
    wait_until(drop.is_empty, "nothing is left")
    wait_until(lambda: (receiver.ids() == dict.fromkeys(drop.sent, 1), receiver.ids()), "the good ones arrived once")
    content, reason = drop.rejected("mixed.jsonl")
    assert content.decode().splitlines() == bad
    assert [p["line"] for p in reason["problems"]] == [2, 4, 6, 7] and reason["taken"] == 4 and reason["problems_total"] == 4
    assert reason["file"] == "mixed.jsonl"
    content, reason = drop.rejected("mixed.json")
    assert content == b'{"scopeSpans":1}\n' and reason["problems"][0]["line"] == 2, reason
    for name in ["log.pb", "list.json", "empty.json", "cut.jsonl.gz"]:
        content, reason = drop.rejected(name)
        assert reason["problems"] and reason["kept"] == "the whole file", name
    assert drop.rejected("log.pb")[0] == b"\xff\xff no message"
    status = daemon.status()
    assert status["directory"]["rejected_files"] == 6 and status["received"]["refused"]["too_large"] == 1, status
    assert "mixed.jsonl" in daemon.log()
    for text in [daemon.log(), json.dumps(status), *(json.dumps(drop.rejected(n)[1]) for n in ["mixed.jsonl", "log.pb"])]:
        assert secret not in text and "yyyy" not in text


def test_what_is_no_file_to_read_is_left_with_a_reason_said_once(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")])
    drop = Drop(daemon)
    target = os.path.join(daemon.directory, "target.jsonl")
    with open(target, "w") as f:
        f.write(drop.line())
    drop.sent.clear()
    os.symlink(target, drop("link.jsonl"))
    os.mkfifo(drop("fifo.jsonl"))
    os.mkdir(drop("directory.jsonl"))
    with open(drop("notes.txt"), "w") as f:
        f.write("not traces")
    daemon.start()
    reasons = wait_until(lambda: len(left(daemon)) == 4 and left(daemon), "four are left")
    assert {n: w for n, w in [("link.jsonl", "link"), ("fifo.jsonl", "FIFO"), ("directory.jsonl", "directory"), ("notes.txt", ".jsonl")] if w not in reasons[n]} == {}, reasons
    drop.rename_in("good.jsonl", drop.line())
    wait_until(lambda: receiver.ids() == dict.fromkeys(drop.sent, 1), "a good file among them is taken")
    # Two more looks say nothing more.
    for n in range(2):
        drop.rename_in(f"late{n}.jsonl", drop.line())
        wait_until(lambda: receiver.has(drop.sent), "a later file is taken")
        looked = time.monotonic() + 1.5
        wait_until(lambda: time.monotonic() > looked, "another look was taken")
    assert all(daemon.log().count(name) == 1 for name in reasons), daemon.log()
    os.unlink(drop("fifo.jsonl"))
    wait_until(lambda: "fifo.jsonl" not in left(daemon), "what is gone is not shown any more")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_an_unreadable_file_is_left_with_owner_mode_and_cure(request, directory, binary, nobody):
    daemon = user_daemon(request, directory, binary, nobody.pw_uid)
    path = daemon.config["receive"]["directory"]["path"]
    os.makedirs(path)
    os.chown(path, nobody.pw_uid, nobody.pw_gid)
    with open(os.path.join(path, "mine.jsonl"), "w") as f:
        f.write('{"resourceSpans":[]}')
    os.chmod(f.name, 0o600)
    try:
        daemon.start()
        reason = wait_until(lambda: left(daemon).get("mine.jsonl"), "it is left")
        assert "user 0" in reason and "0600" in reason and "chmod g+r" in reason and str(nobody.pw_uid) in reason
        os.chmod(f.name, 0o644)
        wait_until(lambda: not os.path.exists(f.name), "it is taken as soon as it can be read")
        assert left(daemon) == {}
    finally:
        daemon.stop_anyway()


def user_daemon(request, directory, binary, uid):
    """A daemon that runs as another user, in directories of that user."""
    import shutil

    os.chmod(directory, 0o755)
    copy = os.path.join(directory, "tracespool")
    shutil.copy(binary, copy)
    os.chmod(copy, 0o755)
    where = os.path.join(directory, "u")
    os.makedirs(where)
    daemon = Daemon(copy, where, [])
    request.node.logs = [("log of the daemon", daemon.log)]
    spawn = subprocess.Popen

    def as_user(*arguments, **more):
        return spawn(*arguments, user=uid, **more)

    os.chown(where, uid, -1)
    real = daemon.spawn

    def spawn_as_user(*arguments, **environment):
        subprocess.Popen = as_user
        try:
            return real(*arguments, **environment)
        finally:
            subprocess.Popen = spawn

    daemon.spawn = spawn_as_user
    return daemon


# --- exactly once ---


def test_kill_9_at_any_moment_takes_every_line_exactly_once(make_daemon, say):
    rng = random.Random(SEED)
    daemon = make_daemon()
    drop = Drop(daemon)
    stopping = threading.Event()
    lock = threading.Lock()

    def produce():
        mine = random.Random(SEED + 1)
        n = 0
        while not stopping.is_set():
            with lock:
                lines = "".join(drop.line(mine.randint(1, 3), padding=mine.choice([0, 3000])) + "\n" for _ in range(mine.choice([1, 1, 3, 700])))
            drop.rename_in(f"{n}.jsonl", lines)
            n += 1
            stopping.wait(0.003)

    daemon.start()
    producer = threading.Thread(target=produce, daemon=True)
    producer.start()
    try:
        for n in range(15):
            # Counted from the start of the spool: something was taken in this life, or the kill proves nothing.
            before = daemon.status()["received"]["requests"]
            wait_until(lambda: daemon.status()["received"]["requests"] > before, f"records are taken in life {n + 1}")
            lasts = time.monotonic() + rng.uniform(0.0, 0.5)
            wait_until(lambda: time.monotonic() >= lasts, "it is time to kill", interval=0.002)
            daemon.kill9()
            if n % 5 == 4:
                import shutil

                shutil.rmtree(os.path.join(daemon.state_dir, "ledger"))
            daemon.start()
    finally:
        stopping.set()
        producer.join(30)
    wait_until(drop.is_empty, "all files are gone", timeout=120)
    daemon.terminate()
    counts = deliver(daemon)
    say(f"kill -9 x 15 (seed {SEED}): {len(drop.sent)} spans in files, {len(counts)} delivered, {sum(counts.values()) - len(counts)} twice")
    assert_exactly_once(counts, drop.sent)


@pytest.mark.parametrize("more", [False, True], ids=["as it was", "and more was written to it"])
def test_kill_9_between_the_sync_and_the_removal(make_daemon, more):
    daemon = make_daemon()
    drop = Drop(daemon)
    daemon.start()
    block_removal(drop)
    drop.rename_in("a.jsonl", drop.line(2) + "\n" + drop.line(1) + "\nbad\n")
    drop.rename_in("b.json", drop.line(2))
    request, ids = make_request(3)
    drop.sent += ids
    drop.rename_in("c.pb.gz", gzip.compress(request.SerializeToString()))
    drop.rename_in("d.jsonl", drop.line(1))  # without the end of its line
    wait_until(lambda: len(left(daemon)) == 4, "all are on disk and cannot be removed")
    assert all("cannot be removed" in reason for reason in left(daemon).values()), left(daemon)
    assert daemon.status()["received"]["spans"] == len(drop.sent)
    daemon.kill9()
    if more:
        with open(drop("a.jsonl"), "a") as f:
            f.write(drop.line(2) + "\n")
        with open(drop("d.jsonl"), "a") as f:
            f.write("\n" + drop.line(2) + "\n")
    os.unlink(drop(".taken"))
    daemon.start()
    wait_until(drop.is_empty, "they are removed")
    daemon.terminate()
    assert_exactly_once(deliver(daemon), drop.sent)
    content, reason = drop.rejected("a.jsonl")
    assert content == b"bad\n" and reason["problems"][0]["line"] == 3
    again = ["a.jsonl.1", "a.jsonl.1.reason.json"] if more else []
    assert sorted(os.listdir(drop("rejected"))) == sorted(["a.jsonl", "a.jsonl.reason.json", *again])


def test_another_file_in_the_place_of_one_that_was_begun_is_a_new_one(make_daemon):
    daemon = make_daemon()
    drop = Drop(daemon)
    daemon.start()
    block_removal(drop)
    drop.rename_in("a.jsonl", drop.line(2) + "\n")
    wait_until(lambda: len(left(daemon)) == 1, "it is on disk and cannot be removed")
    daemon.kill9()
    # The same inode, with other content.
    with open(drop("a.jsonl"), "r+") as f:
        f.write(drop.line(3) + "\n")
        f.truncate()
    os.unlink(drop(".taken"))
    daemon.start()
    wait_until(drop.is_empty, "it is removed")
    daemon.terminate()
    assert_exactly_once(deliver(daemon), drop.sent)


@pytest.mark.parametrize("kill", [False, True], ids=["room comes", "killed first"])
def test_a_full_spool_in_the_middle_of_a_file(make_daemon, receiver, kill):
    receiver.down()
    backends = [receiver.backend("otlp_http")]
    daemon = make_daemon([] if kill else backends, spool={"max_bytes": "4MiB", "segment_bytes": "256KiB", "keep_delivered": "0s"})
    drop = Drop(daemon)
    lines = [drop.line(1, padding=20_000) for _ in range(400)]
    drop.rename_in("lines.jsonl", "\n".join(lines))
    document = '{"resourceSpans":[' + ",".join(drop.line(1, padding=20_000)[len('{"resourceSpans": [') : -2] for _ in range(50)) + "]}"
    drop.rename_in("z-document.json", document)
    daemon.start()
    wait_until(lambda: directory(daemon)["waits_for_room"], "it waits for room")
    taken = daemon.status()["received"]["spans"]
    assert 50 < taken < 350, taken
    assert sorted(drop.is_empty()[1]) == ["lines.jsonl", "z-document.json"]
    # The doors say so, and live.
    assert HttpClient(daemon.port).send(make_request(1, padding=100_000)[0]).status == 503
    if kill:
        daemon.kill9()
        daemon.config["spool"].update({"max_bytes": "64MiB"})
        daemon.write_config()
        daemon.start()
        wait_until(drop.is_empty, "the rest is taken", timeout=120)
        daemon.terminate()
        assert_exactly_once(deliver(daemon), drop.sent)
    else:
        receiver.up()
        wait_until(lambda: receiver.has(drop.sent), "all arrived", timeout=120)
        wait_until(drop.is_empty, "the files are gone")
        assert_exactly_once(receiver.ids(), drop.sent)


# --- many, and large ---


def test_50_000_small_files_at_once_and_lost_events(make_daemon, say):
    daemon = make_daemon().start()
    drop = Drop(daemon)
    line = drop.line()
    drop.sent.clear()
    ids = [f"{n + 1:016x}" for n in range(50_000)]
    old = json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["spanId"]
    wait_until(lambda: directory(daemon)["state"] == "watching", "the directory is watched")
    # It hears nothing while it is stopped, and the kernel remembers some 16,000 events: most are lost.
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        for n, span_id in enumerate(ids):
            with open(drop(f"{n}.jsonl"), "w") as f:
                f.write(line.replace(old, span_id))
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    began = time.perf_counter()
    wait_until(drop.is_empty, "all files are gone", timeout=300, interval=0.5)
    say(f"50,000 files taken in {time.perf_counter() - began:.0f} s, most memory {high_water_mib(daemon):.0f} MiB")
    assert high_water_mib(daemon) < 300
    daemon.terminate()
    assert_exactly_once(deliver(daemon, timeout=300), ids)


LARGE_MIB = int(os.environ.get("TRACESPOOL_TEST_LARGE_MIB") or 200)


@pytest.mark.parametrize("form", ["lines.jsonl", "document.json", "message.pb"])
def test_a_large_file_in_little_memory(make_daemon, form, say):
    daemon = make_daemon(spool={"max_bytes": "4GiB"})
    drop = Drop(daemon)
    request, ids = make_request(10, padding=10_000)
    size, n = 0, 0
    unfinished = os.path.join(daemon.directory, "unfinished")
    with open(unfinished, "wb") as f:
        if form == "document.json":
            f.write(b'{"resourceSpans":[')
        while size < LARGE_MIB << 20:
            for s in request.resource_spans[0].scope_spans[0].spans:
                n += 1
                s.span_id = n.to_bytes(8, "big")
            if form == "message.pb":
                piece = request.SerializeToString()
            else:
                piece = request_as_json(request).encode()
                piece = piece + b"\n" if form == "lines.jsonl" else piece[len('{"resourceSpans": [') : -2] + b","
            size += f.write(piece)
        if form == "document.json":
            f.seek(-1, os.SEEK_CUR)
            f.write(b"]}")
    daemon.start()
    before = high_water_mib(daemon)
    began = time.perf_counter()
    os.rename(unfinished, drop(form))
    wait_until(drop.is_empty, "it is gone", timeout=600, interval=0.2)
    say(f"{LARGE_MIB} MiB {form} in {time.perf_counter() - began:.1f} s: most memory {before:.0f} -> {high_water_mib(daemon):.0f} MiB")
    assert high_water_mib(daemon) < before + 64
    assert daemon.status()["received"]["spans"] == n
    assert directory(daemon)["rejected_files"] == 0


# --- the directory itself ---


def test_a_directory_that_goes_and_comes_back(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    drop = Drop(daemon)

    def arrives(name, why):
        drop.rename_in(name, drop.line())
        wait_until(lambda: (receiver.ids() == dict.fromkeys(drop.sent, 1), receiver.ids()), why)

    arrives("a.jsonl", "the first file is taken")
    elsewhere = drop.path + "-elsewhere"
    os.rename(drop.path, elsewhere)
    os.mkdir(drop.path)
    arrives("b.jsonl", "a file in a new directory of that name is taken")
    import shutil

    shutil.rmtree(drop.path)
    os.rename(elsewhere, drop.path)
    arrives("c.jsonl", "a file in the old directory under its old name is taken")
    shutil.rmtree(drop.path)
    wait_until(lambda: os.path.isdir(drop.path), "it is made again")
    arrives("d.jsonl", "a file in the directory that the daemon made is taken")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount")
def test_a_directory_that_is_unmounted_and_mounted_again(make_daemon, directory):
    daemon = make_daemon()
    drop = Drop(daemon)
    image = os.path.join(directory, "other")
    os.makedirs(image)
    mount = lambda: subprocess.run(["mount", "--bind", image, drop.path], check=True)  # noqa: E731
    mount()
    try:
        daemon.start()
        wait_until(lambda: os.path.isdir(os.path.join(image, ".taken")), "the mounted directory is in use")
        # What is begun and not finished must not be forgotten while it can't be seen.
        subprocess.run(["umount", "--lazy", drop.path], check=True)
        with open(drop("under.jsonl"), "w") as f:
            f.write(drop.line())
        wait_until(drop.is_empty, "the directory below is used meanwhile")
        mount()
        with open(drop("mounted.jsonl"), "w") as f:
            f.write(drop.line())
        wait_until(drop.is_empty, "and the mounted one again")
    finally:
        subprocess.run(["umount", "--lazy", drop.path], check=False)
    daemon.terminate()
    assert_exactly_once(deliver(daemon), drop.sent)


EXHAUST = """
import ctypes, os, sys
os.setuid(int(sys.argv[1]))
libc = ctypes.CDLL(None, use_errno=True)
held = 0
while libc.inotify_init() >= 0:
    held += 1
print(held, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a user of its own, whose limit it uses up")
def test_without_watches_the_directory_is_looked_through(request, directory, binary):
    uid = 61_234
    daemon = user_daemon(request, directory, binary, uid)
    hog = subprocess.Popen([sys.executable, "-c", EXHAUST, str(uid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert int(hog.stdout.readline()) > 0
        daemon.start()
        path = daemon.config["receive"]["directory"]["path"]
        status = wait_until(lambda: directory_of(daemon)["state"] == "scanning" and directory_of(daemon), "it is looked through")
        assert "fs.inotify.max_user_instances" in status["trouble"]
        for n in range(3):
            name = os.path.join(path, f"{n}.jsonl")
            with open(name, "w") as f:
                f.write(request_as_json(make_request(1)[0]))
            os.chmod(name, 0o644)
            wait_until(lambda: not os.path.exists(name), "it is taken all the same")
        assert daemon.log().count("cannot watch") == 1, daemon.log()
    finally:
        hog.stdin.close()
        hog.wait(30)
        daemon.stop_anyway()


def directory_of(daemon):
    return daemon.status()["directory"]


def test_two_daemons_do_not_share_a_directory(make_daemon):
    first = make_daemon().start()
    drop = Drop(first)
    wait_until(lambda: os.path.isdir(drop(".taken")), "it is in use")
    second = make_daemon(receive={})
    second.config["receive"]["directory"]["path"] = drop.path
    second.write_config()
    second.start()
    trouble = wait_until(lambda: directory(second)["trouble"], "the second one says why not")
    assert "another daemon" in trouble and directory(second)["state"] == "missing"
    first.terminate()
    wait_until(lambda: directory(second)["state"] == "watching", "it takes over")


def test_the_archive_and_its_caps(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")])
    drop = Drop(daemon)
    daemon.config["receive"]["directory"].update({"after": "archive", "keep_bytes": "10KiB"})
    daemon.write_config()
    daemon.start()
    contents = {}
    for n in range(3):
        contents[f"{n}.jsonl"] = drop.line(padding=5000)
        drop.rename_in(f"{n}.jsonl", contents[f"{n}.jsonl"])
        wait_until(lambda: receiver.has(drop.sent), "it is taken")
        wait_until(lambda: os.path.exists(drop(f"archive/{n}.jsonl")), "it is in the archive")
    drop.rename_in("0.jsonl", drop.line())
    wait_until(lambda: os.path.exists(drop("archive/0.jsonl.1")), "one of the same name stands beside it")
    with open(drop("archive/0.jsonl")) as f:
        assert f.read() == contents["0.jsonl"]
    daemon.restart()  # the caps are looked at once a minute, and at the start
    wait_until(lambda: not os.path.exists(drop("archive/0.jsonl")), "the oldest gives way")
    assert {"2.jsonl", "0.jsonl.1"} <= set(os.listdir(drop("archive")))
    assert receiver.ids() == dict.fromkeys(drop.sent, 1)
