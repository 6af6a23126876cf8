"""The RNN as a causal language model of transformers, whose cache is the memory."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from retain.config import CellConfig, MemoryConfig, TeacherConfig
from retain.errors import UserError
from retain.hf.config import MODULE, RetainConfig
from retain.model.cells import CELLS
from retain.model.rnn import RNN
from retain.ops.elementwise import at_least_float32

AT_ONCE = 256
"""The most tokens of a prompt whose memories are held at once."""
REMOTE = '''"""Needs the package retain, which has the RNN."""

from retain.hf import RetainConfig, RetainForCausalLM

__all__ = ["RetainConfig", "RetainForCausalLM"]
'''


class RetainForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """An RNN of retain. `model.rnn` is the `retain.RNN` itself.

    Weights and memory are float32, whatever the `dtype`. `torch.autocast` computes in bfloat16.
    """

    config_class = RetainConfig
    _is_stateful = True  # a token that was read cannot be undone, so assisted generation is refused
    _keep_in_fp32_modules_strict: ClassVar = ["rnn"]

    def __init__(self, config: RetainConfig):
        super().__init__(config)
        memory, readout = MemoryConfig(**(config.memory or {})), TeacherConfig(**(config.readout or {}))
        # Folders of earlier versions do not name the addresses of the delta cell.
        cell = CellConfig(**({"addresses": "memory"} | config.cell if config.cell else {}))
        # `from_pretrained` builds without values (on the meta device), and a user's cell may read values.
        meta = torch.get_default_device().type == "meta"
        with torch.device("cpu") if meta and cell.kind not in CELLS else nullcontext():
            self.rnn = RNN(config.vocab_size - 1, memory, readout, cell)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the weights as the RNN initialised them."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of the V tokens of the run."""
        return self.rnn.embed

    def resize_token_embeddings(self, *arguments: Any, **settings: Any) -> nn.Module:
        """Raise UserError, because the readout has no outputs for new tokens."""
        raise UserError(f"vocabulary: this RNN has {self.rnn.vocab_size} tokens and cannot get more; do not add any")

    def make_cache(self, memory: Tensor) -> Cache:
        """Return a cache that holds a memory (B, K, D), from which streams continue."""
        return _keep(memory, DynamicCache(config=self.config))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Read tokens and predict after each.

        Args:
            input_ids: (B, T). Padding and the begin token V are not read: the logits there are those of the memory
                before them.
            attention_mask: (B, T), or (B, T' ≥ T) with the mask of the tokens that the cache has read; 0 is padding.
            cache: The return value of an earlier call or of `make_cache`. Reading begins at its memory,
                `cache.get_recurrent_state(0)` (B, K, D), which the last memory overwrites. None begins at m_0.
            labels: (B, T), the input_ids with -100 where there is nothing to predict. The loss is of labels[:, 1:].
            use_cache: Return the cache. None: except in training.
            logits_to_keep: The number of last positions that get logits, or the positions; 0 is all.
            return_dict: False returns a tuple.
            **kwargs: Arguments of the loss, which the Trainer gives.

        Returns:
            The loss (if there are labels), the logits (B, T, V + 1), and the cache. The logit of the begin token is the
            lowest float.

        Raises:
            UserError: The cache has another number of streams.
        """
        memory = None if cache is None else cache.get_recurrent_state(0)
        # A copy, because the memory in the cache is overwritten below, and a backward pass needs the old values.
        memory = self.rnn.init_memory(len(input_ids)) if memory is None else memory.clone()
        real = input_ids != self.rnn.vocab_size
        if attention_mask is not None:
            real = real & attention_mask[:, attention_mask.shape[1] - input_ids.shape[1] :].bool()
        if isinstance(logits_to_keep, int) and logits_to_keep == 1:
            while input_ids.shape[1] > AT_ONCE:  # a long prompt needs only its last memory
                memory = self._memories(input_ids[:, :AT_ONCE], real[:, :AT_ONCE], memory)[:, -1]
                input_ids, real = input_ids[:, AT_ONCE:], real[:, AT_ONCE:]
        memories = self._memories(input_ids, real, memory)  # (B, T, K, D)
        if cache is not None or (use_cache if use_cache is not None else self.config.use_cache and not self.training):
            last = memories[:, -1] if memories.shape[1] else memory
            cache = _keep(last, DynamicCache(config=self.config) if cache is None else cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = at_least_float32(self.rnn.readout(memories[:, kept]))
        # The begin token is never predicted. Its logit is not -inf, whose product with a probability of 0 is NaN.
        logits = F.pad(logits, (0, 1), value=torch.finfo(logits.dtype).min)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, cache=cache if use_cache is not False else None)
        return output if return_dict is not False else output.to_tuple()

    def _memories(self, tokens: Tensor, real: Tensor, memory: Tensor) -> Tensor:
        """Return the memory after each position (B, T, K, D), reading only the tokens (B, T) that are `real`."""
        if bool(real.all()):
            return self.rnn.rollout(tokens, memory)
        # Each stream's real tokens come first. Shorter streams are padded, but no memory after the padding is used.
        order = real.long().argsort(dim=1, descending=True, stable=True)
        longest = int(real.sum(1).max())
        packed = tokens.masked_fill(~real, 0).gather(1, order)[:, :longest]
        memories = torch.cat([memory[:, None], self.rnn.rollout(packed, memory)], 1)
        after = real.long().cumsum(1)  # how many have been read at each position
        return memories[torch.arange(len(tokens), device=tokens.device)[:, None], after]

    def save_pretrained(self, save_directory: Any, **settings: Any) -> None:
        """Save config and weights as transformers does, and the file for `trust_remote_code`."""
        super().save_pretrained(save_directory, **settings)
        (Path(save_directory) / f"{MODULE}.py").write_text(REMOTE, encoding="utf-8")

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do nothing: `save_pretrained` writes the file that the Auto classes need."""


def _keep(memory: Tensor, cache: Cache) -> Cache:
    cache.update_recurrent_state(memory.detach(), 0)
    cache.layers[0].has_previous_state[0] = True  # transformers sets this only for convolution states
    return cache
