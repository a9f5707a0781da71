"""Self-contained pages: style, data, plotly.js and the page's own script in one file."""

import html
import json
import math
from importlib import resources

from recbole_tiger.files import whole_file

# The policy forbids the page to load anything.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<main id="main"><noscript>This page needs JavaScript.</noscript></main>
<script type="application/json" id="data">{data}</script>
{scripts}
</body>
</html>
"""


def number(value):
    """Convert a number for JSON: None if it is absent or not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _part(name):
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def write_page(file, title, script, data, charts=True):
    """Write a page, whole or not at all.

    Args:
        file: path of the page.
        title: its title.
        script: name of the page's own script, a file of this package.
        data: JSON data that the script shows, always as text.
        charts: whether the page draws charts; if so, it includes plotly.js (5 MB).

    Raises:
        TigerError: the file cannot be written.
    """
    scripts = [_part("page.js"), _part(script)]
    if charts:
        from plotly.offline import get_plotlyjs

        scripts.insert(0, get_plotlyjs())
    content = PAGE.format(
        title=html.escape(title),
        style=_part("page.css"),
        # Only "<" can end a script element.
        data=json.dumps({"title": title, **data}, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        scripts="\n".join(f"<script>\n{text}\n</script>" for text in scripts),
    )
    with whole_file(file) as temporary:
        temporary.write_text(content, encoding="utf-8")
