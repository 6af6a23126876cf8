"""docs/series.md: its commands and code, run in their order on a small table, with short budgets."""

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd

from retain.cli import main

PAGE = (Path(__file__).parents[2] / "docs/series.md").read_text(encoding="utf-8")


def table(count, horizon=0):
    parts = []
    for place, level in (("north", 20.0), ("south", 500.0)):
        wave = level * (1 + 0.2 * np.sin(np.arange(count) * 2 * np.pi / 24))
        wave[count - horizon :] = np.nan
        times = pd.date_range("2024-01-01", periods=count, freq="h")
        parts.append(pd.DataFrame({"time": times, "place": place, "load": wave, "holiday": times.day_of_week > 4}))
    return pd.concat(parts)


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table(800).to_csv("load.csv", index=False)
    table(224, horizon=24).to_csv("next.csv", index=False)
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    assert [re.search(r"retain (\w+)", line)[1] for line in lines] == [
        *("train", "eval", "forecast", "score", "report"), "score", "train",
    ]  # fmt: skip
    small = {"train": ["--tracker", "None", "--quiet"], "eval": ["--limit", "8"]}
    for line in lines:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(Path("load.csv").read_text().splitlines()[:9])))
        argv = ["4steps" if word == "60s" else word for word in line.partition("retain ")[2].split()]
        main(argv + small.get(argv[0], []))
        assert capsys.readouterr().out.strip(), line
    assert len(pd.read_parquet("forecast.parquet")) == 48 and Path("forecast.png").exists()
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    exec(compile(code, "series.md", "exec"), {"__name__": "page"})
    assert "(100, 24, 1)" in capsys.readouterr().out
