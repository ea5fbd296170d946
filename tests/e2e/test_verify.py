"""Damage of the medium: what it costs, what is said of it, and how it is made whole."""

import json
import os

import pytest

from peers import wait_until
from peers.otlp import HttpClient, make_request


def segment_files(daemon):
    directory = os.path.join(daemon.state_dir, "journal")
    return sorted(os.path.join(directory, name) for name in os.listdir(directory) if name.endswith(".seg"))


def overwrite(daemon, needle):
    """Overwrites the bytes in the journal that are looked for."""
    for path in segment_files(daemon):
        with open(path, "r+b") as f:
            at = f.read().find(needle)
            if at >= 0:
                f.seek(at)
                f.write(b"\xa5" * len(needle))
                return
    pytest.fail("the journal does not hold what was sent")


def verify(daemon, *arguments):
    done = daemon.cli("verify", "--json", *arguments)
    return done, json.loads(done.stdout) if done.stdout else None


@pytest.fixture
def damaged(make_daemon, receiver):
    """A daemon that was killed with six requests of 2 to 7 spans in its journal; the third one's payload is damaged."""
    receiver.down()
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    client = HttpClient(daemon.port)
    requests = [make_request(spans) for spans in range(2, 8)]
    for request, _ in requests:
        assert client.send(request).ok
    daemon.kill9()
    overwrite(daemon, bytes.fromhex(requests[2][1][0]))
    receiver.up()
    return daemon, [ids for _, ids in requests]


def test_a_whole_spool_is_whole_online_and_offline(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_http")]).start()
    request, ids = make_request(3)
    assert HttpClient(daemon.port).send(request).ok
    wait_until(lambda: receiver.has(ids), "delivered")
    done, report = verify(daemon)
    assert done.returncode == 0 and report["whole"] and report["online"], done
    assert "daemon" in done.stderr
    daemon.terminate()
    before = {path: os.stat(path).st_mtime_ns for path in segment_files(daemon)}
    done, report = verify(daemon)
    assert done.returncode == 0 and report["whole"] and not report["online"], done
    (journal, side) = report["journals"]
    assert journal["records"] == 1 and journal["spans"] == 3 and journal["damage"] == side["damage"] == []
    done, report = verify(daemon, "--repair")
    assert done.returncode == 0 and report["journals"][0]["repaired"] == {"segments": [], "lost": []}
    assert before == {path: os.stat(path).st_mtime_ns for path in segment_files(daemon)}, "nothing was to be done"
    human = daemon.cli("verify")
    assert human.returncode == 0 and "whole" in human.stdout


def test_damage_costs_what_it_touched_and_is_told(damaged, receiver):
    daemon, ids = damaged
    done, report = verify(daemon)
    assert done.returncode == 74 and not report["whole"] and not report["online"]
    (damage,) = report["journals"][0]["damage"]
    assert (damage["first_record"], damage["last_record"], damage["records"], damage["spans"]) == (3, 3, 1, 4)
    assert damage["received_from"] is not None and damage["offset"] > 0
    assert "--repair" in done.stderr

    daemon.start()
    rest = set().union(*(set(i) for n, i in enumerate(ids) if n != 2))
    wait_until(lambda: receiver.has(rest), "the rest is delivered")
    backend = daemon.wait_drained()
    assert backend["damaged"] == 4 and backend["delivered"]["spans"] == 23, backend
    assert daemon.status()["spool"]["damage"]["records"] == 1
    assert "DAMAGE" in daemon.cli("status").stdout
    done, report = verify(daemon)
    assert done.returncode == 74 and report["online"] and "stop the daemon" in done.stderr
    done = daemon.cli("verify", "--repair")
    assert done.returncode == 75 and str(daemon.process.pid) in done.stderr, done
    # Over a restart nothing is counted twice.
    daemon.restart()
    backend = daemon.wait_drained()
    assert backend["damaged"] == 4 and backend["owed"] == 27, backend


def test_a_repair_keeps_what_can_be_read_and_writes_the_rest_off_once(damaged, receiver):
    daemon, ids = damaged
    done, report = verify(daemon, "--repair")
    assert done.returncode == 0 and report["whole"], done
    repaired = report["journals"][0]["repaired"]
    (lost,) = repaired["lost"]
    assert (lost["first_record"], lost["spans"]) == (3, 4)
    (segment,) = repaired["segments"]
    # The last request may be in the next segment: a start writes the last group again.
    assert segment["records"] in (4, 5) and os.path.exists(segment["kept_in"])
    done, report = verify(daemon, "--repair")
    assert done.returncode == 0 and report["journals"][0]["repaired"] == {"segments": [], "lost": []}, done

    daemon.start()
    rest = set().union(*(set(i) for n, i in enumerate(ids) if n != 2))
    wait_until(lambda: receiver.has(rest), "the rest is delivered")
    backend = daemon.wait_drained()
    assert backend["damaged"] == 4 and backend["owed"] == 27 and backend["delivered"]["spans"] == 23, backend
    assert daemon.status()["spool"]["damage"]["records"] == 0, "it is not reported again"
    assert verify(daemon)[0].returncode == 0
    daemon.restart()
    backend = daemon.wait_drained()
    assert backend["damaged"] == 4 and backend["owed"] == 27, backend


def test_a_torn_end_is_no_damage(damaged):
    daemon, _ = damaged
    # The last write, whatever it was, loses its end.
    path = segment_files(daemon)[-1]
    with open(path, "r+b") as f:
        content = f.read()
        last = max(at for at in range(0, len(content), 4096) if content[at : at + 4] == b"TSGR")
        f.seek(last + 160 + 40)
        f.write(b"\x5a" * 8)
    done, report = verify(daemon)
    journal = report["journals"][0]
    assert journal["torn_end"] and len(journal["damage"]) == 1, "beside the damage there is a torn end"
    assert "cut short" in daemon.cli("verify").stdout


def test_verify_needs_a_spool(make_daemon):
    daemon = make_daemon([])
    assert daemon.cli("verify").returncode == 66
