"""Make a small model for ``encode_corpus.py``, as a finished run, and name words that it knows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from served_model import make_volume
from transformers import AutoTokenizer, BertConfig, BertModel

from finetuner.backbones import locate
from finetuner.config import workspace_dir


def main() -> None:
    job = json.loads(sys.stdin.read())
    folder = Path(job["folder"])
    tokenizer = AutoTokenizer.from_pretrained(
        locate("all-minilm-l6-v2", workspace_dir()), trust_remote_code=False
    )
    model = job["model"]
    if not model:
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=512,
        )
        BertModel(config).save_pretrained(folder / "small")
        tokenizer.save_pretrained(folder / "small")
        model = str(folder / "small")
    make_volume(folder / "volume", model)
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha())
    print(json.dumps({"words": words}))


if __name__ == "__main__":
    main()
