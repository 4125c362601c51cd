"""Ours without the Flow: encoder and batcher behind the smallest HTTP server, in one process.

    python benchmarks/serve_loop.py VOLUME PORT PRECISION

The upper bound for serve.py: no validation, no limits, no metrics, one model.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import orjson
import uvicorn
from served_model import NAME

from finetuner.backends import EncoderPrecision
from finetuner.batcher import Batcher
from finetuner.encoder import load_encoder
from finetuner.run_store import RunStore


def main() -> None:
    volume, port, precision = sys.argv[1:]
    path = RunStore(Path(volume)).find_artifact(NAME)
    encoder = load_encoder(path, precision=EncoderPrecision(precision), n_threads=1)
    batcher = Batcher(n_workers=len(os.sched_getaffinity(0)))

    async def app(scope, receive, send) -> None:
        body, more = b"", scope["type"] == "http"
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        job = batcher.submit(encoder, encoder.tokenizer.tokenize(orjson.loads(body)["input"]))
        vectors = await asyncio.wrap_future(job.future)
        rows = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        answer = orjson.dumps({"data": rows}, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    uvicorn.run(app, port=int(port), log_level="warning", lifespan="off")


if __name__ == "__main__":
    main()
