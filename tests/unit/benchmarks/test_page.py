"""The page of the benchmarks' results, and its plots."""

import itertools
import json
import xml.etree.ElementTree as ET

import pytest


@pytest.fixture
def measured(benchmarks):
    """Two points of a curve, at the second of which one peer is missing, and a row that belongs to none."""
    compare = benchmarks("rows").compare
    curve = {"curve": "Calls & payloads", "unit": "s"}
    return [
        compare("calls", "call, 1 B", [1e-6], "one", [1e-3], **curve, point="1 B"),
        compare("calls", "call, 1 B", [1e-6], "two", [1e-4], **curve, point="1 B"),
        compare("calls", "call, 1 KiB", [2e-6], "one", [2e-3], **curve, point="1 KiB"),
        compare("calls", "call, 1 KiB", [2e-6], "no two: a | in the reason", **curve, point="1 KiB"),
        compare("other", "something", [3.0], unit="B"),
    ]


@pytest.fixture
def results(benchmarks, measured):
    rows = [benchmarks("reporting").as_json(row) for row in measured]
    return {"machine": benchmarks("machine").facts(), "load_average_after": (0.0, 0.0, 0.0), "quick": False, "rows": rows}


def test_a_curve_has_a_line_for_each_side_with_gaps_where_it_was_not_measured(benchmarks, measured):
    page = benchmarks("page")
    curves = page.curves(measured)
    assert list(curves) == ["Calls & payloads"]
    assert page.lines(curves["Calls & payloads"]) == {"shmwasm": [1e-6, 2e-6], "one": [1e-3, 2e-3], "two": [1e-4, None]}


def test_a_point_that_the_others_are_compared_with_is_no_line_of_its_own(benchmarks):
    compare = benchmarks("rows").compare
    rows = [
        compare("flat", "one", [1.0], curve="flat", point="1"),
        compare("flat", "two", [1.1], "1", [1.0], curve="flat", point="2"),
    ]
    assert benchmarks("page").lines(rows) == {"shmwasm": [1.0, 1.1]}


def test_a_page_holds_all_rows_and_a_plot_for_each_curve_and_nothing_of_the_page_before(benchmarks, measured, results, tmp_path):
    (tmp_path / "former.svg").write_text("")
    benchmarks("page").write_page(tmp_path, measured, results)
    assert {path.name for path in tmp_path.iterdir()} == {"results.md", "results.json", "calls-payloads.svg"}
    page = (tmp_path / "results.md").read_text()
    assert "(calls-payloads.svg)" in page
    tables = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(tables) == 2 * 2 + len(measured)
    assert {line.count("|") for line in tables} == {8}
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == len(measured)


@pytest.mark.parametrize(("load", "said"), [(0.3, False), (5.0, True)])
def test_a_page_says_when_the_machine_was_busy(benchmarks, measured, results, tmp_path, load, said):
    results["machine"]["load_average"] = (load, load, load)
    benchmarks("page").write_page(tmp_path, measured, results)
    assert ("Other programs were running" in (tmp_path / "results.md").read_text()) is said


def test_a_plot_draws_what_is_faster_lower_and_names_each_line(benchmarks):
    lines = {"ours": [1e-6, 1e-6], "theirs": [1e-3, None], "absent": [None, None]}
    picture = ET.fromstring(benchmarks("plotting").plot("a < b", ["1", "2"], lines, "s"))
    space = "{http://www.w3.org/2000/svg}"
    assert picture.find(f"{space}title").text == "a < b"
    drawn = [line.get("points").split() for line in picture.iter(f"{space}polyline")]
    assert [len(points) for points in drawn] == [2, 1]
    heights = [float(points[0].partition(",")[2]) for points in drawn]
    assert heights[0] > heights[1]
    texts = [text.text for text in picture.iter(f"{space}text")]
    assert {"ours", "theirs", "1 µs", "1 ms"} <= set(texts)
    assert "absent" not in texts


@pytest.mark.parametrize("count", [1, 5, 11])
def test_names_of_lines_that_end_at_one_place_do_not_overlap_or_leave_the_plot(benchmarks, count):
    plotting = benchmarks("plotting")
    lines = {f"line {number}": [1.0] for number in range(count)}
    picture = ET.fromstring(plotting.plot("all alike", ["here"], lines, "s"))
    texts = picture.iter("{http://www.w3.org/2000/svg}text")
    heights = sorted(float(text.get("y")) for text in texts if text.text.startswith("line "))
    assert len(heights) == count
    assert all(after - before >= plotting.LABEL_DISTANCE for before, after in itertools.pairwise(heights))
    assert heights[0] > plotting.TOP
    assert heights[-1] <= plotting.HEIGHT
