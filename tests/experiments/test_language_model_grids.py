"""`retain compare`, `sweep` and `eval` of runs whose teacher is a language model, or labels of one."""

import json
import shlex

import pytest
import torch

transformers = pytest.importorskip("transformers")

import language_models as made  # noqa: E402
from retain.cli.compare import parse_comparison  # noqa: E402
from retain.cli.sweep import parse_sweep  # noqa: E402
from retain.data import load_data  # noqa: E402
from retain.experiments.compare import compare  # noqa: E402
from retain.experiments.sweep import check_sweep, run_sweep  # noqa: E402
from retain.runs.run import load_run  # noqa: E402
from runs import grids_here  # noqa: E402

SIZES = "--memory.tokens 1 --memory.width 16 --teacher.width 16 --cell.width 16 --teacher.future-len 4 --seeds 1"
SMALL = f"{SIZES} --budget 4steps --threads 1 --device cpu --validation-sequences 8"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from retain.cli import main

    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.chdir(folder)
        (folder / "book.txt").write_text(made.text(300))
        made.llama(folder / "llama")
        line = "label book.txt --teacher.from llama --out labels --data.seq-len 12 --data.prune-vocab --quiet"
        main(shlex.split(line + " --teacher.context-before 20"))
    return folder


@pytest.fixture(autouse=True)
def there(world, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.chdir(world)
    return grids_here(monkeypatch)


def test_a_few_lines_of_compare_make_the_table(world, tmp_path):
    """Hybrid and BPTT from scratch; BPTT from the embeddings; BPTT with distillation. One vocabulary, bits per byte."""
    lines = {
        "table": "--methods hybrid,bptt",
        "embeddings": "--methods bptt --teacher.init-embeddings",
        "distilled": "--methods bptt --bptt.lambda-distill 1 --teacher.temperature 2",
    }
    runs = {}
    for name, line in lines.items():
        words = f"text --labels labels {line} {SMALL} --lrs 1 --out {tmp_path / name}"
        comparison, out, _ = parse_comparison(shlex.split(words))
        results = compare(comparison, out)
        assert "bits/byte" in (out / "results.md").read_text()
        runs |= {f"{name}, {method}": found["runs"][0] for method, found in results["methods"].items()}
    sizes = {run["parameters"] for run in runs.values()}
    assert len(runs) == 4 and len(sizes) == 1
    for name, run in runs.items():
        assert run["test"]["bits_per_byte"] < run["test"]["bits_per_token"], name
    assert runs["table, bptt"]["validation_bits_per_token"] != runs["embeddings, bptt"]["validation_bits_per_token"]
    first = (tmp_path / "distilled/runs/bptt-lr1-seed0/metrics.jsonl").read_text().splitlines()[0]
    assert "loss_distill" in json.loads(first)
    run = load_run(tmp_path / "table/runs/hybrid-lr1-seed0")
    assert run.config.teacher.context_before == 20 and run.config.teacher.labels == str(world / "labels")


def test_a_sweep_reads_labels_or_the_model(world, tmp_path):
    line = f"text --vary teacher.temperature=1,2 {SMALL} --out {tmp_path / 'sweep'}"
    sweep, out, _ = parse_sweep(shlex.split(f"{line} --labels labels"))
    results = run_sweep(sweep, out)
    scores = [point["runs"][0]["validation"]["bits_per_byte"] for point in results["points"]]
    assert len(set(scores)) == 2
    sized = line.replace("teacher.temperature=1,2", "data.seq-len=12,100")
    for source, why in (("--labels labels", "this data has 100"), ("--teacher.from llama", "above the 80 positions")):
        sweep, _, _ = parse_sweep(shlex.split(f"{sized} {source}" + " --data book.txt" * ("llama" in source)))
        with pytest.raises(ValueError, match=f"vary: data.seq_len=100: .*{why}"):
            check_sweep(sweep)
    trained = f"text --vary teacher.trunk-lr=0.01,None --teacher.from llama --data book.txt {SMALL}"
    check_sweep(parse_sweep(shlex.split(trained))[0])


def test_eval_scores_the_model_itself(world, tmp_path, retain):
    """As transformers does, on the very text that the RNN is scored on, from each document's start."""
    line = f"train text --data book.txt --teacher.from llama --teacher.context-before 40 {SMALL} --quiet"
    run = tmp_path / "run"
    own = "--data.seq-len 12 --smt.bptt-window 4 --dmt.bptt-window 4 --tracker None"
    line = line.replace("--seeds 1", "").replace("--threads 1", "")
    assert retain(*shlex.split(f"{line} {own} --out {run}"))[0] == 0
    code, said, _ = retain("eval", run, "--teacher.from", "llama", "--json", "--batch-size", "8")
    assert code == 0
    found, data = json.loads(said), load_data(load_run(run).config.data)
    model = transformers.AutoModelForCausalLM.from_pretrained("llama").eval()
    tokens = torch.tensor([0, *data.splits["test"].tolist()])
    nats, count = 0.0, len(tokens) - 1
    for start in range(0, count, 39):  # a block of three windows, with 40 tokens before it
        end, first = min(start + 39, count), max(0, start - 40)
        ids = torch.cat([tokens[:1], tokens[first + 1 : end + 1]])
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1, : data.vocab_size]
        nats += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")[start - first :].sum())
    bits = nats / count / torch.log(torch.tensor(2.0)).item()
    assert found["tokens"] == count
    assert found["model_bits_per_token"] == pytest.approx(bits, rel=1e-4)
    assert found["model_bits_per_byte"] == pytest.approx(bits / data.bytes_per_token["test"], rel=1e-4)
    assert found["teacher_bits_per_token"] is not None and found["relative_drift"] is not None
    code, said, _ = retain("eval", run, "--teacher.from", "llama")
    assert code == 0 and "   model " in said and "   teacher " in said
    made.llama(tmp_path / "other", seed=1)
    for options, why in (
        (["--teacher.from", tmp_path / "other"], "is not of the model that"),
        (["--labels", "labels"], "has none of the test split"),
    ):
        code, _, said = retain("eval", run, *options)
        assert code == 2 and why in said, said


def test_eval_scores_labels_on_the_validation_split(world, tmp_path, retain):
    own = "--smt.bptt-window 4 --dmt.bptt-window 4 --tracker None --quiet"
    small = SMALL.replace("--seeds 1", "").replace("--threads 1", "")
    assert retain(*shlex.split(f"train text --labels labels {small} {own} --out {tmp_path / 'run'}"))[0] == 0
    found = {}
    for source in ("--labels labels", "--teacher.from llama"):
        code, said, _ = retain("eval", tmp_path / "run", *source.split(), "--split", "validation", "--json")
        assert code == 0
        found[source] = json.loads(said)
    one, other = found.values()
    assert one["teacher_bits_per_token"] == pytest.approx(other["teacher_bits_per_token"], rel=0.01)
    assert one["model_bits_per_token"] == pytest.approx(other["model_bits_per_token"], rel=0.01), "but for the rest"
