"""An exported folder: loaded where nothing of retain was imported, its card, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("transformers", reason="needs transformers, of retain[hf]")

LOAD = """
import importlib.abc, sys
{before}
from transformers import AutoModelForCausalLM, AutoTokenizer
assert "retain" not in sys.modules
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
model.save_pretrained(sys.argv[2])
tokenizer.save_pretrained(sys.argv[2])
again = AutoModelForCausalLM.from_pretrained(sys.argv[2], trust_remote_code=True)
ids = again.generate(**tokenizer("to be", return_tensors="pt"), max_new_tokens=5, do_sample=False)
print(ids.tolist()[0])
"""


MISSING = """
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "retain":
            raise ModuleNotFoundError("No module named 'retain'")
sys.meta_path.insert(0, Missing())
"""


def elsewhere(code, *arguments, tmp_path):
    """Run code in a Python of its own that may not ask the hub."""
    paths = os.pathsep.join(path for path in sys.path if path)
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=env)


def test_remote_code_loads_it_and_what_it_saves(hf_folder, tmp_path):
    done = elsewhere(LOAD.format(before=""), hf_folder, tmp_path / "again", tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    ids = json.loads(done.stdout)
    assert ids[:5] == [*b"to be"] and len(ids) == 10
    assert {file.name for file in hf_folder.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "modeling_retain.py", "README.md"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    assert {file.name for file in (tmp_path / "again").iterdir()} == {
        file.name for file in hf_folder.iterdir() if file.name != "README.md"
    }


def test_without_retain_it_says_what_is_missing(hf_folder, tmp_path):
    code = LOAD.format(before=MISSING)
    done = elsewhere(code, hf_folder, tmp_path / "again", tmp_path=tmp_path)
    assert done.returncode == 1 and "not found in your environment: retain" in done.stderr


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (
            "sys.modules['transformers'] = None",
            "hf: this needs transformers; run pip install 'retain[hf]' with Python 3.11 or newer",
        ),
        (
            "import transformers; transformers.__version__ = '5.3.0'",
            "hf: transformers 5.3.0 is too old; run pip install -U 'retain[hf]'",
        ),
    ],
)
def test_a_library_that_is_missing_or_old_is_one_line(text_run, tmp_path, before, words):
    code = f"import sys; {before}; from retain.cli import main; main(['export', *sys.argv[1:], '--to', 'hf'])"
    done = elsewhere(code, text_run, tmp_path / "new", tmp_path=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"retain: {words}\n")
    assert not (tmp_path / "new").exists()


def test_the_command_writes_the_folder_and_a_card(retain, text_run, tmp_path, monkeypatch):
    run = shutil.copytree(text_run, tmp_path / "run", ignore=shutil.ignore_patterns("eval-*"))  # other tests score it
    assert retain("export", run, tmp_path / "plain", "--to", "hf")[0] == 0
    assert (
        "Not scored on a test split yet. On sequences of the validation" in (tmp_path / "plain/README.md").read_text()
    )
    result = json.loads(retain("eval", run, "--json")[1])
    code, said, complaints = retain("export", run, "--to", "hf", tmp_path / "small")
    size = sum(file.stat().st_size for file in (tmp_path / "small").iterdir())
    assert (code, said, complaints) == (0, f"{tmp_path / 'small'}: {size:,} bytes\n", "")
    card = (tmp_path / "small" / "README.md").read_text()
    bits, accuracy = result["bits_per_token"], result["accuracy"]
    assert f"| test | 8 | {bits:.3f} | {bits:.3f} | {accuracy:.3f} | {result['tokens']} |" in card
    for words in ("| source | small.txt |", "| trained by | smt then dmt |", "| budget | 12steps |", "backpropagation"):
        assert words in card
    assert "\nretain train text --out NEW --data small.txt --seed 1 " in card and " --memory.width 8 " in card
    assert str(text_run.parent) not in card and "arXiv:2606.06479" in card
    assert card.startswith("---\nlibrary_name: transformers\n")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    exec(compile(code, "card", "exec"), {"__name__": "card"})


def test_a_run_of_numbers_has_no_tokenizer(retain, retrieval_run, tmp_path, monkeypatch, capsys):
    assert retain("export", retrieval_run, tmp_path / "hf", "--to", "hf")[0] == 0
    assert not list((tmp_path / "hf").glob("token*"))
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "Tokens 0 … 8 are numbers. Token 9 is the begin token." in card
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    exec(compile(code, "card", "exec"), {"__name__": "card"})
    assert capsys.readouterr().out.startswith("tensor([[9, ")


def test_a_damaged_run_leaves_nothing(retain, broken, tmp_path):
    (broken / "model.safetensors").write_bytes(b"nothing")
    code, _, complaint = retain("export", broken, tmp_path / "hf", "--to", "hf")
    assert code == 2 and complaint.count("\n") == 1 and "truncated" in complaint
    assert not (tmp_path / "hf").exists()
