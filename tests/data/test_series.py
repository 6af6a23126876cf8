"""Series of tables, arrays and records as sequences to learn."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from retain.config import SeriesDataConfig
from retain.data.frames import from_frame
from retain.data.series import make_series, read_series, read_table, series_data, to_table
from retain.data.times import find_frequency, parse_frequency
from retain.errors import UserError
from retain.ops import scale


def hours(count=200, start="2024-01-01", freq="h"):
    times = pd.date_range(start, periods=count, freq=freq)
    wave = 10 + np.sin(np.arange(count) * 2 * np.pi / 24)
    return pd.DataFrame({"time": times, "load": wave, "warm": np.cos(np.arange(count) / 9)})


def several(counts=(120, 80, 100)):
    parts = [
        hours(n).assign(place=name, kind=f"kind {i % 2}") for i, (n, name) in enumerate(zip(counts, "abc", strict=True))
    ]
    return pd.concat(parts, ignore_index=True)


def config_of(**fields):
    return SeriesDataConfig(**{"path": "in memory", "seq_len": 16} | fields)


FORMATS = {
    ".csv": lambda f, p: f.to_csv(p, index=False),
    ".tsv": lambda f, p: f.to_csv(p, index=False, sep="\t"),
    ".parquet": lambda f, p: f.to_parquet(p, index=False),
    ".jsonl": lambda f, p: f.to_json(p, orient="records", lines=True, date_format="iso"),
    ".json": lambda f, p: f.to_json(p, orient="records", date_format="iso"),
    ".csv.gz": lambda f, p: f.to_csv(p, index=False),
}


@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_is_what_the_frame_was(ending, tmp_path):
    path = tmp_path / f"series{ending}"
    FORMATS[ending](several(), path)
    names = {"time": "time", "series": "place", "target": ("load",), "covariates": ("warm", "kind")}
    table = read_table(config_of(**names, path=str(path)))
    frame = from_frame(several(), config_of(**names))
    assert [s.name for s in table.series] == ["a", "b", "c"]
    assert (table.covariates, table.kinds) == (frame.covariates, (("kind 0", "kind 1"),))
    assert str(table.frequency) == "3600s"
    for one, other in zip(table.series, frame.series, strict=True):
        np.testing.assert_allclose(one.values, other.values)
        np.testing.assert_allclose(one.covariates, other.covariates)
        assert one.first == other.first


def test_frames_of_polars_are_those_of_pandas():
    names = {"time": "time", "series": "place", "target": ("load",), "covariates": ("warm", "kind")}
    one, other = (to_table(f, config_of(**names)) for f in (several(), pl.from_pandas(several())))
    assert (one.names, one.covariates, one.kinds, one.frequency) == (
        other.names,
        other.covariates,
        other.kinds,
        other.frequency,
    )
    for a, b in zip(one.series, other.series, strict=True):
        np.testing.assert_array_equal(a.values, b.values)
        np.testing.assert_array_equal(a.covariates, b.covariates)


@pytest.mark.parametrize("shape", [(90,), (90, 2), (3, 90, 2)])
def test_arrays(shape, tmp_path):
    path = tmp_path / "x.npy"
    values = np.random.default_rng(0).normal(size=shape)
    np.save(path, values)
    data = read_series(config_of(path=str(path)))
    parts = data.table.series
    assert len(parts) == (3 if len(shape) == 3 else 1)
    np.testing.assert_array_equal(np.squeeze(np.stack([s.values for s in parts])), values)
    assert data.channels.values == (1 if len(shape) == 1 else 2)


def test_records_of_gluonts_and_of_the_hub(tmp_path):
    target = [np.arange(60.0) + i for i in range(4)]
    ours = [
        {"item_id": f"T{i}", "start": pd.Period("2024-01", "M"), "target": t, "feat_static_cat": [i % 3],
         "feat_dynamic_real": np.cos(np.arange(66))[None]}
        for i, t in enumerate(target)
    ]  # fmt: skip
    data = series_data(ours, seq_len=8)
    assert (data.channels.frequency, data.channels.kinds) == ("MS", (("0", "1", "2"),))
    assert data.channels.covariates == ("dynamic 0", "year sin", "year cos")
    assert len(data.table.series[0].values) == 66 and np.isnan(data.table.series[0].values[60:]).all()
    hub = pd.DataFrame(
        {"start": pd.Timestamp("2024-01-01"), "item_id": [f"T{i}" for i in range(4)], "target": list(map(list, target)),
         "feat_static_cat": [[i % 3] for i in range(4)],
         "feat_dynamic_real": [[np.cos(np.arange(66)).tolist()]] * 4}
    )  # fmt: skip
    hub.to_parquet(tmp_path / "hub.parquet")
    stored = read_series(config_of(path=str(tmp_path / "hub.parquet"), seq_len=8, time="start", freq="M"))
    assert stored.channels == data.channels
    for one, other in zip(stored.table.series, data.table.series, strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.values, other.values)
        np.testing.assert_allclose(one.covariates, other.covariates)


@pytest.mark.parametrize(
    ("freq", "name", "features"),
    [("15min", "900s", 6), ("h", "3600s", 6), ("D", "86400s", 4), ("W", "604800s", 2), ("MS", "MS", 2), ("ME", "MS", 2),
     ("QS", "QS", 2), ("YS", "YS", 0), ("B", "B", 4)],
)  # fmt: skip
def test_frequencies_are_found_and_told(freq, name, features):
    times = pd.date_range("2023-01-02", periods=40, freq=freq)
    found = find_frequency([times])
    assert str(found) == name and parse_frequency(name) == found
    np.testing.assert_array_equal(found.places(times), np.arange(40))
    assert len(found.features(times)) == features
    again = found.times(times[0], 40)
    assert (found.places(again) == np.arange(40)).all()
    if freq != "ME":
        assert (again == times).all() or name in ("QS", "YS", "MS")


def test_a_gap_is_a_row_that_is_missing():
    frame = hours(60).drop(index=[7, 8, 30])
    table = to_table(frame, config_of(time="time", target=("load",)))
    values = table.series[0].values[:, 0]
    assert len(values) == 60 and np.isnan(values).nonzero()[0].tolist() == [7, 8, 30]
    assert not np.isnan(table.series[0].covariates).any()  # the calendar says what they were


@pytest.mark.parametrize("split", ["validation", "test", "all"])
def test_every_value_of_a_split_is_predicted_once(split):
    config = config_of(time="time", series="place", target=("load",))
    data = make_series(to_table(several(), config), config, whole=split == "all")
    scored = data.scored[split]
    for number, series in enumerate(data.table.series):
        counts = np.zeros(len(series.values), int)
        for _, start, first, stop in scored[scored[:, 0] == number].tolist():
            assert 0 <= start <= first < stop <= start + 16
            counts[first:stop] += 1
        cut = [0, len(series.values)] if split == "all" else [data.cuts[number, 0], data.cuts[number, 1]]
        end = len(series.values) if split in ("all", "test") else cut[1]
        begin = {"validation": cut[0], "test": data.cuts[number, 1], "all": 0}[split]
        assert (counts[begin:end] == 1).all() and counts.sum() == end - begin
    total = sum(int((~b["targets"][..., 0].isnan()).sum()) for b in data.windows(split, 4))
    assert total == sum(stop - first for _, _, first, stop in scored.tolist())


def test_splits_are_cut_at_one_time():
    """Series that start later are cut at the same hour; windows of train end before it."""
    late = hours(60, "2024-01-03").assign(place="late")
    frame = pd.concat([hours(108).assign(place="long"), late], ignore_index=True)
    config = config_of(time="time", series="place", target=("load",))
    data = make_series(to_table(frame, config), config)
    assert (data.cuts[0] - data.cuts[1]).tolist() == [48, 48]
    index = np.arange(data.count("train"))
    numbers = np.searchsorted(data.first, index, side="right") - 1
    stops = np.minimum(index - data.first[numbers] + 16, data.cuts[numbers, 0])
    assert (stops <= data.cuts[numbers, 0]).all() and stops.max() == data.cuts[0, 0]


def test_a_window_is_the_series_read_by_hand():
    config = config_of(time="time", series="place", target=("load", "warm"), covariates=("kind",))
    data = make_series(to_table(several(), config), config)
    batch = data.sequences("test", np.arange(data.count("test")))
    for row, (number, start, first, stop) in enumerate(data.scored["test"].tolist()):
        series, state = data.table.series[number], scale.begin(data.channels, 1)
        assert batch["targets"][row, 0].isnan().all()
        before = torch.full((2,), torch.nan, dtype=torch.float64)
        for step in range(16):
            if start + step >= stop:
                assert not batch["real"][row, step] if "real" in batch else True
                continue
            x = torch.cat([before, torch.from_numpy(series.covariates[start + step])])[None]
            state = scale.update(data.channels, state, x[:, :2])
            torch.testing.assert_close(batch["tokens"][row, step], scale.read(data.channels, state, x)[0])
            level, size = scale.measures(data.channels, state)
            target = batch["targets"][row, step + 1]
            if first <= start + step:
                said = target[:2] * size[0] + level[0]
                torch.testing.assert_close(said, torch.from_numpy(series.values[start + step]), atol=1e-4, rtol=1e-4)
            else:
                assert target[:2].isnan().all()
            before = torch.from_numpy(series.values[start + step])


def test_batches_follow_from_seed_step_and_rank():
    data = series_data(several(), time="time", series="place", target=("load",), seq_len=16)
    one, same, other = (data.batch(0, step, 0, 5) for step in (3, 3, 4))
    assert all(torch.equal(one[k].nan_to_num(9.0), same[k].nan_to_num(9.0)) for k in one)
    assert not torch.equal(one["tokens"], other["tokens"])


def test_short_series_are_padded():
    frame = several((200, 9, 200))
    data = series_data(frame, series="place", target=("load",), seq_len=16)
    index = int(data.first[1])
    batch = data.sequences("train", np.array([index]))
    assert batch["real"].sum() == 7 and (batch["tokens"][0, 7:] == 0).all()
    assert batch["targets"][0, 8:, 0].isnan().all()


def test_values_of_all_sizes_have_one_size_for_the_model():
    rng = np.random.default_rng(0)
    parts = [10.0**k * (5 + rng.normal(size=120)) for k in (-3, 0, 3)]
    data = series_data(np.stack(parts)[..., None], seq_len=16)
    z = data.batch(0, 0, 0, 64)["targets"][..., 0]
    assert z.nan_to_num(0.0).abs().quantile(0.95) < 8


@pytest.mark.parametrize(
    "values",
    [np.ones((80, 1)), np.zeros((80, 1)), np.r_[np.zeros(40), np.ones(40)][:, None], np.full((80, 1), 1e30),
     np.where(np.arange(80) % 3 == 0, np.nan, 5.0)[:, None], np.where(np.arange(80) == 70, 1e5, 1.0)[:, None]],
    ids=["constant", "zero", "step", "1e30", "missing", "outlier"],
)  # fmt: skip
def test_odd_series_give_finite_tokens_and_targets(values):
    data = series_data(values, seq_len=16)
    for split in ("train", "validation", "test"):
        for batch in data.windows(split, 64):
            assert batch["tokens"].isfinite().all()
            assert (batch["targets"].isfinite() | batch["targets"].isnan()).all()


BAD = {
    "no column": (hours(), {"target": ("lod",)}, "data.target: 'lod' is not among the columns time, load, warm"),
    "no series": (hours(), {"series": "place", "target": ("load",)}, "data.series: 'place' is not among"),
    "two numbers": (hours(), {"time": "time"}, r"data.target: 2 columns hold numbers \(load, warm\); name those"),
    "no number": (several(), {"target": ("kind",)}, "data.target: 'kind' holds 'kind 0' in row 1, which is no number"),
    "out of order": (
        hours().iloc[::-1], {"time": "time", "target": ("load",)},
        "data.time: 'time' goes from 2024-01-09 07",
    ),
    "twice": (
        several(), {"time": "time", "target": ("load",)},
        "give each time once .name the series with --data.series",
    ),
    "mixed": (
        pd.concat([hours(50), hours(20, "2024-01-04", "7min")]), {"time": "time", "target": ("load",)},
        r"lies between two steps of 3600s; give series of one frequency",
    ),
    "one point": (hours(1), {"time": "time", "target": ("load",)}, "data.freq: no series has two times"),
    "a row": (hours(1), {"target": ("load",)}, r"data.split: .* leaves validation no value"),
    "no row": (hours(0), {"target": ("load",)}, "data.path: the table has no rows"),
    "all missing": (hours().assign(load=np.nan), {"target": ("load",)}, "'load' holds no value, all are missing"),
    "infinity": (hours().assign(load=np.inf), {"target": ("load",)}, "'load' holds inf in row 1; leave it empty"),
    "1e30": (
        hours().assign(load=np.where(np.arange(200) == 3, 1e30, 1.0)), {"target": ("load",)},
        r"'load' holds 1e\+30, and its values are about 1; leave it empty if it stands for a missing value",
    ),
    "1e308": (hours().assign(load=1e308), {"target": ("load",)}, r"'load' holds 1e\+308"),
    "negative counts": (
        hours().assign(load=-1.0), {"target": ("load",), "head": "negative_binomial"},
        "data.head: negative_binomial is for a count 0, 1, …, and 'load' holds -1; give another",
    ),
    "no bit": (
        hours(), {"target": ("load",), "head": "bernoulli"},
        "data.head: bernoulli is for 0 or 1, and 'load' holds 10",
    ),
    "no class": (
        hours(), {"target": ("load",), "head": "categorical"},
        "is for a category 0 … 65535, and 'load' holds 10.",
    ),
    "no time": (several(), {"time": "kind", "target": ("load",)}, "data.time: 'kind' does not hold times"),
    "half a step": (hours(), {"time": "load", "target": ("warm",)}, "data.time: 'load' holds .* give whole numbers"),
    "empty time": (
        hours().assign(time=lambda f: f.time.where(f.index != 4)), {"time": "time", "target": ("load",)},
        "data.time: 'time' is empty in row 5",
    ),
    "a wrong freq": (
        hours(), {"time": "time", "target": ("load",), "freq": "fortnight"},
        "data.freq: 'fortnight' is not a freq",
    ),
    "far": (
        pd.concat([hours(20), hours(1, "2090-01-01")]), {"time": "time", "target": ("load",)},
        "21 rows span .* steps of 3600s; give data.freq",
    ),
    "freq alone": (hours(), {"target": ("load",), "freq": "h"}, "data.freq: h needs a column of times; name it"),
    "scale of classes": (
        hours(),
        {"target": ("load",), "head": "bernoulli", "scale": "running"},
        "data.scale: running does not go with the head bernoulli; leave it out",
    ),
    "time as target": (hours(), {"time": "time", "target": ("time",)}, "data.target: 'time' is named twice"),
    "target as covariate": (
        hours(), {"target": ("load",), "covariates": ("load",)},
        "data.covariates: 'load' is also time or",
    ),
    "columns of an array": (np.zeros((9, 1)), {"target": ("load",)}, "an array has no columns, and .* names one"),
    "four axes": (np.zeros((2, 2, 2, 2)), {}, "an array of float64 of shape .* is no series"),
    "words": (np.array(["a", "b"]), {}, "an array of <U1"),
    "no record": ([], {}, "there are no records"),
    "no target": ([{"start": "2024"}], {}, "target: record 0 has none"),
    "ragged": ([{"target": [[1, 2], [3]]}], {}, "target: record 0 does not hold numbers"),
    "short features": (
        [{"target": [1.0] * 9, "feat_dynamic_real": [[1.0] * 5]}], {},
        "feat_dynamic_real: record 0 has 5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name):
    source, fields, message = BAD[name]
    with pytest.raises(UserError, match=message) as found:
        series_data(source, seq_len=16, **fields)
    assert "\n" not in str(found.value)


FILES = {
    "x.xls": (b"", "ends in none of .csv"),
    "x.csv": (b"", "cannot be read as its ending says"),
    "x.parquet": (b"PAR1", "cannot be read as its ending says"),
    "x.npy": (b"no", "cannot be read as its ending says"),
    "x.json": (b"{", "cannot be read as its ending says"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_none(name, tmp_path):
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_table(config_of(path=str(tmp_path / name)))
    with pytest.raises(UserError, match="absent"):
        read_table(config_of(path=str(tmp_path / f"absent{name[1:]}"))) if name != "x.xls" else read_table(
            config_of(path="absent.csv")
        )


def test_series_that_are_alike_and_stand_still_have_one_level_and_scale():
    rng = np.random.default_rng(0)
    still = 5 + rng.normal(size=(3, 200, 1))
    assert series_data(still, seq_len=16).channels.scale == "fixed"
    trend = still + np.arange(200)[:, None] / 20
    unlike = still + np.array([0.0, 3.0, 9.0])[:, None, None]
    wider = still * np.array([1.0, 9.0, 30.0])[:, None, None]
    assert {series_data(x, seq_len=16).channels.scale for x in (trend, unlike, wider)} == {"level"}
    assert series_data(still, seq_len=16, scale="running").channels.scale == "level"
    assert series_data(trend, seq_len=16, scale="fixed").channels.scale == "fixed"
    z = series_data(still, seq_len=16).batch(0, 0, 0, 64)["targets"][..., 0]
    assert abs(float(z.nanmean())) < 0.1 and 0.9 < float(z.abs().nanmean()) < 1.1


def test_counts_are_measured_from_zero_even_by_a_fixed_scale():
    counts = np.random.default_rng(0).poisson(4, (200, 1)).astype(float)
    data = series_data(counts, seq_len=16, head="negative_binomial", scale="fixed")
    assert data.channels.level == (0.0,) and 3 < data.channels.spread[0] < 5
    targets = data.sequences("test", np.array([0]))["targets"][0, 1:]
    first, start = (data.scored["test"][0, i] for i in (2, 1))
    said = (targets[first - start :, 0] * targets[first - start :, 1]).tolist()
    np.testing.assert_allclose(said[:4], counts[first : first + 4, 0], atol=1e-5)


def test_a_cycle_that_training_did_not_go_through_is_hidden():
    """The place in the year of some months of hours would only lead astray in the months after."""
    data = make_series(from_frame(hours(24 * 60), config_of(time="time", target=("load",))), config_of(time="time"))
    channels = data.channels
    rows = torch.zeros(1, 30, channels.row, dtype=torch.float64)
    rows[..., 1:] = torch.from_numpy(data.table.series[0].covariates[:30])
    tokens, *_ = scale.read_rows(channels, rows, scale.begin(channels, 1))
    moves = dict(zip(channels.covariates, tokens[0, :, 5:].std(0), strict=False))  # after a value's own five numbers
    assert all(moves[f"year {part}"] < 1e-20 for part in ("sin", "cos"))
    assert all(moves[f"{cycle} {part}"] > 0.1 for cycle in ("day", "week") for part in ("sin", "cos"))
    assert parse_frequency("D").unseen(364) == {"year sin", "year cos"} and not parse_frequency("D").unseen(365)
