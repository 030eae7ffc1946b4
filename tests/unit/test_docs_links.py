"""Links of the repository's Markdown pages: each points at a file, and at a heading, that exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("benches", "docker", "docs", "examples", "loadgen", "tests")
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))],
)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(.+?)\1")
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
ABSOLUTE = re.compile(r"[a-z]+:")
# A page that code names, such as in a docstring.
NAMED = re.compile(r"\bdocs/[\w/-]+\.md\b")
CODE_FOLDERS = ("benches", "docker", "examples", "python", "rust", "tests")


def prose(text: str) -> str:
    """Return the text without fenced code, where `#` starts no heading and brackets make no link."""
    return FENCE.sub("", text)


def links(text: str) -> list[str]:
    """Return the relative links of a page, pictures included."""
    return [link for link in LINK.findall(CODE.sub("", prose(text))) if not ABSOLUTE.match(link)]


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading: lower case, no punctuation, hyphens for blanks."""
    shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """Return the anchors of a page; headings of one text are told apart by a number, from the second one on."""
    found: set[str] = set()
    for anchor in map(slug, HEADING.findall(prose(text))):
        number = 0
        while (name := f"{anchor}-{number}" if number else anchor) in found:
            number += 1
        found.add(name)
    return found


def broken(page: Path, link: str) -> str | None:
    """Return why a link of a page leads nowhere; None when it leads somewhere."""
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.is_relative_to(ROOT) or not target.exists():
        return f"{link}: no such file"
    if anchor and anchor not in anchors(target.read_text()):
        return f"{link}: no such heading"
    return None


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_links_point_at_what_exists(page: str) -> None:
    """A relative link leads to a file of the repository, its anchor to a heading of that file."""
    path = ROOT / page
    assert [reason for link in links(path.read_text()) if (reason := broken(path, link))] == []


def test_pages_named_in_code_exist() -> None:
    """Docstrings and comments name pages of `docs/` that exist."""
    files = [path for folder in CODE_FOLDERS for kind in ("py", "rs") for path in (ROOT / folder).rglob(f"*.{kind}")]
    named = {(path, page) for path in files if path != Path(__file__) for page in NAMED.findall(path.read_text())}
    assert len(named) > 20
    assert [f"{path.relative_to(ROOT)}: {page}" for path, page in sorted(named) if not (ROOT / page).exists()] == []


def test_links_are_seen_outside_code() -> None:
    """The test above is worth as much as what it sees: links and pictures, not code."""
    text = "[a](b.md#c), ![d](e.svg)\n[f\ng](h.md) `[i](j.md)` [k](https://l/m)\n```\n[n](o.md)\n```\n"
    assert links(text) == ["b.md#c", "e.svg", "h.md"]


def test_anchors_of_headings_as_github_makes_them() -> None:
    """Punctuation goes, blanks become hyphens, equal headings get numbers, code blocks have no headings."""
    text = "# A page\n## 8.2 Reset, *acceptance*\n## `[flows]`\n## Same\n## Same\n```\n# no\n```\n"
    assert anchors(text) == {"a-page", "82-reset-acceptance", "flows", "same", "same-1"}


def test_broken_links_are_told_apart(tmp_path: Path) -> None:
    """A missing file and a missing heading are two faults."""
    page = ROOT / "README.md"
    assert broken(page, "docs/rules.md#13-counters") is None
    assert broken(page, "docs/no.md") == "docs/no.md: no such file"
    assert broken(page, "docs/rules.md#no") == "docs/rules.md#no: no such heading"
    assert broken(page, str(tmp_path)) == f"{tmp_path}: no such file"


def test_unit_on_the_page_is_the_file() -> None:
    assert (ROOT / "examples" / "flowlb.service").read_text() in (ROOT / "docs" / "control.md").read_text()
