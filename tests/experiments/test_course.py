"""Test the course and the READMEs in both languages: generated parts, figures, links, code, pictures."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from experiments import __main__ as runner
from experiments import _course

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent.parent
COURSE = [_course.HERE / name for name in _course.PAGES]
PAIRS = [(ROOT / "README.md", ROOT / "README.ko.md"), (COURSE[0], COURSE[1])]
LECTURE_ROWS = range(1, 17)
# Pages whose links are tested.
PAGES = [page for pair in PAIRS for page in pair]

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EQUATION = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`\n]+`")
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)]*)\)")
LINK = re.compile(r"\]\(([^)]*)\)")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def sections(page: Path) -> list[str]:
    return _course.SECTION.split(page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def common(link: str) -> str:
    """Return what a link has in common with the same link in the other language.

    Sections are named after their number, because the rest of the anchor is in the language.
    """
    return re.sub(r"#(\d+)-.*", r"#\1", link.replace("README.ko.md", "README.md"))


def links(section: str) -> list[str]:
    return LINK.findall(INLINE_CODE.sub("`", FENCED.sub("", section)))


def figures(section: str) -> Counter[str]:
    """Return the numbers of a section outside of code and of the targets of links."""
    return Counter(NUMBER.findall(LINK.sub("]", INLINE_CODE.sub("", FENCED.sub("", section)))))


# --- generated parts ---


@pytest.mark.parametrize("name", _course.PAGES)
def test_the_generated_parts_are_current(name: str) -> None:
    """After a change, `python -m experiments NAME --present` writes them again."""
    page = (_course.HERE / name).read_text(encoding="utf-8")
    made = _course.filled(page, _course.PAGES[name])
    assert page.splitlines() == made.splitlines()


@pytest.mark.parametrize("name", ["class Network:", "def forecast(", "_compiled_forecast = "])
def test_the_line_of_a_definition(name: str) -> None:
    file = "../jaxrnn/recurrence/networks.py"
    (word,) = re.findall(r"\w*[Nn]etwork|\w*forecast", name)
    line = (
        (_course.HERE / file)
        .read_text(encoding="utf-8")
        .splitlines()[_course._line(file, word) - 1]
    )
    assert line.strip().startswith(name)


def test_a_name_that_is_not_defined_is_reported() -> None:
    with pytest.raises(ValueError, match=r"networks\.py does not define nothing"):
        _course._line("../jaxrnn/recurrence/networks.py", "nothing")


@pytest.mark.parametrize("page", COURSE, ids=name_of)
def test_every_experiment_is_shown_with_its_verdict_and_a_described_picture(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = runner.names()
    assert sorted(name for _, name, _ in _course.VERDICT.findall(text)) == sorted(names)
    described = {target: words for words, target in PICTURE.findall(text)}
    for name in names:
        (section,) = [each for each in sections(page) if f"\n### {name}\n" in each]
        assert section.startswith(f"## {runner._row_and_docstring(name)[0]}. "), name
        assert len(described[f"results/{name}/picture.png"]) > 30
    assert len(described) == len(names)


# --- both languages ---


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: name_of(pair[0]))
def test_both_languages_agree(pair: tuple[Path, Path]) -> None:
    for english, korean in zip(*map(sections, pair), strict=True):
        title = english.splitlines()[0]
        assert figures(english) == figures(korean), title
        assert FENCED.findall(english) == FENCED.findall(korean), title
        assert Counter(INLINE_CODE.findall(english)) == Counter(INLINE_CODE.findall(korean)), title
        assert EQUATION.findall(english) == EQUATION.findall(korean), title
        # The order of words differs, and with it that of links.
        assert Counter(map(common, links(english))) == Counter(map(common, links(korean))), title
        assert [target for _, target in PICTURE.findall(english)] == [
            target for _, target in PICTURE.findall(korean)
        ], title


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: name_of(pair[0]))
def test_each_language_links_to_the_other_one(pair: tuple[Path, Path]) -> None:
    for page, other in (pair, pair[::-1]):
        first = page.read_text(encoding="utf-8").splitlines()[0]
        assert LINK.findall(first) == [other.name]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for section in sections(page):
        for link in links(section):
            if link.startswith("https://"):
                continue
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            if line := re.fullmatch(r"L(\d+)", anchor):
                count = len(target.read_text(encoding="utf-8").splitlines())
                assert 1 <= int(line[1]) <= count, link
            elif anchor:
                assert anchor in anchors(target), link


# --- equations ---


@pytest.mark.parametrize("page", COURSE, ids=name_of)
def test_every_row_of_the_lecture_has_a_section_with_an_equation(page: Path) -> None:
    found = {int(number[1]): section for section in sections(page) if (number := numbered(section))}
    assert set(LECTURE_ROWS) <= found.keys()
    assert list(found) == sorted(found)
    assert all(EQUATION.search(section) for section in found.values())


def numbered(section: str) -> re.Match[str] | None:
    return re.match(r"## (\d+)\. ", section)


def test_equations_are_not_read_as_markdown() -> None:
    """Markdown would take some of `_`, `*` and backslashes out of them."""
    markdown = MarkdownIt("commonmark")
    equations = EQUATION.findall(COURSE[0].read_text(encoding="utf-8"))
    for equation in equations:
        (paragraph,) = [token for token in markdown.parse(equation) if token.type == "inline"]
        kinds = {child.type for child in paragraph.children or []}
        assert kinds <= {"text", "softbreak"} and paragraph.content == equation, equation
        assert "".join(child.content for child in paragraph.children or []) == "".join(
            equation.splitlines()
        )
        assert equation.count("{") == equation.count("}")


# --- code ---

# Runs the blocks of a page in one namespace, and prints what each printed.
RUN_BLOCKS = """
import contextlib, io, json, sys
names = {}
for block in json.load(sys.stdin):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block, names)
    print(json.dumps(printed.getvalue()))
"""


@pytest.mark.slow
def test_the_code_runs_in_order_and_prints_what_its_comments_say(tmp_path: Path) -> None:
    """The comments behind or below a call of print are lines that it prints, in this order."""
    blocks = PYTHON.findall(COURSE[0].read_text(encoding="utf-8"))
    ran = subprocess.run(
        [sys.executable, "-c", RUN_BLOCKS],
        input=json.dumps(blocks),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},
    )
    assert ran.returncode == 0, ran.stderr
    for block, printed in zip(blocks, map(json.loads, ran.stdout.splitlines()), strict=True):
        lines = iter([" ".join(line.split()) for line in printed.splitlines()])
        for comment in re.findall(r"^(?:print\(.*\)  )?# (.+)$", block, re.MULTILINE):
            assert " ".join(comment.split()) in lines, f"{comment} is not in {printed}"
