"""A scoring server on loopback that behaves as told."""

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What comes back: after ``delay`` seconds, or nothing at all; a byte in every ``drip``."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0
    drop: bool = False


@dataclass
class Endpoint:
    """A running server: where it is, and the requests so far (headers, what was posted)."""

    url: str
    requests: list[tuple[dict[str, str], dict[str, Any]]]


def lengths(posted: dict[str, Any], number: int) -> Answer:
    """An honest one: 1 / (1 + length)."""
    return Answer({"scores": [1 / (1 + len(text)) for text in posted["completions"]]})


@contextmanager
def serving(
    behave: Callable[[dict[str, Any], int], Answer] = lengths,
    context: ssl.SSLContext | None = None,
) -> Iterator[Endpoint]:
    """A server that asks ``behave`` about what was posted, and the how manieth request it is."""
    lock = threading.Lock()
    seen: list[tuple[dict[str, str], dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.append((dict(self.headers), posted))
                number = len(seen) - 1
            answer = behave(posted, number)
            time.sleep(answer.delay)
            if answer.drop:
                self.close_connection = True
                return
            text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(text)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for piece in text if answer.drip else [text]:
                    self.wfile.write(piece.encode())
                    time.sleep(answer.drip)
            except OSError:  # the client has had enough
                pass

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield Endpoint(f"http{'s' if context else ''}://127.0.0.1:{server.server_port}/score", seen)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
