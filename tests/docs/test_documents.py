"""Every code block in docs/ runs, and prints what the page says; every link of every page leads somewhere.

A block marked ```sh not-run needs what a test machine may lack (a GPU, an index of packages).

Blocks of a page run in order, in one folder. ```python blocks share a namespace; one whose first line is `# NAME.py` is
written to that file instead. ```sh blocks are run by bash. A ```text block after either is what it prints, where a line
`...` stands for any lines, and `...` in a line for any text. ```ir and other blocks only show something.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
EVERY_PAGE = [*PAGES, *sorted((ROOT / "docs" / "reference").glob("*.md")), *sorted(ROOT.glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.M | re.S)
NOT_RUN = "not-run"
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


@dataclass
class Block:
    """One fenced block: its language, text and the line it begins in."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    matches = [m for m in BLOCK.finditer(text) if NOT_RUN not in m[2]]
    return [Block(m[1], m[3], text.count("\n", 0, m.start()) + 2) for m in matches]


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


class Reader:
    """Somebody who types in every block of one page, in order."""

    def __init__(self, page: Path, folder: Path) -> None:
        self.page, self.folder = page, folder
        self.module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
        sys.modules[self.module.__name__] = self.module  # dataclasses look their module up

    def run(self) -> None:
        known = set(sys.modules)
        sys.path.insert(0, str(self.folder))
        try:
            self.read()
        finally:
            sys.path.remove(str(self.folder))
            for name in set(sys.modules) - known:
                if str(getattr(sys.modules[name], "__file__", "")).startswith(str(self.folder)):
                    del sys.modules[name]

    def read(self) -> None:
        printed = ""
        for block in blocks(self.page):
            match block.language:
                case "python":
                    printed = self.python(block)
                case "sh":
                    printed = self.shell(block)
                case "text":
                    compare(block, printed, self.page)

    def python(self, block: Block) -> str:
        first = re.match(r"# ([\w/]+\.py)\n", block.text)
        if first:
            (self.folder / first[1]).write_text(block.text, encoding="utf-8")
            return ""
        # Blank lines before it, so that a traceback has the line numbers of the page.
        code = compile("\n" * (block.line - 1) + block.text, str(self.page), "exec")
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.chdir(self.folder):
            exec(code, vars(self.module))
        return out.getvalue()

    def shell(self, block: Block) -> str:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", block.text],
            cwd=self.folder,
            env=os.environ | {"PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{relative(self.page)}:{block.line}: {block.text}\n{done.stdout}"
        return done.stdout


def compare(block: Block, printed: str, page: Path) -> None:
    """A text block is what was printed; a line `...` stands for any lines, `...` in a line for any text."""
    lines = [re.escape(line.rstrip()) for line in block.text.strip("\n").splitlines()]
    pattern = "\n".join(r"(?:.*\n)*?.*" if line == r"\.\.\." else line.replace(r"\.\.\.", ".*") for line in lines)
    found = "\n".join(line.rstrip() for line in printed.strip("\n").splitlines())
    assert re.fullmatch(pattern, found), f"{relative(page)}:{block.line} says\n{block.text}\nprinted\n{found}"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_block_runs_and_prints_what_the_page_says(
    page: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IRLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
    Reader(page, tmp_path).run()


def anchors(page: Path) -> set[str]:
    """The anchors that a repository host makes of the headings of a page."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links() -> Iterator[tuple[Path, str]]:
    for page in EVERY_PAGE:
        for target in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
            if "://" not in target:
                yield page, target


@pytest.mark.parametrize(("page", "target"), links(), ids=lambda x: relative(x) if isinstance(x, Path) else x)
def test_links_lead_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.exists(), f"{relative(page)} links to {target}"
    assert not anchor or anchor in anchors(file), f"{relative(page)}: {target} has no such heading"


def test_every_page_is_reached_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [str(page.relative_to(ROOT / "docs")) for page in EVERY_PAGE if page.is_relative_to(ROOT / "docs")]
    assert [page for page in pages if page != "index.md" and f"({page})" not in index] == []
