"""What mkdocs does not do by itself: README as the first page, files of the checkout that pages link, equations.

Pages are written to be read in the checkout as well, so that their links are paths in it. In the site a file keeps its
path, but for the pages in docs/, which stand at the top.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!https?://|#)([^)#\s]+)")


def in_site(path: str) -> str:
    """Where a file of the checkout stands in the site; a report as Markdown is there as its page."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/").replace("/report.md", "/report.html")


def rewritten(text: str, folder: str) -> str:
    """Turn the links of a page that lies in this folder of the checkout into links of the site."""
    return LINK.sub(lambda link: in_site(posixpath.normpath(posixpath.join(folder, link[1]))), text)


def on_files(files: Files, config: Any) -> Files:
    """Add README, the changelog and every file of the checkout that a page links: with a report, its data."""
    texts = [rewritten((ROOT / "README.md").read_text(encoding="utf-8"), "")]
    files.append(File.generated(config, "index.md", content=texts[0]))
    files.append(File.generated(config, "CHANGELOG.md", abs_src_path=str(ROOT / "CHANGELOG.md")))
    texts += [rewritten(file.content_string, "docs") for file in files.documentation_pages()]
    linked = {ROOT / link for text in texts for link in LINK.findall(text)}
    data = {file for report in linked if report.name == "report.html" for file in report.parent.glob("data/*")}
    for file in sorted(linked | data):
        place = file.relative_to(ROOT).as_posix()
        if files.get_file_from_path(place) is None and file.is_file():
            files.append(File.generated(config, place, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of a page into links of the site."""
    return rewritten(markdown, "docs") if page.file.generated_by is None else markdown


def on_page_content(content: str, **_: Any) -> str:
    """Set the equations as MathML, which browsers show by themselves."""

    def mathml(found: re.Match[str]) -> str:
        display = "block" if found[1] == "[" else "inline"
        return convert(html.unescape(found[2]), display=display)

    return re.sub(r"\\([\[(])(.*?)\\[\])]", mathml, content, flags=re.DOTALL) if "arithmatex" in content else content
