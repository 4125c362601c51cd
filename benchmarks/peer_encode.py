"""One encoding of sentence-transformers, timed; runs in an environment of its own and knows nothing of ours.

A job as JSON on the standard input, its figures as the last line out.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ |= {"TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import torch
from sentence_transformers import SentenceTransformer


def run(job: dict) -> dict:
    torch.set_num_threads(1)
    model = SentenceTransformer(f"{job['volume']}/model", device="cpu")
    model.encode(job["texts"][:64], show_progress_bar=False)
    cpu_s = time.process_time()
    vectors = model.encode(job["texts"], batch_size=32, show_progress_bar=False)
    cpu_s = time.process_time() - cpu_s
    np.save(job["vectors"], vectors)
    return {"cpu_s": cpu_s}


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
