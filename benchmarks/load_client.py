"""Load on an embeddings route: a job as JSON on the standard input, figures as the last line out.

Started by serve.py in a process of its own. Plain sockets, and answers are not parsed, so that the client
takes little of the processor that the server is measured on.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time

Job = dict


def make_requests(job: Job, n_requests: int = 512) -> list[tuple[int, bytes]]:
    """Return requests ready to send, each with the number of its texts."""
    generator = random.Random(0)
    requests = []
    for _ in range(n_requests):
        n_texts = generator.randint(1, job.get("max_texts", 8))
        texts = generator.sample(job["texts"], n_texts)
        body = json.dumps({"model": job["model"], "input": texts, "encoding_format": "float"})
        head = f"POST {job['path']} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        payload = body.encode()
        requests.append(
            (n_texts, f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
        )
    return requests


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, bool]:
    """Send one request, read the whole answer; return its status, and whether it says when to retry."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head.split()[1]), b"retry-after:" in head


async def drive(job: Job) -> Job:
    requests = make_requests(job)
    latencies: list[float] = []
    done = {"texts": 0, "sent": 0, "errors": 0, "refusals": 0}
    warm_until = time.perf_counter() + job["seconds"] / 8
    until = warm_until + job["seconds"]

    async def connection(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", job["port"])
        generator = random.Random(number)
        while (started := time.perf_counter()) < until:
            n_texts, request = generator.choice(requests)
            status, says_when = await ask(reader, writer, request)
            if is_refused := status == 429 and says_when:
                await asyncio.sleep(
                    job.get("pause_s", 0)
                )  # a client that does not wait as it is told
            ended = time.perf_counter()
            done["sent"] += n_texts
            if warm_until <= started and ended <= until:
                latencies.append(ended - started)
                done["texts"] += n_texts if status == 200 else 0
                done["refusals"] += is_refused
                done["errors"] += status != 200 and not is_refused
        writer.close()

    await asyncio.gather(*(connection(number) for number in range(job["n_connections"])))
    latencies.sort()
    return {
        "n_texts": done["texts"],
        "n_texts_sent": done["sent"],
        "n_errors": done["errors"],
        "n_refusals": done["refusals"],
        "n_requests": len(latencies),
        "wall_s": job["seconds"],
        "p50_ms": 1e3 * latencies[len(latencies) // 2],
        "p99_ms": 1e3 * latencies[int(len(latencies) * 0.99)],
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(drive(json.load(sys.stdin)))))
