"""What transformers does with a model: generate, stream, pipeline, stop, and train."""

import io
import logging

import pytest
import torch

import retain

transformers = pytest.importorskip("transformers", reason="needs transformers, of retain[hf]")

PROMPTS = ["to be", "or not to be, é", ""]


@pytest.fixture(scope="module")
def model(hf_folder):
    return transformers.AutoModelForCausalLM.from_pretrained(hf_folder)


@pytest.fixture(scope="module")
def tokenizer(hf_folder):
    return transformers.AutoTokenizer.from_pretrained(hf_folder)


def likeliest(rnn, text, length):
    """What `retain generate --temperature 0` gives."""
    prompt = torch.tensor([list(text.encode())], dtype=torch.long)
    return [int(token) for token in retain.generate(rnn, prompt, length, temperature=0)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_likeliest_is_that_of_retain_generate_also_of_a_padded_batch(model, tokenizer, side):
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side=side)
    found = model.generate(**inputs, max_new_tokens=12, do_sample=False)[:, inputs.input_ids.shape[1] :]
    assert found.tolist() == [likeliest(model.rnn, text, 12) for text in PROMPTS]
    again = model.generate(**inputs, max_new_tokens=12, do_sample=False, use_cache=False)
    assert side == "right" or torch.equal(again[:, inputs.input_ids.shape[1] :], found)


def test_an_empty_prompt_begins_at_m_0(model):
    expected = likeliest(model.rnn, "", 6)
    assert model.generate(max_new_tokens=6, do_sample=False).tolist() == [[256, *expected]]


def test_samples_are_drawn_side_by_side(model, tokenizer):
    inputs = tokenizer(PROMPTS[:2], return_tensors="pt", padding=True)
    torch.manual_seed(1)
    sampling = {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 0.8, "repetition_penalty": 1.2}
    drawn = model.generate(**inputs, max_new_tokens=8, num_return_sequences=3, **sampling)
    new = drawn[:, inputs.input_ids.shape[1] :]
    assert new.shape == (6, 8) and (new < 256).all() and len(set(map(tuple, new.tolist()))) == 6


def beams_of(rnn, text, width, length):
    """Beam search over whole continuations, a naive one: (log-probability, tokens) of the best, best first."""
    beams = [(0.0, [])]
    for _ in range(length):
        longer = []
        for score, tokens in beams:
            read = torch.tensor([list(text.encode()) + tokens], dtype=torch.long)
            logs = rnn(read)[0][0, -1].log_softmax(-1)
            longer += [(score + float(logs[token]), [*tokens, token]) for token in range(256)]
        beams = sorted(longer, reverse=True)[:width]
    return beams


@torch.no_grad()
def test_beams_have_each_its_memory(model, tokenizer):
    inputs = tokenizer(PROMPTS[:2], return_tensors="pt", padding=True)
    settings = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 4, "do_sample": False}
    found = model.generate(**inputs, **settings)[:, inputs.input_ids.shape[1] :].view(2, 3, 4).tolist()
    for text, beams in zip(PROMPTS, found, strict=False):
        assert beams == [tokens for _, tokens in beams_of(model.rnn, text, 3, 4)]


def test_a_stream_goes_on_from_the_cache(model, tokenizer):
    inputs = tokenizer(["to be"], return_tensors="pt")
    whole = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    first = model.generate(**inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    # The cache has read all but the last token.
    rest = model.generate(first.sequences[:, -1:], cache=first.cache, max_new_tokens=7, do_sample=False)
    assert torch.equal(torch.cat([first.sequences[:, :-1], rest], 1), whole)
    assert first.cache.get_recurrent_state(0).shape == (1, 2, 8)


def test_text_streams_and_ends_with_a_stop_string(model, tokenizer):
    inputs = tokenizer(["to be"], return_tensors="pt")
    streamed, said = transformers.TextStreamer(tokenizer, skip_special_tokens=True), io.StringIO()
    streamed.on_finalized_text = lambda piece, stream_end=False: said.write(piece)
    torch.manual_seed(2)
    drawn = model.generate(**inputs, max_new_tokens=40, do_sample=True, streamer=streamed)
    text = tokenizer.decode(drawn[0], skip_special_tokens=True)
    assert said.getvalue() == text and len(text) > 20
    # One of two characters of ASCII that come one after the other.
    stop = next(text[i : i + 2] for i in range(8, 40) if text[i : i + 2].isascii())
    torch.manual_seed(2)
    ended = model.generate(**inputs, max_new_tokens=40, do_sample=True, stop_strings=[stop], tokenizer=tokenizer)
    assert tokenizer.decode(ended[0], skip_special_tokens=True) == text[: text.index(stop, 5) + 2] != text


def test_a_pipeline_writes_text(model, tokenizer):
    write = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    settings = {"max_new_tokens": 10, "do_sample": False, "return_full_text": False}
    for found, text in zip(
        [*write(PROMPTS[:2], batch_size=2, **settings), write("", **settings)], PROMPTS, strict=True
    ):
        expected = bytes(likeliest(model.rnn, text, 10)).decode(errors="replace")
        assert found[0]["generated_text"] == expected


@pytest.mark.parametrize("assistance", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": True}])
def test_assisted_generation_is_refused(model, tokenizer, assistance):
    if "assistant_model" in assistance:
        assistance = {"assistant_model": model}
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models") as refused:
        model.generate(**tokenizer("to be", return_tensors="pt"), max_new_tokens=4, **assistance)
    assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:'pin_memory' argument is set:UserWarning")
def test_the_trainer_lowers_the_loss_in_ten_steps(hf_folder, tokenizer, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    model = transformers.AutoModelForCausalLM.from_pretrained(hf_folder)
    texts = ["to be or not to be, that is the question: é. "[i:] for i in range(40)]
    data = [tokenizer(text) for text in texts]
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=10,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
    )
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=data, data_collator=collator)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 10 and losses[-1] < losses[0] - 0.5
    assert trainer.evaluate(data)["eval_loss"] < losses[0] - 0.5
    trainer.save_model(str(tmp_path / "tuned"))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tuned", trust_remote_code=True)
    assert torch.equal(again.rnn.m_0, model.rnn.m_0)
