"""A BERT of one layer with random weights, for trainings of which only the course matters."""

from __future__ import annotations

from pathlib import Path

ROWS = [
    [f"{form} {topic}", topic] for topic in "abcdef" for form in ("one", "two", "three", "four")
]


def make_tiny_model(folder: Path) -> None:
    """Write model and tokenizer, which knows the words of ``ROWS``.

    :param folder: Made when needed.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = sorted({word for text, _ in ROWS for word in text.split()})
    vocabulary = {token: number for number, token in enumerate([*names.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=32, **names
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
