"""Poolings of a sequence of tokens to one vector, in which masked positions never count."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from diptych.config import Pooling
from diptych.model.kernels import can_ask


class ClsPooling(nn.Module):
    """Pooling by the first token: in BERT, the class token."""

    def forward(self, tokens: Tensor, _mask: Tensor) -> Tensor:
        """Pool `tokens` (B, T, D) to (B, D)."""
        return tokens[:, 0]


class MeanPooling(nn.Module):
    """Mean over the tokens."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Pool `tokens` (B, T, D) to (B, D); `mask` (B, T) bool is True where there is a token."""
        return masked_mean(tokens, mask)


class MaxPooling(nn.Module):
    """Maximum of each dimension over the tokens."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Pool `tokens` (B, T, D) to (B, D); `mask` (B, T) bool is True where there is a token."""
        return tokens.masked_fill(~mask.unsqueeze(-1), torch.finfo(tokens.dtype).min).amax(dim=1)


class GeneralizedPooling(nn.Module):
    """Generalized pooling operator (GPO): a weighted sum of each dimension's sorted values.

    Chen et al., "Learning the Best Pooling Strategy for Visual Semantic Embedding", CVPR 2021, section 4. The weights
    depend on length and rank: a bidirectional GRU computes them from sinusoidal encodings of the ranks. So the operator
    can learn mean and max pooling, and has weights for lengths that it never saw.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.score = nn.Linear(2 * width, 1, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Pool `tokens` (B, T, D) to (B, D); `mask` (B, T) bool is True where there is a token."""
        lengths = mask.sum(dim=1)
        ranked = tokens.masked_fill(~mask.unsqueeze(-1), torch.finfo(tokens.dtype).min).sort(dim=1, descending=True)
        within = torch.arange(tokens.shape[1], device=tokens.device) < lengths.unsqueeze(1)
        values = ranked.values.masked_fill(~within.unsqueeze(-1), 0)
        return (self.weights(lengths, tokens.shape[1]).unsqueeze(-1) * values).sum(dim=1)

    def weights(self, lengths: Tensor, longest: int) -> Tensor:
        """Return the weights of the ranks (B, `longest`) float32 for `lengths` (B,) int64; each row sums to one."""
        if on_cpu := can_ask(lengths):
            distinct, index = lengths.unique(return_inverse=True)
            distinct_on_cpu = distinct
        else:
            distinct_on_cpu = torch.arange(longest, 0, -1)
            distinct, index = torch.arange(longest, 0, -1, device=lengths.device), longest - lengths
        positions = _sinusoids(longest, self.width, lengths.device).expand(len(distinct), -1, -1)
        with torch.autocast(lengths.device.type, enabled=False):
            packed = nn.utils.rnn.pack_padded_sequence(
                positions, distinct_on_cpu, batch_first=True, enforce_sorted=not on_cpu
            )
            states, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=longest)
            scores = self.score(states).squeeze(-1)
        beyond = torch.arange(longest, device=lengths.device) >= distinct.unsqueeze(1)
        return scores.masked_fill(beyond, -math.inf).softmax(dim=1)[index]


POOLINGS: dict[Pooling, type[nn.Module]] = {
    "cls": ClsPooling,
    "mean": MeanPooling,
    "max": MaxPooling,
    "generalized": GeneralizedPooling,
}


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, D) of `tokens` (B, T, D) where `mask` (B, T) bool is True, at least once a row."""
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1)


def _sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Return the positional encodings (length, width) of Vaswani et al. 2017, section 3.5."""
    position = torch.arange(length, device=device, dtype=torch.float32).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * (-math.log(10_000.0) / width))
    return torch.cat([torch.sin(position * rate), torch.cos(position * rate)], dim=1)
