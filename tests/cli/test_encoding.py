"""Files are UTF-8 wherever they are read and written, and no locale stops a command."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import retain
from conftest import tiny
from retain.config import data_config
from retain.config.json import save_config
from retain.files import replace_file

NOT_TEXT = {"os", "Image"}
"""Whose `open` knows of no encoding."""


def unspecified(source):
    """Lines of the calls that read or write text in whatever encoding the locale has."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        keywords = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
        if "encoding" in keywords:
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = getattr(getattr(call.func, "value", None), "id", "")
        modes = [a.value for a in call.args if isinstance(a, ast.Constant)] + [keywords.get("mode")]
        opens = name in ("open", "fdopen") and owner not in NOT_TEXT
        opens |= name in ("TemporaryFile", "NamedTemporaryFile") and any(m in ("w", "w+", "r+", "a") for m in modes)
        binary = any(isinstance(mode, str) and "b" in mode and len(mode) < 4 for mode in modes)
        pipes = owner == "subprocess" and True in (keywords.get("text"), keywords.get("universal_newlines"))
        if name in ("read_text", "write_text") or (opens and not binary) or pipes:
            found.append(call.lineno)
    return found


def test_every_file_of_text_names_its_encoding():
    bad = ["open(p)", "p.open()", "p.read_text()", "open(p, 'w')", "p.write_text(t)", "subprocess.run(c, text=True)"]
    good = ["open(p, 'rb')", "p.open('wb')", "p.read_text(encoding='utf-8')", "os.open(p, os.O_RDONLY)"]
    assert unspecified("\n".join(bad + good)) == [1, 2, 3, 4, 5, 6], "else the last line holds nothing"
    files = sorted(Path(retain.__file__).parent.rglob("*.py"))
    assert len(files) > 50
    assert {str(file): lines for file in files if (lines := unspecified(file.read_text(encoding="utf-8")))} == {}


COMMANDS = """
import json, os, sys, traceback
from retain.cli import main
codes = []
for line in json.loads(os.fsencode(sys.argv[1])):
    try:
        main([os.fsdecode(word.encode()) for word in line])
        codes.append(0)
    except SystemExit as stop:
        codes.append(stop.code or 0)
    except Exception:
        traceback.print_exc()
        codes.append(-1)
with open("codes.json", "w") as file:
    json.dump(codes, file)
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LOCALES = {"ascii": ASCII, "latin-1": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1"}}


@pytest.fixture
def place(tmp_path):
    """A folder, files and runs whose names and texts ASCII lacks."""
    folder = tmp_path / "désk→"
    folder.mkdir()
    (folder / "bück.txt").write_text("to be or not to be: é → ü. " * 60, encoding="utf-8")
    texts = ["to be or not to be: é → ü. " * 4 + str(i) for i in range(40)]
    rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    (folder / "dócs.jsonl").write_text(rows, encoding="utf-8")
    for name in ("text", "documents"):
        config = tiny(data=data_config(name=name, path="x", seq_len=8), budget="2steps")
        save_config(config, folder / f"{name}.json")
    return folder


def tokenizer(path):
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["é → ü"], trainer)
    replace_file(path, made.to_str().encode())


TEXT = [
    ("train --config text.json --data bück.txt --out rün --quiet", 0),
    ("eval rün", 0),
    ("info rün", 0),
    ("generate rün --length 9 --prompt é→", 0),
    ("train --config rün/config.json --init-from rün --out nëw --quiet", 0),
    ("train --out nëw --resume --quiet", 0),
    ("train --config nöwhere.json --out nëw", 2),
    ("train --config text.json --data nöwhere.txt --out nëwer", 2),
    ("eval nöwhere", 2),
    ("généräte", 2),
]
REPORTS = [
    ("report rün", 0),
    ("report rün rün/../rün --out päge.html", 0),
    ("plot rün loss", 0),
    ("sweep --config text.json --data bück.txt --phases smt --vary smt.lr=0.1 --seeds 1 --out swéep", 0),
]
SUBWORDS = [
    ("train --config documents.json --data dócs.jsonl --data.tokenizer tök.json --out wört --quiet", 0),
    ("eval wört", 0),
    ("generate wört --length 9 --prompt é→", 0),
    ("train --config wört/config.json --init-from wört --out wörter --quiet", 0),
]


@pytest.mark.parametrize("locale", LOCALES)
def test_no_locale_stops_a_command(locale, place, tmp_path):
    """All commands in one process, since to start one takes longer than they do."""
    pytest.importorskip("plotly")
    tokenizer(place / "tök.json")
    lines = TEXT + REPORTS + SUBWORDS
    env = os.environ | {"RETAIN_CACHE": str(tmp_path / "cäche")} | LOCALES[locale]
    options, kept = [], lines
    if locale == "ascii" and not "".join(sys.path).isascii():
        # Neither Python before 3.12 nor PyTorch starts below such a folder: the one is told to leave its packages out,
        # the other is found by another name. A sweep would start them anew.
        links = [tmp_path / str(number) for number in range(len(sys.path))]
        for link, folder in zip(links, sys.path, strict=True):
            link.symlink_to(folder)
        env["PYTHONPATH"] = os.pathsep.join(map(str, links))
        options, kept = ["-S"], [(line, code) for line, code in lines if not line.startswith("sweep")]
    asked = json.dumps([line.split() for line, _ in kept], ensure_ascii=False)
    command = [sys.executable, *options, "-c", COMMANDS, asked]
    done = subprocess.run(command, env=env, cwd=place, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    codes = json.loads((place / "codes.json").read_text())
    assert codes == [code for _, code in kept], done.stderr
    page = (place / "rün/report.html").read_text(encoding="utf-8")
    assert "rün" in page and "bück.txt" in page and (place / "päge.json").exists()
    samples = json.loads((place / "rün/samples.json").read_text(encoding="utf-8"))
    assert os.fsencode(samples["settings"]["prompt"]).decode() == "é→"
