"""The report of a made-up campaign folder: everything is in it, nothing is fetched, nothing breaks out of its place."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sciopt.campaign import JobResult
from sciopt.campaign.folder import Entry, Overview
from sciopt.campaign.results import publish, read_result
from sciopt.campaign.spec import Design, design_key
from sciopt.view import render_report, write_report

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c63f80f00010101001bb6ee560000000049454e44ae426082"
)
RUN = {
    "started": "2026-01-02 03:04:05",
    "seconds": 12.5,
    "threads": 2,
    "versions": {"sciopt": "9.8.7", "torch": "2.13.0", "python": "3.11.7"},
    "platform": "Testix-1.0",
    "cuda": "none",
}


def design(label: str, **options) -> Design:
    options = {"nx": 60, "filter": {"radius": 1.5}, **options}
    key = design_key("topology.compliance", "3", options, 5)
    return Design(key=key, label=label, problem="topology.compliance", version="3", options=options, seed=5)


@pytest.fixture
def seen(tmp_path) -> Overview:
    def finished(a_design: Design, status: str) -> Entry:
        result = JobResult(
            objective=203.19123,
            status=status,
            metrics={"volume [1]": 0.5, "ok": True},
            history={"step": [0, 1, 2], "objective": [1007.0, 300.0, 203.19123], "change": [0.2, 0.1, 0.01]},
            certificate={"inner_residual": 3.25e-13, "kkt_residual": 0.0041},
            arrays={"density": np.zeros((2, 3))},
            figures={"density": lambda path: path.write_bytes(PNG)},
            files={"design.stl": lambda path: path.write_bytes(bytes(12_345))},
            warnings=["mind the <gap>"],
        )
        publish(tmp_path, a_design, result, RUN)
        return Entry(design=a_design, state="DONE", result=read_result(tmp_path, a_design.key), attempts=1)

    return Overview(
        name="Beams & <bridges>",
        directory=tmp_path,
        entries=(
            finished(design("mbb", volume_fraction=0.5), "CONVERGED"),
            finished(design("mbb thin", volume_fraction=0.3), "MAX_STEPS"),
            Entry(
                design=design("broken", volume_fraction=0.1),
                state="FAILED",
                reason="ArithmeticError: K is <singular>",
                trace='File "x.py", line 3\n  <script>alert(1)</script>',
                attempts=3,
            ),
            Entry(design=design("waiting", volume_fraction=0.2), state="PENDING"),
            Entry(design=design("at work", volume_fraction=0.25), state="RUNNING", step=7, objective=400.0),
        ),
        removed=2,
        remarks=("The queue is missing.",),
        runner=None,
    )


class Checker(HTMLParser):
    """Tags that do not match, addresses, and the visible text."""

    VOID = {"meta", "link", "img", "line", "circle", "polyline", "br", "wbr"}

    def __init__(self):
        super().__init__()
        self.open, self.links, self.ids, self.text, self.scripts = [], [], [], [], 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        values = dict(attrs)
        self.links += [values[name] for name in ("src", "href") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text.append(data)


def test_report_holds_everything(seen):
    checker = Checker()
    html = render_report(seen)
    checker.feed(html)
    assert not checker.open
    text = " ".join(checker.text)
    for piece in (
        "Beams & <bridges>",
        "mbb thin",
        "203.191",
        "CONVERGED",
        "MAX_STEPS: The step budget is spent",  # the advice
        "3.25e-13",
        "0.0041",
        "inner_residual",
        "filter.radius",
        "mind the <gap>",
        "topology.compliance, version 3, seed 5",
        "9.8.7",
        "2.13.0",
        "3.11.7",
        "Testix-1.0",
        "2026-01-02 03:04:05",
        "12.5 s",
        "ArithmeticError: K is <singular>",
        "<script>alert(1)</script>",
        "Tried 3 times.",
        "not run yet",
        "running, at step 7 with objective 400",
        "2 finished designs of earlier specs",
        "The queue is missing.",
        "arrays.safetensors",
        "design.stl",
        "(12 kB)",
    ):
        assert piece in text, piece
    assert html.count("<svg") == 2 * 2
    assert html.count('<img alt="density of mbb" src="data:image/png;base64,') == 1


def test_report_is_self_contained_and_its_links_lead_somewhere(seen):
    checker = Checker()
    html = render_report(seen)
    checker.feed(html)
    assert checker.scripts == 1
    files = [link for link in checker.links if not link.startswith(("data:", "#"))]
    assert len(files) == 2 and all((seen.directory / link).stat().st_size == 12_345 for link in files)
    assert {link[1:] for link in checker.links if link.startswith("#")} == set(checker.ids)
    assert len(checker.ids) == len(set(checker.ids)) == 5
    assert not re.search(r"https?://|@import|url\(", html)


def test_table_shows_the_options_that_differ(seen):
    head = re.findall(r"<th><button>(.*?)</button>", render_report(seen).replace("<wbr>", ""))
    assert head[:5] == ["#", "design", "status", "objective", "volume_fraction"] and "nx" not in head
    assert "volume [1]" in head


def test_written_whole(seen):
    path = write_report(seen)
    assert path == seen.directory / "report.html" and path.read_text(encoding="utf-8").endswith("</html>\n")
    assert [item.name for item in Path(seen.directory).iterdir() if item.name.startswith(".")] == []


def test_empty_campaign_has_a_report_too(tmp_path):
    lone = Entry(design=design("waiting"), state="PENDING")
    html = render_report(Overview(name="n", directory=tmp_path, entries=(lone,), removed=0, remarks=(), runner=None))
    assert "not run yet" in html


def test_steps_are_those_that_the_problem_counts(tmp_path):
    a_design = design("counted")
    result = JobResult(objective=1.0, status="CONVERGED", metrics={"steps": 41}, history={"objective": [3.0, 2.0, 1.0]})
    publish(tmp_path, a_design, result, RUN)
    entry = Entry(design=a_design, state="DONE", result=read_result(tmp_path, a_design.key))
    seen = Overview(name="n", directory=tmp_path, entries=(entry,), removed=0, remarks=(), runner=None)
    table = render_report(seen).split("<tbody>")[1].split("</tbody>")[0]
    assert 'data-value="41"' in table and 'data-value="3"' not in table
