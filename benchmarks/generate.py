"""CPU time of `muco data generate` per image, beside that of the requests alone.

    python benchmarks/generate.py [NUM_IMAGES] [CONCURRENCY]

A server in another process answers at once. Each round makes a table of captioned images, one request each;
a table of images that the server finds by their URL, two requests each; and sends as many requests as there
are images with the client alone.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console

from muco.commands.generate import generate
from muco.generate.client import Client
from muco.generate.curriculum import Curriculum
from muco.generate.inputs import Inputs
from muco.generate.settings import Generation, load_generation

NUM_ROUNDS = 5
CAPTION = "A red cup stands on a wooden table beside an open book. The light comes from the left. " * 6


def serve(pipe: Connection) -> None:
    """Answer all requests with captions or the pairs of the shipped kinds; send the port through the pipe."""
    from aiohttp import web

    kinds = load_generation("m3t").kinds
    pairs = {
        name: [
            {"queries": [f"{name} {n}, {wording}?" for wording in "abc"], "answer": f"{name} {n}"}
            for n in range(kind.count)
        ]
        for name, kind in kinds.items()
    }
    answer, captions = json.dumps(pairs), (f"{n}. {CAPTION}" for n in count())

    async def reply(request: web.Request) -> web.Response:
        content = next(captions) if b'"image_url"' in await request.read() else answer
        choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        return web.json_response(
            {"choices": [choice], "usage": {"prompt_tokens": 900, "completion_tokens": 400}}
        )

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", reply)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        pipe.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


def write_images(path: Path, number: int, start: int, caption: str) -> Path:
    """Write a table of images that are never read: a caption is given or the server reads them."""
    lines = (
        json.dumps({"image": f"http://host/{n:07}.png", "caption": f"{n}. {caption}" if caption else ""})
        + "\n"
        for n in range(start, start + number)
    )
    path.write_text("".join(lines))
    return path


def make_table(settings: Generation, folder: Path, number: int, start: int, caption: str = CAPTION) -> None:
    """Generate a table of images that have not been asked about."""
    images = write_images(folder / f"{start}.jsonl", number, start, caption)
    console = Console(quiet=True)
    table = folder / f"table{start}.jsonl"
    generate(settings, Inputs(images), table, one_stage=False, dry_run=False, console=console)


def send_requests(settings: Generation, number: int) -> None:
    """Send as many requests as a table takes, and drop the answers."""
    prompt = Curriculum(settings).prompt(settings.pairs, CAPTION)
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}], "max_tokens": 1500}

    async def run() -> None:
        async with Client(settings.server) as client:
            numbers = iter(range(number))

            async def worker() -> None:
                for _ in numbers:
                    await client.ask(body)

            await asyncio.gather(*(worker() for _ in range(settings.server.concurrency)))

    asyncio.run(run())


def cpu_ms(work: Callable[[], None], number: int) -> float:
    """Return the CPU time of this process per image, in milliseconds."""
    start = time.process_time()
    work()
    return (time.process_time() - start) / number * 1000


def main() -> None:
    """Print the medians of all three."""
    number, concurrency = [*map(int, sys.argv[1:]), *(1000, 32)[len(sys.argv) - 1 :]]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    base_url = f"http://127.0.0.1:{ours.recv()}/v1"
    overrides = [f"server.base_url={base_url}", f"server.concurrency={concurrency}", "images.send=url"]
    settings = load_generation("m3t", [*overrides, "server.model=m"])
    starts = count(0, number)
    with tempfile.TemporaryDirectory() as folder:
        rounds = [
            (
                cpu_ms(lambda: make_table(settings, Path(folder), number, next(starts)), number),
                cpu_ms(lambda: make_table(settings, Path(folder), number, next(starts), caption=""), number),
                cpu_ms(lambda: send_requests(settings, number), number),
            )
            for _ in range(NUM_ROUNDS + 1)
        ][1:]
    one, two, alone = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"CPU ms per image: {one:.2f} with one request, {two:.2f} with two; the client alone {alone:.2f}")
    server.terminate()


if __name__ == "__main__":
    main()
