"""From texts to padded arrays of token ids; numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from finetuner.errors import CorruptedArtifact
from finetuner.files import read_json

_SLICE_TEXTS = 10_000
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
Inputs = dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer that never changes after it was made, so threads can share it.

    :param tokenizer: With truncation set and padding off.
    :param pad_id: Token id that fills short texts.
    :param input_names: Those of ``INPUT_NAMES`` that the model takes.
    """

    tokenizer: Tokenizer
    pad_id: int
    input_names: tuple[str, ...]

    @classmethod
    def create(
        cls, definition: str, *, max_length: int, pad_id: int, input_names: Sequence[str]
    ) -> TextTokenizer:
        """Build one from the content of a ``tokenizer.json``.

        :param definition: The JSON.
        :param max_length: Tokens a text is cut to, special ones included.
        :param pad_id: As the class says.
        :param input_names: As the class says.
        """
        tokenizer = Tokenizer.from_str(definition)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        return cls(tokenizer, pad_id, tuple(n for n in INPUT_NAMES if n in input_names))

    @classmethod
    def load(cls, folder: Path, *, max_length: int, input_names: Sequence[str]) -> TextTokenizer:
        """Read ``tokenizer.json`` and the padding token of ``tokenizer_config.json``.

        :raises CorruptedArtifact: When a file is missing or cannot be read.
        """
        try:
            definition = (folder / "tokenizer.json").read_text(encoding="utf-8")
            pad_token = read_json(folder / "tokenizer_config.json").get("pad_token", "[PAD]")
            if isinstance(pad_token, dict):
                pad_token = pad_token["content"]
            pad_id = Tokenizer.from_str(definition).token_to_id(pad_token or "[PAD]") or 0
        except Exception as exc:  # the tokenizers library raises nothing more special
            raise CorruptedArtifact(f"the tokenizer's files cannot be read: {exc}") from exc
        return cls.create(definition, max_length=max_length, pad_id=pad_id, input_names=input_names)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids, cut to the maximum length; an empty list for no texts."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]

    def pad(self, token_ids: Sequence[Sequence[int] | NDArray[np.int32]]) -> Inputs:
        """Put token ids side by side.

        :param token_ids: One or more texts.
        :returns: For each input name an array, *Shape:* ``(n_texts, longest)`` int64. Token types are
            all 0, which is what a single text has in every encoder that knows them.
        """
        longest = max(map(len, token_ids))
        ids = np.full((len(token_ids), longest), self.pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, text_ids in enumerate(token_ids):
            ids[row, : len(text_ids)] = text_ids
            mask[row, : len(text_ids)] = 1
        arrays = dict(zip(INPUT_NAMES, (ids, mask, np.zeros_like(ids)), strict=True))
        return {name: arrays[name] for name in self.input_names}


@dataclass(frozen=True)
class TokenTable:
    """Many texts tokenised, in two arrays: a tenth of the memory that lists of lists take.

    :param tokenizer: What made the ids.
    :param ids: *Shape:* ``(n_tokens,)`` int32; text after text.
    :param offsets: *Shape:* ``(n_texts + 1,)`` int64; where each text begins, and the end.
    """

    tokenizer: TextTokenizer
    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @classmethod
    def create(cls, tokenizer: TextTokenizer, texts: Sequence[str]) -> TokenTable:
        """Tokenise texts, a slice at a time so that memory stays near what the arrays take.

        :param tokenizer: Cuts texts to its maximum length.
        :param texts: Any number; none gives an empty table.
        """
        parts: list[NDArray[np.int32]] = []
        lengths = [np.zeros(1, dtype=np.int64)]
        for start in range(0, len(texts), _SLICE_TEXTS):
            token_ids = tokenizer.tokenize(texts[start : start + _SLICE_TEXTS])
            lengths.append(np.fromiter(map(len, token_ids), np.int64, len(token_ids)))
            parts.append(np.fromiter(chain.from_iterable(token_ids), np.int32, lengths[-1].sum()))
        ids = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
        return cls(tokenizer, ids, np.cumsum(np.concatenate(lengths)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, *Shape:* ``(n_texts,)``."""
        return np.diff(self.offsets)

    def pad(self, positions: Sequence[int] | NDArray[np.int64]) -> Inputs:
        """Return :meth:`TextTokenizer.pad` of the texts at some places, at least one."""
        return self.tokenizer.pad(
            [self.ids[self.offsets[i] : self.offsets[i + 1]] for i in positions]
        )
