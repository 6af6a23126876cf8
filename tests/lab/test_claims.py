"""`make claims`: every row is a comparison that can be run, and verdicts follow from the figures."""

import json
import re
import shlex

import pytest

from lab import claim_plots, claims
from lab.claims import comparisons, judge, line_of, main, page, sum_up
from lab.kept import find_comparison
from retain.cli.compare import parse_comparison
from retain.plots import METHODS


@pytest.fixture
def nothing_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(claims, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(claims, "PAGE", tmp_path / "claims.md")
    (tmp_path / "kept").mkdir()
    return tmp_path


def test_every_row_is_a_comparison_that_has_its_methods():
    rows = [row for claim in claims.claims() for row in claim.rows]
    for row in rows:
        for name, method in ((row.name, "one-step"), (row.other, row.method)):
            comparison, _, _ = parse_comparison(shlex.split(line_of(name)))
            named = "smt" if "--recipe one-step" in line_of(name) else method  # its recipe is the run's own then
            assert named in comparison.methods
            assert method != "one-step" or named == method or comparison.config.longest_gradient_path == 1
            assert comparison.seeds in (1, 3)
    used = {name for row in rows for name in (row.name, row.other)}
    assert used == set(comparisons())
    assert {claim.study for claim in claims.claims()} - {""} == set(claims.PLOTS)


def test_a_verdict_needs_more_than_noise_and_more_than_one_seed():
    assert judge([2.0, 2.1, 2.05], [2.4, 2.5, 2.45], higher_is_better=False) == "ahead"
    assert judge([2.0, 2.1, 2.05], [2.4, 2.5, 2.45], higher_is_better=True) == "behind"
    assert judge([2.0, 2.2, 2.1], [2.15, 2.05, 2.2], higher_is_better=False) == "level"
    assert judge([2.0], [2.4], higher_is_better=False) == "ahead (too few seeds for a claim)"
    assert sum_up(["ahead", "ahead"]) == ("holds", "2 of 2 rows run, 2 ahead")
    assert sum_up(["ahead", "level"]) == ("holds in part", "2 of 2 rows run, 1 ahead, 1 level")
    assert sum_up(["ahead", None]) == ("holds in part", "1 of 2 rows run, 1 ahead"), "the other row may say otherwise"
    assert sum_up(["behind", "level"]) == ("does not hold here", "2 of 2 rows run, 1 level, 1 behind")
    assert sum_up([None, "ahead (too few seeds for a claim)"]) == ("not tested yet", "1 of 2 rows run, 1 with one seed")


def test_figures_are_of_the_command_that_stands_there(nothing_kept):
    def keep(name, quality, settings):
        runs = [{"test": {"bits_per_token": quality + seed / 100}} for seed in range(3)]
        results = {"metric": "bits_per_token", "methods": {"one-step": {"runs": runs}, "bptt": {"runs": runs}}}
        saved = {"command": f"retain compare {line_of(name)}", "settings": settings, "results": results}
        (nothing_kept / "kept" / f"{name}.json").write_text(json.dumps(saved))

    assert "2.110" not in page()
    keep("text-gru", 2.1, find_comparison("text-gru", line_of("text-gru"), claims.KEPT).settings)
    assert "| text, GRU cell, T = 64, 240 s | 2.110 ± 0.010 | 2.110 ± 0.010 | +0.000 | level |" in page()
    keep("text-gru", 2.1, "of an older preset")
    assert "2.110" not in page()


def test_the_page_keeps_its_words_and_is_as_kept_figures_say(nothing_kept):
    claims.PAGE.write_text(
        "# Claims\n\nWords.\n\n<!-- claims begin -->\nthe figures of before\n<!-- claims end -->\n\nMore words.\n"
    )
    main(["--tables"])
    text = claims.PAGE.read_text()
    assert text.startswith("# Claims\n\nWords.") and text.endswith("More words.\n") and "of before" not in text
    assert "not run yet" in text
    assert (nothing_kept / "kept/claim-sequential-steps.png").exists(), "it needs no comparison"


def test_a_row_of_two_comparisons_is_one_picture_of_both_methods(nothing_kept):
    """On one scale, each in its colour, from whatever is kept."""
    row = next(row for claim in claims.claims() for row in claim.rows if row.name == "text-transformer")
    assert claim_plots.plot_rows([row], claims.kept) is None, "nothing is kept"

    def results(method, best):
        curve = [{"seconds": s, "bits_per_token": best + 1 / s} for s in (1, 2, 4)]
        runs = [{"curve": curve, "test": {"bits_per_token": best + seed / 10}} for seed in range(3)]
        return {"metric": "bits_per_token", "chance": None, "methods": {method: {"runs": runs}}}

    made = {row.name: results("one-step", 2.0), row.other: results("bptt", 4.0)}
    (axis,) = (axis for axis in claim_plots.plot_rows([row], made.get).axes if axis.get_visible())
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["one-step", "bptt"]
    colours = {line.get_color() for line in axis.lines}
    assert colours == {METHODS["one-step"], METHODS["bptt"]} and axis.get_ylim()[0] < 2 and axis.get_ylim()[1] > 5


def test_the_page_in_the_repository_is_what_the_kept_figures_make():
    text = claims.PAGE.read_text(encoding="utf-8")
    begin, end = claims.MARKS
    assert text.partition(begin)[2].partition(end)[0] == f"\n{page()}"
    for picture in re.findall(r"\]\((results/claims/[^)]*)\)", text):
        assert (claims.PAGE.parent / picture).exists(), f"{picture}: run python -m lab.claims --tables"
