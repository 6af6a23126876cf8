"""Cross-entropies of large vocabularies, block by block, against those of dense probabilities."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from retain.model.given import as_guide, compress, expand
from retain.ops import cross_entropy
from retain.ops.cross_entropy import cross_entropies

ROWS, VOCAB = 7, 20


def dense(logits, targets, kept):
    """The twin: all probabilities written out."""
    log_probs = logits.log_softmax(-1)
    return F.nll_loss(log_probs, targets, reduction="none"), -(expand(kept, VOCAB).softmax(-1) * log_probs).sum(-1)


@pytest.mark.parametrize("top_k", [3, VOCAB])
@pytest.mark.parametrize("large", [0, 2**22], ids=["in blocks", "at once"])
def test_cross_entropies_equal_those_of_all_probabilities(monkeypatch, large, top_k):
    monkeypatch.setattr(cross_entropy, "LARGE", large)
    monkeypatch.setattr(cross_entropy, "BLOCK", 2 * VOCAB)
    torch.manual_seed(0)
    logits, weights = torch.randn(ROWS, VOCAB).double().requires_grad_(), torch.randn(2, ROWS).double()
    targets, kept = torch.randint(VOCAB, (ROWS,)), compress(3 * torch.randn(ROWS, VOCAB), top_k)
    found = cross_entropies(logits, targets, as_guide(kept, VOCAB))
    expected = dense(logits, targets, kept)
    for losses, naive in ((found, expected), (cross_entropies(logits, targets), expected[:1])):
        assert_close(losses, naive, atol=1e-6, rtol=1e-6)
        (mine,), (theirs,) = (
            torch.autograd.grad(sum((w * loss).sum() for w, loss in zip(weights, part, strict=False)), logits)
            for part in (losses, dense(logits, targets, kept)[: len(losses)])
        )
        assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("large", [0, 2**22], ids=["in blocks", "at once"])
def test_half_precision_is_widened_row_by_row(monkeypatch, large):
    monkeypatch.setattr(cross_entropy, "LARGE", large)
    logits, targets = torch.randn(ROWS, VOCAB).bfloat16().requires_grad_(), torch.randint(VOCAB, (ROWS,))
    (losses,) = cross_entropies(logits, targets)
    naive = F.cross_entropy(logits.float(), targets, reduction="none")
    assert_close(losses, naive)
    (mine,), (theirs,) = (torch.autograd.grad(part.sum(), logits) for part in (losses, naive))
    assert_close(mine, theirs)
    assert mine.dtype == torch.bfloat16
