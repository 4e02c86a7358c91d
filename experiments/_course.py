"""The parts of the course that follow from the results and the code, written into its text in place.

The course is README.md, and README.ko.md in Korean. Their text is written by hand, but for three things:

    <!-- reading -->...<!-- end -->           the time to read the section
    <!-- verdict NAME -->...<!-- end -->      the verdict of an experiment, its time, and its files
    [`name`](../jaxrnn/file.py#L1)            the line of that file on which `name` is defined
"""

from __future__ import annotations

import importlib
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from experiments import Verdict

HERE = Path(__file__).parent
RESULTS = HERE / "results"
VERDICT = re.compile(r"(<!-- verdict (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
READING = re.compile(r"(<!-- reading -->\n).*?(<!-- end -->)", re.DOTALL)
SECTION = re.compile(r"^(?=## )", re.MULTILINE)
LINE = re.compile(r"(\[`(?:\w+\.)?(\w+)[^`\]]*`\]\((\.\./[\w/]+\.py)#L)\d+(?=\))")
WORDS_PER_MINUTE = 150


class Language(NamedTuple):
    """The words and templates of the generated parts in one language.

    index: 0 for English, 1 for Korean, as in `Holds`.
    sentence: the attribute of `Verdict`.
    reading, running: templates of the times.
    labels: the words for the files of a result.
    """

    index: int
    sentence: str
    reading: str
    running: str
    code: str
    labels: dict[str, str]


ENGLISH = Language(
    0,
    "english",
    "*Reading: {minutes} min.*",
    "Running: {seconds} on {cores} CPU core{plural} ({cpu}, {date}).",
    "code",
    {
        "table.md": "table",
        "result.json": "numbers",
        "samples.md": "samples",
        "page.html": "page to download and open in a browser",
    },
)
KOREAN = Language(
    1,
    "korean",
    "*읽는 시간: {minutes}분.*",
    "실행 시간: CPU 코어 {cores}개({cpu}, {date})에서 {seconds}.",
    "코드",
    {
        "table.md": "표",
        "result.json": "수치",
        "samples.md": "생성 예",
        "page.html": "내려받아 브라우저에서 여는 페이지",
    },
)
PAGES = {"README.md": ENGLISH, "README.ko.md": KOREAN}


def read(folder: Path) -> dict[str, Any]:
    """Return the record in a result folder."""
    record: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return record


def verdict(name: str, record: dict[str, Any]) -> Verdict:
    """Return the verdict of an experiment from its record."""
    module = importlib.import_module(f"experiments.{name}")
    found: Verdict = module.verdict(record["numbers"], record["seeds"])
    return found


def update() -> None:
    """Write both languages of the course again, with what the results and the code now say."""
    for name, language in PAGES.items():
        page = HERE / name
        page.write_text(filled(page.read_text(encoding="utf-8"), language), encoding="utf-8")


def filled(page: str, language: Language) -> str:
    """Return a page of the course with its generated parts made again."""
    minutes = [_minutes(section) for section in SECTION.split(_english())]
    sections = SECTION.split(page)
    times = zip(sections, minutes, strict=True)
    page = "".join(_fill(READING, section, language.reading, time) for section, time in times)
    page = VERDICT.sub(lambda found: found[1] + _result(found[2], language) + found[3], page)
    return LINE.sub(lambda found: f"{found[1]}{_line(found[3], found[2])}", page)


def _english() -> str:
    return (HERE / "README.md").read_text(encoding="utf-8")


def _fill(pattern: re.Pattern[str], text: str, template: str, minutes: int) -> str:
    return pattern.sub(
        lambda found: found[1] + template.format(minutes=minutes) + "\n" + found[2], text
    )


def _minutes(section: str) -> int:
    """Return the minutes to read a section with its code, without its generated parts."""
    own = VERDICT.sub("", READING.sub("", section))
    return max(1, math.ceil(len(own.split()) / WORDS_PER_MINUTE))


def _result(name: str, language: Language) -> str:
    """Return the verdict of an experiment, and below it its running time and links to its files."""
    folder = RESULTS / name
    record = read(folder)
    found = verdict(name, record)
    running = language.running.format(
        seconds=duration(record["seconds"], language),
        cores=record["cores"],
        plural="s" if record["cores"] > 1 else "",
        cpu=record["cpu"].split(" @")[0],
        date=record["date"][:10],
    )
    return (
        f"**{found.holds.value[language.index]}: {getattr(found, language.sentence)}**\n\n"
        f"{running} {', '.join(_links(folder, language))}\n"
    )


def duration(seconds: float, language: Language) -> str:
    """Return a time in seconds, or in minutes from two minutes on."""
    units = (" s", " min") if language is ENGLISH else ("초", "분")
    return f"{seconds:.0f}{units[0]}" if seconds < 120 else f"{seconds / 60:.0f}{units[1]}"


def _links(folder: Path, language: Language) -> list[str]:
    """Return links to the code of an experiment and to all its result files but the picture."""
    labels = language.labels
    written = {path.name for path in folder.iterdir()} - {"picture.png"}
    ordered = [name for name in labels if name in written] + sorted(written - labels.keys())
    links = [f"[{labels.get(name, name)}](results/{folder.name}/{name})" for name in ordered]
    return [f"[{language.code}]({folder.name}.py)", *links]


def _line(file: str, name: str) -> int:
    """Return the line on which a function or class is defined, or a constant first assigned."""
    defined = re.compile(rf"^\s*(?:def|class) {name}\b|^{name}\b.*=")
    lines = (HERE / file).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if defined.match(line):
            return number
    raise ValueError(f"{file} does not define {name}; a link of the course needs it")
