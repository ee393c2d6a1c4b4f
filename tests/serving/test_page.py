"""The page for people, as a file and in a real browser where there is one."""

import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest

import gistjax
from gistjax.compress.decoding import Written
from gistjax.experiment.confidence import Calibration
from gistjax.serving.guard import BODY_BYTES
from tests.helpers.browser import contrast

TOKEN = "0123456789abcdef"
HOSTILE = """<img src=x onerror="document.title='run'"><script>document.title='run'</script>"""


class Tags(HTMLParser):
    """Collects what a page would fetch, and what it runs outside of its script and style."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.inline = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            self.fetched += [value] if name in ("src", "href", "action", "formaction") else []
            self.inline += [name] if name == "style" or name.startswith("on") else []


@pytest.fixture(scope="module")
def client(start):
    return start()


@pytest.fixture
def own(store, start, tmp_path):
    """A server on a store with one document that no other test uses."""
    made = gistjax.Store(tmp_path / "store", store.engine)
    made.add("mill", "The mill was built by Anneke Dursel.")
    return lambda **listening: start(store=made, **listening)


def test_the_page_has_no_way_to_run_or_fetch_what_is_not_in_it(client):
    status, headers, text = client("GET", "/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    for kind in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy[kind]), policy[kind]
    tags = Tags(text)
    assert (tags.fetched, tags.inline) == (["data:,"], [])
    assert not re.search("innerHTML|outerHTML|insertAdjacentHTML|document.write|eval|http", text)
    assert BODY_BYTES == 1 << 20 and "BODY_BYTES = 1 << 20;" in text


def test_the_page_needs_no_token_and_all_else_does(start):
    client = start(token=TOKEN)
    assert client("GET", "/")[0] == 200
    assert client("POST", "/", {})[0] == 405
    for path in ("/documents", "/openapi.json", "//", "/%2e/documents"):
        assert client("GET", path)[0] == 401, path
    assert client("GET", "/", Host="attacker.example")[0] == 403


@pytest.fixture
def visit(browser):
    """Opens a server's page in a window of its own, which may complain of nothing."""
    windows, errors = [], []

    def opened(client, **device):
        window = browser.new_context(**device).new_page()
        windows.append(window)
        window.set_default_timeout(20_000)
        window.on("pageerror", lambda error: errors.append(str(error)))
        window.on("console", lambda message: errors.append(message.text))
        window.goto(f"http://127.0.0.1:{client.port}/")
        window.locator("main:visible, #token:visible").wait_for()
        return window

    yield opened
    for window in windows:
        window.context.close()
    replied = re.compile("Failed to load resource: (the server responded|net::ERR_CONN)")
    assert [error for error in errors if not replied.match(error)] == []


def add(window, name, text):
    form = window.locator("#add")
    form.get_by_label("Name").fill(name)
    form.get_by_label("Text", exact=False).last.fill(text)
    form.get_by_role("button", name="Add").click()


def ask(window, question):
    window.get_by_label("Question").fill(question)
    window.get_by_role("button", name="Ask").click()


@pytest.mark.slow
def test_in_a_browser_a_document_is_added_asked_and_removed(own, visit, store):
    client = own()
    window = visit(client)
    add(window, "notes/pump", "The pump is checked every spring.")
    status = window.locator("#add .told")
    status.get_by_text("Added notes/pump, 1 piece.").wait_for()
    names = window.locator("#documents li div p:first-child")
    assert names.all_inner_texts() == ["mill", "notes/pump"]
    window.get_by_label("Look in").select_option("notes/pump")
    ask(window, "When is the pump checked?")
    shown = window.locator("#answers article")
    shown.wait_for()
    told = client.worker.store.ask("When is the pump checked?", within="notes/pump")
    expected = " ".join((told.answer.text or "No answer was found.").split())
    assert " ".join(shown.locator(".answer").inner_text().split()) == expected
    assert f"{100 * told.answer.score:.1f}\u00a0%" in shown.inner_text()
    assert "it is not the chance of being right" in shown.inner_text()
    assert shown.get_by_text("notes/pump, piece 1").count() == 1
    assert shown.locator(".text").inner_text() == "The pump is checked every spring."
    window.get_by_label("Question").press("Enter")
    shown.nth(1).wait_for()
    window.once("dialog", lambda dialog: dialog.accept())
    window.get_by_role("button", name="Remove notes/pump").click()
    window.get_by_text("Removed notes/pump.").wait_for()
    assert names.all_inner_texts() == ["mill"] and window.get_by_text("1 document").count() == 1
    assert window.get_by_label("Look in").input_value() == ""
    assert window.evaluate("document.activeElement.id") == "held"
    window.once("dialog", lambda dialog: dialog.dismiss())
    window.get_by_role("button", name="Remove mill").click()
    assert len(client.worker.store.documents()) == 1


@pytest.mark.slow
def test_in_a_browser_what_anyone_wrote_is_text(own, visit):
    client = own()
    window = visit(client)
    client.worker.store.add(HOSTILE, f"{HOSTILE} The weir was mended.")
    add(window, f"a{HOSTILE}", f"The sluice {HOSTILE} was mended.")
    window.locator("#add .told").get_by_text("Added").wait_for()
    assert window.locator("#documents").get_by_text(HOSTILE, exact=True).count() == 1
    window.get_by_label("Look in").select_option(HOSTILE)
    question = f"Was the weir mended? {HOSTILE}"
    ask(window, question)
    shown = window.locator("#answers article")
    shown.wait_for()
    assert shown.locator("h3").inner_text() == question
    text = "".join(shown.locator(".text").all_text_contents())
    assert text == f"{HOSTILE} The weir was mended."  # in pieces of 64 tokens
    window.get_by_label("Look in").select_option("mill")
    ask(window, HOSTILE)
    window.locator("#ask .error").get_by_text("Nothing in mill has a word of").wait_for()
    assert HOSTILE in window.locator("#ask .error").inner_text().replace("\\'", "'")
    assert window.locator("img").count() == 0 and window.locator("script").count() == 1
    time.sleep(0.1)
    assert window.title() == "gistjax: questions on documents"


@pytest.mark.slow
def test_in_a_browser_the_policy_stops_what_would_run_or_tell_others(client, start, browser):
    """Were a text put in as HTML in spite of all, it would not run."""
    other = start()
    window = browser.new_context().new_page()
    window.goto(f"http://127.0.0.1:{client.port}/")
    for tried, stopped in (
        (f"document.body.innerHTML = {HOSTILE!r}", "TrustedHTML"),
        ("document.createElement('script').textContent = 'document.title = 1'", "TrustedScript"),
        ("document.body.setAttribute('onclick', 'document.title = 1')", "TrustedScript"),
    ):
        with pytest.raises(Exception, match=stopped):
            window.evaluate(tried)
    sent = f"fetch('http://127.0.0.1:{other.port}/healthz', {{mode: 'no-cors'}})"
    assert window.evaluate(f"{sent}.then(() => 'sent', () => 'stopped')") == "stopped"
    assert window.title() == "gistjax: questions on documents"
    window.context.close()


@pytest.mark.slow
def test_in_a_browser_errors_are_told_in_words(own, visit):
    client = own()
    window = visit(client)
    error = window.locator("#ask .error")
    ask(window, "Xylophones?")
    error.get_by_text("has a word of the question 'Xylophones?': ask in its words").wait_for()
    assert error.get_attribute("role") == "alert" and error.inner_text().startswith("Nothing in")
    ask(window, "Who built the mill?")
    window.locator("article").wait_for()
    assert error.inner_text() == ""
    add(window, "empty", " ")
    window.locator("#add .error").get_by_text("The document is empty").wait_for()
    window.locator("#add textarea").fill("a" * BODY_BYTES)
    window.get_by_role("button", name="Add").click()
    window.locator("#add .error").get_by_text("longer than the server takes at once").wait_for()
    client.worker.stop()
    client.worker.join(20)
    ask(window, "Who built the mill?")
    error.get_by_text(re.compile("is stopping|cannot be reached")).wait_for()


@pytest.mark.slow
def test_in_a_browser_a_calibrated_chance_is_called_one(client, visit, store, monkeypatch):
    ids = store.engine.pretrained.prompt.tokenizer.encode("BUILT by", add_special_tokens=False)
    written = Written(np.array([ids]), np.array([-0.5]))
    monkeypatch.setattr(store.engine.programs, "answer", lambda *_: (written, 0.1))
    monkeypatch.setattr(store.engine, "calibration", Calibration(1.0, 2.0))
    window = visit(client)
    ask(window, "Who built the mill?")
    shown = window.locator("#answers article")
    shown.get_by_text("Chance of being right: 82\u00a0%", exact=True).wait_for()
    assert shown.locator(".answer").inner_text() == "BUILT by"
    assert shown.locator("mark").inner_text() == "built by"
    assert shown.locator(".text").inner_text() == "The mill was built by Anneke Dursel."
    assert window.locator("#heard").text_content() == "Answer: BUILT by"


@pytest.mark.slow
def test_in_a_browser_a_text_file_is_read(own, visit):
    window = visit(own())
    choose = window.locator("#add input[type=file]")
    choose.set_input_files({"name": "x.pdf", "mimeType": "", "buffer": b"%PDF-1.7 \xff\xfe"})
    window.get_by_text("x.pdf is not text in UTF-8.").wait_for()
    choose.set_input_files({"name": "l.txt", "mimeType": "", "buffer": b"a" * (BODY_BYTES + 1)})
    window.get_by_text("l.txt is longer than").wait_for()
    text = "\ufeffDer Mühlgraben."
    choose.set_input_files({"name": "w.txt", "mimeType": "", "buffer": text.encode()})
    window.get_by_text("w.txt stands below").wait_for()
    assert window.locator("#add textarea").input_value() == "Der Mühlgraben."
    window.get_by_role("button", name="Add").click()
    window.get_by_text("Added w.txt").wait_for()
    assert window.locator("#add textarea").input_value() == ""


@pytest.mark.slow
def test_in_a_browser_the_token_is_asked_for_and_kept_in_the_tab(own, visit):
    window = visit(own(token=TOKEN))
    assert not window.locator("main").is_visible()
    field = window.get_by_label("Token")
    assert window.evaluate("document.activeElement.name") == "token"
    field.fill("0123456789abcdeF")
    field.press("Enter")
    window.get_by_text("The token is wrong.").wait_for()
    field.fill(TOKEN)
    field.press("Enter")
    window.locator("#documents li").wait_for()
    ask(window, "Who built the mill?")
    window.locator("article").wait_for()
    window.reload()
    window.locator("#documents li").wait_for()
    kept = "[localStorage.length, sessionStorage.length, document.cookie]"
    assert window.evaluate(kept) == [0, 1, ""] and TOKEN not in window.url
    window.get_by_role("button", name="Forget the token").click()
    assert not window.locator("main").is_visible()
    assert window.evaluate(kept) == [0, 0, ""]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_it_reads_in_both_schemes_and_fits_a_phone(client, visit, scheme):
    window = visit(client, color_scheme=scheme, viewport={"width": 360, "height": 740})
    ask(window, "Who built the mill? " + "x" * 200)
    window.locator("article").wait_for()
    assert window.evaluate("document.documentElement.scrollWidth") == 360
    colours = window.evaluate(
        """['body', '.faint', '.error', 'button.main'].map(one => document.querySelector(one))
        .map(e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor])"""
    )
    (ink, paper), (faint, _), (red, _), button = colours
    assert contrast(ink, paper) > 7
    assert min(contrast(faint, paper), contrast(red, paper), contrast(*button)) > 4.5


@pytest.mark.slow
def test_in_a_browser_all_is_named_and_reached_by_keyboard(client, visit):
    window = visit(client)
    unnamed = "[...document.querySelectorAll('input, select, textarea')].filter(e => !e.labels[0])"
    assert window.evaluate(f"{unnamed}.length") == 0
    reached = []
    for _ in range(30):
        window.keyboard.press("Tab")
        reached.append(
            window.evaluate("document.activeElement.name || document.activeElement.innerText")
        )
    for name in ("question", "within", "Ask", "Remove", "file", "name", "text", "Add"):
        assert name in reached, name
