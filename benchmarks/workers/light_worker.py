"""A worker that does nothing, for load_runs.py: what is left is the price of a run itself."""

from __future__ import annotations

import sys

from finetuner import worker

if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1], lambda *_: "Run finished"))
