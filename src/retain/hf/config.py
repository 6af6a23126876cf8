"""The configuration of an RNN for transformers."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

MODULE = "modeling_retain"
"""The name, without .py, of the exported folder's file for `trust_remote_code`."""


class RetainConfig(PreTrainedConfig):  # type: ignore[misc]
    """The sizes of an RNN.

    `vocab_size` is V + 1: the V tokens of the run, and after them the begin token, `bos_token_id`. The RNN does not
    read the begin token, so its memory does not change. This is why the begin token is also the padding token.
    """

    model_type = "retain"

    vocab_size: int = 257
    memory: dict[str, Any] | None = None
    """The fields of `retain.config.MemoryConfig`."""
    readout: dict[str, Any] | None = None
    """The fields of `retain.config.TeacherConfig` that the readout uses."""
    cell: dict[str, Any] | None = None
    """The fields of `retain.config.CellConfig`."""
    use_cache: bool = True
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.bos_token_id = self.pad_token_id = self.vocab_size - 1
        if self.eos_token_id is None:  # many tools need one; this one is never predicted
            self.eos_token_id = self.bos_token_id
        # A cache of one layer, whose recurrent state is the memory.
        self.num_hidden_layers, self.layer_types = 1, ["linear_attention"]
        kwargs["auto_map"] = {
            "AutoConfig": f"{MODULE}.RetainConfig",
            "AutoModelForCausalLM": f"{MODULE}.RetainForCausalLM",
        }
        super().__post_init__(**kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: `RetainForCausalLM.save_pretrained` writes the file that the Auto classes need."""
