"""Everything a user may get wrong: exit 2, one line that names field, value and remedy, and no harm done."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from conftest import tiny, train_tiny
from retain import files
from retain.config import CellConfig, data_config
from retain.config.json import save_config
from retain.model.cells import build_cell
from retain.runs.lock import alone
from retain.runs.run import load

CELLS = """
import torch
from torch import nn


class Base(nn.Module):
    def __init__(self, memory, config):
        super().__init__()
        self.linear = nn.Linear(memory.width, memory.width)


class Signature(Base):
    def forward(self, memory):
        return memory


class Shape(Base):
    def forward(self, memory, inputs):
        return memory[:, :1]


class Nothing(Base):
    def forward(self, memory, inputs):
        pass


class Detached(Base):
    def forward(self, memory, inputs):
        return (memory + self.linear(inputs)[:, None]).detach()


class InPlace(Base):
    def forward(self, memory, inputs):
        return memory.add_(self.linear(inputs)[:, None])


class Mixing(Base):
    def forward(self, memory, inputs):
        return nn.functional.batch_norm(memory, None, None, training=True) + self.linear(inputs)[:, None]


class Unbuildable(nn.Module):
    def __init__(self):
        super().__init__()


def function(memory, config):
    return torch.zeros(1)
"""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, text_run, digits_run, retrieval_run):
    """Files and runs; each test works on a copy of what it may break."""
    root = tmp_path_factory.mktemp("pristine")
    for name, source in (("text_run", text_run), ("digits_run", digits_run), ("run", retrieval_run)):
        shutil.copytree(source, root / name)
    save_config(tiny(), root / "tiny.json")
    (root / "empty.txt").touch()
    (root / "short.txt").write_text("a few words")
    (root / "good.txt").write_text("a good many words. " * 100)
    (root / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (root / "latin.txt").write_bytes("déjà vu ".encode("latin-1") * 200)
    (root / "folder").mkdir()
    np.save(root / "tokens.npy", np.arange(4000) % 30)
    np.save(root / "bytes.npy", np.arange(4000) % 256)
    np.save(root / "negative.npy", np.arange(4000) % 30 - 1)
    np.save(root / "huge.npy", np.full(4000, 10**18))
    np.save(root / "float.npy", np.zeros(4000))
    np.save(root / "objects.npy", np.array([{"a": 1}] * 40, dtype=object), allow_pickle=True)
    np.save(root / "cube.npy", np.zeros((9, 9, 9), dtype=int))
    np.save(root / "rows.npy", np.zeros((100, 20), dtype=int))
    (root / "not.npy").write_text("not an array")
    (root / "broken.json").write_text('{"seed": ')
    (root / "unknown.json").write_text('{"smt": {"learning_rate": 1}}')
    (root / "list.json").write_text("[]")
    (root / "badcells.py").write_text(CELLS)
    return root


@pytest.fixture
def place(pristine, tmp_path, monkeypatch):
    folder = tmp_path / "place"
    shutil.copytree(pristine, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield folder
    sys.modules.pop("badcells", None)


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


NEW = "train --config tiny.json --out new --quiet"
RESUME = "train --out run --resume --quiet"

BAD = [
    # the command itself
    ("fly", ["command", "'fly'", "train, eval, generate"]),
    ("train", ["retain train", "preset", "stdlib"]),
    ("train imagenet", ["preset", "'imagenet'", "digits"]),
    ("train retrieval --config tiny.json", ["config", "retrieval", "tiny.json", "not both"]),
    ("train retrieval --out", ["--out", "value"]),
    ("train retrieval --out one --out two", ["--out", "given twice", "one", "two"]),
    ("train --seed 1 retrieval", ["name a preset first", "retrieval"]),
    ("train --preset retrieval", ["preset", "name it first"]),
    (f"{RESUME} --config tiny.json", ["config", "its own", "tiny.json"]),
    ("train retrieval extra", ["extra", "--help"]),
    ("train --config nowhere.json", ["nowhere.json", "no such"]),
    ("train --config broken.json", ["broken.json", "JSON"]),
    ("train --config folder", ["folder", "config"]),
    ("train --config unknown.json", ["unknown.json", "smt.learning_rate", "unknown field", "lr"]),
    ("train --config list.json", ["list.json", "config", "[]"]),
    ("eval", ["retain eval", "run folder"]),
    ("generate --length 3", ["retain generate", "run folder"]),
    ("info", ["retain info", "run folder"]),
    ("eval run --splits test", ["--splits", "--help"]),
    ("eval run --split dev", ["split", "dev", "validation"]),
    # text files
    ("train text", ["data", "--data PATH"]),
    (f"{NEW} --data nowhere.txt", ["data.path", "nowhere.txt", "does not exist"]),
    (f"{NEW} --data empty.txt", ["data.path", "empty.txt", "is empty"]),
    (f"{NEW} --data short.txt", ["data.seq_len", "8", "validation", "shorter seq_len"]),
    (f"{NEW} --data binary.txt", ["data.path", "binary.txt", "NUL", "UTF-8"]),
    (f"{NEW} --data latin.txt", ["data.path", "latin.txt", "not UTF-8 at byte 1", "iconv"]),
    (f"{NEW} --data folder", ["data.path", "folder", "holds no data files"]),
    # arrays
    (f"{NEW} --data tokens.npy --data.vocab-size 20", ["data.vocab_size", "20", "29", "30"]),
    (f"{NEW} --data negative.npy", ["data.path", "negative.npy", "-1", "negative"]),
    (f"{NEW} --data float.npy", ["data.path", "float.npy", "float64", "integers"]),
    (f"{NEW} --data objects.npy", ["data.path", "objects.npy", "pickled"]),
    (f"{NEW} --data cube.npy", ["data.path", "cube.npy", "3 dimensions"]),
    (f"{NEW} --data rows.npy", ["data.seq_len", "8", "20 tokens", "19"]),
    (f"{NEW} --data not.npy", ["data.path", "not.npy", "numpy.save"]),
    (f"{NEW} --data tokens.npy --data.seq-len 300", ["data.seq_len", "300", "shorter"]),
    # sizes that do not fit, and other fields
    ("train digits --out new --data.seq-len 64", ["data.seq_len", "64", "63"]),
    (f"{NEW} --data.seq-len 3", ["data.seq_len", "3", "at least 4"]),
    (f"{NEW} --data.symbols 1", ["data.symbols", "1", "at least 2"]),
    (f"{NEW} --data good.txt --data.symbols 5", ["data.symbols", "memory tasks, not text", "leave it out"]),
    ("train digits --out new --data.reset", ["data.reset", "documents, images", "not digits"]),
    (f"{NEW} --data.name mnist", ["data.name", "'mnist'", "retrieval"]),
    ("train digits --out new --data.vocab-size 9", ["data.vocab_size", "npy, not digits"]),
    (f"{NEW} --teacher.width 18", ["teacher.width", "18", "4"]),
    (f"{NEW} --cell.kind transformer --cell.width 18", ["cell.width", "18", "4"]),
    (f"{NEW} --cell.kind lstm --memory.tokens 1 --memory.width 9", ["memory", "1 x 9", "even", "lstm"]),
    (f"{NEW} --memory.width 0", ["width", "0", "positive"]),
    (f"{NEW} --teacher.encoder lstm", ["teacher.encoder", "lstm", "window"]),
    (f"{NEW} --phases smt dnt", ["phases", "dnt", "bptt"]),
    (f"{NEW} --smt.steps-per-sequence 9", ["smt.steps_per_sequence", "9", "data.seq_len 8"]),
    (f"{NEW} --smt.learning-rate 1", ["--smt.learning-rate", "--help"]),
    (f"{NEW} --smt.lr fast", ["smt.lr", "fast", "float"]),
    (f"{NEW} --smt.lr nan", ["lr", "nan", "finite"]),
    (f"{NEW} --seed -1", ["seed", "-1", "negative"]),
    (f"{NEW} --seed 99999999999999999999999", ["seed", "99999999999999999999999", "below"]),
    ("generate run --seed 99999999999999999999999", ["seed", "99999999999999999999999", "below"]),
    (f"{NEW} --device cuda", ["device", "cuda", "--device cpu"]),
    (f"{NEW} --tracker nosuchtracker", ["tracker", "nosuchtracker", "trackio"]),
    # sizes that no machine has room for
    (f"{NEW} --memory.width {10**9}", ["memory.width", "1000000000", "at most 1048576"]),
    (f"{NEW} --memory.tokens {10**9}", ["memory.tokens", "1000000000", "at most"]),
    (f"{NEW} --cell.width {10**9}", ["cell.width", "1000000000", "at most"]),
    (f"{NEW} --teacher.layers {10**9}", ["teacher.layers", "1000000000", "at most 1024"]),
    (f"{NEW} --data.seq-len {10**12}", ["data.seq_len", "1000000000000", "at most"]),
    (f"{NEW} --smt.batch-size {10**12}", ["smt.batch_size", "1000000000000", "at most"]),
    (f"{NEW} --data tokens.npy --data.vocab-size {2 * 10**9}", ["data.vocab_size", "2000000000", "at most 16777216"]),
    (f"{NEW} --data tokens.npy --data.vocab-size {10**18}", ["data.vocab_size", "at most 16777216"]),
    (f"{NEW} --data huge.npy", ["data.path", "huge.npy", "token 1000000000000000000", "below 16777216"]),
    (f"{NEW} --data huge.npy --data.vocab-size 9", ["data.path", "huge.npy", "below 16777216"]),
    # budgets
    (f"{NEW} --budget 5", ["budget", "'5'", "240s"]),
    (f"{NEW} --budget 10minutes", ["budget", "'10minutes'", "240s"]),
    (f"{NEW} --budget 0s", ["budget", "'0s'", "positive"]),
    (f"{NEW} --budget=-5s", ["budget", "'-5s'", "positive"]),
    (f"{NEW} --validate-every 0steps", ["validate_every", "'0steps'"]),
    (f"{NEW} --validate-every often", ["validate_every", "'often'"]),
    # a user's own cell
    (f"{NEW} --cell.kind rnn", ["cell.kind", "'rnn'", "gru", "module:Class"]),
    (f"{NEW} --cell.kind nowhere:Cell", ["cell.kind", "nowhere:Cell", "No module named"]),
    (f"{NEW} --cell.kind badcells:Missing", ["cell.kind", "badcells:Missing", "Missing"]),
    (f"{NEW} --cell.kind badcells:Unbuildable", ["cell.kind", "badcells:Unbuildable", "memory_config"]),
    (f"{NEW} --cell.kind badcells:function", ["cell", "badcells:function", "Tensor", "nn.Module"]),
    (f"{NEW} --cell.kind badcells:Signature", ["cell", "badcells:Signature", "forward(memory", "(3, 8)"]),
    (f"{NEW} --cell.kind badcells:Shape", ["cell", "badcells:Shape", "(3, 1, 8)", "(3, 2, 8)"]),
    (f"{NEW} --cell.kind badcells:Nothing", ["cell", "badcells:Nothing", "NoneType", "(3, 2, 8)"]),
    (f"{NEW} --cell.kind badcells:Detached", ["cell", "badcells:Detached", "without a gradient", "detach"]),
    (f"{NEW} --cell.kind badcells:InPlace", ["cell", "badcells:InPlace", "in-place"]),
    (f"{NEW} --cell.kind badcells:Mixing", ["cell", "badcells:Mixing", "each other's memory", "BatchNorm"]),
    # run folders
    ("train --config tiny.json --out run", ["out", "run", "already exists", "--resume"]),
    ("train --config tiny.json --out tiny.json", ["out", "tiny.json", "another folder"]),
    ("train --config tiny.json --out tiny.json/new", ["tiny.json/new", "Not a directory"]),
    ("train --resume", ["resume", "--out"]),
    ("train --out nowhere --resume", ["resume", "nowhere", "leave out --resume"]),
    ("train retrieval --out folder --resume", ["resume", "folder", "no run", "leave out --resume"]),
    (f"{RESUME} --smt.lr 0.5", ["resume", "smt.lr", "0.001", "0.5"]),
    (f"{RESUME} --budget 13steps", ["resume", "budget", "'12steps'", "'13steps'"]),
    ("train digits --out run --resume", ["resume", "retrieval", "digits", "leave the preset out"]),
    *(
        (f"{command} {folder}", ["run", folder, remedy])
        for command in ("eval", "generate", "info")
        for folder, remedy in (("nowhere", "retain train"), ("folder", "retain train"), ("tiny.json", "retain train"))
    ),
    # evaluating and sampling
    ("eval run --device cuda", ["device", "cuda", "--device cpu"]),
    ("eval run --limit 0", ["limit", "0", "at least 1"]),
    ("eval run --limit many", ["limit", "many", "INT"]),
    ("eval run --batch-size -3", ["batch_size", "-3", "at least 1"]),
    ("eval text_run --data nowhere.txt", ["data.path", "nowhere.txt", "does not exist"]),
    ("eval text_run --data bytes.npy", ["data", "bytes.npy is of tokens", "the run's of text"]),
    ("eval text_run --data short.txt --seq-len 11", ["data.seq_len", "the file has only 11", "shorter"]),
    ("eval text_run --seq-len 0", ["seq_len", "0", "at least 1"]),
    ("eval run --data good.txt", ["data", "256 tokens", "the run's 9"]),
    ("eval run --data tokens.npy", ["data", "30 tokens", "the run's 9"]),
    ("generate run --device cuda", ["device", "cuda", "--device cpu"]),
    ("generate digits_run --prompt 99", ["prompt", "'99'", "0 … 16"]),
    ("generate digits_run --prompt x", ["prompt", "'x'", "0 … 16"]),
    ("generate run --prompt 3,4", ["prompt", "'3,4'", "0 … 8"]),
    ("generate digits_run --length 3", ["length", "3", "64 pixels"]),
    ("generate digits_run --count 0", ["count", "0", "at least 1"]),
    ("generate digits_run --complete 2 --count 2", ["count", "leave it out"]),
    ("generate digits_run --complete 2 --compile", ["compile", "leave it out"]),
    (f"generate digits_run --complete 2 --seed {10**20}", ["seed", "100000000000000000000", "below"]),
    ("generate digits_run --count 2 --out tiny.json/a.png", ["tiny.json", "exists"]),
    ("generate digits_run --count 2 --out a.nonsense", ["out", "a.nonsense", ".png"]),
    ("generate run --temperature -1", ["temperature", "-1", "0"]),
    ("generate run --temperature nan", ["temperature", "nan"]),
    ("generate run --temperature hot", ["temperature", "hot", "float"]),
    ("generate run --top-p 0", ["top_p", "0", "0 … 1"]),
    ("generate run --top-p 1.5", ["top_p", "1.5", "0 … 1"]),
    ("generate run --top-k 0", ["top_k", "0", "at least 1"]),
    ("generate run --length -1", ["length", "-1", "negative"]),
    ("generate run --out a.png", ["out", "a.png", "images"]),
]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def corrupt(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def newer(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))


def edited(section, **fields):
    """A run's config.json with other settings than it was trained with."""

    def edit(run):
        config = json.loads((run / "config.json").read_text())
        config[section] |= fields
        (run / "config.json").write_text(json.dumps(config))

    return edit


def stopped(run):
    """As a run that is not finished and has lost its checkpoints."""
    shutil.rmtree(run / "checkpoints")
    for name in ("manifest.json", "summary.json"):
        (run / name).unlink()


def all_of(damage):
    """The same to what was exported and to every checkpoint."""
    return lambda run: [damage(folder) for folder in (run, *(run / "checkpoints").iterdir())]


READ = ("eval run", "generate run", "info run")
DAMAGED = [
    # what is wrong, commands, words of the complaint, how the run is made so
    ("truncated", (*READ, RESUME), ["model.safetensors"], all_of(lambda f: truncate(f / "model.safetensors"))),
    ("corrupted", (*READ, RESUME), ["model.safetensors"], all_of(lambda f: corrupt(f / "model.safetensors"))),
    ("another version", (*READ, RESUME), ["manifest.json", "99", "1"], all_of(newer)),
    (
        "a file missing",
        (*READ, RESUME),
        ["model.safetensors", "missing"],
        all_of(lambda f: (f / "model.safetensors").unlink()),
    ),
    ("state broken", (*READ, RESUME), ["state.json"], all_of(lambda f: (f / "state.json").write_text("{"))),
    ("no checkpoint", (RESUME,), ["run", "checkpoint", "train first"], lambda f: shutil.rmtree(f / "checkpoints")),
    ("no checkpoint", (RESUME,), ["run/checkpoints is gone", "delete run"], stopped),
    ("no manifest", READ, ["run", "model.safetensors", "copy them"], stopped),
    ("edited", (RESUME,), ["smt.lr", "0.001", "0.5", "--out"], edited("smt", lr=0.5)),
    ("edited", READ, ["config.json", "cell.residual", "True", "False"], edited("cell", residual=False)),
]
ROWS = [(line, fragments, lambda run: None) for line, fragments in BAD]
ROWS += [(line, fragments, damage) for _, lines, fragments, damage in DAMAGED for line in lines]
IDS = [line for line, _ in BAD] + [f"{line}: {what}" for what, lines, _, _ in DAMAGED for line in lines]


def check(answer, fragments):
    code, said, complaint = answer
    assert code == 2, (said, complaint)
    assert said == ""
    assert complaint.startswith("retain: ") and complaint.endswith("\n")
    assert complaint.count("\n") == 1, complaint
    assert "Traceback" not in complaint
    for fragment in fragments:
        assert fragment in complaint, (fragment, complaint)


@pytest.mark.parametrize(("line", "fragments", "damage"), ROWS, ids=IDS)
def test_bad_input_gets_one_clear_line_and_changes_nothing(line, fragments, damage, retain, place):
    damage(place / "run")
    before = content(place)
    check(retain(*line.split()), fragments)
    after = content(place)
    for made in [name for name in after if "__pycache__" in name]:
        del after[made]
    assert after == before


def test_more_mistakes_are_one_line(retain, place):
    check(retain("generate", "digits_run", "--prompt", "0 " * 65), ["prompt: 65 pixels", "64"])
    check(retain("train", "text", "--data", "", "--out", "new"), ["--data needs a value", "empty"])
    check(retain("train", "retrieval", "--out="), ["--out needs a value", "empty"])
    (place / "run/eval-test.json").write_text("{")
    check(retain("info", "run"), ["eval-test.json", "is damaged", "run retain eval again"])


def test_what_a_killed_process_left_is_no_other_run(retain, place):
    (place / "new").mkdir()
    (place / "new/.tmp-config.json-123").write_text("{")
    assert retain(*NEW.split(), "--budget", "2steps")[0] == 0


def test_two_processes_do_not_train_one_run(retain, place, monkeypatch):
    monkeypatch.setattr("retain.runs.lock.PATIENCE", 0.1)
    with alone(place / "run"):
        before = content(place)
        check(retain(*RESUME.split()), ["out", "another process is at work in run"])
        assert content(place) == before
    with alone(place / "new"):
        check(retain(*NEW.split()), ["out", "another process is at work in new"])


def test_sizes_beyond_the_memory_are_one_line(retain, place):
    """Each of them is possible, and all together are not; the most are more bytes than can be counted."""
    for width in (2**17, 2**20):
        sizes = f"--memory.width {width} --cell.width {width} --memory.tokens {width}"
        check(retain(*NEW.split(), *sizes.split()), ["memory", "not enough", "memory.width"])


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_mistakes_read_the_same_whatever_the_terminal_can_show(encoding, place):
    line = "train --config tiny.json --out new --smt.lr -1"
    code = "import sys; from retain.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()],
        env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "retain: smt.lr: -1.0 must be positive and finite (see retain train PRESET --help)\n"


@pytest.mark.parametrize("command", ["eval run", "generate run", "info run"])
def test_a_damaged_export_names_the_checkpoint_that_is_good(command, retain, place):
    corrupt(place / "run" / "model.safetensors")
    check(retain(*command.split()), ["model.safetensors", "manifest.json", "step-00000012 is good"])
    (place / "run" / "manifest.json").unlink()  # the remedy
    assert retain(*command.split())[0] == 0


@pytest.mark.parametrize("command", ["eval run", "generate run", "info run", RESUME])
@pytest.mark.parametrize(
    ("written", "fragments"),
    [
        (None, ["run"]),
        ("{", ["config.json", "not a config in JSON"]),
        ('{"sede": 1}', ["config.json", "sede", "unknown field"]),
        ('{"seed": "x"}', ["config.json", "seed", "'x'", "int"]),
    ],
    ids=["none", "broken", "unknown field", "wrong type"],
)
def test_a_run_with_a_bad_config_is_refused(command, written, fragments, retain, place):
    (place / "run" / "config.json").unlink()
    if written is not None:
        (place / "run" / "config.json").write_text(written)
    before = content(place)
    check(retain(*command.split()), fragments)
    assert content(place) == before


def test_a_config_that_does_not_fit_the_weights_is_refused(retain, place):
    save_config(tiny(preset="retrieval", memory__width=16), place / "run" / "config.json")
    check(retain("eval", "run"), ["run/config.json was changed", "memory.width", "8", "16"])
    save_config(tiny(preset="retrieval"), place / "run" / "config.json")
    with pytest.raises(ValueError, match="the weights in run do not fit its config.json"):
        load("run", cell=build_cell(tiny().memory, CellConfig(kind="mlp", width=24)))


def test_a_data_file_that_is_gone_is_named(retain, place):
    config = json.loads((place / "text_run" / "config.json").read_text())
    config["data"]["path"] = str(place / "gone.txt")
    (place / "text_run" / "config.json").write_text(json.dumps(config))
    before = content(place)
    check(retain("eval", "text_run"), ["data.path", "gone.txt", "does not exist"])
    check(retain("train", "--out", "text_run", "--resume"), ["data.path", "gone.txt", "does not exist"])
    assert content(place) == before
    assert retain("generate", "text_run", "--length", "3")[0] == 0  # needs no data


@pytest.mark.parametrize("command", ["eval run", "generate run --length 3"])
def test_a_full_disk_at_the_result_is_one_line(command, retain, place, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "result.json")

    monkeypatch.setattr(files, "replace_file", full)
    code, said, complaint = retain(*command.split())
    assert code == 2
    assert complaint.count("\n") == 1 and "No space left on device" in complaint
    assert said  # what was found out is not lost with the file


def test_a_full_disk_while_checkpointing_is_one_line_and_the_run_goes_on_later(retain, place, monkeypatch):
    real, written = files.write_file, []

    def full(path, data):
        written.append(path)
        if "step-00000012" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_file", full)
        check(
            retain("train", "--config", "tiny.json", "--out", "new", "--quiet"),
            ["step-00000012", "No space left on device", "step-00000006 is still good"],
        )
    assert retain("train", "--out", "new", "--resume", "--quiet")[0] == 0


def test_data_that_has_changed_is_told_of_where_it_is_scored(retain, tmp_path):
    text = tmp_path / "book.txt"
    text.write_text("to be or not to be, that is the question: é. " * 60)
    out = train_tiny(tmp_path / "run", data=data_config(name="text", path=str(text), seq_len=8))
    assert retain("eval", out)[2] == ""
    text.write_text(text.read_text()[:1500])
    code, said, complaint = retain("eval", out)
    assert code == 0 and "bits per token" in said
    assert complaint.startswith("retain: the data has changed: its ") and complaint.count("\n") == 1


def test_a_run_that_stopped_before_it_wrote_of_its_data_writes_it_later(tmp_path, monkeypatch):
    from retain.training.loop import train

    def full(path, content):
        if path.name == "data.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as at_first:
        at_first.setattr("retain.runs.data.replace_file", full)
        with pytest.raises(OSError, match="No space left"):
            train(tiny(), tmp_path / "run", progress_bar=False)
    assert not (tmp_path / "run" / "data.json").exists()
    train(tiny(), tmp_path / "run", resume=True, progress_bar=False)
    assert json.loads((tmp_path / "run" / "data.json").read_text())["name"] == "retrieval"


def test_a_folder_that_may_not_be_made_is_one_line(retain, place, monkeypatch):
    def forbidden(out):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(out))

    monkeypatch.setattr("retain.training.loop.alone", forbidden)
    check(retain("train", "--config", "tiny.json", "--out", "new"), ["new", "Permission denied"])


@pytest.mark.parametrize(
    "options, words",
    [
        ("--bptt.lr 0.1", ["--bptt.lr", "bptt is none", "smt, dmt"]),
        ("--cell.kind gru --cell.width=8", ["--cell.width", "gru cell"]),
        ("--cell.width 8 --dmt.horizon 3", []),
    ],
)
def test_an_option_that_a_run_does_not_read_is_told_of(options, words, retain, place):
    line = "train --config tiny.json --out new --quiet --budget 2steps"
    code, _, complaint = retain(*line.split(), *options.split())
    assert code == 0 and complaint.count("\n") == bool(words)
    for word in words:
        assert word in complaint
