"""The gradient of one batch, in three stages: texts to vectors, vectors to loss, loss back to weights.

Between the stages the graph is cut at the vectors. So the loss is always computed in float32 and of the
whole batch, whatever the stage before did to save memory or time: embed the texts in parts that are
computed again on the way back (gradient caching, Gao et al. 2021, arXiv 2101.06983, section 3), or on
several processes. The gradient is that of the whole batch in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from finetuner.pair_losses import Targets
from finetuner.tokens import PAD_MULTIPLES, TokenTable

Positions = NDArray[np.int64]
# Of padded tokens: smaller matrices are multiplied more slowly, so that less would not pay.
_MIN_SAVING = 0.08


@dataclass(frozen=True)
class BatchResult:
    """What one batch gave.

    :param loss: The loss.
    :param active: Share of the texts that the loss pulls or pushes, 0 to 1; 0 says that nothing is learnt,
        whatever the loss is.
    :param mean_cosine: Of all pairs of different texts in the batch; near 1, the model has collapsed.
    """

    loss: float
    active: float
    mean_cosine: float


@dataclass(frozen=True)
class GradientComputer:
    """Adds a batch's gradient to ``.grad`` of model and objective.

    :param model: Its forward gives ``(token vectors, text vectors)``.
    :param objective: From vectors and targets to a loss.
    :param tokens: The texts that positions name.
    :param accelerator: Device, autocast and other processes.
    :param cache_size: Texts embedded at once with gradient caching; None keeps the whole graph.
    """

    model: nn.Module
    objective: nn.Module
    tokens: TokenTable
    accelerator: Accelerator
    cache_size: int | None = None

    def add(self, positions: Positions, targets: Targets, *, share: float = 1.0) -> BatchResult:
        """Compute one batch.

        :param positions: *Shape:* ``(n_texts,)``, at least one.
        :param targets: What their vectors should come to.
        :param share: What the gradient is multiplied with: 1 / batches to a step of the optimizer.
        """
        own = self._own_part(positions)
        lengths = self.tokens.offsets[own + 1] - self.tokens.offsets[own]
        order = np.argsort(lengths, kind="stable")
        parts = self._cut(own[order], lengths[order])
        states: list[tuple[Tensor, ...]] = []
        embedded = []
        for part in parts:
            states.append(_random_state(self.accelerator.device))
            with torch.set_grad_enabled(self.cache_size is None):
                embedded.append(self.embed(part))
        by_length = torch.from_numpy(order).to(self.accelerator.device)
        own_embeddings = torch.cat(embedded).detach()[by_length.argsort()].requires_grad_()
        embeddings = self._gather(own_embeddings, len(positions))
        loss = self.objective(embeddings, targets.to(self.accelerator.device))
        (loss * share).backward()
        gradient = own_embeddings.grad
        if gradient is None:  # a loss of nothing, such as one without any triplet
            gradient = torch.zeros_like(own_embeddings)
        self._send_back(parts, embedded, gradient[by_length], states)
        self._sum_over_processes()
        return self._result(loss, gradient, embeddings.detach())

    def embed(self, positions: Positions) -> Tensor:
        """Return the vectors of some texts, *Shape:* ``(n_texts, dim)`` float32."""
        device = self.accelerator.device
        inputs = self.tokens.pad(positions, multiple=PAD_MULTIPLES[device.type])
        with self.accelerator.autocast():
            _, embeddings = self.model(*(torch.from_numpy(a).to(device) for a in inputs.values()))
        return embeddings  # type: ignore[no-any-return]  # a module's call is Any

    def _own_part(self, positions: Positions) -> Positions:
        """Return the part of a batch that this process embeds; all processes know the whole batch."""
        parts = np.array_split(positions, self.accelerator.num_processes)
        own: Positions = parts[self.accelerator.process_index]
        return own

    def _cut(self, positions: Positions, lengths: Positions) -> list[Positions]:
        """Cut a batch, short texts first, into what is embedded at once."""
        if self.cache_size is not None:
            return np.split(positions, range(self.cache_size, len(positions), self.cache_size))
        if self.accelerator.device.type == "cpu":
            return np.split(positions, _best_cut(lengths))
        return [positions]

    def _gather(self, own: Tensor, n_texts: int) -> Tensor:
        """Return the vectors of the whole batch; the gradient reaches this process's own ones."""
        n_processes = self.accelerator.num_processes
        if n_processes == 1:
            return own
        sizes = [len(part) for part in np.array_split(np.arange(n_texts), n_processes)]
        padded = self.accelerator.pad_across_processes(own.detach(), dim=0)
        blocks = list(self.accelerator.gather(padded).chunk(n_processes))
        parts = [block[:size] for block, size in zip(blocks, sizes, strict=True)]
        parts[self.accelerator.process_index] = own
        return torch.cat(parts)

    def _send_back(
        self,
        parts: Sequence[Positions],
        embedded: Sequence[Tensor],
        gradient: Tensor,
        states: Sequence[tuple[Tensor, ...]],
    ) -> None:
        """Add the weights' gradient, computing the graph again where it was not kept."""
        start = 0
        for part, embeddings, state in zip(parts, embedded, states, strict=True):
            wanted = gradient[start : start + len(part)]
            start += len(part)
            if self.cache_size is not None:
                with _random_state_set(state, self.accelerator.device):
                    embeddings = self.embed(part)
            # For fp16, accelerate scales what it is given; the inner product has `wanted` as gradient.
            self.accelerator.backward((embeddings * wanted).sum())

    def _sum_over_processes(self) -> None:
        """Add up what each process's own vectors gave; the loss's own weights saw the whole batch."""
        if self.accelerator.num_processes == 1:
            return
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        flat = self.accelerator.reduce(flat, reduction="sum")
        for gradient, summed in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(summed.view_as(gradient))

    def _result(self, loss: Tensor, gradient: Tensor, embeddings: Tensor) -> BatchResult:
        is_active = gradient.abs().amax(dim=1) > 0
        if self.accelerator.num_processes > 1:
            is_active = self._gather(is_active.float(), len(embeddings)) > 0
        return BatchResult(
            loss.item(), is_active.float().mean().item(), mean_pairwise_cosine(embeddings)
        )


def _best_cut(lengths: Positions) -> list[int]:
    """Return where to cut texts of rising length in two, if that saves enough padding for a second pass."""
    n = len(lengths)
    n_padded = (
        np.arange(n) * np.concatenate([[0], lengths[:-1]]) + np.arange(n, 0, -1) * lengths[-1]
    )
    place = int(np.argmin(n_padded))
    return [place] if n_padded[place] < (1 - _MIN_SAVING) * n_padded[0] else []


def mean_pairwise_cosine(embeddings: Tensor) -> float:
    """Return the mean cosine of all pairs of different rows; 0 for fewer than two rows.

    :param embeddings: *Shape:* ``(n, dim)`` float32. The sum over all pairs is the squared length of the
        sum of the unit vectors, so that no n by n matrix is needed.
    """
    n = len(embeddings)
    if n < 2:
        return 0.0
    unit = nn.functional.normalize(embeddings, dim=1)
    return float((unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1)))


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    states = (torch.get_rng_state(),)
    return (*states, torch.cuda.get_rng_state(device)) if device.type == "cuda" else states


@contextmanager
def _random_state_set(state: tuple[Tensor, ...], device: torch.device) -> Iterator[None]:
    """Draw the same dropout again, and go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state[1], device)
        yield
