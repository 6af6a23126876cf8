"""The teacher (memory encoder E, predictive decoder P and the normalisation of memory), and the readout g."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retain.config import MemoryConfig, Symbols, TeacherConfig
from retain.errors import UserError
from retain.model.embeddings import embedding, no_tokens, shrink
from retain.model.encoders import ENCODERS
from retain.model.fast import fast
from retain.model.given import GivenEncoder, GivenTrunk, Labels, TopK, compress, expand
from retain.model.layers import Transformer
from retain.model.likelihood import count_scores, likelihood_of
from retain.model.memory_norm import MemoryNorm, counted_memories
from retain.model.modes import evaluating
from retain.ops.delta_rule import count_chunks


class Readout(nn.Module):
    """g: logits of y_t from m_t alone, a decoder without a future. Reads width, heads and decoder_layers of config.

    If steps are numbers, the V logits are the parameters of the distribution by which `likelihood` scores them.
    """

    def __init__(self, symbols: Symbols, memory: MemoryConfig, config: TeacherConfig):
        super().__init__()
        self.from_memory = nn.Linear(memory.width, config.width)
        self.positions = nn.Parameter(torch.randn(memory.tokens, config.width) * 0.02)
        self.transformer = Transformer(config.width, config.heads, config.decoder_layers)
        self.depth = config.decoder_layers
        self.head = nn.Linear(config.width, count_scores(symbols))
        self.likelihood = likelihood_of(symbols)

    def forward(self, memory: Tensor) -> Tensor:
        """Return the logits (..., V) of memory (..., K, D)."""
        x = self.from_memory(memory) + self.positions
        x = self.transformer(x.flatten(0, -3), keep=slice(-1, None), causal=True)
        return torch.unflatten(self.head(x[:, 0]), 0, memory.shape[:-2])


class Decoder(Readout):
    """P: a causal Transformer over [m_t as K tokens, x_t … x_{t+F-1}] → logits of y_t … y_{t+F}."""

    def __init__(self, symbols: Symbols, memory: MemoryConfig, config: TeacherConfig):
        super().__init__(symbols, memory, config)
        self.embed: Any = embedding(symbols, config.width)
        shrink(self.embed)

    def forward(self, memory: Tensor, future: Tensor | None = None) -> Tensor:
        """Return logits (..., F + 1, V) from memory (..., K, D) and the future (..., F); without a future (..., V).

        A future of numbers has the shape (..., F, numbers of a token).
        """
        if future is None:
            return super().forward(memory)
        x = torch.cat([self.from_memory(memory) + self.positions, self.embed(future)], -2)
        x = self.transformer(x.flatten(0, -3), keep=slice(len(self.positions) - 1, None), causal=True)
        return torch.unflatten(self.head(x), 0, memory.shape[:-2])


class Teacher(nn.Module):
    """The encoder that gives the memory after every token, and the decoder that predicts the future from that memory.

    Args:
        symbols: V, the number of tokens, or the channels of a stream of numbers.
        memory: K memory tokens of width D, and how they are normalised.
        config: The kind of encoder, and the sizes of encoder and decoder.
        recompute: Whether the backward pass recomputes the encoder's activations, layer by layer, to store none.
        trunk: The trunk that config.from_ names, if any. It is one of the teacher's modules only if it is trained.
    """

    def __init__(
        self,
        symbols: Symbols,
        memory: MemoryConfig,
        config: TeacherConfig,
        recompute: bool = False,
        trunk: GivenTrunk | None = None,
    ):
        super().__init__()
        if (trunk is None) != (config.from_ is None):
            raise UserError(f"teacher.from: Teacher does not load {config.from_}; use retain.train, which does")
        self._trunk, self.symbols = (trunk,), symbols
        if trunk is not None and config.trunk_lr is not None:
            self.trunk = trunk
            trunk.trained = True
        self.encoder = (
            ENCODERS[config.encoder](symbols, memory, config, recompute)
            if trunk is None
            else GivenEncoder(memory, trunk.width)
        )
        self.depth = config.layers if trunk is None else trunk.depth  # of the encoder
        # Writes per token of an encoder that reads chunk by chunk; None if it reads all tokens at once.
        self.writes = config.householders if config.trunk == "delta" else None
        if config.encoder == "store":
            self.depth = self.writes = 1
        self.recomputes = recompute and trunk is None
        self.top_k, self.temperature = config.top_k, config.temperature
        self.norm = MemoryNorm(memory.norm, memory.tokens, memory.width, memory.levels)
        self.decoder = Decoder(symbols, memory, config)

    @property
    def given_trunk(self) -> GivenTrunk | None:
        """The given trunk; None if the encoder has its own or none."""
        return self._trunk[0]

    @property
    def has_trunk(self) -> bool:
        """Whether there is a trunk, which predicts y_t as well."""
        return self.given_trunk is not None or hasattr(self.encoder, "trunk")

    def chain(self, length: int) -> int:
        """Return the longest chain of layers in a pass over `length` tokens. The delta rule runs chunk by chunk."""
        chunks = 1 if self.writes is None else count_chunks(length + 1, self.writes)
        return self.depth * chunks

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Apply `.to()` and its like to a frozen trunk, too, which is no submodule."""
        if self.given_trunk is not None and not self.given_trunk.trained:
            self.given_trunk._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def encode(self, tokens: Tensor, steps: Tensor | None = None, kept: Labels | None = None) -> Tensor:
        """Return m_t (B, S, K, D) of tokens (B, T) at steps t (S,), all by default; see `encode_with_trunk`."""
        return self.encode_with_trunk(tokens, steps, logits=False, kept=kept)[0]

    def encode_with_trunk(
        self,
        tokens: Tensor,
        steps: Tensor | None = None,
        logits: bool = True,
        real: Tensor | None = None,
        kept: Labels | None = None,
        whole: bool = False,
    ) -> tuple[Tensor, Tensor | TopK | None]:
        """Return the teacher's memories after steps of a sequence, and the trunk's logits.

        Args:
            tokens: (B, T), or (B, T, F) of numbers.
            steps: The steps t to return, (S,), in ascending order; None means all, t = 0 … T.
            logits: Whether to return the trunk's logits.
            real: False for padding, (B, T) bool. The norm's statistics leave out the memories after padding.
            kept: What the batch holds for a given trunk: labels in place of its pass over these tokens, or the tokens
                that it reads before them (`Labels` and `READ` of `retain.model.given`).
            whole: Whether to return all logits of a given trunk. Otherwise they are reduced to what labels keep, so
                that runs with and without labels train alike.

        Returns:
            The memories m_t, (B, S, K, D) in float32, and the trunk's own logits of y_0 … y_T, (B, T + 1, V), or None
            without a trunk or without `logits`. Those of a given trunk are `TopK`, unless `whole`.
        """
        if steps is None:
            steps = torch.arange(tokens.shape[1] + 1, device=tokens.device)
        if self.given_trunk is None:
            memory, trunk_logits = fast(self.encoder)(tokens, steps, logits)
        else:
            states, trunk_logits = self.given_trunk(tokens, logits, kept)
            if whole and isinstance(trunk_logits, TopK):
                trunk_logits = expand(trunk_logits, self.given_trunk.vocab_size)
            elif not whole and isinstance(trunk_logits, Tensor):
                with torch.no_grad():
                    trunk_logits = compress(trunk_logits, self.top_k)
            memory, _ = fast(self.encoder)(states, steps, False)
        return self.norm(memory, None if real is None else counted_memories(real)[:, steps]), trunk_logits

    @torch.no_grad()
    def empty_memory(self) -> Tensor:
        """Return m_0, the memory before any token, (K, D): the encoder's output for an empty sequence."""
        tokens = no_tokens(self.symbols, self.decoder.positions.device)
        with evaluating(self):
            return self.encode(tokens)[0, 0]
