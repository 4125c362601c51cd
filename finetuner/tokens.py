"""From texts to padded arrays of token ids; numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from finetuner.errors import CorruptedArtifact, DataError
from finetuner.files import read_json

_SLICE_TEXTS = 10_000
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
Inputs = dict[str, NDArray[np.int64]]
# A GPU's library looks for the best kernel whenever matrices have a size that it has not met yet.
PAD_MULTIPLES = {"cpu": 1, "cuda": 8}


class Truncate(StrEnum):
    """What becomes of a text that is longer than the model takes."""

    RIGHT = "right"
    LEFT = "left"
    ERROR = "error"


@dataclass(frozen=True)
class Token:
    """One token of a text.

    :param id: In the model's vocabulary.
    :param text: As the vocabulary writes it.
    :param start: Where it begins in the text, in characters; 0 for a special one.
    :param end: Behind its last character; 0 for a special one.
    :param is_special: Whether the tokenizer put it there, as ``[CLS]``.
    """

    id: int
    text: str
    start: int
    end: int
    is_special: bool


@dataclass(frozen=True, eq=False)
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

    @cached_property
    def max_length(self) -> int:
        """Tokens a text is cut to, special ones included."""
        return int(self.tokenizer.truncation["max_length"])  # type: ignore[index]  # set in create

    @cached_property
    def vocabulary_size(self) -> int:
        """The largest token id and one; there may be gaps below it."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @cached_property
    def _left(self) -> Tokenizer:
        """The same, which keeps a text's end; a tokenizer of its own, for threads share the first."""
        other = Tokenizer.from_str(self.tokenizer.to_str())
        other.enable_truncation(self.max_length, direction="left")
        return other

    @cached_property
    def _whole(self) -> Tokenizer:
        """The same, which cuts nothing."""
        other = Tokenizer.from_str(self.tokenizer.to_str())
        other.no_truncation()
        return other

    def tokenize(
        self, texts: Sequence[str], *, truncate: Truncate = Truncate.RIGHT
    ) -> list[list[int]]:
        """Return each text's token ids, cut to the maximum length; an empty list for no texts.

        :param texts: Any number.
        :param truncate: Which end is cut of a text that is too long.
        :raises DataError: When a text is too long and ``truncate`` is ``error``.
        """
        return [encoding.ids for encoding in self._encode(texts, truncate)]

    def explain(
        self, texts: Sequence[str], *, truncate: Truncate = Truncate.RIGHT
    ) -> list[list[Token]]:
        """Return each text's tokens with their places in it, as :meth:`tokenize` gives their ids.

        :raises DataError: As there.
        """
        return [
            [
                Token(id_, token, start, end, bool(is_special))
                for id_, token, (start, end), is_special in zip(
                    encoding.ids,
                    encoding.tokens,
                    encoding.offsets,
                    encoding.special_tokens_mask,
                    strict=True,
                )
            ]
            for encoding in self._encode(texts, truncate, with_offsets=True)
        ]

    def _encode(
        self, texts: Sequence[str], truncate: Truncate, *, with_offsets: bool = False
    ) -> list[Any]:
        tokenizers = {Truncate.RIGHT: "tokenizer", Truncate.LEFT: "_left", Truncate.ERROR: "_whole"}
        tokenizer = getattr(self, tokenizers[truncate])
        encode = tokenizer.encode_batch if with_offsets else tokenizer.encode_batch_fast
        encodings: list[Any] = encode(list(texts))
        for number, encoding in enumerate(encodings, start=1):
            if len(encoding.ids) > self.max_length:
                raise DataError(
                    f"text {number} has {len(encoding.ids)} tokens, the model takes {self.max_length}: "
                    "shorten it, or let it be cut with truncate right or left"
                )
        return encodings

    def check_token_ids(self, token_ids: Sequence[Any]) -> list[list[int]]:
        """Return texts that came as token ids of this model, checked.

        :param token_ids: Any number; special tokens included, none is added.
        :raises DataError: When one is no list of 1 to :attr:`max_length` ids of the vocabulary.
        """
        size = self.vocabulary_size
        for number, ids in enumerate(token_ids, start=1):
            if not isinstance(ids, list) or not 1 <= len(ids) <= self.max_length:
                raise DataError(
                    f"text {number} must be a string, or a list of 1 to {self.max_length} token ids"
                )
            for id_ in ids:
                if type(id_) is not int or not 0 <= id_ < size:
                    raise DataError(
                        f"text {number}: a token id is a whole number from 0 to {size - 1}, got "
                        f"`{id_!r}`"[:200]
                    )
        return list(token_ids)

    def pad(
        self, token_ids: Sequence[Sequence[int] | NDArray[np.int32]], *, multiple: int = 1
    ) -> Inputs:
        """Put token ids side by side.

        :param token_ids: One or more texts.
        :param multiple: Of which the width should be one, as far as the maximum length lets it.
        :returns: For each input name an array, *Shape:* ``(n_texts, longest)`` int64. Token types are
            all 0, which is what a single text has in every encoder that knows them.
        """
        longest = max(map(len, token_ids))
        longest = max(longest, min(-(-longest // multiple) * multiple, self.max_length))
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

    def pad(self, positions: Sequence[int] | NDArray[np.int64], *, multiple: int = 1) -> Inputs:
        """Return :meth:`TextTokenizer.pad` of the texts at some places, at least one."""
        return self.tokenizer.pad(
            [self.ids[self.offsets[i] : self.offsets[i + 1]] for i in positions], multiple=multiple
        )
