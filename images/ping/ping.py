"""GET /ping returns PONG: a minimal check that a cluster runs and exposes a pod."""

import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 9696


class Ping(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path == "/ping"
        body = b"PONG" if found else b"Not found: try /ping\n"
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    # The first process of a container is ended only by a signal that it handles.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ThreadingHTTPServer(("", PORT), Ping) as server:
        print(f"listening on port {PORT}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
