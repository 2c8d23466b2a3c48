"""A server of OpenAI's chat completions on this machine, with scripted answers and faults."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

AT_ONCE = {"Retry-After-Ms": "1"}
"""Lets a client try again without a wait."""


class ChatServer(ThreadingHTTPServer):
    """Answers by the marker `FAULT=name` in a caption; without one, well.

    An image's caption is made of its bytes. `asked` counts requests by text, `answered` the complete ones.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, delay_seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.delay_seconds = delay_seconds
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: dict[str, list[float]] = {}
        self.caption_faults: dict[str, str] = {}
        """Fault of the caption of an image, by the digest of its URL."""
        self.refuses: tuple[int, str] | None = None
        """Status and message of every answer."""

    @classmethod
    @contextmanager
    def running(cls, delay_seconds: float = 0.0) -> Iterator[ChatServer]:
        server = cls(delay_seconds)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


def digest_of(url: str) -> str:
    return blake2b(url.encode(), digest_size=6).hexdigest()


def good_pairs(caption: str, *, with_caption: bool = False, **changes: Any) -> dict[str, Any]:
    """Return an answer of the shipped kinds, whose words are those of the caption."""
    name = " ".join(re.findall(r"[a-z0-9]+", caption.lower())[:3])
    numbers = {"classification": 1, "global_vqa": 2, "local_vqa": 2, "creative": 1, "retrieval": 1}
    own = {"caption": f"Described: {name}"} if with_caption else {}
    return (
        own
        | {
            kind: [
                {
                    "queries": [
                        f"{kind} {index} asked?",
                        f"Say the {kind} of number {index}.",
                        f"Which {kind}, {index}?",
                    ],
                    "answer": f"{kind[:3]} {index} {name}",
                }
                for index in range(number)
            ]
            for kind, number in numbers.items()
        }
        | changes
    )


class Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][0]["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        text = next(part["text"] for part in parts if part["type"] == "text")
        url = next((part["image_url"]["url"] for part in parts if part["type"] == "image_url"), "")
        caption = text.rsplit("Description:", 1)[-1].strip()
        name = f"{len(body['messages'])} {digest_of(url) if url else ''} {caption}"
        with self.server.lock:
            self.server.asked[name] += 1
            times = self.server.asked[name]
            self.server.bodies.append(body)
            self.server.headers.append({key.lower(): text for key, text in self.headers.items()})
            self.server.times.setdefault(name, []).append(time.monotonic())
        time.sleep(self.server.delay_seconds)
        try:
            self.reply(body, text, url, times)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
            return
        with self.server.lock:
            self.server.answered[name] += 1

    def reply(self, body: dict[str, Any], text: str, url: str, times: int) -> None:
        if self.server.refuses:
            status, message = self.server.refuses
            self.send(status, {"error": {"message": message, "type": "invalid_request_error"}})
        elif not self.path.endswith("/v1/chat/completions"):
            self.send(404, {"detail": "Not Found"})
        elif question := re.search(r"Question: (\w+) (\d)", text):
            kind, index = question.groups()
            self.say("unknown" if kind == "local_vqa" else f"The {kind[:3].upper()} {index}.")
        elif url and "JSON" not in text:
            fault = self.server.caption_faults.get(digest_of(url), "")
            self.say(f"FAULT={fault} picture {digest_of(url)}")
        else:
            caption = text.rsplit("Description:", 1)[-1].strip()
            found = re.search(r"FAULT=(\w+)", caption)
            repair = len(body["messages"]) > 1
            getattr(self, found[1] if found else "good")(caption or digest_of(url), times, repair, bool(url))

    def say(self, text: str, finish: str = "stop", refusal: str | None = None) -> None:
        self.send(200, completion(text, finish, refusal))

    def good(self, caption: str, times: int, repair: bool, with_caption: bool) -> None:
        self.say(json.dumps(good_pairs(caption, with_caption=with_caption)))

    def fenced(self, caption: str, *_: Any) -> None:
        self.say(f"Here it is:\n```json\n{json.dumps(good_pairs(caption))}\n```\nDone.")

    def malformed(self, caption: str, times: int, repair: bool, *_: Any) -> None:
        whole = json.dumps(good_pairs(caption))
        self.say(whole if repair else whole[: len(whole) // 2] + "}")

    def wrong_number(self, caption: str, times: int, repair: bool, *_: Any) -> None:
        pairs = good_pairs(caption)
        self.say(json.dumps(pairs if repair else pairs | {"local_vqa": pairs["local_vqa"][:1]}))

    def hopeless(self, *_: Any) -> None:
        self.say('{"pairs": []}')

    def refusal(self, *_: Any) -> None:
        self.say("I'm sorry, but I can't assist with that.")

    def marked_refusal(self, *_: Any) -> None:
        self.say("", refusal="Not this one.")

    def cut(self, caption: str, *_: Any) -> None:
        self.say(json.dumps(good_pairs(caption))[:50], finish="length")

    def rate_limit(self, caption: str, times: int, *_: Any) -> None:
        if times == 1:
            self.send(429, {"error": {"message": "slow down"}}, {"Retry-After": "1"})
        else:
            self.say(json.dumps(good_pairs(caption)))

    def server_error(self, caption: str, times: int, *_: Any) -> None:
        if times == 1:
            self.send(500, {"error": {"message": "out of memory"}}, AT_ONCE)
        else:
            self.say(json.dumps(good_pairs(caption)))

    def down(self, *_: Any) -> None:
        self.send(503, {"error": {"message": "overloaded"}}, AT_ONCE)

    def too_long(self, *_: Any) -> None:
        self.send(400, {"error": {"message": "the context is too long"}})

    def dropped(self, caption: str, times: int, *_: Any) -> None:
        if times == 1:
            self.send(200, completion(json.dumps(good_pairs(caption))), {"Content-Length": "100000"})
            self.close_connection = True
        else:
            self.say(json.dumps(good_pairs(caption)))

    def slow(self, caption: str, *_: Any) -> None:
        self.send(200, completion(json.dumps(good_pairs(caption))), pieces=10)

    def not_a_completion(self, *_: Any) -> None:
        self.send(200, {"hello": "world"})

    def bad_pairs(self, caption: str, *_: Any) -> None:
        """Each pair but the first is for another filter."""
        pairs = good_pairs(caption)
        first = pairs["classification"][0]
        pairs["global_vqa"][0]["answer"] = f"{pairs['global_vqa'][0]['queries'][0]} Yes."
        pairs["global_vqa"][1]["answer"] = "word " * 21
        pairs["local_vqa"][0]["queries"] = first["queries"][:1]
        pairs["local_vqa"][1]["answer"] = "**bold**"
        pairs["creative"][0]["answer"] = "As an AI, I cannot feel."
        pairs["retrieval"][0]["answer"] = " \x1b\x00 "
        self.say(json.dumps(pairs))

    def hostile(self, caption: str, *_: Any) -> None:
        pairs = good_pairs(caption)
        pairs["classification"][0]["answer"] = "a \x1b[31mcat\u202e <|im_end|>\ud800"
        pairs["creative"][0]["answer"] = "x < y & \"z\" '{{ 7 * 7 }}'"
        self.say(json.dumps(pairs))

    def send(
        self, status: int, value: Any, headers: dict[str, str] | None = None, *, pieces: int = 1
    ) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        known = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        for name, text in (known | (headers or {})).items():
            self.send_header(name, text)
        self.end_headers()
        size = -(-len(data) // pieces)
        for start in range(0, len(data), size):
            self.wfile.write(data[start : start + size])
            self.wfile.flush()
            if pieces > 1:
                time.sleep(0.02)


def completion(text: str, finish: str = "stop", refusal: str | None = None) -> dict[str, Any]:
    return {
        "id": "1", "object": "chat.completion", "created": 0, "model": "scripted",
        "choices": [
            {
                "index": 0, "finish_reason": finish, "logprobs": None,
                "message": {"role": "assistant", "content": text, "refusal": refusal},
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }  # fmt: skip
