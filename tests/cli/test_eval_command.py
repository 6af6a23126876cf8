"""`retain eval` of what a run was not trained on, at other lengths, and without its teacher or its data."""

import json
import shutil

import numpy as np
import pytest
import torch

from conftest import tiny
from retain.cli import main
from retain.config import data_config
from retain.data import load_data
from retain.inference.evaluate import LEFT, evaluate, has_left
from retain.report.gather import gather
from retain.runs.checkpoint import export
from retain.runs.run import load_run
from retain.training.loop import train


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_another_file_is_scored_whole(text_run, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("whether 'tis nobler")  # 19 bytes, far too few to be cut in three
    main(["eval", str(text_run), "--data", str(other), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["split"], result["tokens"], result["sequences"]) == ("all", 19, 3)
    run = load_run(text_run, teacher=True)
    tokens = torch.tensor([list(other.read_bytes()[:18])]).view(2, 9)
    one = {"tokens": tokens[:, :-1], "targets": tokens}
    both = evaluate(run.rnn, run.teacher, [one])
    assert both["tokens"] == 18
    told = result["bits_by_position"][1:]
    assert told == pytest.approx(both["bits_by_position"][1:], rel=1e-4), "the last window has its first byte alone"
    assert len(list(text_run.glob("eval-all-other-????????.json"))) == 1
    main(["eval", str(text_run), "--data", str(other), "--seq-len", "18", "--json"])
    assert json.loads(capsys.readouterr().out)["sequences"] == 1
    assert "the file has only 19" in refused(capsys, "eval", text_run, "--data", other, "--seq-len", 19)


def test_what_it_was_trained_on_is_not_scored_as_another_file(text_run, tmp_path, capsys):
    """Wherever it lies by now: of its bytes nine in ten were learnt."""
    moved = shutil.copy(load_run(text_run).config.data.path, tmp_path / "moved.txt")
    main(["eval", str(text_run), "--json"])
    own = json.loads(capsys.readouterr().out)
    main(["eval", str(text_run), "--data", str(moved), "--json"])
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["split"] == "test" and found["bits_per_token"] == own["bits_per_token"]
    assert said.err == f"retain: {moved} is the run's training data; its test split is scored\n"
    main(["eval", str(text_run), "--data", str(moved), "--split", "all", "--json"])
    said = capsys.readouterr()
    assert json.loads(said.out)["split"] == "all"
    assert said.err == f"retain: most of {moved} is the run's training data\n"


def test_scores_of_an_earlier_model_are_not_shown_as_the_runs(text_run, tmp_path, capsys):
    """Scored while it was trained, then resumed."""
    run = shutil.copytree(text_run, tmp_path / "run")
    main(["eval", str(run)])
    main(["info", str(run)])
    assert "earlier model" not in capsys.readouterr().out
    early = json.loads((run / "eval-test.json").read_text())
    (run / "eval-test.json").write_text(json.dumps(early | {"training_tokens": 1}))
    main(["info", str(run)])
    assert "(of an earlier model: score it again)" in capsys.readouterr().out
    main(["info", str(run), "--json"])
    assert json.loads(capsys.readouterr().out)["results"]["eval-test"]["current"] is False
    found = gather(run)
    assert found["test"] is None and "eval-test.json is of an earlier model" in " ".join(found["notes"])


def test_an_rnn_that_runs_away_has_no_score_and_no_traceback(text_run, tmp_path, capsys):
    run = shutil.copytree(text_run, tmp_path / "run")
    whole = load_run(run, teacher=True)
    whole.rnn.m_0.data.fill_(torch.inf)
    export(run, {"model": whole.rnn.state_dict(), "teacher": whole.teacher.state_dict()}, whole.state)
    main(["eval", str(run), "--json"])
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["bits_per_token"] is found["bits_per_byte"] is None
    main(["eval", str(run)])
    assert "bits per token    not finite: the RNN alone diverges" in capsys.readouterr().out
    main(["info", str(run)])
    assert "no finite bits/token" in capsys.readouterr().out
    for more in ([], ["--temperature", "0"]):
        told = refused(capsys, "generate", run, *more)
        assert "run: the RNN's logits are not finite after 0 tokens of its own" in told


def test_a_task_is_scored_at_lengths_that_its_training_batches_could_not_have(tmp_path, capsys):
    data = data_config(name="keys_values", seq_len=64, min_seq_len=8)
    train(tiny(data=data, budget="2steps"), tmp_path / "run", progress_bar=False)
    main(["eval", str(tmp_path / "run"), "--seq-len", "40", "--limit", "4", "--json"])
    assert json.loads(capsys.readouterr().out)["seq_len"] == 40


def test_rows_are_scored_whole(tmp_path, capsys):
    rows = np.random.default_rng(0).integers(0, 5, (40, 9))
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "other.npy", rows[:7])
    data = data_config(name="npy", path=str(tmp_path / "rows.npy"), seq_len=8, vocab_size=5)
    train(tiny(data=data, budget="4steps"), tmp_path / "run", progress_bar=False)
    main(["eval", str(tmp_path / "run"), "--data", str(tmp_path / "other.npy"), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["split"], result["tokens"], result["sequences"]) == ("all", 63, 7)


def test_at_another_length(text_run, capsys):
    main(["eval", str(text_run), "--seq-len", "24", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["seq_len"] == 24 and len(result["bits_by_position"]) == 25
    assert json.loads((text_run / "eval-test-length24.json").read_text()) == result
    main(["eval", str(text_run), "--json"])
    assert json.loads(capsys.readouterr().out)["tokens"] == result["tokens"], "every token once, at any length"


def test_a_task_at_another_length_is_not_called_other_data(retrieval_run, capsys):
    main(["eval", str(retrieval_run), "--seq-len", "12", "--limit", "8"])
    assert capsys.readouterr().err == ""


def test_all_is_of_a_file(retrieval_run, capsys):
    assert "split: all is for a file or a folder, not retrieval" in refused(
        capsys, "eval", retrieval_run, "--split", "all"
    )


def test_an_rnn_that_was_shipped_alone(text_run, tmp_path, capsys):
    """The files that the README names."""
    (tmp_path / "ship").mkdir()
    for name in ("config.json", "state.json", "manifest.json", "model.safetensors"):
        shutil.copy(text_run / name, tmp_path / "ship")
    main(["eval", str(tmp_path / "ship")])
    said = capsys.readouterr()
    assert "ship has no teacher.safetensors" in said.err and "drift" not in said.out and "bits per token" in said.out


class Mine:
    """Data of one's own: what load_data gives, under another name."""

    def __init__(self, config):
        self.inner = load_data(config)

    def __getattr__(self, name):
        return getattr(self.inner, name)


def test_data_of_ones_own_is_not_taken_for_what_the_config_names(tmp_path, capsys):
    config = tiny(budget="4steps")
    train(config, tmp_path / "run", data=Mine(config.data), progress_bar=False)
    complaint = refused(capsys, "eval", tmp_path / "run")
    assert "was trained on data of your own" in complaint and "retain.evaluate(" in complaint
    main(["report", str(tmp_path / "run")])
    notes = json.loads((tmp_path / "run" / "report.json").read_text())["runs"][0]["notes"]
    assert any("data of your own" in note for note in notes)


def test_a_device_and_a_phase_that_are_none(retrieval_run):
    with pytest.raises(ValueError, match="device: 'gpu' is none of auto, cpu, cuda, mps"):
        load_run(retrieval_run, device="gpu")
    assert load_run(retrieval_run, device="auto").rnn.m_0.device.type in ("cpu", "cuda", "mps")
    for phase in (-1, 2):
        with pytest.raises(ValueError, match=f"phase: {phase} must lie in 0 … 1"):
            load_run(retrieval_run, phase=phase)


def test_an_rnn_that_left_its_teacher_is_not_called_blind():
    scores = {"relative_drift": 1.1, "bits_per_token": 1.76, "teacher_bits_per_token": 2.23}
    assert has_left(scores) and "no worse" in LEFT
    assert not has_left(scores | {"bits_per_token": 2.5})
    assert not has_left(scores | {"relative_drift": 0.3})
    assert not has_left(scores | {"teacher_bits_per_token": None})


def test_two_files_of_one_name_keep_two_results(text_run, tmp_path, capsys):
    for folder, text in (("a", "whether 'tis nobler in the mind"), ("b", "to suffer the slings and arrows")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.txt").write_text(text)
        main(["eval", str(text_run), "--data", str(tmp_path / folder / "same.txt"), "--json"])
    capsys.readouterr()
    found = [json.loads(path.read_text())["data"]["path"] for path in text_run.glob("eval-all-same-*.json")]
    assert sorted(found) == [str(tmp_path / folder / "same.txt") for folder in "ab"]


def test_documents_are_scored_whole_when_asked_to(tmp_path, capsys):
    for name, count in (("own", 40), ("other", 5)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.md").write_text(f"document {i} of {name}, a short one")
    data = data_config(name="documents", path=str(tmp_path / "own"), seq_len=8)
    train(tiny(data=data, budget="4steps"), tmp_path / "run", progress_bar=False)
    main(["eval", str(tmp_path / "run"), "--data", str(tmp_path / "other"), "--split", "all", "--json"])
    said = capsys.readouterr()
    size = sum(len(path.read_bytes()) + 1 for path in (tmp_path / "other").iterdir())
    assert json.loads(said.out)["tokens"] == size, "every byte and every end"
    assert said.err == "retain: read 5 files, 5 documents\n"
    main(["eval", str(tmp_path / "run"), "--split", "all", "--json"])
    assert "most of" in capsys.readouterr().err
