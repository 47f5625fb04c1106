"""How Sphinx makes the book of the Markdown files here; `make docs` runs it."""

project = "Afterimage"
author = "the authors of Afterimage"
project_copyright = "the authors of Afterimage, Apache-2.0"

extensions = ["myst_parser"]
exclude_patterns = ["requirements*"]

# Headings down to the third level can be linked to, with the names that GitHub gives them.
myst_heading_anchors = 3

html_theme = "furo"
html_title = "Afterimage"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
# Every page comes from the same place as the book; no font, script or picture comes from elsewhere.
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e99", "color-brand-content": "#0b6e99"},
    "dark_css_variables": {"color-brand-primary": "#58b4d8", "color-brand-content": "#58b4d8"},
}
