# SPDX-License-Identifier: Apache-2.0
"""Plots of histograms."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from ghostbpf.tools.trace.histogram import Histogram
from ghostbpf.tools.trace.report import HistogramSection
from ghostbpf.tools.trace.tracer import constant
from tracing import objects, run_trace

plot = pytest.importorskip("ghostbpf.tools.trace.plot", reason="--plot needs matplotlib")

_SVG = "{http://www.w3.org/2000/svg}svg"
_PNG = b"\x89PNG\r\n\x1a\n"


def words(path: Path) -> str:
    """The SVG, in which matplotlib writes each text that it draws as a comment."""
    assert ElementTree.parse(path).getroot().tag == _SVG
    return path.read_text()


@pytest.mark.usefixtures("bcc")
class TestCommand:
    def test_one_report_is_drawn_as_bars(self, tmp_path: Path) -> None:
        picture = tmp_path / "waits.svg"
        done = run_trace("runqlat", "--plot", picture, "-d", "0.2")
        assert done.returncode == 0, done.stderr
        assert "distribution" in done.stdout
        assert all(f"<!-- {word} -->" in words(picture) for word in ("runqlat: wait", "usecs, from", " p99"))
        assert "<!-- seconds -->" not in words(picture)

    def test_several_reports_are_drawn_as_a_heat_map_over_time(self, tmp_path: Path) -> None:
        picture = tmp_path / "runs.svg"
        done = run_trace("cpudist", "-m", "--plot", picture, "0.1", "3")
        assert done.returncode == 0, done.stderr
        assert all(f"<!-- {word} -->" in words(picture) for word in ("cpudist: time", "seconds", "msecs", "count"))

    @pytest.mark.parametrize("reports", [1, 3])
    def test_queue_lengths_are_drawn_as_well(self, tmp_path: Path, reports: int) -> None:
        picture = tmp_path / "queues.svg"
        done = run_trace("runqlen", "--plot", picture, "0.1", reports)
        assert done.returncode == 0, done.stderr
        expected = ("runqlen: runqlen", "runqlen, from" if reports == 1 else "seconds")
        assert all(f"<!-- {word} -->" in words(picture) for word in expected)

    def test_suffix_tells_the_format(self, tmp_path: Path) -> None:
        picture = tmp_path / "runs.png"
        assert run_trace("cpudist", "--plot", picture, "--", "true").returncode == 0
        assert picture.read_bytes().startswith(_PNG)

    def test_lines_of_json_are_drawn_as_well(self, tmp_path: Path) -> None:
        picture = tmp_path / "runs.svg"
        done = run_trace("cpudist", "--json", "--plot", picture, "-d", "0.2")
        assert objects(done.stdout)[-1]["events"] > 0
        assert "<!-- cpudist: time -->" in words(picture)

    def test_empty_trace_leaves_no_file(self, tmp_path: Path) -> None:
        picture = tmp_path / "none.svg"
        done = run_trace("schedghostidle", "--plot", picture, "-d", "0.1")
        assert done.returncode == 0
        assert "nothing to draw" in done.stderr
        assert not picture.exists()

    @pytest.mark.parametrize("name", ["waits.pdf", "waits", "missing/waits.svg", "directory.svg"])
    def test_unwritable_file_is_refused_before_the_trace_begins(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "directory.svg").mkdir()
        done = run_trace("runqlat", "--plot", tmp_path / name, "--", "touch", tmp_path / "ran")
        assert (done.returncode, done.stdout) == (2, "")
        assert "--plot" in done.stderr
        assert not (tmp_path / "ran").exists()


def section(owner: int, count: int) -> HistogramSection:
    counts = [0] * constant("HIST_BUCKETS")
    counts[80] = count
    return HistogramSection("wait", Histogram(1_000, tuple(counts), count * 2_000, 2_000), by={"pid": owner})


def test_busiest_histograms_are_drawn_where_there_are_many(tmp_path: Path) -> None:
    many = [section(owner, count=owner) for owner in range(1, 2 * plot.MOST + 1)]
    plot.draw(tmp_path / "many.svg", "runqlat", [(1.0, many)])
    drawn = {line.partition("pid = ")[2] for line in words(tmp_path / "many.svg").splitlines() if "pid = " in line}
    assert drawn == {f"{owner} -->" for owner in range(plot.MOST + 1, 2 * plot.MOST + 1)}


def test_histogram_that_is_not_in_every_report_is_drawn(tmp_path: Path) -> None:
    plot.draw(tmp_path / "gaps.svg", "runqlat", [(1.0, []), (0.5, [section(1, 5)]), (1.0, [section(2, 5)])])
    assert all(f"pid = {owner} -->" in words(tmp_path / "gaps.svg") for owner in (1, 2))
