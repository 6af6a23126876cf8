"""Language models of a few kilobytes, made on the spot, with a tokenizer trained on the spot."""

import torch

WORDS = [
    "once",
    "there",
    "was",
    "a",
    "cat",
    "and",
    "it",
    "was",
    "happy",
    "the",
    "dog",
    "sat",
    "by",
    "the",
    "sea",
    "then",
    "they",
    "all",
    "went",
    "home",
    "to",
    "sleep",
]
SEQ_LEN = 12


def text(count, seed=0):
    """Lines of words, some of them with what only bytes can spell."""
    draws = torch.Generator().manual_seed(seed)
    lines = []
    for line in torch.randint(len(WORDS), (count, 6), generator=draws).tolist():
        lines.append(" ".join(WORDS[i] for i in line) + (" é.\n" if line[0] == 0 else ".\n"))
    return "".join(lines)


def tokenizer(vocab_size=340):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special, alphabet = ["<s>", "</s>"], sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([text(200), "words that no line has, unheard of " * 50], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def save(model, folder, subwords=None):
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder)
    if subwords is not None:
        subwords.save_pretrained(folder)
    return folder


def llama(folder, seed=0, **changes):
    """A Llama whose vocabulary is larger than its tokenizer's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    subwords = tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(subwords) + 4, **sizes, max_position_embeddings=80, **changes)
    return save(LlamaForCausalLM(config), folder, subwords)


def gpt2(folder, seed=0):
    """A GPT-2 with tied embeddings, learnt positions and no symbol of beginning but that of the end."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    subwords = tokenizer()
    subwords.bos_token = None
    config = GPT2Config(vocab_size=len(subwords), n_embd=16, n_layer=2, n_head=2, n_positions=32)
    return save(GPT2LMHeadModel(config), folder, subwords)


def gguf(path, folder):
    """The Llama of a folder as a .gguf file, all in float32."""
    import json

    import gguf
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder)
    c, subwords = model.config, json.loads((folder / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(c.vocab_size)
    unused = ["<|endoftext|>", *(f"<unused{i}>" for i in range(c.vocab_size))]  # transformers wants the first
    names = [*subwords["vocab"], *unused][: c.vocab_size]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(names)
    writer.add_token_merges([" ".join(pair) for pair in subwords["merges"]])
    writer.add_token_types(
        [3 if name.startswith("<") and name.endswith(">") and len(name) > 2 else 1 for name in names]
    )
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    layer = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    layer |= {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    layer |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate"}
    layer |= {"mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, weight in model.state_dict().items():
        name = name.removesuffix(".weight")
        if name in whole:
            theirs = whole[name]
        else:
            number, _, part = name.removeprefix("model.layers.").partition(".")
            theirs = f"blk.{number}.{layer[part]}"
            if part in ("self_attn.q_proj", "self_attn.k_proj"):  # pairs of the rotation stand side by side there
                heads = c.num_attention_heads if "q_proj" in part else c.num_key_value_heads
                weight = weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(f"{theirs}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
