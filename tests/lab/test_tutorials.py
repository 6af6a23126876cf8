"""Tutorials: their code runs in order, what it prints and draws is in the page, and a page that fails says where."""

import re
from pathlib import Path

import pytest

from lab.tutorials import PARTS, Failed, run_page

PAGES = sorted(Path("docs/tutorials").glob("*.md"))


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return tmp_path / "out/page"


def test_a_page_gets_what_its_blocks_print_and_draw(pictures):
    text = (
        '# Page\n\n```python title="mine.txt"\nnot run\n```\n\n'
        "```python\nfrom pathlib import Path\nword = Path('mine.txt').read_text()\n"
        "Path('a.png').write_bytes(b'1')\n```\n\n"
        "```python\nprint(word.upper())\n```\n\n```sh\nrm -r everything\n```\n\n"
        "```bash\nretain tasks --help  # shown\n```\n\n"
        "<!-- picture: a.png | What to see. -->\n"
    )
    made = run_page(text, pictures)
    assert '```python\nprint(word.upper())\n```\n\n```text title="it prints"\nNOT RUN\n```\n' in made
    assert "Path('a.png').write_bytes(b'1')\n```\n\n```python" in made, "what prints nothing has no output"
    assert "usage: retain tasks" in made and "```sh\nrm -r everything\n```\n\n```bash" in made
    assert (
        made.endswith("![What to see.](page/a.png)\n\n*What to see.*\n") and (pictures / "a.png").read_bytes() == b"1"
    )


@pytest.mark.parametrize(
    "text, said",
    [
        ("```python\nprint(1)\nraise ValueError('no')\n```\n", "ValueError: no"),
        ("```bash\nrm -r everything\n```\n", "only retain commands are run here"),
        ("```bash\nretain eval nowhere\n```\n", "retain eval nowhere"),
        ("<!-- picture: b.png | None. -->\n", "b.png: no block has drawn it"),
    ],
)
def test_a_page_that_fails_says_where(pictures, text, said):
    with pytest.raises(Failed) as failed:
        run_page(text, pictures)
    assert said in str(failed.value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_has_a_picture_and_counts_steps(page):
    """A budget in seconds would show another page on a slow machine."""
    text = page.read_text(encoding="utf-8")
    assert any(part["file"] for part in PARTS.finditer(text))
    budgets = re.findall(r"--budget (\w+)", "".join(part["code"] or "" for part in PARTS.finditer(text)))
    assert budgets and all(budget.endswith("steps") for budget in budgets)
