"""One encoding of ours, timed: a job as JSON on the standard input, its figures as the last line out.

Started by encode.py in a process of its own; peer_encode.py does the same with its peer.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ |= {"TOKENIZERS_PARALLELISM": "false"}

import numpy as np
from measurement import Row, metered
from served_model import NAME

from finetuner.encoder import load_encoder
from finetuner.run_store import RunStore


def run(job: Row) -> Row:
    path = RunStore(Path(job["volume"])).find_artifact(NAME)
    encoder = load_encoder(path, precision=job["precision"], n_threads=1)
    encoder.encode(job["texts"][:64])
    with metered() as usage:
        vectors = encoder.encode(job["texts"])
    np.save(job["vectors"], vectors)
    return vars(usage)


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
