"""The texts for users: README.md, and the pages in docs/."""

from tests.helpers.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))}
TEXTS = {"README": README, **PAGES}


def in_one_line(text: str) -> str:
    return " ".join(text.split())
