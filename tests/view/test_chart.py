import math
import xml.etree.ElementTree as ElementTree

import pytest

from sciopt.view.chart import line_chart, ticks


def curve(svg):
    """Pixel coordinates of each stretch of the curve."""
    found = ElementTree.fromstring(svg).iter("polyline")
    return [[tuple(map(float, point.split(","))) for point in item.attrib["points"].split()] for item in found]


def test_curve_goes_through_its_points():
    (points,) = curve(line_chart([0, 5, 10], [0.0, 50.0, 100.0], title="t", width=460, height=200))
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x0 < x1 < x2 and x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y0 > y1 > y2 and y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert (x0, y0) == (58.0, 174.0) and (x2, y2) == (448.0, 22.0)


def test_wide_ranges_are_logarithmic():
    (points,) = curve(line_chart([0, 1, 2], [1.0, 1e-3, 1e-6], title="t"))
    heights = [y for _, y in points]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)


def test_gaps_where_values_are_not_finite():
    svg = line_chart([0, 1, 2, 3, 4], [1.0, 2.0, math.nan, math.inf, 3.0], title="t")
    assert [len(part) for part in curve(svg)] == [2, 1]
    assert "no finite values" in line_chart([0, 1], [math.nan, math.nan], title="t")


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [1e-299, 1e299], [-1e9, 1e9], [5.0], [1e308, -1e308], [7.0, 7.0 + 1e-14]]
)
def test_odd_ranges_give_valid_pictures(values):
    svg = line_chart(list(range(len(values))), values, title="<b>&\"'")
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"].startswith("<b>&")
    assert "nan" not in svg and "inf" not in svg


def test_long_histories_are_thinned_and_keep_their_ends():
    (points,) = curve(line_chart(list(range(10_000)), [float(i) for i in range(10_000)], title="t"))
    assert len(points) == 400 and points[0] == (58.0, 174.0) and points[-1][0] == 448.0


def test_ticks_cover():
    assert ticks(0.0, 1.0) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(203.1, 203.2)[0] <= 203.1 and ticks(203.1, 203.2)[-1] >= 203.2
