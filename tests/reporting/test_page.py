"""The page as a file, and in a real browser where there is one."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError, DataError, StorageError
from gistjax.report import report
from gistjax.reporting import colours, plots
from gistjax.reporting.page import side_by_side, slot_maps
from gistjax.reporting.runs import find_runs
from gistjax.reporting.tables import table
from tests.helpers.browser import contrast
from tests.helpers.made_runs import put, write_run

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """Collects what a page would fetch, its scripts, and whether its tags match."""

    VOID = {"meta", "link", "input", "br", "hr", "img"}

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched, self.scripts = [], [], 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.fetched += [found[key] for key in ("src", "href") if key in found]
        self.scripts += tag == "script"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        """Of SVG."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def page(sweep):
    report([sweep], title="A <sweep>")
    return sweep / "report.html"


def test_the_files_are_there(page):
    folder = page.parent
    summary = json.loads((folder / "results_summary.json").read_text())
    assert summary["runs"]["M64_gist"]["f1"] == 1 / 3 and summary["unfinished"] == []
    assert (
        (folder / "results.md").read_text().startswith("| run | F1 | F1 95 % | architecture | M |")
    )
    assert (
        (folder / "results.csv").read_text().startswith("run,f1,f1_low,f1_high,architecture,slots,")
    )


def test_the_page_is_whole_fetches_nothing_and_shows_text_as_text(page):
    text = page.read_text()
    reader = Page(text)
    assert reader.fetched == ["data:,"]
    assert reader.scripts == 2, "what a model answered is no script"
    assert "A &lt;sweep&gt;" in text and "Ada | Sons" in text
    assert "http:" not in text.replace("http://www.w3.org/", "") and "https:" not in text
    assert text.count("<svg") == 5


def test_a_warning_where_questions_differ_and_what_is_not_finished(sweep):
    metrics = json.loads((sweep / "M32_gist" / "metrics.json").read_text())
    put(sweep / "M32_gist" / "metrics.json", {**metrics, "n_examples": 7})
    (sweep / "M32_conv" / "metrics.json").unlink()
    put(sweep / "M64_conv" / "metrics.json", {"losses": {"loss": 1.0}, "steps": 3})
    report([sweep])
    text = (sweep / "report.html").read_text()
    assert "not scored on the same questions" in text
    assert "<strong>Not finished:</strong> M32_conv." in text


def test_a_file_is_no_folder_to_write_to(sweep):
    with pytest.raises(StorageError, match=r"config\.json"):
        report([sweep], sweep / "M64_gist" / "config.json")


def test_one_run_alone_has_a_page(sweep):
    summary = report([sweep / "M64_gist"], sweep / "elsewhere")
    assert list(summary["runs"]) == ["M64_gist", "untuned"]
    Page((sweep / "elsewhere" / "report.html").read_text())


def test_without_the_drawing_library_nothing_is_written_and_the_fix_is_named(sweep, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(ConfigError, match=r"pip install vl-convert-python"):
        report([sweep])
    written = ("results_summary.json", "results.md", "results.csv", "report.html")
    assert not any((sweep / name).exists() for name in written)


def test_predictions_stand_under_their_own_runs_heading(page):
    text = page.read_text()
    heads = re.findall(r'<th scope="col" data-of="(\d+)">(\w+)</th>', text)
    assert [name for _, name in heads[:3]] == ["full_context", "closed_book", "M32_conv"]
    cells = re.findall(
        r'<td data-of="(\d+)" class="(\w+)" data-name="(\w+)" title="F1 (.*?)">(.*?)</td>', text
    )
    assert len(cells) == 3 * len(heads) and {(of, name) for of, _, name, _, _ in cells} == {*heads}
    for _, kind, name, f1, said in cells:
        assert (kind == "wrong") == (f1 == "0.000") == said.startswith(f"{name}: ")
    kinds = [kind for _, kind, name, _, _ in cells if name == "full_context"]
    assert kinds == ["right", "right", "partly"]


def test_a_question_that_runs_do_not_share_is_not_shown_side_by_side(sweep):
    rows = json.loads((sweep / "M32_gist" / "predictions.json").read_text())
    rows[1] |= {"question": "Other?"}
    put(sweep / "M32_gist" / "predictions.json", [*rows[:2], {**rows[2], "id": "q9"}])
    runs = [r for r in find_runs([sweep]) if r.scored]
    shown = side_by_side(runs, 10)
    assert [row["question"] for row in shown] == ["When was the bridge built?"]
    assert len(side_by_side([runs[0]], 2)) == 2


@pytest.fixture
def drawn(monkeypatch):
    """The specifications of the plots, by the name of their function."""
    monkeypatch.setattr(plots, "to_svg", lambda spec: spec)
    made = [
        {
            "run": name,
            "architecture": "gist",
            "compresses": compresses,
            "f1": f1,
            "f1_interval": [f1 - 0.1, f1 + 0.2],
            "effective_ratio": ratio,
            "compressor_parameters": parameters,
            "answer_ms": 3.0,
            "compress_ms": compress,
        }
        for name, compresses, f1, ratio, parameters, compress in (
            ("a", True, 0.5, 4.0, 0, 5.0),
            ("b", True, 0.25, 8.0, 100, None),
            ("c", False, 0.75, 1.0, 7, None),
        )
    ]
    made += [{"run": "u", "architecture": "closed book", "compresses": False, "f1": 0.1}]
    colours = {row["run"]: f"#{row['run']}" for row in made}
    names = ("f1_against_ratio", "f1_against_parameters", "f1_against_time")
    return {name: getattr(plots, name)(made, colours) for name in names}


@pytest.mark.parametrize(
    ("name", "title", "xs"),
    [
        ("f1_against_ratio", "effective ratio: context tokens a slot", {"a": 4.0, "b": 8.0}),
        ("f1_against_parameters", "parameters of the compressor", {"a": 1, "b": 100}),
        ("f1_against_time", "ms a question", {"a": 3.0, "b": 3.0, "c": 3.0}),
    ],
)
def test_points_stand_at_their_own_x_with_their_own_bars(drawn, name, title, xs):
    runs = drawn[name]["layer"][0]
    points = {point["run"]: point for point in runs["data"]["values"]}
    assert {run: point["x"] for run, point in points.items()} == xs
    for run, f1 in (("a", 0.5), ("b", 0.25)):
        point = points[run]
        assert (point["f1"], point["low"], point["high"]) == (f1, f1 - 0.1, f1 + 0.2)
        assert point["colour"] == f"#{run}"
        assert point["says"].startswith(f"{run}: F1 {f1:.3f} [{f1 - 0.1:.3f}, {f1 + 0.2:.3f}] at ")
    bar, mark, *line = runs["layer"]
    fields = {axis: bar["encoding"][axis]["field"] for axis in ("x", "y", "y2")}
    assert fields == {"x": "x", "y": "low", "y2": "high"}
    assert bar["encoding"]["x"]["title"] == title
    assert [mark["encoding"][axis]["field"] for axis in ("x", "y")] == ["x", "f1"]
    if line:
        assert {run: point["first"] for run, point in points.items()} == {
            "a": 8.0,
            "b": 3.0,
            "c": 3.0,
        }
        assert line[0]["encoding"]["x2"] == {"field": "first"}
    if name == "f1_against_ratio":
        assert drawn[name]["layer"][1]["data"]["values"] == [{"f1": 0.1, "name": "closed book"}]


def test_curves_kinds_and_the_untuned_base_are_drawn_from_their_own_numbers(sweep, monkeypatch):
    monkeypatch.setattr(plots, "to_svg", lambda spec: spec)
    log = [{"step": step, "loss": 1 / step} for step in range(1, 702)]
    (sweep / "M64_gist" / "metrics.jsonl").write_text("\n".join(map(json.dumps, log)))
    [result] = find_runs([sweep / "M64_gist"])
    result.metrics["by_type"]["date"] |= {"f1": 0.5, "f1_interval": [0.25, 0.625], "n": 4}
    curve = plots.training_curves([result], {"M64_gist": "#1"})["data"]["values"]
    assert [row["step"] for row in curve] == [*range(2, 702, 3)][-234:] and len(curve) == 234
    assert all(row["loss"] == 1 / row["step"] for row in curve)
    kinds = plots.by_type([result], {"M64_gist": "#1"})
    [point] = kinds["data"]["values"]
    says = "M64_gist, date: F1 0.500 [0.250, 0.625], 4 questions"
    assert point["type"] == "date (4)" and point["says"] == says
    assert (point["f1"], point["low"], point["high"]) == (0.5, 0.25, 0.625)
    bar = kinds["spec"]["layer"][0]["encoding"]
    assert (bar["x"]["field"], bar["x2"]["field"]) == ("low", "high")
    lines = plots._controls(table(find_runs([sweep]))[1])
    assert sorted((line["name"], line["f1"]) for line in lines) == [
        ("closed book", 0.0),
        ("full context", 1.0),
        ("full context, untuned", 0.5),
    ]


def with_scores(run, scores):
    """Twenty questions of a run, of which the last ten are answered rightly."""
    rows = json.loads((run / "predictions.json").read_text())
    made = [
        {**rows[0], "id": f"q{i}", "f1": float(i >= 10), "em": 0.0, "score": score}
        for i, score in enumerate(scores)
    ]
    put(run / "predictions.json", made)
    metrics = json.loads((run / "metrics.json").read_text())
    put(run / "metrics.json", {**metrics, "final_f1": 0.5, "n_examples": 20})


def test_a_run_is_drawn_by_coverage_if_its_answers_have_scores_that_differ(sweep, monkeypatch):
    with_scores(sweep / "M64_gist", [i / 20 for i in range(20)])
    with_scores(sweep / "M32_gist", [0.5] * 20)
    report([sweep])
    text = (sweep / "report.html").read_text()
    assert text.count("<svg") == 6 and "<h3>F1 against coverage</h3>" in text
    says = re.findall(r'aria-label="(\w+: F1 \S+ at 100%[^"]*)"', text)
    assert says == ["M64_gist: F1 0.500 at 100%, 0.667 at 75%, 1.000 at 50% of the questions"]
    monkeypatch.setattr(plots, "to_svg", lambda spec: spec)
    results = [result for result in find_runs([sweep]) if result.scored]
    drawn = plots.f1_against_coverage(results, {r.name: f"#{r.name}" for r in results})
    points = {round(value["share"], 2): value for value in drawn["data"]["values"]}
    assert (min(points), max(points)) == (0.5, 1.0), "fewer than ten answers are no curve"
    assert {value["colour"] for value in points.values()} == {"#M64_gist"}
    assert points[0.8]["f1"] == pytest.approx(10 / 16)
    encoding = drawn["encoding"]
    assert (encoding["x"]["field"], encoding["y"]["field"]) == ("share", "f1")
    assert encoding["x"]["scale"] == {"domain": [0, 1]}


def test_samples_are_not_drawn_for_all_questions(sweep):
    run = sweep / "M64_gist"
    with_scores(run, [i / 20 for i in range(20)])
    samples = json.loads((run / "predictions.json").read_text())[:15]
    (run / "predictions.json").unlink()
    put(run / "sample_predictions.json", samples)
    report([sweep])
    assert "F1 against coverage" not in (sweep / "report.html").read_text()


def test_of_what_a_slot_reads_the_most_is_255(sweep):
    put(
        sweep / "M64_gist" / "slot_attention.json",
        [{"words": ["a", "b"], "weights": [[0.1, 0.4], [0.8, 0.2], [0.0, 0.0]]}] * 2,
    )
    first, second = slot_maps(find_runs([sweep / "M64_gist"]))
    assert (first["name"], second["name"]) == ("M64_gist, context 1", "M64_gist, context 2")
    assert first["words"] == ["a", "b"] and first["slots"] == 3
    assert [*base64.b64decode(first["weights"])] == [64, 255, 255, 64, 0, 0]


KEPT = {
    "n": 3,
    "tokens": 10,
    "parts": [[0.5, 0.25], [1.0, 0.0]],
    "contexts": [{"context_id": 1, "words": ["<b>Ada</b>", "built"], "kept": [[4, 2], [0]]}],
}


def test_what_is_kept_is_a_map_and_words_that_are_text(sweep, monkeypatch):
    config = CompressionConfig(architecture="select", ratio=8.0)
    run = write_run(sweep, "kept", config, 2)
    put(run / "kept_entries.json", KEPT)
    report([sweep])
    text = (sweep / "report.html").read_text()
    Page(text)
    assert text.count("<svg") == 6 and "<b>Ada</b>" not in text
    words = re.findall(r'<span style="background: (.*?)" title="(.*?)">(.*?)</span>', text)
    assert words == [
        ("rgba(var(--mark), 0.750)", "kept by 75.0 % of KV heads", "&lt;b&gt;Ada&lt;/b&gt;"),
        ("rgba(var(--mark), 0.000)", "kept by 0.0 % of KV heads", "built"),
    ]
    assert "The mean over 3 contexts, weighted by tokens. Full colour: 100.0 %." in text
    assert 'aria-label="layer 0, KV head 1: 25.0% kept"' in text
    monkeypatch.setattr(plots, "to_svg", lambda spec: spec)
    values = plots.kept_parts(KEPT["parts"], "#1")["data"]["values"]
    places = [(value["layer"], value["head"], value["part"]) for value in values]
    assert places == [(0, 0, 0.5), (0, 1, 0.25), (1, 0, 1.0), (1, 1, 0.0)]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n", "3"),
        ("tokens", None),
        ("parts", [[0.5], [0.5, 0.5]]),
        ("parts", [[0.5, float("nan")]]),
        ("parts", []),
        ("contexts", {}),
        ("contexts", [{"words": ["a", "b"], "kept": [[1]]}]),
        ("contexts", [{"words": [["a"]], "kept": [[1]]}]),
        ("contexts", [{"words": ["a"], "kept": [[]]}]),
    ],
)
def test_a_damaged_map_of_what_is_kept_is_named(sweep, key, value):
    put(sweep / "M64_gist" / "kept_entries.json", {**KEPT, key: value})
    with pytest.raises(DataError, match=rf"kept_entries\.json has a damaged {key}"):
        find_runs([sweep])


def rows(runs, *architectures):
    return [
        {"run": f"{name}{number}", "architecture": name}
        for name in architectures
        for number in range(runs)
    ]


@pytest.mark.parametrize(
    "made", [rows(2, "gist", "conv"), rows(3, *"abcdefghijklm"), rows(24, "a")]
)
def test_no_two_runs_share_a_colour(made):
    chosen = colours.of_runs(made)
    assert list(chosen) == [row["run"] for row in made]
    assert len(set(chosen.values())) == len(made)


def test_a_run_has_one_colour_in_all_plots(page):
    text = page.read_text()
    [colour] = re.findall(r'background: (#\w+)"></span>M64_gist</li>', text)
    marked = re.findall(r'aria-label="M64_gist[:,][^>]*fill="(#\w+)"', text)
    assert len(marked) == 4 and set(marked) == {colour}  # all plots but the curves


def test_the_page_begins_with_what_was_found(page):
    text = page.read_text()
    first = text[text.index("<p class") :]
    assert first.startswith(
        '<p class="finding">Best compressors: at 8 tokens a slot, run M64_gist '
    )
    assert (
        "The whole context, with the decoder tuned to it, gives 1.000, no context at all 0.000."
        in first
    )


def visit(browser, page, **device):
    """The page in a window of its own, and all that it asked for or complained of."""
    window = browser.new_context(**device).new_page()
    asked, errors = [], []
    window.on("request", lambda request: asked.append(request.url))
    window.on("pageerror", lambda error: errors.append(str(error)))
    window.on("console", lambda message: errors.append(message.text))
    window.goto(page.as_uri())
    assert asked == [page.as_uri()] and errors == []
    return window


def shown(window, column=0):
    """The texts of a column of the rows of the results that are shown."""
    rows = window.locator("#results tbody tr:visible")
    return [row.locator("th,td").nth(column).inner_text() for row in rows.all()]


@pytest.mark.slow
def test_in_a_browser_tables_sort_and_filter(browser, page):
    window = visit(browser, page)
    titles = [title.inner_text() for title in window.locator("#results thead th").all()]
    f1, slots = titles.index("F1"), titles.index("M")
    before = shown(window)
    window.get_by_role("button", name="F1", exact=True).click()
    values = [float(value) for value in shown(window, f1)]
    assert values == sorted(values) and values[0] < values[-1]
    window.get_by_role("button", name="F1", exact=True).click()
    values = [float(value) for value in shown(window, f1)]
    assert values == sorted(values, reverse=True)
    window.get_by_role("button", name="M", exact=True).click()
    assert shown(window, slots) == ["32"] * 4 + ["64"] * 4 + [""] * 3, "what is empty comes last"
    window.get_by_role("button", name="run", exact=True).click()
    assert shown(window) == sorted(before, key=str.lower)
    window.get_by_label("filter runs").fill("GIST")
    assert shown(window) == ["M32_gist", "M64_gist"]


@pytest.mark.slow
def test_in_a_browser_predictions_are_filtered_by_text_kind_and_run(browser, page):
    window = visit(browser, page)
    rows = window.locator("#predictions tbody tr:visible")
    assert rows.count() == 3
    window.get_by_label("kind of answer").select_option("date")
    assert rows.count() == 1 and "1904" in rows.first.inner_text()
    window.get_by_label("kind of answer").select_option("")
    window.get_by_label("right or wrong").select_option(label="wrong: full_context")
    assert rows.count() == 1, "F1 1 and EM 0 is not right"
    window.get_by_label("right or wrong").select_option("")
    window.get_by_label("filter questions").fill("how long")
    assert rows.count() == 1
    cells = rows.first.locator("td:visible").count()
    window.get_by_label("M32_gist", exact=True).uncheck()
    assert rows.first.locator("td:visible").count() == cells - 1


@pytest.mark.slow
def test_in_a_browser_the_slots_words_are_marked(browser, page):
    window = visit(browser, page)
    alpha = "[...document.querySelectorAll('#words span')].map(s => s.style.background)"
    first = window.evaluate(alpha)
    assert len(first) == 3 and "0.75" in first[0] and "0.75" not in first[1]
    window.locator("#map").click(position={"x": 5, "y": 200})
    assert window.locator("#slot-number").inner_text() == "slot 2 of 2"
    assert "0.75" in window.evaluate(alpha)[1]
    window.get_by_label("run and context").select_option(label="M64_pooling, context 1")
    assert window.locator("#words").inner_text() == "The old <bridge>"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_it_reads_in_both_schemes_and_fits_a_phone(browser, page, scheme):
    window = visit(browser, page, color_scheme=scheme, viewport={"width": 360, "height": 740})
    width = window.evaluate("document.documentElement.scrollWidth")
    assert width == 360, "tables scroll in themselves"
    f1 = window.get_by_role("columnheader", name="F1", exact=True).bounding_box()
    assert f1["x"] + f1["width"] < 360, "F1 is seen without scrolling"
    assert window.locator(".frame.more").count(), "a cue says that there is more"
    colours = window.evaluate(
        "[document.body, document.querySelector('svg text')].map(e => getComputedStyle(e)).flatMap("
        "s => [s.color, s.backgroundColor, s.fill])"
    )
    ink, paper, drawn = colours[0], colours[1], colours[5]
    assert drawn == ink, "plots take the page's colour"
    assert contrast(ink, paper) > 7
