"""Charts: ticks, smoothing, and what the SVG says."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unveil.reporting.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Line,
    chart_file,
    line_chart,
    log_ticks,
    nice_ticks,
    smoothed,
)

SIZES = st.floats(1e-6, 1e6)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_inside_rising_and_few(low, share):
    size = share * max(abs(low), 1e-6)
    high = low + size
    ticks = nice_ticks(low, high)
    assert ticks == sorted(set(ticks))
    assert 2 <= len(ticks) <= 12
    assert all(low - 1e-6 * size <= t <= high + 1e-6 * size for t in ticks)


@given(SIZES, st.floats(1.1, 1e9))
def test_log_ticks_are_inside(low, ratio):
    ticks = log_ticks(low, low * ratio)
    assert 2 <= len(ticks) <= 14
    assert all(low * 0.999 <= t <= low * ratio * 1.001 for t in ticks)


def test_smoothing_keeps_straight_lines_and_lowers_noise():
    line = np.linspace(3, -2, 101)
    assert np.allclose(smoothed(line, 7), line)
    noise = np.random.default_rng(0).standard_normal(400)
    assert smoothed(noise, 20).std() < 0.4
    assert abs(smoothed(noise, 20)[-1]) < 1.0
    assert np.allclose(smoothed(np.array([2.0]), 3), [2.0])


def points(svg: str) -> list[tuple[float, float]]:
    path = re.search(r'<path d="M([^"]+)" class="line', svg)
    assert path
    return [tuple(map(float, p.split())) for p in path[1].split("L")]  # type: ignore[misc]


@pytest.mark.parametrize("is_log", [False, True])
def test_a_line_fills_the_plot_and_stays_inside(is_log):
    drawn = points(line_chart("Loss", [Line("a", range(50), np.geomspace(5, 0.1, 50))], is_log=is_log) or "")
    assert drawn[0][0] == LEFT
    assert drawn[-1][0] == RIGHT
    ys = [y for _, y in drawn]
    assert ys == sorted(ys)
    assert TOP <= min(ys) < TOP + 25
    assert BOTTOM - 25 < max(ys) <= BOTTOM


def test_gaps_and_infinities_are_left_out():
    chart = line_chart("Loss", [Line("a", [0, 1, 2, 3], [1, math.nan, math.inf, 2])])
    assert chart
    assert len(points(chart)) == 2
    assert "nan" not in chart
    assert line_chart("Loss", [Line("a", [0, 1], [math.nan, math.nan])]) is None
    assert line_chart("Loss", []) is None


def test_one_point_and_constant_lines_are_drawn():
    assert "<circle" in (line_chart("RankMe", [Line("a", [3], [7.0])]) or "")
    assert points(line_chart("Memory", [Line("a", [0, 1], [0.0, 0.0])], from_zero=True) or "")


def test_a_very_long_line_keeps_its_spike():
    y = np.ones(20_000)
    y[12_345] = 50
    drawn = points(line_chart("Loss", [Line("a", range(20_000), y)]) or "")
    assert len(drawn) < 500
    assert min(y for _, y in drawn) < TOP + 20


def test_several_runs_have_a_legend_colours_and_a_spoken_summary():
    chart = line_chart("Loss", [Line("a", [0, 1], [3, 2]), Line("b & c", [0, 1], [3, 1], 1)], offers_log=True) or ""
    assert "a from 3.00 to 2.00; b &amp; c from 3.00 to 1.00</title>" in chart
    assert chart.count('role="img"') == 2
    assert 'class="key s1"' in chart
    assert 'type="checkbox"' in chart
    assert 'type="checkbox"' not in (line_chart("Loss", [Line("a", [0, 1], [-1, 1])], offers_log=True) or "")


def test_charts_in_a_file_of_their_own_are_side_by_side_with_one_key_a_name():
    lines = [Line("mae", (1, 10), (40, 50)), Line("pixels", (0, 10), (45, 45), 1, is_dashed=True)]
    root = ElementTree.fromstring(chart_file([("linear, %", lines), ("k-NN, %", lines[:1])], x_label="minutes"))
    name = "{http://www.w3.org/2000/svg}"
    first, second = root.findall(f"{name}svg")
    assert float(first.attrib["x"]) + float(first.attrib["width"]) == float(second.attrib["x"])
    assert float(second.attrib["x"]) + float(second.attrib["width"]) <= float(root.attrib["width"])
    words = [element.text for element in root.findall(f"{name}text")]
    assert words == ["linear, %", "k-NN, %", "mae", "pixels"]
    with pytest.raises(ValueError, match="the chart 'none' has no values"):
        chart_file([("none", [Line("a", (1.0,), (math.nan,))])])


def test_a_chart_in_a_file_can_have_a_logarithmic_horizontal_axis():
    points = (1.0, 10.0, 100.0)
    root = ElementTree.fromstring(chart_file([("accuracy", [Line("a", points, (1, 2, 3))])], is_log_x=True))
    name = "{http://www.w3.org/2000/svg}"
    across = [float(dot.attrib["cx"]) for dot in root.iter(f"{name}circle")]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)
    assert {"1", "10", "100"} <= {element.text for element in root.iter(f"{name}text")}
    with pytest.raises(ValueError, match="'accuracy' has values of x that are not above 0"):
        chart_file([("accuracy", [Line("a", (0.0, 1.0), (1, 2))])], is_log_x=True)
