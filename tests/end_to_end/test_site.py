"""The site in docs/ builds, all of its links lead somewhere, and it is read without a network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from tests.helpers.paths import ROOT
from tests.helpers.texts import PAGES, TEXTS

LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}


def build_site(folder: Path, **settings: object) -> None:
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True, **settings)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build_site(folder)
    return folder


class Page(HTMLParser):
    """What a page links, what it loads, and which anchors it has."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors = {"", "__top"}
        self.text = file.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors.add(values.get("id") or "")
        if tag == "a" and values.get("href"):
            self.links.append(values["href"] or "")
        if values.get(LOADED.get(tag, "")):
            self.loaded.append(values[LOADED[tag]] or "")


def local(links: list[str]) -> Iterator[tuple[str, str]]:
    """Path and anchor of each link that stays in the site."""
    for link in links:
        parts = urlsplit(link)
        if not parts.scheme:
            yield unquote(parts.path), unquote(parts.fragment)


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    pages = {file.resolve(): Page(file) for file in site.rglob("*.html") if file.name != "404.html"}
    written = {file.stem for file in pages if file.parent == site.resolve()}
    assert written == {"index", "CHANGELOG", *PAGES}
    checked = 0
    for file, page in pages.items():
        for path, anchor in local(page.links + page.loaded):
            target = (file.parent / path).resolve() if path else file
            assert target.is_file(), f"{file.name}: {path}"
            if target.suffix == ".html":
                assert anchor in pages[target].anchors, f"{file.name}: {path}#{anchor}"
            checked += 1
    assert checked > 300


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for file in site.glob("*.html"):
        page = Page(file)
        assert [link for link in page.loaded if urlsplit(link).netloc] == []
    for file in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)]*", file.read_text(encoding="utf-8")) == []


def test_equations_are_set_when_the_site_is_built(site: Path) -> None:
    source = re.sub(r"^```.*?^```|`[^`\n]*`", "", PAGES["objectives"], flags=re.DOTALL | re.MULTILINE)
    equations = re.findall(r"\$\$.+?\$\$|\$[^$\n]+\$", source.replace("$\n", "$ \n"), flags=re.DOTALL)
    text = Page(site / "objectives.html").text
    found = re.findall(r"<math.*?</math>", text, flags=re.DOTALL)
    assert len(found) == len(equations) > 30
    assert [equation for equation in found if "\\" in equation] == []  # a command that is not known stays as it is
    assert "<mfrac>" in text
    assert "$" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("b.md#nothing", "the doc 'b.md' does not contain an anchor '#nothing'"),
        ("c.md", "the target is not found among documentation files"),
    ],
)
def test_a_link_to_nothing_ends_the_build(
    link: str, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(f"# A\n\n[b]({link})\n")
    (docs / "b.md").write_text("# B\n\n[a](index.md)\n")
    with pytest.raises(Abort, match="Aborted with 1 warnings in strict mode"):
        build_site(tmp_path / "site", docs_dir=str(docs), hooks=[], extra_css=[], nav=["index.md", "b.md"])
    assert message in caplog.text


def headings(text: str) -> set[str]:
    """Anchors as GitHub makes them, for who reads the pages there."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("name", TEXTS)
def test_anchors_lead_somewhere_in_the_checkout_too(name: str) -> None:
    for path, anchor in re.findall(r"\]\((?:docs/)?([\w-]*)(?:\.md)?#([^)]+)\)", TEXTS[name]):
        assert anchor in headings(TEXTS[path or name]), f"{name}: {path}#{anchor}"
