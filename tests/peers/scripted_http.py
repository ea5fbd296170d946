"""An HTTP/1.1 server that does as it is told, good or bad.

The script, the only argument, is a JSON object: path -> list of answers. Each request takes the next answer of its
path, and the last one stays. An answer is an object:

    status, headers, body          the plain case; body is text
    repeat                         the body is sent so many times, with its true length
    length                         a Content-Length of its own; the connection is closed after the body
    reset                          the connection is reset: "now", or "later" when the next request arrives on it
    hang                           "answer": nothing is sent; "body": everything but the body is

The first line on standard output is the port, and each request is one line of JSON there before it is answered.
With further arguments CERT KEY [CLIENT_CA] the server speaks TLS.
"""

import base64
import json
import socket
import ssl
import struct
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

script = json.loads(sys.argv[1])
turn = threading.Lock()


def decoded(coding, body):
    """The body as a server reads it that takes the first gzip member only, and what it leaves."""
    if coding != "gzip":
        return body, 0
    member = zlib.decompressobj(31)
    return member.decompress(body) + member.flush(), len(member.unused_data)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.wfile.close()
        self.connection.close()

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.split("?")[0]
        plain, left = decoded(self.headers.get("content-encoding"), body)
        with turn:
            answers = script.get(path, [{"status": 404}])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen = {
                "method": self.command,
                "path": self.path,
                "headers": headers,
                "body": base64.b64encode(plain).decode(),
                "left": left,
                "peer": self.client_address[1],
            }
            print(json.dumps(seen), flush=True)

        if answer.get("reset") == "now":
            return self.reset()
        if answer.get("hang") == "answer":
            self.rfile.read(1)
            self.close_connection = True
            return None

        text = answer.get("body", "").encode()
        repeat = answer.get("repeat", 1)
        length = answer.get("length", len(text) * repeat)
        self.send_response(answer.get("status", 200))
        for name, value in answer.get("headers", {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        try:
            if answer.get("hang") == "body":
                self.rfile.read(1)
                self.close_connection = True
                return None
            for _ in range(repeat):
                self.wfile.write(text)
        except OSError:
            self.close_connection = True
        if "length" in answer:
            self.close_connection = True
        if answer.get("reset") == "later":
            self.rfile.peek(1)
            self.reset()
        return None

    do_GET = do_POST = answer


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass

    def shutdown_request(self, request):
        try:
            super().shutdown_request(request)
        except OSError:
            pass


server = Server(("127.0.0.1", 0), Handler)
if len(sys.argv) > 3:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
    if len(sys.argv) > 4:
        context.load_verify_locations(sys.argv[4])
        context.verify_mode = ssl.CERT_REQUIRED
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_address[1], flush=True)
server.serve_forever()
