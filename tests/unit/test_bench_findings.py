"""What a benchmark found survives its file, and is shown as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import charts, report
from tests.bench.findings import Chart, Claim, Findings, Report, Series, Table, ratio
from tests.bench.text import as_text

FOUND = Report(
    "bandwidth",
    "python -m tests.bench bandwidth",
    "2026-01-02",
    (("kernel", "Linux 6.18"),),
    90.0,
    Findings(
        tables=(
            Table("rates", ("mbps", "share"), (("10", 99.95), ("100", None)), digits=1, note="of the limit"),
        ),
        charts=(
            Chart("lines", "rates", "limit", "%", (Series("tbf", (10.0, 100.0), (99.0, 101.0)),), log_x=True),
            Chart(
                "bars",
                "rates",
                "limit",
                "%",
                (Series("tbf", ("10",), (99.0,), (98.0,), (100.5,)),),
                goals=(100,),
            ),
        ),
        claims=(Claim("error", 1.5, 2, " %"), Claim("speed-up", 4.0, 5, "×", is_least=True)),
        notes=("A note.",),
    ),
)


def test_a_report_is_the_same_after_its_file() -> None:
    assert Report.from_json(json.loads(json.dumps(FOUND.to_json()))) == FOUND


def test_a_terminal_shows_tables_claims_and_notes() -> None:
    text = as_text(FOUND)
    assert "mbps  share\n10    100.0\n100       –\nof the limit\n" in text
    assert "met    error: 1.5 %, at most 2 %\n" in text
    assert "MISSED speed-up: 4×, at least 5×\n" in text
    assert text.endswith("A note.\n")


def test_the_same_findings_make_the_same_charts(tmp_path: Path) -> None:
    first = [path.read_text() for path in charts.draw(FOUND, tmp_path / "a", "bandwidth")]
    second = [path.read_text() for path in charts.draw(FOUND, tmp_path / "b", "bandwidth")]
    assert first == second
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"bandwidth-lines.svg", "bandwidth-bars.svg"}


def test_the_report_names_the_command_above_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "bandwidth.json").write_text(json.dumps(FOUND.to_json()))
    for name, value in (("FOLDER", tmp_path), ("RESULTS", results), ("CHARTS", tmp_path / "charts")):
        monkeypatch.setattr(report, name, value)
    assert report.main() == 0
    text = (tmp_path / "REPORT.md").read_text()
    assert "| ✗ | speed-up ([bandwidth](#bandwidth)) | 4× | ≥ 5× |" in text
    part = text[text.index("## bandwidth") :]
    assert (
        part.index(FOUND.command)
        < part.index("![rates](charts/bandwidth-lines.svg)")
        < part.index("| 10 | 100.0 |")
    )


def test_without_results_there_is_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.main() == 1
    assert "make bench" in capsys.readouterr().err


def test_a_ratio_of_medians_lies_in_its_interval() -> None:
    found = ratio([10, 11, 12, 30], [5, 5, 6, 5])
    assert (found.value, found.low <= found.value <= found.high) == (2.3, True)
    assert ratio([1.0], [0.0]).value > 1e6
