"""docs/deploy.md: what it shows is run in its order, as it stands but for budgets and folders."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from retain.cli import main

PAGE = (Path(__file__).parents[2] / "docs/deploy.md").read_text(encoding="utf-8")
ELSEWHERE = ("A server\n",)
"""Sections that tests/serve runs, which has a server."""
SECTIONS = [section for section in re.split(r"^## ", PAGE, flags=re.M) if not section.startswith(ELSEWHERE)]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", "".join(SECTIONS), re.M | re.S)
TOOLS = {"lm_eval": "lm_eval"}
"""Commands that are skipped where their library is missing, by its name."""


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers", reason="needs transformers, of retain[hf]")
    pytest.importorskip("onnxscript", reason="needs onnxscript, of retain[onnx]")
    monkeypatch.chdir(tmp_path)
    Path("mybook.txt").write_text("It was a dark and stormy night; the rain fell in torrents.\n" * 200)
    Path("story.txt").write_text("The rain had begun at night, and it fell in the dark. It was a cat.\n" * 70)
    names, missing = {}, []
    for language, block in BLOCKS:
        if language == "yaml":
            path = Path(re.match("# (.*)", block)[1])
            path.parent.mkdir(exist_ok=True)
            path.write_text(block)
        elif language == "python":
            exec(compile(block, "deploy.md", "exec"), names)
        elif language == "bash":
            for line in block.splitlines():
                run(line, missing, capsys)
    assert {language for language, _ in BLOCKS} == {"bash", "python", "yaml"}
    if missing:
        pytest.skip(f"of the page's commands these were not run: {', '.join(missing)}")
    harness_agrees(names["model"].rnn)


def run(line, missing, capsys):
    """Run a line: ours in this process, another's as a program."""
    tool, *rest = line.split()
    if tool == "retain":
        rest = ["30steps" if re.fullmatch(r"\d+s", word) else word for word in rest]
        main(rest + (["--validation-sequences", "8", "--quiet"] if rest[0] == "train" else []))
        assert capsys.readouterr().out.strip(), line
    elif tool in TOOLS and not shutil.which(tool, path=os.path.dirname(sys.executable)):
        missing.append(tool)
    else:
        here = os.pathsep.join(path for path in sys.path if path)
        env = {**os.environ, "PYTHONPATH": here, "HF_HOME": str(Path("home").resolve()), "HF_HUB_OFFLINE": "1"}
        env["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), env["PATH"]])
        done = subprocess.run(line, shell=True, capture_output=True, text=True, env=env)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def harness_agrees(rnn):
    """Bits per byte are those of `retain eval`, and the log-probabilities of choices those of the RNN."""
    import torch

    results = [json.loads(path.read_text())["results"] for path in Path("scores").rglob("results_*.json")]
    bits = next(found["story"]["bits_per_byte,none"] for found in results if "story" in found)
    (own,) = Path("runs/book").glob("eval-all-length2047-story-*.json")
    assert bits == pytest.approx(json.loads(own.read_text())["bits_per_byte"], abs=1e-5)
    (samples,) = Path("scores").rglob("samples_weather_*.jsonl")
    sample = json.loads(samples.read_text())
    for choice, ((found, _),) in zip(sample["doc"]["choices"], sample["resps"], strict=True):
        text = torch.tensor([list((sample["doc"]["text"] + choice).encode())])
        with torch.no_grad():
            logs = rnn(text)[0][0, :-1].log_softmax(-1)
        each = logs.gather(1, text[0, 1:, None])[-len(choice) - 1 :]  # the harness counts the space before as its own
        assert float(found) == pytest.approx(float(each.sum()), abs=1e-3)
