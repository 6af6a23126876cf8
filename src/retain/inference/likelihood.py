"""The likelihood of whole documents of any length under the RNN alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from retain.data.batches import Split, evenly_spaced
from retain.data.documents import DocumentsData
from retain.inference.evaluate import LOGITS
from retain.model.modes import evaluating
from retain.model.rnn import RNN

CHUNK = 256
"""The most tokens read at once. Only the memory is kept between chunks."""
HELD = 2**24
"""The most tokens of a batch of documents, padding included. One document alone may have more."""


@torch.no_grad()
def document_likelihood(
    rnn: RNN, data: DocumentsData, split: Split, *, batch_size: int = 64, limit: int | None = None
) -> dict[str, Any]:
    """Read every document of a split, or `limit` evenly spaced ones, from m_0 to its end symbol.

    Returns JSON values: `documents`, `bits_per_document` (the mean of -log2 p(document), its end symbol included)
    and `bits_per_token` over all their tokens.
    """
    device = rnn.m_0.device
    chosen = evenly_spaced(data.documents(split), limit)
    lengths = np.diff(data.ends[split], prepend=0)[chosen].astype(np.int64)
    order = np.argsort(lengths, kind="stable")  # documents of similar length share a batch
    chosen, lengths = chosen[order], lengths[order]
    nats, first = 0.0, 0
    with evaluating(rnn):
        while first < len(chosen):
            rows = min(batch_size, len(chosen) - first)
            while rows > 1 and rows * lengths[first + rows - 1] > HELD:
                rows //= 2
            documents = [torch.from_numpy(data.document(split, int(i))).long() for i in chosen[first : first + rows]]
            tokens = pad_sequence(documents, batch_first=True).to(device)  # (B, T)
            ends = torch.from_numpy(lengths[first : first + rows, None]).to(device)
            real = torch.arange(tokens.shape[1], device=device) < ends
            first += rows
            chunk = max(1, min(CHUNK, LOGITS // (rows * rnn.vocab_size)))
            memory = rnn.init_memory(rows)
            before = rnn.readout(memory).float()[:, None]  # (B, 1, V): the first token from m_0
            for part, counts in zip(tokens.split(chunk, 1), real.split(chunk, 1), strict=True):
                logits, memory = rnn(part, memory)
                said = torch.cat([before, logits[:, :-1]], 1).float()
                loss = F.cross_entropy(said.transpose(1, 2), part, reduction="none")
                nats += float(loss[counts].sum())
                before = logits[:, -1:]
    return {
        "documents": len(chosen),
        "bits_per_document": nats / max(len(chosen), 1) / math.log(2),
        "bits_per_token": nats / max(int(lengths.sum()), 1) / math.log(2),
    }
