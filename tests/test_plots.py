"""The pictures: one point a mode, their own figures, and no global state."""

import subprocess
import sys

import pytest
from matplotlib.axes import Axes

from gradlab import plots
from gradlab.comparison import Comparison, Row

RESULT = Comparison(
    "jacobian",
    "f",
    (
        Row("forward", "ok", 2e-3, peak_bytes=4096),
        Row("reverse", "wrong", 4e-3, peak_bytes=9000),
        Row("other", "unsupported", reason="none"),
    ),
    "forward",
    1e-3,
    "cpu",
)


def test_a_comparison_has_one_point_for_each_mode_that_ran_and_hollow_ones_where_wrong():
    ax = plots.comparison(RESULT)
    assert isinstance(ax, Axes)
    right, wrong = ax.collections
    assert right.get_facecolors().size and not wrong.get_facecolors().size
    assert right.get_offsets().tolist() == [[4096, 2e-3]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["forward", "reverse (wrong)"]
    assert "bytes" in ax.get_xlabel() and "[s]" in ax.get_ylabel()


def test_it_draws_on_the_axes_given():
    ax = plots.axes()
    assert plots.comparison(RESULT, ax) is ax


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_a_sheet_has_one_picture_for_each_comparison(count):
    figure = plots.sheet([RESULT] * count)
    assert sum(ax.axison for ax in figure.axes) == count


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_images_are_of_the_kind_asked_for(kind, start):
    assert plots.image(plots.sheet([RESULT]), kind).startswith(start)


def test_svg_is_one_element():
    drawn = plots.svg(RESULT)
    assert drawn.startswith("<svg") and drawn.rstrip().endswith("</svg>")


def test_pyplot_is_never_loaded():
    code = "import sys, gradlab.plots; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_picture_has_the_same_bytes(kind):
    def drawn():
        ax = plots.axes()
        ax.plot([1, 2], [3, 4], label="a line")
        ax.legend()
        return plots.image(ax.figure, kind)

    assert drawn() == drawn()
