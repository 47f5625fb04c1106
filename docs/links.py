"""Checks links: of every Markdown file of the repository, or of the built book.

    links.py                  every relative link names a file that is there, and a heading that is in it
    links.py --built FOLDER   no page loads a script, a style or a picture from elsewhere

Links to other sites are not followed.
"""

import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin

ROOT = Path(__file__).resolve().parent.parent


def html_of(file):
    markdown = MarkdownIt("gfm-like", {"linkify": False}).use(anchors_plugin, max_level=6)
    return BeautifulSoup(markdown.render(file.read_text()), "html.parser")


def markdown_files():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def problems_in_sources():
    pages = {file: html_of(file) for file in markdown_files()}
    for file, page in pages.items():
        targets = [link["href"] for link in page.find_all("a", href=True)]
        targets += [image["src"] for image in page.find_all("img", src=True)]
        for target in targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            place = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not place.is_relative_to(ROOT) or not place.exists():
                yield file, f"{target} is not there"
            elif parts.fragment and place in pages and not pages[place].find(id=unquote(parts.fragment)):
                yield file, f"{target}: no such heading"


def problems_in(built):
    for file in sorted(built.rglob("*.html")):
        page = BeautifulSoup(file.read_text(), "html.parser")
        loaded = [tag["src"] for tag in page.find_all(src=True)]
        loaded += [tag["href"] for tag in page.find_all("link", href=True)]
        for target in loaded:
            if urlsplit(target).netloc:
                yield file, f"{target} comes from elsewhere"


def main(arguments):
    match arguments:
        case []:
            found = problems_in_sources()
        case ["--built", folder]:
            found = problems_in(Path(folder).resolve())
        case _:
            sys.exit(__doc__)
    count = 0
    for file, problem in found:
        print(f"{file.relative_to(ROOT)}: {problem}", file=sys.stderr)
        count += 1
    sys.exit(1 if count else 0)


main(sys.argv[1:])
