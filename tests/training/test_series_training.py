"""Runs of series, from a table to forecasts: they learn, go on bit for bit, and tell the same however they are read."""

import dataclasses
import io
import json

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import tiny
from retain import load, load_series, series_data, train
from retain.cli import main
from retain.config import RunConfig, SeriesDataConfig
from retain.config.presets import PRESETS
from retain.data import load_data
from retain.errors import TrainingError, UserError
from retain.inference.backtest import backtest, find_origins, find_season, naive_error, naive_forecast, score_one_step
from retain.inference.forecast import forecast, sample_paths
from retain.inference.forecast_files import QUANTILES
from retain.inference.score import score_table
from retain.runs.run import load_run
from retain.runs.series import open_series


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Two places with a daily wave of their own, some hours missing."""
    rng = np.random.default_rng(0)
    parts = []
    for place, (size, level) in {"north": (3.0, 20.0), "south": (30.0, 500.0)}.items():
        count = 480
        wave = level + size * np.sin(np.arange(count) * 2 * np.pi / 12) + 0.1 * size * rng.normal(size=count)
        wave[rng.random(count) < 0.03] = np.nan
        times = pd.date_range("2024-01-01", periods=count, freq="h")
        parts.append(pd.DataFrame({"time": times, "place": place, "load": wave, "open": (np.arange(count) // 6) % 2}))
    path = tmp_path_factory.mktemp("series") / "load.csv"
    pd.concat(parts).to_csv(path, index=False)
    return path


COLUMNS = ["--data.time", "time", "--data.series", "place", "--data.target", "load"]
SMALL = ["--data.seq-len", "24", "--teacher.layers", "1", "--teacher.width", "32", "--memory.width", "32"]
SMALL += ["--cell.width", "32", "--teacher.future-len", "6", "--smt.lr", "3e-3", "--dmt.lr", "3e-3"]


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    words = ["train", "series", "--data", str(table), *COLUMNS, *SMALL, "--budget", "240steps", "--tracker", "None"]
    main([*words, "--out", str(out), "--quiet"])
    return out


def series_config(table, **fields):
    return SeriesDataConfig(path=str(table), time="time", series="place", target=("load",), **{"seq_len": 16} | fields)


def test_it_learns_to_forecast(run, capsys):
    main(["eval", str(run), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] is None
    ahead, one = found["forecast"], found["one_step"]
    assert abs(one["nats"] - found["bits_per_token"] * np.log(2)) < 1e-6
    assert ahead["horizon"] == 6 and ahead["season"] == 24
    assert ahead["wql"] < 0.95 * ahead["naive"]["wql"] and ahead["mase"] < ahead["naive"]["mase"]
    assert 0.65 < one["coverage"]["0.8"] < 0.93
    main(["eval", str(run)])
    said = capsys.readouterr().out
    assert "weighted quantile loss" in said and "80% band" in said and "accuracy" not in said


def test_forecast_writes_quantiles_and_a_picture(run, table, tmp_path, capsys):
    out = tmp_path / "f.parquet"
    main(["forecast", str(run), "--context", str(table), "--horizon", "7", "--samples", "50", "--out", str(out)])
    frame = pd.read_parquet(out)
    assert list(frame.columns) == ["series", "time", "target", "mean", *map(str, QUANTILES)]
    assert len(frame) == 14 and set(frame.series) == {"north", "south"} and set(frame.target) == {"load"}
    assert frame.time.iloc[0] == pd.Timestamp("2024-01-21") and frame.time.iloc[6] == pd.Timestamp("2024-01-21 06:00")
    quantiles = frame.iloc[:, 4:].to_numpy()
    assert (np.diff(quantiles, axis=1) >= 0).all()
    assert abs(frame["0.5"][frame.series == "south"] - 500).max() < 60
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    main(["forecast", str(run), "--horizon", "7", "--samples", "50", "--out", str(tmp_path / "g.csv")])
    np.testing.assert_allclose(pd.read_csv(tmp_path / "g.csv")["0.5"], frame["0.5"])  # the run's own file, one seed


def test_score_tells_the_same_of_a_file_and_of_lines(run, table, monkeypatch, capsys):
    main(["score", str(run), "--data", str(table)])
    of_file = pd.read_csv(io.StringIO(capsys.readouterr().out))
    monkeypatch.setattr("sys.stdin", io.StringIO(table.read_text()))
    main(["score", str(run), "--data", "-"])
    of_lines = pd.read_csv(io.StringIO(capsys.readouterr().out)).dropna()
    assert len(of_file) == len(of_lines)
    np.testing.assert_allclose(of_file.surprise, of_lines.surprise, rtol=1e-3, atol=1e-3)


def test_a_fault_is_surprising(run, table):
    frame = pd.read_csv(table)
    south = (frame.place == "south") & (frame.index % 480 > 100)
    where = frame.index[south & (frame.index % 37 == 0)]
    frame.loc[where, "load"] += 60
    rnn, _ = open_series(run, None)
    from retain.data.series import to_table

    config = dataclasses.replace(series_config(table), path="in memory")
    scored = list(score_table(rnn, to_table(frame, config, rnn.channels)))
    of_faults = {frame.time[i] for i in where}
    faults = [s.surprise for s in scored if s.series == "south" and str(s.time) in of_faults]
    others = [s.surprise for s in scored if s.series == "south" and str(s.time) not in of_faults]
    assert np.mean([f > o for f in faults for o in others]) > 0.9


def test_a_stream_in_python(run):
    rnn = load_series(run)
    memory, row = rnn.init_memory(2), torch.full((2, rnn.channels.row), torch.nan)
    for value in (20.0, 21.0, torch.nan, 22.0):
        row[:, 0] = value
        distribution, memory = rnn.step(row, memory)
    assert distribution.sample(torch.Size([5])).shape == (5, 2, 1)
    torch.testing.assert_close(distribution.mean[0], distribution.mean[1])
    # The RNN by itself reads prepared tokens.
    assert load(run).channels == rnn.channels


def test_samples_of_paths_are_those_of_steps_one_by_one(run):
    """The slow twin: every path alone, a sample at a time, has the same distribution."""
    rnn = load_series(run)
    values = np.sin(np.arange(12))[:, None] * 3 + 20
    covariates = np.zeros((20, rnn.channels.row - 1))
    paths = sample_paths(rnn, [values, values + 1], [covariates, covariates], 4, 400, seed=1)
    torch.manual_seed(0)
    slow = []
    for _ in range(60):
        memory, path = rnn.init_memory(1), []
        rows = np.concatenate([[[np.nan]], values])
        for t, row in enumerate(rows):
            distribution, memory = rnn.step(torch.tensor(np.r_[row, covariates[t]])[None], memory)
        for h in range(4):
            path.append(float(distribution.sample()[0, 0]))
            x = torch.tensor(np.r_[path[-1], covariates[13 + h]])[None]
            distribution, memory = rnn.step(x, memory)
        slow.append(path)
        if len(slow) == 1:
            last = memory
    fast, slow = paths[0][..., 0], np.array(slow)
    error = slow.std(0) / 60**0.5 + fast.std(0) / 400**0.5
    assert (abs(fast.mean(0) - slow.mean(0)) < 5 * error).all()
    assert last.shape == (1, 1 + rnn.rows, 32)
    again = sample_paths(rnn, [values, values + 1], [covariates, covariates], 4, 400, seed=1)
    np.testing.assert_array_equal(paths[1], again[1])


def test_covariates_must_reach_into_the_future(table, tmp_path, capsys):
    out = tmp_path / "run"
    words = [
        "train",
        "series",
        "--data",
        str(table),
        *COLUMNS,
        "--data.covariates",
        "open",
        *SMALL,
        "--tracker",
        "None",
    ]
    main([*words, "--budget", "4steps", "--out", str(out), "--quiet"])
    with pytest.raises(SystemExit):
        main(["forecast", str(out), "--horizon", "5", "--out", str(tmp_path / "f.csv")])
    assert "data.covariates: 'open' is missing in the future; give a row with it" in capsys.readouterr().err
    frame = pd.read_csv(table)
    future = frame[-5:].assign(time=pd.date_range("2024-01-21", periods=5, freq="h").astype(str), load=np.nan)
    longer = pd.concat([frame, future.assign(place="north"), future])
    longer.to_csv(tmp_path / "longer.csv", index=False)
    main(["forecast", str(out), "--context", str(tmp_path / "longer.csv"), "--horizon", "5", "--samples", "9",
          "--out", str(tmp_path / "f.csv")])  # fmt: skip
    assert len(pd.read_csv(tmp_path / "f.csv")) == 10


TAUGHT = ("smt", "dmt")


@pytest.mark.parametrize(
    ("encoder", "phases"), [("state", TAUGHT), ("register", TAUGHT), ("window", TAUGHT), ("state", ("bptt",))]
)
def test_resume_is_bitwise(encoder, phases, table, tmp_path):
    def config(steps):
        data = series_config(table, covariates=("open",))
        return tiny(data=data, phases=phases, budget=f"{steps}steps", teacher__encoder=encoder)

    straight = train(config(12), tmp_path / "straight", progress_bar=False)
    assert straight["steps"] == 12
    stopped(config(12), tmp_path / "stopped")
    train(config(12), tmp_path / "stopped", resume=True, progress_bar=False)
    for one, other in zip(*(load(tmp_path / name).parameters() for name in ("straight", "stopped")), strict=True):
        assert torch.equal(one, other)


def stopped(config, out):
    """Train, and be stopped after five steps by data that ends there."""
    data = load_data(config.data)
    batch, taken = data.batch, []

    def until(*args):
        taken.append(args)
        if len(taken) > 6:
            from retain.errors import ChangedData

            raise ChangedData("data: ends here")
        return batch(*args)

    data.batch = until
    with pytest.raises((TrainingError, UserError)):
        train(config, out, data=data, progress_bar=False)
    state = json.loads((next((out / "checkpoints").iterdir()) / "state.json").read_text())
    assert 0 < state["progress"]["step"] < 12
    # The state says that data was given in Python; here it is the config's own.
    from retain.runs.checkpoint import load_files, save_checkpoint

    folder = next((out / "checkpoints").iterdir())
    tensors, state = load_files(folder)
    save_checkpoint(out, state["progress"]["step"], tensors, state | {"own_data": False})


def test_own_data_in_python(tmp_path):
    values = np.sin(np.arange(300) / 5)[:, None] + np.arange(2)
    data = series_data(values, seq_len=16, head="lowrank")
    config = tiny(data=SeriesDataConfig(path="in memory", seq_len=16, head="lowrank"), budget="6steps")
    train(config, tmp_path / "run", data=data, progress_bar=False)
    rnn = load_series(tmp_path / "run")
    (found,) = forecast(rnn, data.table, 5, samples=7)
    assert found.samples.shape == (7, 5, 2) and found.times.tolist() == [300, 301, 302, 303, 304]


@pytest.mark.parametrize(
    "head", ["gaussian", "logistics", "quantiles", "negative_binomial", "bernoulli", "categorical"]
)
def test_every_head_trains_and_forecasts(head, tmp_path):
    counts = np.random.default_rng(0).poisson(2, (200, 1)).clip(0, 1 if head == "bernoulli" else 5).astype(float)
    data = series_data(counts, seq_len=16, head=head)
    config = tiny(data=SeriesDataConfig(path="in memory", seq_len=16, head=head), budget="6steps")
    summary = train(config, tmp_path / "run", data=data, progress_bar=False)
    assert np.isfinite(summary["validation_bits_per_token"])
    run = load_run(tmp_path / "run")
    found = backtest(run.rnn, data, "test", 4, samples=20)
    assert found["forecasts"] == 5 and np.isfinite(found["wql"])
    assert np.isfinite(score_one_step(run.rnn, data, "test")["nats"])
    (ahead,) = forecast(load_series(tmp_path / "run"), data.table, 3, samples=30)
    if head in ("negative_binomial", "bernoulli", "categorical"):
        assert np.array_equal(ahead.samples, ahead.samples.round()) and ahead.samples.min() >= 0


def test_the_naive_forecast_repeats_a_season():
    values = np.arange(10.0)[:, None]
    assert naive_forecast(values, 5, 3)[:, 0].tolist() == [7, 8, 9, 7, 8]
    assert naive_forecast(values[:2], 3, 4)[:, 0].tolist() == [1, 1, 1]
    assert naive_error(values, 3).tolist() == [3.0]
    assert naive_error(values[:2], 4).tolist() == [1.0]


def test_origins_cover_a_split(table):
    data = load_data(series_config(table))
    origins = find_origins(data, "test", 8, None)
    assert origins[0].tolist() == [0, int(data.cuts[0, 1])] and len(origins) == 2 * (48 // 8)
    assert len(find_origins(data, "test", 8, 3)) == 3 and len(find_origins(data, "test", 99, None)) == 0
    assert find_season(data.channels) == 24


def test_a_tasks_settings_refuse_what_tokens_alone_have(table):
    base = dataclasses.replace(PRESETS["series"](), data=series_config(table))
    with pytest.raises(UserError, match=r"smt.lambda_distill: 1.0 is for tokens, but series are numbers; set it to 0"):
        dataclasses.replace(base, smt=dataclasses.replace(base.smt, lambda_distill=1.0))
    with pytest.raises(UserError, match=r"teacher.from: x reads tokens, but series are numbers; leave it out"):
        dataclasses.replace(base, teacher=dataclasses.replace(base.teacher, from_="x"))
    assert isinstance(base, RunConfig)


BAD_LINES = {
    "fields": ("2024-01-01 00:00,north\n", "line 2: 2 fields, and the header has 4"),
    "number": ("2024-01-01 00:00,north,much,0\n", "line 2: load is 'much', no number"),
    "infinite": ("2024-01-01 00:00,north,inf,0\n", "line 2: load is 'inf', no number"),
    "time": ("noon?,north,1,0\n", "line 2: time is 'noon.', no time"),
    "order": ("2024-01-01 01:00,north,1,0\n2024-01-01 00:00,north,1,0\n", "line 3: .* give lines in order"),
    "between": ("2024-01-01 01:00,north,1,0\n2024-01-01 01:30,north,1,0\n", "line 3: .* lies between two steps"),
    "far": ("2024-01-01 01:00,north,1,0\n2034-01-01 01:00,north,1,0\n", "line 3: .* gaps of at most 1000 steps"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_lines_are_named(name, run, monkeypatch, capsys):
    lines, message = BAD_LINES[name]
    monkeypatch.setattr("sys.stdin", io.StringIO("time,place,load,open\n" + lines))
    with pytest.raises(SystemExit) as stop:
        main(["score", str(run), "--data", "-"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    import re

    assert re.search(message, said)


BAD_WORDS = {
    "horizon": (["forecast", "RUN", "--horizon", "0"], "horizon: 0 must be at least 1"),
    "out": (["forecast", "RUN", "--out", "x.txt"], "out: x.txt must be a .parquet or a .csv"),
    "seed": (["forecast", "RUN", "--seed", "-1"], "seed: -1 must be at least 0 and below"),
    "no run": (["forecast", "nowhere"], "run: nowhere is not a folder"),
    "no file": (["forecast", "RUN", "--context", "absent.csv"], "absent.csv"),
    "columns": (["score", "RUN", "--data", "OTHER"], "data.time: 'time' is not among the columns a, b"),
    "generate": (["generate", "RUN"], "reads series of numbers, and retain generate tokens; use retain forecast"),
    "serve": (["serve", "RUN", "--port", "0"], "reads series of numbers, and retain serve tokens"),
    "export": (["export", "RUN", "DIR", "--to", "onnx"], "reads series of numbers, and retain export tokens"),
    "eval": (["eval", "RUN", "--horizon", "0"], "horizon: 0 must be at least 1"),
}


@pytest.mark.parametrize("name", BAD_WORDS)
def test_bad_words_are_one_line(name, run, tmp_path, capsys):
    words, message = BAD_WORDS[name]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n3,4\n")
    put = {"RUN": str(run), "OTHER": str(tmp_path / "other.csv"), "DIR": str(tmp_path / "dir")}
    with pytest.raises(SystemExit) as stop:
        main([put.get(word, word) for word in words])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and message in said


def test_other_commands_know_series(run, capsys):
    main(["info", str(run)])
    assert "load, head student, T = 24" in capsys.readouterr().out
    main(["train", "series", "--data", "x.csv", "--help"])
    assert "--data.target" in capsys.readouterr().out
