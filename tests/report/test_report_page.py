"""The report in headless Chromium: nothing wrong on the console, no network, every plot drawn, switches that switch.

`make browser` installs Chromium from Debian's packages. Without it these tests are skipped, unless
RETAIN_REQUIRE_BROWSER is set, as .ci/run does.
"""

import importlib.util
import io
import os
import shutil

import pytest

from runs import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),  # 3-D plots without a graphics card
]
OPENS_WITHIN = 5_000_000
"""Calls of the page's functions until all that is in sight is drawn, 1.8 million in 0.9 s. They are as many on every
machine, seconds are not."""

MISSING = [name for name in ("plotly", "matplotlib", "jinja2", "playwright") if importlib.util.find_spec(name) is None]
if MISSING and not os.environ.get("RETAIN_REQUIRE_BROWSER"):
    pytest.skip(f"no {', '.join(MISSING)} here: pip install 'retain[report,dev]'", allow_module_level=True)
if BROWSER is None and not os.environ.get("RETAIN_REQUIRE_BROWSER"):
    pytest.skip("no Chromium here: `make browser` installs it on Debian", allow_module_level=True)


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    assert BROWSER is not None, "RETAIN_REQUIRE_BROWSER is set, but there is no Chromium: make browser"
    with sync_playwright() as playwright:
        # Debian's own browser: Playwright's download is not needed.
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS, timeout=0)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory, text_run, digits_run, retrieval_run):
    """Name → a page of one run, or of several."""
    folder = tmp_path_factory.mktemp("pages")
    runs = {"text": [text_run], "digits": [digits_run], "retrieval": [retrieval_run]}
    runs["two"] = [text_run, retrieval_run]
    for name, paths in runs.items():
        write_report(paths, folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in runs}


def new_context(chromium, **settings):
    context = chromium.new_context(offline=True, **settings)
    context.set_default_timeout(0)  # the limit of time is that of every test
    return context


def test_a_plot_that_cannot_be_drawn_says_so(pages, chromium):
    """A browser without gzip, the oldest of those that are still about."""
    context = new_context(chromium)
    page = context.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(pages["text"].resolve().as_uri())
    page.wait_for_function("document.querySelector('#loss').textContent.includes('too old')")
    assert "bits" in page.inner_text(".verdict")
    context.close()


@pytest.fixture
def visit(chromium):
    """Open a page; what it says on the console, its errors and its requests are kept on it."""
    contexts = []

    def visit(path, width=1400, scheme="light"):
        context = new_context(chromium, viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.complaints, page.requests = [], []
        page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(path.resolve().as_uri())
        page.wait_for_function("document.documentElement.dataset.ready")
        return page

    yield visit
    for context in contexts:
        context.close()


def healthy(page, path):
    assert page.complaints == []
    outside = [url for url in page.requests if not url.startswith(("data:", "blob:"))]
    assert outside == [path.resolve().as_uri()]
    # Finite points of every curve, and what is really on the page for it: lines of SVG, or a canvas for 3-D.
    plots = page.evaluate(
        """() => [...document.querySelectorAll(".plot")].map((div) => ({
            key: div.id,
            points: div.data.map((t) => t.y.filter((v) => v !== null && Number.isFinite(v)).length),
            xs: div.data.every((t) => t.x.length === t.y.length && t.x.length > 0),
            drawn: div.hasAttribute("data-three") ? div.querySelectorAll("canvas").length
                                                  : div.querySelectorAll(".scatterlayer .trace path").length,
        }))"""
    )
    assert len({plot["key"] for plot in plots}) == len(plots) > 8
    for plot in plots:
        assert plot["points"] and min(plot["points"]) > 0 and plot["xs"] and plot["drawn"], plot
    return {plot["key"] for plot in plots}


@pytest.mark.parametrize("name", ["digits", "two"])
def test_the_page_is_whole(pages, visit, name):
    keys = healthy(visit(pages[name]), pages[name])
    assert {"validation_bits_per_token", "loss", "drift", "gradient-initial", "gradient-trained"} <= keys
    assert {"memory-0-rnn-2", "memory-0-rnn-3", "memory-0-teacher-2"} <= keys
    assert ("quality-beyond" in keys) == ("length" in keys) == (name == "two")


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_covered_or_cut_off(pages, visit, width):
    """The tool bar lies on no legend, colour bar or caption. Titles of axes and legends are within their plot."""
    page = visit(pages["retrieval"], width)
    found = page.evaluate(
        """() => {
            const bad = [], place = (e) => e.getBoundingClientRect(), count = { bars: 0, texts: 0 };
            for (const div of document.querySelectorAll(".plot")) {
                const words = document.createRange(), box = place(div), bar = place(div.querySelector(".modebar"));
                words.selectNodeContents(div.parentElement.querySelector("figcaption"));
                count.bars += bar.width > 0;
                for (const e of [words, ...div.querySelectorAll(".legend, .colorbar")]) {
                    const r = place(e);
                    if (r.left < bar.right && bar.left < r.right && r.top < bar.bottom && bar.top < r.bottom)
                        bad.push([div.id, "covered", e.toString()]);
                }
                for (const e of div.querySelectorAll(".xtitle, .ytitle, .legend, .colorbar")) {
                    const r = place(e);
                    count.texts += r.width > 0;
                    const out = [box.left - r.left, r.right - box.right, box.top - r.top, r.bottom - box.bottom];
                    if (Math.max(...out) > 1) bad.push([div.id, "cut off", e.textContent]);
                }
            }
            const ids = [...document.querySelectorAll("section, .plot")].map((e) => e.id);
            const colour = getComputedStyle(document.querySelector("#loss .modebar-btn path")).fill;
            const share = document.querySelectorAll(".modebar-btn[data-title^=Share]").length;
            return { bad, count, twice: ids.filter((id, i) => ids.indexOf(id) < i), colour, share };
        }"""
    )
    assert found["bad"] == [] and found["twice"] == [] and found["share"] == 0
    assert found["count"]["bars"] > 8 and found["count"]["texts"] > 16
    assert found["colour"] == "rgb(138, 148, 159)"


def test_the_switches_switch(pages, visit):
    page = visit(pages["retrieval"])
    state = """() => { const d = document.getElementById("loss"), m = document.getElementById("memory-0-rnn-2");
        return {x: [...d.data[0].x], title: d.layout.xaxis.title.text, range: d.layout.xaxis.range,
                mark: d.layout.shapes[1].x0, colour: [...m.data[0].marker.color], top: m.data[0].marker.cmax}; }"""
    before = page.evaluate(state)
    page.click("label:has(input[value=tokens])")
    page.click("label:has(input[value=position])")
    after = page.evaluate(state)
    assert (before["title"], after["title"]) == ("optimizer step", "tokens read")
    assert after["x"] == [32 * step for step in before["x"]]
    assert after["mark"] == 32 * before["mark"]
    assert after["range"][1] > 10 * before["range"][1]
    assert after["colour"] != before["colour"] and after["top"] == 8
    page.click("label:has(input[value=step])")
    page.click("label:has(input[value=needle])")
    assert page.evaluate(state) == before
    assert page.complaints == []


def test_wide_and_narrow_light_dark_and_print(pages, visit):
    """The theme follows the reader's while the page is open, and paper is white."""
    from PIL import Image

    page = visit(pages["text"], 390)
    tick = """getComputedStyle(document.querySelector("#loss .xtick text")).fill"""
    ink = {"light": "rgb(57, 66, 76)", "dark": "rgb(198, 206, 214)"}
    for width, scheme in ((390, "light"), (390, "dark"), (1400, "dark"), (1400, "light"), (1400, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(f"{tick} === '{ink[scheme]}'")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        with Image.open(io.BytesIO(page.screenshot())) as image:
            colours = sorted(image.convert("RGB").getcolors(2**24), reverse=True)
        assert len(colours) > 100
        assert (sum(colours[0][1]) > 600) == (scheme == "light")
        page.wait_for_function(
            """[...document.querySelectorAll(".plot")].every((d) => d.clientWidth > 0.5 * Math.min(innerWidth, 500)
               && Math.abs(d.querySelector("svg, canvas").getBoundingClientRect().width - d.clientWidth) < 2)"""
        )
    page.set_viewport_size({"width": 1400, "height": 900})
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    white = ink["light"]
    page.wait_for_function(f"{tick} === '{white}'")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.set_viewport_size({"width": 700, "height": 900})  # A4 between its margins
    widths = (
        """[...document.querySelectorAll(".plot")].map((d) => [d.clientWidth, d.querySelector("svg").clientWidth])"""
    )
    assert all(0.8 * there < drawn <= there for there, drawn in page.evaluate(widths)), "plots fit their place on paper"
    assert len(page.pdf()) > 50_000
    assert page.complaints == []


def test_text_from_data_is_never_markup(text_run, retrieval_run, tmp_path, visit):
    """A run named, and samples holding, what a browser would run."""
    import json

    from retain.report.page import render

    report = write_report([text_run, retrieval_run], tmp_path / "page.html")  # of two, the plots have the names
    evil = "</script><img src=x onerror=document.title='evil'><script>document.title='evil'</script>"
    run = report["runs"][0]
    run["name"] = run["samples"]["rows"][0]["rnn"] = evil
    run["notes"].append(evil)
    run["geometry"]["points"]["last_token"] = [evil] * len(run["geometry"]["points"]["last_token"])
    report = json.loads(json.dumps(report))
    (tmp_path / "evil.html").write_text(render(report))
    page = visit(tmp_path / "evil.html")
    page.click("label:has(input[value='last token']) >> nth=0")
    assert page.evaluate("document.title") != "evil"
    assert page.complaints == [] and page.evaluate("document.querySelectorAll('img').length") == 0


def test_many_lines_open_with_little_work(retrieval_run, tmp_path, chromium, visit):
    run = shutil.copytree(retrieval_run, tmp_path / "long")
    line = '{"step": @%04d, "phase": "smt", "seconds": @.%04d, "tokens": @%04d, "loss": %.4f, "loss_dyn": %.4f}\n'
    block = "".join(line % (i, i, i, 1 + i * 7919 % 997 / 997, 0.1 + i * 7907 % 991 / 991) for i in range(10_000))
    with (run / "metrics.jsonl").open("w") as file:
        for number in range(1, 21):
            file.write(block.replace("@", str(number)))
            if number == 10:
                file.write('{"step": 110000, "phase": "dmt", "seconds": 11.5, "tokens": 110000, "loss": 77.0}\n')
    report = write_report([run], tmp_path / "long.html")
    assert report["runs"][0]["history"]["lines"] == 200_001
    loss = report["runs"][0]["history"]["curves"]["loss"]["value"]
    assert len(loss) < 2000 and max(loss) == 77 and min(loss) == 1.0
    assert (tmp_path / "long.html").stat().st_size < 4e6
    context = new_context(chromium, viewport={"width": 1400, "height": 900})
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Profiler.enable")
    session.send("Profiler.startPreciseCoverage", {"callCount": True, "detailed": False})
    page.goto((tmp_path / "long.html").as_uri())
    page.wait_for_function("document.documentElement.dataset.open")
    scripts = session.send("Profiler.takePreciseCoverage")["result"]
    calls = sum(function["ranges"][0]["count"] for script in scripts for function in script["functions"])
    context.close()
    assert 100_000 < calls < OPENS_WITHIN
    healthy(visit(tmp_path / "long.html"), tmp_path / "long.html")
