"""What people read: exact units, escaped HTML, strict JSON, and files that are replaced whole or not at all."""

import json
import os

import pytest

from gradlab import report
from gradlab.comparison import Comparison, Row

ROWS = (
    Row("forward", "ok", 2e-3, 0.1, 0.5, 1e6, 2e6, 4096, 2.0, 1e-8),
    Row("reverse", "ok", 4e-3, 0.1, 0.5, None, None, None, 4.0, 2e-8),
    Row("other", "unsupported", reason="no <rule> here"),
)


def comparison(name="f", of="jacobian", rows=ROWS, auto="reverse"):
    return Comparison(of, name, rows, auto, 1e-3, "cpu: test")


def test_units_are_chosen_by_size():
    assert [report.seconds(s) for s in (2.0, 1e-3, 1e-6, 5e-9, None)] == ["2 s", "1 ms", "1 µs", "5 ns", ""]
    assert [report.count(n, "B") for n in (999, 1e3, 2.5e9)] == ["999 B", "1 kB", "2.5 GB"]


def test_text_has_every_row_and_reason_and_the_price_of_auto():
    text = report.text(comparison())
    for word in ("forward", "reverse", "no <rule> here", "best forward", "auto reverse (2.00 × the best)"):
        assert word in text


def test_html_escapes_what_it_shows():
    page = report.page("a <title>", [comparison(name="<b>")])
    assert "<b>" not in page and "&lt;b&gt;" in page and "&lt;title&gt;" in page and "no &lt;rule&gt; here" in page


def test_html_loads_nothing():
    page = report.page("t", [comparison(), comparison()])
    for word in ("<script", "<link", "src=", "@import", "url(http"):
        assert word not in page


def test_summary_counts_the_winners_and_the_price_of_the_default():
    slow = (Row("forward", "ok", 9.0), Row("reverse", "ok", 1.0))
    unable = (Row("forward", "ok", 1.0), Row("reverse", "unsupported"))
    lines = " ".join(report.summary([comparison("a"), comparison("b", rows=slow), comparison("c", rows=unable)]))
    assert "forward 2 (a, c)" in lines and "reverse 1 (b)" in lines
    assert "2.0 × at worst (a)" in lines and "was not timed, or was wrong, on c" in lines


def test_a_comparison_without_a_right_mode_says_so():
    wrong = comparison(rows=(Row("forward", "wrong", 1.0, reason="off"),))
    assert "no mode is right" in str(wrong)
    assert "none 1 (f)" in " ".join(report.summary([wrong]))


def test_json_is_strict():
    text = report.to_json({"a": [float("inf"), float("nan"), 1.5, None, "x"], "b": {"c": True}})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, None, 1.5, None, "x"], "b": {"c": True}}


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "out.json"
    report.write_atomically(path, "old")
    path.chmod(0o600)
    report.write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["out.json"]


def test_an_interruption_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "out.html"
    path.write_text("old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.html"]
