"""How Sphinx makes the book of the Markdown files here; `make docs` runs it."""

import re
from pathlib import Path

project = "Afterimage"
author = "the authors of Afterimage"
project_copyright = "the authors of Afterimage, Apache-2.0"

extensions = ["myst_parser"]
exclude_patterns = ["requirements*"]

# Headings down to the third level can be linked to, with the names that GitHub gives them.
myst_heading_anchors = 3

# Every page comes from the same place as the book; no font, script or picture comes from elsewhere.
html_theme = "furo"
html_title = "Afterimage"
html_static_path = ["book.css"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e99", "color-brand-content": "#0b6e99"},
    "dark_css_variables": {"color-brand-primary": "#58b4d8", "color-brand-content": "#58b4d8"},
}


def bring_along(app, page, source):
    """Makes downloads of links to Markdown files outside of the book; MyST does so for files of other kinds."""
    folder = Path(app.srcdir, page).parent

    def link(found):
        text, target = found.groups()
        is_page = (folder / target).resolve().is_relative_to(app.srcdir)
        return found[0] if is_page else f"{{download}}`{text} <{target}>`"

    source[0] = re.sub(r"\[([^]`]+)\]\(([^)#:]+\.md)(?:#[^)]*)?\)", link, source[0])


def setup(app):
    app.connect("source-read", bring_along)
