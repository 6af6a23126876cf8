"""The page in headless Chromium, on the npm package onnxruntime-web: it goes on as `retain generate` does.

`make browser` installs Chromium; npm fetches the package. Without them these tests are skipped, unless
RETAIN_REQUIRE_BROWSER is set.
"""

import functools
import http.server
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import data_config, train_tiny
from retain.errors import UserError
from retain.export.web import CDN, CDN_VERSION, RUNTIME, export_web
from retain.inference.generate import generate
from retain.runs.run import load, load_run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROMPT = "to be é"


def lacking(reason):
    if os.environ.get("RETAIN_REQUIRE_BROWSER"):
        pytest.fail(f"RETAIN_REQUIRE_BROWSER is set, but there is {reason}")
    pytest.skip(f"there is {reason}")


for name in ("onnxscript", "onnxruntime", "playwright"):
    pytest.importorskip(name, reason=f"no {name} here: pip install 'retain[onnx,dev]'")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """What the page needs of the npm package onnxruntime-web."""
    if shutil.which("npm") is None:
        lacking("no npm")
    folder = tmp_path_factory.mktemp("npm")
    packed = subprocess.run(
        ["npm", "pack", "--silent", f"onnxruntime-web@{CDN_VERSION}"], cwd=folder, capture_output=True, encoding="utf-8"
    )
    if packed.returncode:
        pytest.skip(f"there is no onnxruntime-web: npm pack says {packed.stderr.strip()[-300:]}")  # no network
    with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
        for name in ("package.json", *(f"dist/{file}" for file in RUNTIME)):
            target = folder / "onnxruntime-web" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.extractfile(f"package/{name}").read())
    return folder / "onnxruntime-web"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that has learnt its text, so that what is likeliest changes from character to character."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.txt").write_text("to be or not to be, that is the question: é. " * 60)
    data = data_config(name="text", path=str(folder / "small.txt"), seq_len=16)
    return train_tiny(folder / "run", data=data, preset="text", phases=("bptt",), budget="300steps", bptt__lr=1e-2)


@pytest.fixture(scope="module")
def site(trained, package, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "page"
    export_web(load_run(trained), folder, package)
    return folder


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    if BROWSER is None:
        lacking("no Chromium: make browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"], timeout=0)
        yield browser
        browser.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """What `python -m http.server` runs."""

    def log_message(self, *args):
        pass


@pytest.fixture
def visit(chromium):
    """Open the page of a folder; what it says on the console and asks other hosts for is kept on it."""
    opened = []

    def visit(folder, width=1280, scheme="light"):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.set_default_timeout(0)  # the limit of time is that of every test
        opened.append((server, context))
        page = context.new_page()
        page.complaints, page.outside = [], []
        page.on("console", lambda m: page.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        home = f"http://127.0.0.1:{server.server_address[1]}/"
        page.route(
            lambda url: not url.startswith((home, "blob:", "data:")),
            lambda route: (page.outside.append(route.request.url), route.abort()),
        )
        page.goto(home)
        page.wait_for_function("document.documentElement.dataset.ready || !document.getElementById('message').hidden")
        return page

    yield visit
    for server, context in opened:
        context.close()
        server.shutdown()
        server.server_close()


def write(page, text, length, temperature=0):
    """Type a text, and return what the RNN goes on with."""
    page.select_option("#pace", "0")
    for name, value in (("temperature", temperature), ("length", length)):
        page.evaluate(
            "([id, value]) => { const e = document.getElementById(id); e.value = value; "
            "e.dispatchEvent(new Event('change')); }",
            [name, str(value)],
        )
    page.fill("#text", text)
    return settled(page)


def settled(page):
    page.wait_for_function("document.body.dataset.state === 'idle'")
    assert page.text_content("#typed") == page.input_value("#text")
    return page.text_content("#continuation")


def memory_of(page, path):
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "memory.safetensors"
    download.value.save_as(path)
    return load_file(path)["memory"]


def read(rnn, text):
    return rnn.rollout(torch.tensor([list(text.encode())]), rnn.init_memory(1))[:, -1]


def test_it_goes_on_as_retain_generate_does(retain, trained, site, visit):
    page = visit(site)
    code, said, _ = retain("generate", trained, "--prompt", PROMPT, "--length", 200, "--temperature", 0)
    assert code == 0 and len(set(said)) > 8
    assert write(page, PROMPT, 200) == said.removeprefix(PROMPT).removesuffix("\n")
    code, said, _ = retain("generate", trained, "--length", 60, "--temperature", 0)
    assert write(page, "", 60) == said.removesuffix("\n")
    assert page.complaints == [] and page.outside == []
    assert page.text_content("#rate") != "–"


def test_an_edit_in_the_middle_is_as_if_it_had_been_typed_so(retain, trained, site, visit):
    page = visit(site)
    before = "to be or not to be, that is the question: é. " * 6  # longer than what is kept
    write(page, before, 5)
    after = before[:100] + "éX" + before[101:] + "that "
    _, said, _ = retain("generate", trained, "--prompt", after, "--length", 50, "--temperature", 0)
    assert write(page, after, 50) == said.removeprefix(after).removesuffix("\n")


def test_surprise_is_that_of_the_rnn(trained, site, visit):
    page, rnn = visit(site), load(trained)
    write(page, PROMPT, 0)
    tokens = torch.tensor([list(PROMPT.encode())])
    memory = rnn.init_memory(1)
    logits = torch.cat([rnn.readout(memory)[:, None], rnn(tokens, memory)[0][:, :-1]], 1)
    bits = -(logits.log_softmax(-1).gather(-1, tokens[..., None])[0, :, 0] / torch.log(torch.tensor(2.0)))
    bits = [*bits[:-2].tolist(), float(bits[-2:].sum())]  # é has two bytes
    shown = page.eval_on_selector_all("#typed span", "spans => spans.map((span) => +span.dataset.bits)")
    assert shown == pytest.approx(bits, abs=0.01) and max(bits) - min(bits) > 1
    heat = page.eval_on_selector_all(
        "#typed span", "spans => spans.map((span) => +getComputedStyle(span).backgroundColor.match(/[\\d.]+/g)[3])"
    )
    order = sorted(range(len(bits)), key=lambda i: bits[i])
    assert [heat[i] for i in order] == sorted(heat) and heat[order[-1]] > heat[order[0]]
    mean = sum(bits) / len(PROMPT.encode())
    assert page.text_content("#score") == f"{mean:.2f} bits per byte"


def test_a_memory_is_saved_and_taken_up_again(trained, site, visit, tmp_path):
    rnn = load_run(trained).rnn
    page = visit(site)
    said = write(page, PROMPT, 30)
    saved = memory_of(page, tmp_path / "page.safetensors")
    ours = read(rnn, PROMPT + said)
    assert (saved - ours).abs().max() < 1e-4 * max(1, ours.abs().max())
    longer = write(page, PROMPT, 80)

    fresh = visit(site)
    write(fresh, "", 50)
    fresh.set_input_files("#take", tmp_path / "page.safetensors")
    fresh.wait_for_function("document.getElementById('origin').textContent === 'page.safetensors'")
    assert settled(fresh) == longer.removeprefix(said)
    # Python goes on from it, too, and the page from one of Python's.
    tokens = [t.item() for t in generate(rnn, torch.zeros(1, 0, dtype=torch.long), 50, temperature=0, memory=saved)]
    assert bytes(tokens).decode(errors="ignore") == longer.removeprefix(said)
    save_file({"memory": read(rnn, "not ")}, tmp_path / "python.safetensors")
    fresh.set_input_files("#take", tmp_path / "python.safetensors")
    fresh.wait_for_function("document.getElementById('origin').textContent === 'python.safetensors'")
    assert settled(fresh) == write(page, "not ", 50)

    fresh.click("#anew")
    fresh.wait_for_function("document.getElementById('origin').textContent === 'm₀'")
    assert settled(fresh) == write(page, "", 50)
    assert page.complaints == [] and fresh.complaints == []


def test_a_file_that_is_no_memory_of_this_rnn(site, visit, tmp_path):
    page = visit(site)
    said = write(page, PROMPT, 20)
    (tmp_path / "a.safetensors").write_bytes(b"no")
    save_file({"memory": torch.zeros(1, 3, 3)}, tmp_path / "b.safetensors")
    for name, words in (
        ("a", "is not a .safetensors file"),
        ("b", "has no memory of this RNN (32-bit numbers of shape 1 × 2 × 8)"),
    ):
        page.set_input_files("#take", tmp_path / f"{name}.safetensors")
        page.wait_for_function("words => document.getElementById('message').textContent.includes(words)", arg=words)
        assert page.text_content("#origin") == "m₀" and page.text_content("#continuation") == said
    assert page.complaints == []


def test_the_buttons(site, visit):
    page = visit(site)
    said = write(page, PROMPT, 20)
    page.click("#keep")
    assert settled(page) and page.input_value("#text") == PROMPT + said
    before = page.evaluate("document.getElementById('picture').toDataURL()")
    write(page, PROMPT, 2000)
    page.select_option("#pace", "25")
    page.click("#again")
    page.wait_for_function("document.querySelectorAll('#continuation span').length > 3")
    page.click("#stop")
    assert 3 < len(settled(page)) < 1000
    assert page.evaluate("document.getElementById('picture').toDataURL()") != before
    texts = {write(page, PROMPT, 40, temperature=1.5) for _ in range(3)}
    assert len(texts) > 1


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_wide_and_narrow_light_and_dark(site, visit, width, scheme):
    from PIL import Image

    page = visit(site, width, scheme)
    write(page, "to be or not\n\tto be, " * 8 + "averyveryverylongword" * 4, 100)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    with Image.open(io.BytesIO(page.screenshot())) as image:
        colours = sorted(image.convert("RGB").getcolors(2**24), reverse=True)
    assert (sum(colours[0][1]) > 600) == (scheme == "light")
    # The caret stands where the coloured text ends: the text alone breaks its lines as it does before the rest.
    ends = page.evaluate(
        """() => { const last = () => document.querySelector("#typed").lastChild.getBoundingClientRect();
            const before = last(); document.getElementById("continuation").replaceChildren(); const after = last();
            const text = document.getElementById("text"), ink = document.getElementById("ink");
            return [before.right - after.right, before.top - after.top, text.clientWidth - ink.clientWidth,
                    text.scrollHeight - text.clientHeight]; }"""
    )
    assert ends == [0, 0, 0, 0]


def test_numbers(retain, retrieval_run, package, visit, tmp_path):
    """Data that is no text is typed as numbers."""
    assert retain("export", retrieval_run, tmp_path / "page", "--to", "web", "--runtime", package)[0] == 0
    page = visit(tmp_path / "page")
    code, said, _ = retain("generate", retrieval_run, "--prompt", "1 2 0", "--length", 12, "--temperature", 0)
    assert code == 0
    assert "1 2 0" + write(page, "1 2 0", 12) == said.removesuffix("\n")
    page.fill("#text", "1 99")
    page.wait_for_function("document.getElementById('message').textContent.includes('99 is not a token')")
    page.fill("#text", "1 2 0")
    assert "1 2 0" + settled(page) == said.removesuffix("\n")
    assert page.is_hidden("#message") and page.complaints == []


def test_without_a_runtime_the_page_names_the_version_that_it_loads(text_run, visit, tmp_path):
    export_web(load_run(text_run), tmp_path / "page")
    metadata = json.loads((tmp_path / "page" / "metadata.json").read_text())
    assert metadata["runtime"] == {"path": CDN, "version": CDN_VERSION, "source": "cdn.jsdelivr.net"}
    assert {path.name for path in (tmp_path / "page").iterdir()} == {
        *("index.html", "page.css", "page.js", "metadata.json", "step.onnx", "readout.onnx")
    }
    page = visit(tmp_path / "page")  # every other host is cut off
    assert page.outside == [CDN + RUNTIME[0]]
    assert "The RNN cannot be loaded" in page.text_content("#message")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "is not the npm package onnxruntime-web; run npm install onnxruntime-web, and give"),
        ({"package.json": '{"name": "onnxruntime-node", "version": "1.30.0"}'}, "is not the npm package"),
        ({"package.json": "["}, "is not the npm package"),
        (
            {"package.json": '{"name": "onnxruntime-web", "version": "1.8.0"}'},
            f"onnxruntime-web 1.8.0 has no dist/{RUNTIME[0]}; install {CDN_VERSION}",
        ),
    ],
)
def test_a_runtime_that_is_none_is_one_line(text_run, tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        export_web(load_run(text_run), tmp_path / "page", tmp_path)
    assert "\n" not in str(caught.value) and not (tmp_path / "page").exists()


def test_subwords_are_refused(text_run, tmp_path):
    run = shutil.copytree(text_run, tmp_path / "run")
    loaded = load_run(run)
    (run / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="reads subwords, and the page has no tokenizer for them; use --to onnx"):
        export_web(loaded, tmp_path / "page")
    assert not (tmp_path / "page").exists()
