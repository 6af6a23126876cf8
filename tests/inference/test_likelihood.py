"""The likelihood of whole documents: chunks, batches and what is held at once change nothing."""

import dataclasses
import math

import pytest
import torch

from conftest import tiny
from hubdata import real
from retain.config import data_config
from retain.config.presets import PRESETS
from retain.data import load_data
from retain.inference import likelihood
from retain.runs.run import build


@pytest.mark.parametrize("held", [2**24, 100])
def test_the_likelihood_of_whole_documents_is_that_of_one_pass(sources, monkeypatch, held):
    """Chunks, batches and padding change nothing: each document is read from m_0 to its end symbol."""
    data = load_data(data_config(name="documents", path=str(sources / "stories"), seq_len=20, reset=True))
    rnn, _ = build(tiny(), data.vocab_size)
    rnn.eval()
    nats = count = 0
    with torch.no_grad():
        for i in range(data.documents("validation")):
            tokens = torch.from_numpy(data.document("validation", i))[None]
            logits, _ = rnn(tokens[:, :-1])
            logits = torch.cat([rnn.readout(rnn.init_memory(1))[:, None], logits], 1)
            nats += torch.nn.functional.cross_entropy(logits[0], tokens[0], reduction="sum").item()
            count += tokens.numel()
    monkeypatch.setattr(likelihood, "CHUNK", 7)
    monkeypatch.setattr(likelihood, "HELD", held)
    found = likelihood.document_likelihood(rnn, data, "validation", batch_size=5)
    assert found["documents"] == real(40)
    assert found["bits_per_token"] == pytest.approx(nats / count / math.log(2), rel=1e-5)
    assert found["bits_per_document"] == pytest.approx(nats / real(40) / math.log(2), rel=1e-5)


def test_what_fills_up_a_short_document_is_not_looked_at(sources):
    """It may run away there: an infinity times 0 would be the likelihood of all."""
    data = load_data(data_config(name="documents", path=str(sources / "stories"), seq_len=20, reset=True))
    rnn, _ = build(tiny(), data.vocab_size)
    alone = likelihood.document_likelihood(rnn, data, "validation", limit=5, batch_size=1)
    with torch.no_grad():
        rnn.embed.weight[0] = torch.inf  # the filling; no text has it
    assert likelihood.document_likelihood(rnn, data, "validation", limit=5, batch_size=5) == pytest.approx(alone)


def test_a_large_vocabulary_is_read_in_smaller_pieces(sources, monkeypatch):
    config = dataclasses.replace(PRESETS["tinystories"]().data, path=str(sources / "stories"), reset=True)
    data = load_data(config)
    rnn, _ = build(PRESETS["tinystories"](), data.vocab_size)
    whole = likelihood.document_likelihood(rnn, data, "validation", limit=5)
    lengths, read = [], type(rnn).forward
    monkeypatch.setattr(type(rnn), "forward", lambda self, t, m: lengths.append(t.shape[1]) or read(self, t, m))
    monkeypatch.setattr(likelihood, "LOGITS", 5 * 256 * 7)
    again = likelihood.document_likelihood(rnn, data, "validation", limit=5)
    assert max(lengths) == 7 and again == pytest.approx(whole)
