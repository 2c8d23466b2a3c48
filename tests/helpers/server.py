"""A server of images on this machine, with the faults of servers far away."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.helpers.outside_data import bomb, image_bytes, transparent_png


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: Counter[str] = Counter()
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Lock()

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Server]:
        server = cls()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def redirect(self, to: str | bytes) -> str:
        return self.url(f"to/{(to.encode() if isinstance(to, str) else to).hex()}")

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.requests[self.path] += 1
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            self.answer(*self.path.strip("/").split("/"))
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    def answer(self, kind: str, detail: str = "") -> None:
        data = image_bytes(int(detail) if detail.isdecimal() else 0)
        times = self.server.requests[self.path]
        if kind == "image":
            self.send(200, data)
        elif kind == "slow":
            time.sleep(0.1)
            self.send(200, data)
        elif kind == "hangs":
            time.sleep(5)
        elif kind == "status":
            self.send(int(detail), b"no")
        elif kind == "twice":  # succeeds at the second request
            self.send(200 if times > 1 else 503, data, {"Retry-After": "0"})
        elif kind == "breaks":
            self.send(200, data[: len(data) // 2], {"Content-Length": str(len(data))})
        elif kind == "short":  # says that it is shorter than it is
            self.send(200, data, {"Content-Length": str(len(data) // 2)})
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(b"\0" * 65536)
        elif kind == "claims":
            self.send(200, data, {"Content-Length": str(10**12)})
        elif kind == "html":
            self.send(200, b"<html>not here any more</html>")
        elif kind == "transparent":
            self.send(200, transparent_png())
        elif kind == "bomb":
            self.send(200, bomb())
        elif kind == "to":
            self.send(302, b"", {"Location": bytes.fromhex(detail).decode("latin-1")})

    def send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
