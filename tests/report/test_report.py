"""The page: what is on it, that it is one file without requests, and that every call is counted."""

from __future__ import annotations

import csv
import dataclasses
import html
import html.parser
import io
import itertools
import json
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from edgecsi.bench.behaviour import Deadline, Periodic, Second, SelfCheck, Sustained
from edgecsi.bench.result import SCHEMA, Result, Validity
from edgecsi.cli import main
from edgecsi.errors import DataError, UsageError
from edgecsi.report import svg
from edgecsi.report.distribution import of_samples, of_summary
from edgecsi.report.export import as_csv, as_json, markdown
from edgecsi.report.html import html as as_html
from edgecsi.report.make import make_report
from edgecsi.report.read import Shown, read_shown
from tests import _results

DOCS = Path(__file__).parents[2] / "docs" / "results"


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; fails where a tag is not closed."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def page(tmp_path: Path, *results: Result, **options: str) -> str:
    paths = [_results.written(tmp_path, f"run{i}", result) for i, result in enumerate(results)]
    return as_html(make_report(read_shown(paths), **options))


def test_one_result_says_everything_in_order(tmp_path: Path) -> None:
    found = dataclasses.replace(
        _results.result(peer=500.0),
        deadline=Deadline(50.0, "p99", 73.0),
        commands=("edgecsi build csinet-cr4 --target host -o csinet",),
        program="int main(void) { return 0 < 1; }",
        c_call=_results.result().engines[0].warm,
        self_check=SelfCheck(_results.result(peer=45.0).comparisons[0].warm, 43.0, 43.2),
    )
    text = Page(page(tmp_path, found)).text
    places = [
        text.index(words)
        for words in (
            "csinet, entry full takes 45",
            "of the time of onnxruntime",
            "The measurement is valid",
            "deadline of 50.0 µs for p99 is missed",
            "Against other engines",
            "p50 45",
            "Where the time goes",
            "Conditions",
            "edgecsi build csinet-cr4 --target host -o csinet",
            "cc -O2 BUNDLE/example/main.c",
            "int main(void) { return 0 < 1; }",
        )
    ]
    assert places == sorted(places)


def test_a_page_is_one_file_that_asks_for_nothing(tmp_path: Path) -> None:
    text = page(tmp_path, _results.result(peer=500.0))
    parsed = Page(text)
    assert not [tag for tag, given in parsed.tags if {"src", "href", "srcset", "action"} & given.keys()]
    assert not re.search(r"url\(|@import|https?://", text)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    assert len(scripts[0]) <= 2048
    assert "default-src 'none'" in text
    assert ("html", {"lang": "en"}) in parsed.tags
    assert all(given.get("aria-label") for tag, given in parsed.tags if tag == "svg")
    assert all(given.get("scope") for tag, given in parsed.tags if tag == "th")


def test_a_page_with_every_sample_stays_small(tmp_path: Path) -> None:
    base = _results.result(peer=500.0)
    many = np.rint(45e3 * np.exp(np.random.default_rng(0).normal(0, 0.1, 300_000))).astype(int)
    engines = tuple(
        dataclasses.replace(engine, samples=tuple(many.tolist()), rounds=(many.size,))
        for engine in base.engines
    )
    text = page(tmp_path, dataclasses.replace(base, engines=engines))
    assert len(text.encode()) <= 200_000
    assert "300,000 calls" in Page(text).text


def test_thirty_full_results_are_one_megabyte_and_three_seconds(tmp_path: Path) -> None:
    base = _results.result(peer=500.0)
    generator = np.random.default_rng(0)
    engines = []
    for engine, calls in zip(base.engines, (200_000, 20_000), strict=True):  # ten seconds of each
        times = np.median(engine.samples) * np.exp(np.abs(generator.normal(0, 0.02, calls)))
        samples = np.rint(times).astype(int).tolist()
        engines.append(dataclasses.replace(engine, samples=tuple(samples), rounds=(40,) * (calls // 40)))
    layers = tuple(dataclasses.replace(base.layers[0], name=f"layer{i}") for i in range(25))
    text = _results.written(
        tmp_path, "run0", dataclasses.replace(base, engines=tuple(engines), layers=layers)
    ).read_text()
    assert len(text) > 1_000_000
    for day in range(1, 30):
        (tmp_path / f"run{day}.json").write_text(text.replace("2026-11-01", f"2026-10-{day:02d}"))
    begin = time.process_time()
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "report.html")]) == 0
    assert time.process_time() - begin <= 3
    page = (tmp_path / "report.html").read_bytes()
    assert len(page) <= 1_000_000
    assert b"Over 30 runs" in page


def test_thirty_results_of_the_project_are_one_megabyte_and_three_seconds() -> None:
    files = [path for path in sorted(DOCS.glob("*.json")) if '"kind": "scenario"' in path.read_text()[:60]][
        :30
    ]
    assert len(files) == 30
    begin = time.process_time()
    found = read_shown(files)
    text = as_html(make_report(found))
    assert time.process_time() - begin <= 3
    assert len(text.encode()) <= 1_000_000


def test_every_call_is_in_a_bin_or_named_as_beyond() -> None:
    for seed in range(20):
        generator = np.random.default_rng(seed)
        samples = np.rint(1e3 * generator.lognormal(3, generator.uniform(0, 2), 1 + seed * 97)).astype(
            np.int64
        )
        found = of_samples(samples)
        assert sum(found.counts) + found.beyond == found.count == samples.size
        assert found.shares[-1] == (samples.max() / 1e3, 1.0)
        assert list(found.edges) == sorted(found.edges)
    assert sum(of_samples(np.array([7_000, 7_000])).counts) == 2


def test_a_histogram_that_does_not_add_up_is_refused() -> None:
    good = {"count": 3, "histogram": {"edges_ns": [10, 20, 30], "counts": [1, 2]}}
    assert of_summary(good).count == 3
    for change in (
        {"edges_ns": [10, 20]},
        {"edges_ns": [10, 20, 15]},
        {"counts": [1, 1]},
        {"counts": [4, -1]},
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            of_summary(good | {"histogram": good["histogram"] | change})


def test_an_axis_that_does_not_start_at_zero_says_so() -> None:
    narrow = of_samples(np.arange(45_000, 46_000))
    assert "the axis starts at 44.9" in svg.histogram("calls", narrow, [])
    wide = of_samples(np.arange(1_000, 46_000, 10))
    assert "the axis starts" not in svg.histogram("calls", wide, [])


def overlaps(drawing: str) -> list[tuple[str, str]]:
    """Texts of a drawing that lie over one another, or outside of it; letters are at least 5.8 wide, of 12."""
    _, _, width, height = map(float, re.findall(r'viewBox="([^"]*)"', drawing)[0].split())
    boxes = []
    for css, x, y, text in re.findall(
        r'<text(?: class="(\w*)")? x="([-\d.]+)" y="([-\d.]+)">(.*?)</text>', drawing
    ):
        wide = 5.8 * len(html.unescape(text))
        left = float(x) - (wide if css == "e" else wide / 2 if css == "m" else 0)
        boxes.append((text, left, float(y) - 9, left + wide, float(y) + 2))
    outside = [
        (b[0], "outside") for b in boxes if min(b[1], b[2]) < -1 or b[3] > width + 1 or b[4] > height + 1
    ]
    return outside + [
        (one[0], two[0])
        for one, two in itertools.combinations(boxes, 2)
        if one[1] < two[3] and two[1] < one[3] and one[2] < two[4] and two[2] < one[4]
    ]


def test_no_label_lies_over_another() -> None:
    generator = np.random.default_rng(5)
    for _ in range(60):
        scale = 10 ** generator.uniform(-1, 6)
        values = scale * (
            1 + generator.uniform(0, 1) * generator.lognormal(0, generator.uniform(0.01, 2), 40)
        )
        calls = of_samples(np.rint(1e3 * values).astype(np.int64))
        marks = [
            (name, float(np.percentile(values, q))) for name, q in (("p50", 50), ("p90", 90), ("p99", 99))
        ]
        points = [
            svg.Point(str(v), float(v), float(generator.normal(-19, 1e-3 * scale)), "")
            for v in values[: generator.integers(2, 12)]
        ]
        seconds = [(float(i), float(v)) for i, v in enumerate(values)]
        for drawing in (
            svg.histogram("", calls, marks),
            svg.cumulative("", [("one", calls), ("another one with a long name", calls)], marks),
            svg.scatter("", points, "median µs", "NMSE dB, lower is better"),
            svg.over_time("", [svg.Line("median", seconds), svg.Line("p99", seconds, 1)], "µs"),
            svg.bars("", [svg.Bar("a layer", float(v), f"{v:,.0f} µs", v, 1.2 * v) for v in values[:3]]),
        ):
            assert overlaps(drawing) == []
    rates = svg.over_time("", [svg.Line("calls", [(0.0, 1e5), (1.0, 5e4)])], "1/s")
    assert ">100k</text>" in rates
    assert re.findall(r'x="0.0"[^>]*>[^<]+<', rates) == []  # no label of the axis had to go into the drawing
    close = [svg.Point(str(i), 50 + i / 100, -19.0, "") for i in range(4)]
    assert [text for text in "1234" if f">{text}</text>" not in svg.scatter("", close, "µs", "dB")] == []


BROWSED = """<script>onload = function () {
  var bad = [], lie = function (a, b) {
    return a.x < b.x + b.width && b.x < a.x + a.width && a.y + 3 < b.y + b.height - 3 && b.y + 3 < a.y + a.height - 3 }
  document.querySelectorAll("svg").forEach(function (s) {
    var t = [].map.call(s.querySelectorAll("text"), function (e) { return [e.textContent, e.getBBox()] })
    t.forEach(function (a, i) {
      t.slice(i + 1).forEach(function (b) { if (lie(a[1], b[1])) bad.push(a[0] + "|" + b[0]) })})})
  var scroll = document.documentElement.scrollWidth - document.documentElement.clientWidth
  document.body.innerHTML = "<p id=found></p>"
  document.getElementById("found").textContent = "scroll " + scroll + ", over one another: " + bad.join("; ") + "." }
</script></body>"""


@pytest.mark.needs("chromium")
def test_in_a_browser_nothing_scrolls_sideways_and_no_text_lies_over_another(tmp_path: Path) -> None:
    text = as_html(make_report(read_shown([DOCS])))
    text = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", BROWSED)
    (tmp_path / "page.html").write_text(text)
    for width in (500, 1280):  # no window is narrower than 500; the page's own limit for phones is 640
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile",
                   f"--window-size={width},900", "--dump-dom", (tmp_path / "page.html").as_uri()]  # fmt: skip
        dom = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
        assert re.findall(r'<p id="found">(.*?)</p>', dom) == ["scroll 0, over one another: ."]


def test_results_of_the_project_can_all_be_shown() -> None:
    found = read_shown([DOCS])
    assert len(found) > 40
    page = as_html(make_report(found))
    assert [
        lying for drawing in re.findall(r"<svg.*?</svg>", page, re.S) for lying in overlaps(drawing)
    ] == []
    text = Page(page).text
    assert "never held against times" in text
    assert "samples a second" in text


def test_emulated_counts_are_marked_and_kept_apart(tmp_path: Path) -> None:
    alone = Page(page(tmp_path, _results.emulated())).text
    assert "a proxy and no latency" in alone
    assert "invalid" in alone
    both = Page(page(tmp_path, _results.result(), _results.emulated())).text
    assert "never held against times" in both
    assert "(1,000,000 instructions)" in both


def test_what_is_outdone_is_named(tmp_path: Path) -> None:
    results = []
    for us, nmse, size in ((45, -20, 400_000), (60, -18, 500_000), (340, -20.5, 9_000_000)):
        found = _results.result(us)
        results.append(
            dataclasses.replace(
                found, bundle=dataclasses.replace(found.bundle, nmse_db=float(nmse), library_bytes=size)
            )
        )
    report = make_report(read_shown([_results.written(tmp_path, f"r{i}", r) for i, r in enumerate(results)]))
    (table,) = [
        part
        for section in report.sections
        for part in section.parts
        if getattr(part, "caption", "") == "Trade-offs"
    ]
    assert [row[-1] for row in table.rows] == ["nothing", "r0", "nothing"]


def test_nmse_of_other_data_is_not_held_against(tmp_path: Path) -> None:
    bundle = dataclasses.replace(
        _results.result().bundle, nmse_db=-20.0, data="64 samples of shipped UMi channels"
    )
    other = dataclasses.replace(bundle, data="16 samples of shipped UMi channels")
    many, few = (dataclasses.replace(_results.result(), bundle=b) for b in (bundle, other))
    assert "same data" not in Page(page(tmp_path, many, many)).text
    text = Page(page(tmp_path, many, few)).text
    assert "on 64 samples of shipped UMi channels" in text
    assert "on 16 samples of shipped UMi channels" in text
    assert "Only those on the same data can be compared" in text


def test_an_encoder_is_held_against_the_terminals_time(tmp_path: Path) -> None:
    encoder = dataclasses.replace(_results.result(246.2), entry="encoder")
    text = Page(page(tmp_path, encoder)).text
    assert "30 kHz: 2.462 ms" in text
    assert "10 %" in text
    assert "Channel estimation and coding" in text
    decoder = Page(page(tmp_path, dataclasses.replace(_results.result(50), entry="decoder"))).text
    assert "30 kHz: 0.5 ms" in decoder


@pytest.mark.parametrize("trend", ["steady", "drifts", "throttles"])
def test_a_long_run_is_drawn_with_what_the_board_said(tmp_path: Path, trend: str) -> None:
    seconds = tuple(
        Second(float(i), 100, 45.0 + i, 46.0, 50.0, 90.0, 50.0 + i, 1800.0, False, None) for i in range(30)
    )
    summary = _results.result().engines[0].warm
    found = dataclasses.replace(
        _results.result(),
        sustained=Sustained(None, seconds, trend, 0.5, 12.0, None),
        periodic=Periodic(200.0, summary, summary, 3),
    )
    text = Page(page(tmp_path, found)).text
    assert {"steady": "It is steady", "drifts": "It drifts", "throttles": "after 12 s"}[trend] in text
    assert "Temperature" in text
    assert "Power: no meter was declared" in text
    assert "200 calls a second" in text


def test_an_invalid_result_says_why(tmp_path: Path) -> None:
    found = dataclasses.replace(
        _results.result(), validity=Validity("invalid", ("throttled while measuring",))
    )
    assert "The measurement is invalid: throttled while measuring." in Page(page(tmp_path, found)).text


def test_a_baseline_is_an_engine_or_a_result(tmp_path: Path) -> None:
    text = Page(page(tmp_path, _results.result(45), _results.result(90), baseline="run1")).text
    assert "of run1" in text
    assert "0.500" in text
    assert (
        "of edgecsi's time" in Page(page(tmp_path, _results.result(45, peer=450.0), baseline="edgecsi")).text
    )
    with pytest.raises(UsageError, match="nothing here is called x"):
        page(tmp_path, _results.result(), baseline="x")


def test_other_formats_hold_the_same(tmp_path: Path) -> None:
    report = make_report(read_shown([_results.written(tmp_path, "run", _results.result(peer=500.0))]))
    text = markdown(report)
    assert text.startswith("# csinet, full: latency")
    assert "| edgecsi 1 | 45" in text
    rows = list(csv.DictReader(io.StringIO(as_csv(report))))
    assert [row["engine"] for row in rows] == ["edgecsi", "onnxruntime"]
    assert float(rows[0]["median_us"]) == pytest.approx(45, rel=0.05)
    tree = json.loads(as_json(report))
    assert tree["verdict"] == list(report.verdict)


def test_the_verb_writes_a_page_and_prints_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(_results.written(tmp_path, "run", _results.result()))
    target = tmp_path / "page.html"
    assert main(["report", run, "-o", str(target), "--title", "Mine"]) == 0
    assert "<h1>Mine</h1>" in target.read_text()
    assert "Mine (valid)" in capsys.readouterr().out
    assert main(["report", run, "--csv", "-"]) == 0
    assert capsys.readouterr().out.startswith("result,bundle")
    assert main(["report", str(tmp_path / "missing.json")]) == 3
    assert main(["report", run, "-o", str(tmp_path / "no" / "page.html")]) == 3


def test_an_older_schema_is_read_and_a_newer_one_is_not(tmp_path: Path) -> None:
    path = _results.written(tmp_path, "run", _results.result())
    tree = json.loads(path.read_text())
    for name in ("deadline", "periodic", "sustained", "self_check", "commands", "program"):
        del tree[name]
    for name in ("weight_bytes", "macs", "nmse_db", "nmse_db_pytorch", "data"):
        del tree["bundle"][name]
    for layer in tree["layers"]:
        del layer["interval"]
    path.write_text(json.dumps(tree | {"schema": 1}))
    (old,) = read_shown([path])
    assert isinstance(old, Shown)
    assert old.result.bundle.nmse_db is None
    path.write_text(json.dumps(tree | {"schema": SCHEMA + 1}))
    with pytest.raises(DataError, match="not a result"):
        read_shown([path])
