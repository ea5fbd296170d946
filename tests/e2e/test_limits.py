"""A full spool refuses, in words that make every client try again, and heals."""

import gzip

from google.rpc import status_pb2

from peers import wait_until
from peers.otlp import GrpcClient, HttpClient, make_request

MIB = 1 << 20


def test_a_full_spool_refuses_and_heals(make_daemon, receiver):
    receiver.down()
    limit = 16 * MIB
    daemon = make_daemon([receiver.backend("otlp_grpc")], spool={"max_bytes": "16MiB", "segment_bytes": "1MiB", "min_free_disk": "64MiB"}).start()
    http_client, grpc_client = HttpClient(daemon.port), GrpcClient(daemon.port)

    acknowledged, refusal = [], None
    for _ in range(2 * limit // 65536):
        request, ids = make_request(1, padding=65536)
        answer = http_client.send(request)
        if not answer.ok:
            refusal = answer
            break
        acknowledged += ids
    assert refusal is not None, f"max_bytes is 16 MiB, and {len(acknowledged) * 65536 / MIB:.0f} MiB were taken"
    # A quarter of the cap at least must be of use, or the cap means nothing to an operator.
    assert len(acknowledged) * 65536 > limit // 4, f"full after {len(acknowledged)} requests of 64 KiB"
    assert refusal.status == 503
    assert float(refusal.headers.get("retry-after", 0)) <= 2, "SDKs drop a batch when they are told to wait for long"
    assert refusal.headers["content-type"] == "application/x-protobuf"
    assert "full" in status_pb2.Status.FromString(refusal.body).message
    assert grpc_client.send(make_request(1, padding=65536)[0]).status == "UNAVAILABLE"
    status = daemon.status()
    assert status["received"]["refused"]["full"] >= 2
    # max_bytes may be passed by one commit group, never more.
    assert status["spool"]["bytes"] <= limit + MIB, status["spool"]

    # It holds over a restart, too.
    daemon.kill9()
    daemon.start()
    assert daemon.status()["spool"]["bytes"] <= limit, "a start passes the cap"
    assert http_client.send(make_request(1, padding=65536)[0]).status == 503

    receiver.up()
    wait_until(lambda: receiver.has(acknowledged), "all that was acknowledged is delivered")

    def taken():
        request, ids = make_request(1, padding=65536)
        answer = http_client.send(request)
        return ids if answer.ok else (False, answer)

    again = wait_until(taken, "the doors take requests again")
    wait_until(lambda: receiver.has(again), "and deliver them")
    daemon.wait_drained()
    grpc_client.close()


def test_a_request_that_is_too_large_is_refused_for_good(make_daemon, receiver):
    daemon = make_daemon([receiver.backend("otlp_grpc")])
    daemon.config["receive"]["max_request_bytes"] = "1MiB"
    daemon.write_config()
    daemon.start()
    large, _ = make_request(1, padding=2 * MIB)
    answer = HttpClient(daemon.port).send(large)
    assert answer.status == 413, answer.status
    grpc_client = GrpcClient(daemon.port)
    assert grpc_client.send(large).status == "RESOURCE_EXHAUSTED"
    # And after decompression: 2 MiB of zeros fit in a few KiB on the wire.
    bomb, _ = make_request(1)
    bomb.resource_spans[0].scope_spans[0].spans[0].attributes.add(key="zeros").value.string_value = "0" * (2 * MIB)
    answer = HttpClient(daemon.port).send(gzip.compress(bomb.SerializeToString()), headers={"Content-Encoding": "gzip"})
    assert answer.status == 413, answer.status
    assert daemon.status()["received"]["refused"]["too_large"] == 3
    request, ids = make_request(1)
    assert grpc_client.send(request).ok
    wait_until(lambda: receiver.has(ids), "a small request passes")
    grpc_client.close()
