"""A config survives JSON, refuses what is wrong by name, and every preset can be built."""

import dataclasses
import enum
import json
import math
import typing
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import tiny
from retain.config import (
    BPTTConfig,
    CellConfig,
    DMTConfig,
    FileDataConfig,
    MemoryConfig,
    OptimizerConfig,
    RunConfig,
    SMTConfig,
    TeacherConfig,
    data_config,
)
from retain.config.budget import Budget, parse_budget
from retain.config.data import DATA_CLASSES
from retain.config.json import from_dict, load_config, save_config, to_dict
from retain.config.presets import PRESETS
from retain.data import load_data
from retain.data.batches import find_symbols
from retain.errors import UserError
from retain.runs.run import build


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name, tmp_path):
    config = PRESETS[name]()
    assert config.preset == name
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_a_config_with_nothing_at_its_default_survives_json(tmp_path):
    """A field that from_dict drops would come back at its default."""
    config = tiny(
        phases=("bptt", "smt", "dmt"),
        data=data_config(name="npy", path="tokens.npy", seq_len=8, split=(0.5, 0.25, 0.25), vocab_size=9),
        smt__steps_per_sequence=3,
        smt__lambda_dyn_end=2.0,
        dmt__horizon=4,
        optimizer__weight_decay=0.5,
        dmt__predictive=False,
        cell__kind="my.cells:Mine",
        tracker="wandb",
        compile=True,
    )
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config


# Those of the hub are built in test_hub.py, on local data.
@pytest.mark.parametrize("name", [n for n in PRESETS if PRESETS[n]().data.name not in ("documents", "images")])
def test_every_preset_builds(name, tmp_path):
    config = PRESETS[name]()
    if name == "text":
        path = tmp_path / "small.txt"
        path.write_text("a small text that repeats itself. " * 200)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(path)))
    if name == "series":
        np.save(tmp_path / "x.npy", np.arange(2000.0).reshape(1000, 2))
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(tmp_path / "x.npy")))
    data = load_data(config.data)
    rnn, teacher = build(config, find_symbols(data))
    batch = data.batch(0, 0, 0, 2)
    lengths = {config.data.seq_len >> n for n in range(8 if getattr(config.data, "min_seq_len", None) else 1)}
    assert batch["tokens"].shape[0] == 2 and batch["tokens"].shape[1] in lengths
    logits, memory = rnn.step(batch["tokens"][:, 0], rnn.init_memory(2))
    assert logits.shape == (2, data.vocab_size)
    assert memory.shape == (2, config.memory.tokens, config.memory.width)
    assert teacher.empty_memory().shape == memory.shape[1:]
    assert sum(b.amount for b in config.budgets()) == pytest.approx(parse_budget(config.budget).amount)


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        ({"sede": 1}, ["sede", "unknown field", "seed"]),
        ({"smt": {"learning_rate": 1.0}}, ["smt.learning_rate", "unknown field", "lr"]),
        ({"smt": 3}, ["smt", "3"]),
        ({"seed": "one"}, ["seed", "'one'", "int"]),
        ({"seed": True}, ["seed", "True", "int"]),
        ({"seed": 1.5}, ["seed", "1.5", "int"]),
        ({"seed": -1}, ["seed", "-1", "negative"]),
        ({"compile": 1}, ["compile", "1", "bool"]),
        ({"budget": 5}, ["budget", "5", "str"]),
        ({"budget": "5"}, ["budget", "'5'", "240s"]),
        ({"budget": "0s"}, ["budget", "'0s'", "positive"]),
        ({"validate_every": "never"}, ["validate_every", "'never'"]),
        ({"validate_every": "-1s"}, ["validate_every", "'-1s'"]),
        ({"phases": "smt"}, ["phases", "'smt'"]),
        ({"phases": ["smt", "dnt"]}, ["phases", "'dnt'", "bptt"]),
        ({"phases": []}, ["phases", "smt"]),
        ({"validation_sequences": 0}, ["validation_sequences", "0", "positive"]),
        ({"device": "tpu"}, ["device", "'tpu'", "cpu"]),
        ({"data": {"name": "mnist"}}, ["data.name", "'mnist'", "digits"]),
        ({"data": {"name": "text"}}, ["data.path", "text", "--data"]),
        ({"data": {"name": "text", "path": "a", "split": [0.5, 0.5]}}, ["data.split", "0.5", "more"]),
        ({"data": {"name": "text", "path": "a", "split": [0.5, 0.4, 0.4]}}, ["data.split", "0.4", "sum to 1"]),
        ({"data": {"name": "text", "path": "a", "split": [0.5, math.nan, 0.5]}}, ["data.split", "nan"]),
        ({"data": {"seq_len": 0}}, ["seq_len", "0", "positive"]),
        ({"data": {"split": [0.8, 0.1, 0.1]}}, ["data.split", "0.8", "text", "not retrieval"]),
        (
            {"data": {"name": "digits", "label_noise": 0.3}},
            ["data.label_noise", "0.3", "memory tasks"],
        ),
        ({"data": {"events": True}}, ["data.events", "True", "images", "not retrieval"]),
        ({"data": {"reset": True}}, ["data.reset", "True", "documents", "not retrieval"]),
        ({"phases": ["dmt"]}, ["phases", "dmt", "put smt before it"]),
        ({"phases": ["dmt", "smt"]}, ["phases", "dmt", "put smt before it"]),
        (
            {"teacher": {"encoder": "window"}, "smt": {"lambda_dec": 0.0, "lambda_distill": 1.0}},
            ["smt.lambda_distill", "predicts nothing", "smt.lambda_dec"],
        ),
        (
            {"smt": {"lambda_dec": 0.0, "lambda_trunk": 0.0}, "dmt": {"lambda_distill": 1.0}},
            ["dmt.lambda_distill", "predicts nothing", "smt.lambda_dec"],
        ),
        (
            {"phases": ["smt"], "smt": {"lambda_dec": 0.0, "lambda_readout": 0.0}},
            ["smt.lambda_readout", "readout", "smt.lambda_dec"],
        ),
        ({"memory": {"norm": "layer"}}, ["memory.norm", "'layer'", "rms"]),
        ({"memory": {"levels": 8}}, ["memory.levels", "8", "memory.norm fsq"]),
        ({"memory": {"norm": "fsq", "levels": 1}}, ["memory.levels", "1", "at least 2"]),
        ({"teacher": {"encoder": "window", "trunk": "delta"}}, ["teacher.trunk", "delta", "the encoder is window"]),
        ({"teacher": {"trunk": "delta", "from_": "gpt"}}, ["teacher.trunk", "delta", "gpt"]),
        ({"teacher": {"householders": 3}}, ["teacher.householders", "3", "teacher.trunk delta"]),
        ({"teacher": {"local": 4}}, ["teacher.local", "4", "teacher.trunk delta"]),
        ({"dmt": {"rollout": "deer"}}, ["dmt.rollout", "'deer'", "jacobi"]),
        ({"memory": {"tokens": 0}}, ["memory.tokens", "0", "positive"]),
        ({"memory": {"tokens": 2, "width": 1, "norm": "rms"}}, ["memory.width", "1"]),
        ({"teacher": {"encoder": "lstm"}}, ["teacher.encoder", "'lstm'", "window"]),
        ({"teacher": {"width": 20, "heads": 4}}, ["teacher.width", "20", "8"]),
        ({"teacher": {"encoder": "state", "context_len": 4}}, ["teacher.context_len", "window", "state"]),
        ({"teacher": {"future_len": -1}}, ["future_len", "-1", "negative"]),
        ({"cell": {"kind": "rnn"}}, ["cell.kind", "'rnn'", "gru", "module:Class"]),
        ({"cell": {"kind": "transformer", "width": 20, "heads": 4}}, ["cell.width", "20", "8"]),
        ({"teacher": {"encoder": "store"}, "memory": {"norm": "none"}}, ["teacher.encoder", "store", "delta", "mlp"]),
        (
            {"teacher": {"encoder": "store"}, "cell": {"kind": "delta"}, "memory": {"tokens": 4, "width": 16}},
            ["memory.norm", "batch", "none"],
        ),
        ({"memory": {"norm": "none"}}, ["memory.norm", "state encoder", "batch"]),
        ({"phases": ["bptt"], "teacher": {"encoder": "store"}}, ["teacher.encoder", "store", "mlp"]),
        ({"cell": {"kind": "delta"}, "memory": {"tokens": 2, "width": 16}}, ["memory", "2 x 16", "delta", "3"]),
        ({"cell": {"kind": "delta"}, "memory": {"tokens": 4, "width": 25}}, ["memory", "4 x 25", "square of an even"]),
        ({"cell": {"kind": "lstm"}, "memory": {"tokens": 1, "width": 9}}, ["memory", "1 x 9", "lstm"]),
        ({"smt": {"lr": "fast"}}, ["smt.lr", "'fast'", "float"]),
        ({"smt": {"lr": -0.1}}, ["smt.lr", "-0.1", "positive"]),
        ({"smt": {"lr": math.nan}}, ["smt.lr", "nan", "finite"]),
        ({"optimizer": {"weight_decay": math.inf}}, ["weight_decay", "inf"]),
        ({"optimizer": {"weight_decay": math.nan}}, ["weight_decay", "nan"]),
        ({"optimizer": {"warmup": math.nan}}, ["optimizer.warmup", "nan"]),
        ({"smt": {"on_policy": 2.0}}, ["on_policy", "2.0"]),
        ({"dmt": {"horizon": 0}}, ["dmt.horizon", "0", "positive"]),
        ({"smt": {"bptt_window": 0}}, ["smt.bptt_window", "0", "positive"]),
        ({"dmt": {"bptt_window": 4, "label_every": 16}}, ["dmt.bptt_window", "4", "16"]),
        ({"smt": {"relative_dyn": True, "num_chunks": 4}}, ["smt.relative_dyn", "4 chunks"]),
        ({"dmt": {"lambda_dec": 0.5, "label_every": 16}}, ["dmt.lambda_dec", "0.5", "label_every"]),
        ({"dmt": {"lambda_dec": 0.5}, "smt": {"lambda_dec": 0.0}}, ["dmt.lambda_dec", "0.5", "smt.lambda_dec"]),
        ({"optimizer": {"warmup": 1.0}}, ["warmup", "1.0", "below 1"]),
        ({"optimizer": {"betas": [0.9, 0.9]}}, ["optimizer.betas", "unknown field", "weight_decay"]),
        ({"smt": {"batch_size": 0}}, ["batch_size", "0", "positive"]),
        ({"smt": {"lr_schedule": "linear"}}, ["smt.lr_schedule", "'linear'", "cosine"]),
        ({"smt": {"steps_per_sequence": 65}, "data": {"seq_len": 64}}, ["smt.steps_per_sequence", "65", "64"]),
        ({"smt": {"lambda_dyn": 0.0, "lambda_dyn_end": 1.0}}, ["lambda_dyn", "0.0", "positive"]),
        ({"dmt": {"horizon_growth": 1.5}}, ["horizon_growth", "1.5"]),
        ({"dmt": {"horizon": 65}, "data": {"seq_len": 64}}, ["dmt.horizon", "65", "64"]),
        ({"phases": ["bptt"], "bptt": {"bptt_window": 65}, "data": {"seq_len": 64}}, ["bptt.bptt_window", "65", "64"]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_named(change, fragments):
    values = to_dict(tiny())
    for key, value in change.items():
        kept = {} if key == "data" and "name" in value else values.get(key)
        values[key] = kept | value if isinstance(value, dict) else value
    with pytest.raises(ValueError) as caught:
        from_dict(values)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SMTConfig(lr_schedule="linear"), "lr_schedule: 'linear' should be constant or cosine"),
        (lambda: TeacherConfig(encoder="lstm"), "encoder: 'lstm' should be state or register or window"),
        (lambda: MemoryConfig(width=16.0), "width: 16.0 should be int"),
        (lambda: data_config(name="text", path=Path("a.txt")), r"path: .*Path\('a.txt'\) should be str"),
        (lambda: tiny(budget=240), "budget: 240 should be str"),
        (lambda: tiny(phases="smt"), "phases: 'smt' should be"),
        (lambda: tiny(device="tpu"), "device: 'tpu' should be auto or cpu"),
        (lambda: tiny(validation_sequences=1.5), "validation_sequences: 1.5 should be int"),
        (lambda: tiny(smt=DMTConfig()), "smt: .* should be a SMTConfig"),
        (lambda: tiny(tracker="comet"), "tracker: 'comet' is none of auto, tensorboard, wandb, trackio"),
        (lambda: tiny(seed=2**63), "seed: .* below"),
    ],
)
def test_configs_made_in_python_are_checked_when_built(make, message):
    with pytest.raises(ValueError, match=message):
        make()
    assert SMTConfig(lr=1).lr == 1  # a whole number is a number


SECTIONS = (
    *DATA_CLASSES,
    MemoryConfig,
    TeacherConfig,
    CellConfig,
    SMTConfig,
    DMTConfig,
    BPTTConfig,
    OptimizerConfig,
    RunConfig,
)
FIELDS = [(cls, field) for cls in SECTIONS for field in dataclasses.fields(cls)]
SAMPLES = {int: 4, float: 0.25, str: "4steps"}
"""For fields that may be None: what else they can be."""
NEEDED = {cls: {"path": "a"} if issubclass(cls, FileDataConfig) else {} for cls in SECTIONS}
"""What a class of settings cannot do without."""
HINTS = {cls: typing.get_type_hints(cls) for cls in SECTIONS}


def canonical(cls, name):
    """A value of the field's own type; None where the field is a section, or no sample is one."""
    hint, value = HINTS[cls][name], getattr(cls(**NEEDED[cls]), name)
    if value is None:
        other = typing.get_args(hint)[0]
        value = typing.get_args(other)[0] if typing.get_origin(other) is typing.Literal else SAMPLES[other]
    try:
        cls(**NEEDED[cls] | {name: value})
    except UserError:
        return None
    return None if dataclasses.is_dataclass(hint) else value


def alike(value):
    """The same value as other types have it."""
    if isinstance(value, tuple):
        return [list(value), [np.array(part)[()] for part in value]]
    if isinstance(value, bool):
        return [np.bool_(value)]
    if isinstance(value, str):
        return [np.str_(value), enum.Enum("Own", {"FIELD": value}, type=str).FIELD]
    return [np.array(value), np.array(value)[()], torch.tensor(value, dtype=torch.float64 if value % 1 else None)]


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=lambda part: getattr(part, "__name__", None) or part.name)
def test_a_value_of_another_type_gives_the_same_config(cls, field):
    value = canonical(cls, field.name)
    if value is None:
        return
    plain = cls(**NEEDED[cls] | {field.name: value})
    for other in [*alike(value), *([int(value)] if isinstance(value, float) and value == int(value) else [])]:
        given = cls(**NEEDED[cls] | {field.name: other})
        found = getattr(given, field.name)
        assert given == plain and hash(given) == hash(plain) and repr(given) == repr(plain)
        assert type(found) is type(value) and json.dumps(to_dict(given)) == json.dumps(to_dict(plain))
        if isinstance(found, tuple):
            assert list(map(type, found)) == list(map(type, value))


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=lambda part: getattr(part, "__name__", None) or part.name)
def test_a_value_of_a_wrong_type_is_named_in_one_line(cls, field):
    for wrong in (np.arange(3), np.array(["a", "b"] * 99), object(), {}, b"x", 1j):
        with pytest.raises(UserError) as caught:
            cls(**NEEDED[cls] | {field.name: wrong})
        assert str(caught.value).startswith(f"{field.name}: ") and "\n" not in str(caught.value)


WHOLE = [(cls, f.name) for cls, f in FIELDS if int in (HINTS[cls][f.name], *typing.get_args(HINTS[cls][f.name]))]


@pytest.mark.parametrize(("cls", "name"), WHOLE, ids=lambda part: getattr(part, "__name__", part))
def test_no_size_is_without_end(cls, name):
    """Memory that no machine has is not asked for; a seed is no size, and symbols are each task's to refuse."""
    for size in (10**10, 10**12, 10**18, 10**30):
        if name in ("symbols", "ignore") or (name == "seed" and size < 2**63):
            continue
        with pytest.raises(UserError, match=rf"{name}: {size} "):
            cls(**NEEDED[cls] | {name: size})


def test_most_fields_have_a_value_to_be_tried():
    tried = [canonical(cls, field.name) is not None for cls, field in FIELDS]
    assert sum(tried) > 0.8 * len(tried)


def test_numbers_that_are_nearly_the_same_stay_themselves():
    assert SMTConfig(lr=np.float32(0.1)).lr == float(np.float32(0.1)) != 0.1
    with pytest.raises(UserError, match="weight_decay: .* should be float"):
        OptimizerConfig(weight_decay=10**400)
    with pytest.raises(UserError, match=r"width: 16.0 should be int"):
        MemoryConfig(width=np.float32(16))


def test_what_is_asked_of_phases_is_asked_of_a_list_too():
    untrained = {"lambda_dec": 0.0, "lambda_readout": 0.0}
    for phases in (("smt",), ["smt"]):
        with pytest.raises(UserError, match="smt.lambda_readout: nothing trains the readout"):
            RunConfig(phases=phases, smt=SMTConfig(**untrained))


@pytest.mark.parametrize("values", [[], "text", None, 3])
def test_a_config_is_an_object(values):
    with pytest.raises(ValueError, match=r"config: .* is not an object"):
        from_dict(values)


def test_a_config_file_is_named_in_its_errors(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(ValueError, match=r"config\.json: no such"):
        load_config(path)
    for content in (b"", b"{", b"\xff\xfe{}", b"seed = 1"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"config\.json: not a config in JSON"):
            load_config(path)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("240s", 240, "s"),
        ("0.5s", 0.5, "s"),
        (" 5m ", 300, "s"),
        ("1.5h", 5400, "s"),
        ("5000steps", 5000, "steps"),
        ("5_000steps", 5000, "steps"),
        ("5ksteps", 5000, "steps"),
        ("5Ksteps", 5000, "steps"),
        ("1steps", 1, "steps"),
        ("20Mtokens", 20e6, "tokens"),
        ("1.5Gtokens", 1.5e9, "tokens"),
        ("1e6tokens", 1e6, "tokens"),
    ],
)
def test_good_budgets(text, amount, unit):
    assert parse_budget(text) == Budget(amount, unit)


@pytest.mark.parametrize(
    "text",
    [
        *("5", "", "s", "steps", "10minutes", "nan", "nans", "infs", "1e999s", "1e999steps", "-5s", "-5steps", "0s"),
        *(
            "0steps",
            "0.5steps",
            "0.4tokens",
            "5 s",
            "5S",
            "5Ms",
            "5km",
            "1.2.3s",
            "__s",
            "5step",
            "5bs",
            "5s5",
            "1e-5s",
        ),
    ],
)
def test_bad_budgets(text):
    with pytest.raises(ValueError) as caught:
        parse_budget(text, "smt.budget")
    assert str(caught.value).startswith("smt.budget: ")
    assert repr(text) in str(caught.value)
    assert "240s" in str(caught.value)


@pytest.mark.parametrize("text", ["240s", "5000steps", "20000000tokens", "0.5s"])
def test_a_budget_prints_as_it_is_written(text):
    assert str(parse_budget(text)) == text


def amounts(config):
    return [(b.amount, b.unit) for b in config.budgets()]


def test_the_budget_is_shared_by_weight():
    config = tiny(phases=("smt", "dmt", "bptt"), budget="100steps", smt__share=3.0, dmt__share=1.0, bptt__share=1.0)
    assert amounts(config) == [(60, "steps"), (20, "steps"), (20, "steps")]


def test_a_small_share_is_still_one_step():
    config = tiny(budget="10steps", smt__share=1000.0, dmt__share=0.001)
    assert amounts(config) == [(9, "steps"), (1, "steps")]
    assert Budget(10, "s").share(0.001).amount == pytest.approx(0.01)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny().seed = 3


def test_dmt_without_its_teacher_needs_none():
    assert tiny(phases=("dmt",), dmt__lambda_dyn=0.0).phases == ("dmt",)


@pytest.mark.parametrize("seconds", [10.0, 1234567.0, 1080000.0, 30.25])
def test_any_number_of_seconds_is_written_as_it_is_read(seconds):
    assert parse_budget(str(Budget(seconds, "s"))) == Budget(seconds, "s")


@pytest.mark.parametrize("width", [4, 16, 64, 256])
def test_a_delta_cell_takes_any_square_of_an_even_number(width):
    assert tiny(cell__kind="delta", memory__tokens=3, memory__width=width).memory.width == width
