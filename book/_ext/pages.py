"""A Sphinx extension that finishes the pages: what the theme leaves undone, and what it knows not.

What lives here: changes to a page's head, tables, figures and buttons while it is written, and the
names of the bibliography's entries. What does not: looks, which are `_static/pages.css`'s, and what
a reader's browser does, which is `_static/pages.js`'s.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from docutils import nodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config

_LETTERS = 160  # of a description: more is cut off where it is shown


def repository(environ: Mapping[str, str]) -> dict[str, str]:
    """Return "url", "branch" and "pages" of the repository, as a CI job knows them, or nothing.

    "pages" is where the built book is published; it is known of the public server alone.
    """
    name = environ.get("GITHUB_REPOSITORY", "")
    if not name:
        return {}
    server = environ.get("GITHUB_SERVER_URL", "https://github.com")
    branch = environ.get("GITHUB_REF_NAME", "main")  # of a pull request it is "12/merge"
    owner, _, project = name.partition("/")
    home = f"https://{owner.lower()}.github.io/"
    folder = "" if project.lower() == f"{owner.lower()}.github.io" else f"{project}/"
    return {
        "url": f"{server}/{name}",
        "branch": "main" if "/" in branch else branch,
        "pages": home + folder if server == "https://github.com" else "",
    }


def _configure(app: Sphinx, config: Config) -> None:
    found = repository(os.environ)
    if not found:
        return
    config.html_theme_options |= {
        "repository_url": found["url"],
        "repository_branch": found["branch"],
        "path_to_docs": "book",
        "use_repository_button": True,
        "use_issues_button": True,
        "launch_buttons": {
            "binderhub_url": "https://mybinder.org",
            "notebook_interface": "jupyterlab",
        },
    }
    config.html_baseurl = config.html_baseurl or found["pages"]


def finished(body: str) -> str:
    """Return a page's HTML with tables and figures that also fit a narrow screen.

    A table's caption moves out of the box that scrolls, and a picture into one. Cells of headers
    say what they are the header of.
    """
    body = re.sub(
        r'(<div class="pst-scrollable-table-container">)<table class="([^"]*)" id="([^"]*)">\s*'
        r"<caption>(.*?)</caption>(.*?</table>\s*</div>)",
        r'<figure class="table-figure" id="\3"><figcaption>\4</figcaption>'
        r'\1<table class="\2">\5</figure>',
        body,
        flags=re.DOTALL,
    )
    body = body.replace('<th class="head', '<th scope="col" class="head')
    body = body.replace('<th class="stub', '<th scope="row" class="stub')
    return re.sub(r"(<figure[^>]*>\s*)(<img [^>]*>)", r'\1<div class="picture">\2</div>', body)


def description(doctree: nodes.document) -> str:
    """Return a page's first sentences, in at most so many letters as a search result shows."""
    first = doctree.next_node(nodes.paragraph)
    text = "" if first is None else re.sub(r"\s+", " ", first.astext()).strip()
    if len(text) <= _LETTERS:
        return text
    return text[:_LETTERS].rpartition(" ")[0] + " …"


def _head(app: Sphinx, context: Mapping[str, Any], about: str) -> Iterator[str]:
    """Yield what names a page to search engines, and to those to whom a link is sent."""
    base = app.config.html_baseurl
    facts = {
        "og:type": "article",
        "og:site_name": app.config.html_title,
        "og:title": re.sub(r"<[^>]*>", "", context.get("title", "")),
        "og:description": about,
        "og:url": base and f"{base}{context['pagename']}.html",
        "og:image": base and f"{base}_static/card.png",
        "og:image:alt": base and app.config.html_title,
    }
    yield f'<meta name="description" content="{html.escape(about)}">'
    yield f'<meta name="twitter:card" content="{"summary_large_image" if base else "summary"}">'
    for name, value in facts.items():
        if value:
            yield f'<meta property="{name}" content="{html.escape(html.unescape(value))}">'


def _finish(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    # Live code in pages is not offered, and its scripts come from another host.
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in f"{script.filename} {getattr(script, 'attributes', {})}".lower()
    ]
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", [group]):
            if "url" in button:  # book/notebooks is a link, which web pages do not follow
                button["url"] = button["url"].replace("/book/notebooks/", "/notebooks/")
    about = f"{context.get('title', page)}: {app.config.html_title}"
    if doctree is not None:
        context["body"] = finished(context["body"])
        about = description(doctree) or about
    tags = "\n".join(_head(app, context, about))
    context["metatags"] = f"{context.get('metatags', '')}\n{tags}"


def _register_labels() -> None:
    """Have the bibliography name its entries as citations do: "Curci et al., 2021"."""
    from pybtex.plugin import register_plugin
    from pybtex.style.formatting.plain import Style
    from pybtex.style.labels import BaseLabelStyle

    class Labels(BaseLabelStyle):
        def format_labels(self, entries: Iterable[Any]) -> Iterator[str]:
            for entry in entries:
                people = entry.persons.get("author") or entry.persons["editor"]
                names = [str(person.rich_last_names[-1]) for person in people]
                several = f"{names[0]} et al."
                name = several if len(names) > 2 else " and ".join(names)
                yield f"{name}, {entry.fields['year']}"

    class AuthorYear(Style):
        default_label_style = Labels

    register_plugin("pybtex.style.formatting", "author_year", AuthorYear)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension with Sphinx."""
    _register_labels()
    app.connect("config-inited", _configure)
    app.connect("html-page-context", _finish, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
