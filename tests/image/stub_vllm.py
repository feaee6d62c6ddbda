#!/usr/bin/env python3
"""In place of `vllm serve` where there is no GPU: health, metrics, and a request that hangs once /tmp/hang is there."""

import http.server
import pathlib
import signal
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as vLLM does."""

    def do_GET(self) -> None:
        """/health and /metrics."""
        running = 1 if pathlib.Path("/tmp/hang").exists() else 0
        body = f"vllm:num_requests_running {running}\nvllm:generation_tokens_total 5\nvllm:prompt_tokens_total 7\n"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode() if self.path == "/metrics" else b"")

    def log_message(self, *_: object) -> None:
        """Nothing."""


def end(*_: object) -> None:
    """As vLLM does on SIGTERM."""
    print("ended by SIGTERM", flush=True)
    sys.exit(0)


if __name__ == "__main__" and "--version" not in sys.argv:
    signal.signal(signal.SIGTERM, end)
    with http.server.ThreadingHTTPServer(("0.0.0.0", 8888), Handler) as server:
        print("listening", flush=True)
        server.serve_forever()
