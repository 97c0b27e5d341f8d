"""A server over TLS for the client's tests: HTTP/1.1 in the shapes that servers give it.

usage: https.py CERTIFICATE KEY; prints its port.
"""
import gzip
import http.server
import json
import ssl
import sys
import zlib


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body, *headers, status=200):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        document = json.dumps({"path": self.path, "list": [1, 2.50]}).encode()
        kind = ("Content-Type", "application/json")
        if self.path == "/gzip":
            self.answer(gzip.compress(document), kind, ("Content-Encoding", "gzip"))
        elif self.path == "/chunked":
            self.send_response(200)
            self.send_header("Content-Encoding", "deflate")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            squeezed = zlib.compress(b"a line in chunks\n" * 3)
            for at in range(0, len(squeezed), 7):
                piece = squeezed[at:at + 7]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\nX-Trailer: the end\r\n\r\n")
        elif self.path == "/image":
            self.answer(b"\x89PNG\r\n\x1a\n" + bytes(100), ("Content-Type", "image/png"))
        else:
            self.answer(b"nothing here\x1b[2J\n", ("Content-Type", "text/plain"), status=404)

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(b"%d bytes came" % len(body), ("Content-Type", "text/plain"), status=201)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
