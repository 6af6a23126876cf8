"""The RNN as a model of Hugging Face transformers. Importing this package registers it with the Auto classes.

Raises UserError on import if transformers is missing or too old.
"""

from __future__ import annotations

from retain.errors import UserError

OLDEST = "5.24"
"""The oldest version of transformers that these classes were tried with."""

try:
    import transformers
except ImportError:
    raise UserError("hf: this needs transformers; run pip install 'retain[hf]' with Python 3.11 or newer") from None
if tuple(map(int, transformers.__version__.split(".")[:2])) < tuple(map(int, OLDEST.split("."))):
    raise UserError(f"hf: transformers {transformers.__version__} is too old; run pip install -U 'retain[hf]'")

from retain.hf.config import RetainConfig
from retain.hf.folder import export_hf, make_model
from retain.hf.model import RetainForCausalLM
from retain.hf.tokenizer import make_tokenizer

__all__ = ["RetainConfig", "RetainForCausalLM", "export_hf", "make_model", "make_tokenizer"]

transformers.AutoConfig.register("retain", RetainConfig, exist_ok=True)
transformers.AutoModelForCausalLM.register(RetainConfig, RetainForCausalLM, exist_ok=True)
