"""How a picture or a table shows itself: with its caption in JupyterLab, numbered in the book.

JupyterLab shows HTML. The book uses MyST Markdown: its configuration orders the media types.
"""

import base64
import html
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure


def minus(text: str) -> str:
    """Replace the hyphen before each negative number of a text by a minus sign."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


@dataclass(frozen=True)
class Picture:
    """A figure with its caption, one paragraph of Markdown."""

    key: str  # in lower case, its name in the book
    figure: Figure
    caption: str
    alt: str  # describes it for readers who cannot see it
    sources: str = ""  # where its numbers come from: a fold under the figure
    finding: str = ""  # a sentence above it, computed from the same results

    def svg(self) -> str:
        """Return the figure as SVG; the same figure gives the same text."""
        return self._file("svg", Date=None).decode()

    def pdf(self) -> bytes:
        """Return the figure as PDF, with fonts that journals accept."""
        return self._file("pdf", CreationDate=None)

    def _file(self, form: str, **about: Any) -> bytes:
        out, tight = io.BytesIO(), {"bbox_inches": "tight", "pad_inches": 0.05}
        with matplotlib.rc_context({"svg.hashsalt": self.key, "pdf.fonttype": 42}):
            self.figure.savefig(out, format=form, metadata=about, dpi=200, **tight)
        self.figure.set_layout_engine("none")  # it is laid out now, which takes a second
        return out.getvalue()

    @cached_property
    def _uri(self) -> str:
        """The SVG as an address; drawn once for HTML and Markdown, which IPython both asks for."""
        return f"data:image/svg+xml;base64,{_base64(self.svg().encode())}"

    def __repr__(self) -> str:
        return self.caption

    def _repr_html_(self) -> str:
        return _html(
            self,
            f'<figure style="margin: 0"><img src="{self._uri}" alt="{html.escape(self.alt)}" '
            'style="max-width: 100%; background: white">'
            f"<figcaption>{_inline(self.caption)}</figcaption></figure>",
        )

    def _repr_markdown_(self) -> str:
        figure = f"````{{figure}} {self._uri}\n:name: {self.key.lower()}\n:alt: {self.alt}"
        body = f"{figure}\n\n{self.caption}\n````"
        if "-here" in self.key:  # it decides nothing: a figure without a caption has no number
            body = f"{figure}\n````\n\n{self.caption}"
        else:
            link = _download(f"{self.key.lower()}.pdf", "application/pdf", self.pdf(), "PDF")
            body += f'\n\n<p class="picture-pdf">Download: {link}</p>'
        return _myst(self, body)


@dataclass(frozen=True)
class Note:
    """A text, for example in place of a missing figure or table: one paragraph of Markdown."""

    text: str

    @property
    def finding(self) -> str:
        """The sentence that a page quotes."""
        return self.text

    def _repr_markdown_(self) -> str:
        return minus(self.text)


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, and how it shows the rows' values under a name."""

    title: str
    name: str  # "" for the whole row
    show: str | Callable[[Any], str] = "{}"  # a format, or a function, of the value
    number: bool = True  # set flush right
    once: bool = False  # show a value that repeats in consecutive rows only once

    def text(self, row: Mapping[str, Any]) -> str:
        """Return the cell of a row; a dash where it has no value."""
        value = row.get(self.name) if self.name else row
        show = self.show if callable(self.show) else self.show.format
        return "—" if value is None else minus(show(value))


@dataclass(frozen=True)
class Table:
    """A table with its caption, one paragraph of Markdown."""

    key: str  # names it and its downloads
    frame: pd.DataFrame  # of texts, ready to be shown, Markdown allowed
    caption: str
    data: pd.DataFrame  # the plain values of the CSV file
    numbers: tuple[str, ...] = ()  # the columns that are set flush right
    sources: str = ""  # where the numbers come from: a fold under the table
    finding: str = ""  # a sentence above it, computed from the same results

    @classmethod
    def of(
        cls, key: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[Column], caption: str,
        sources: str = "", finding: str = "",
    ) -> "Table":  # fmt: skip
        """Make a table from rows of plain values and from columns, which show them."""
        rows = list(rows)
        frame = pd.DataFrame({c.title: [c.text(row) for row in rows] for c in columns})
        once = [c.title for c in columns if c.once]
        frame[once] = frame[once].where(frame[once] != frame[once].shift(), "")
        numbers = tuple(c.title for c in columns if c.number)
        return cls(key, frame, caption, pd.DataFrame(rows), numbers, sources, finding)

    def csv(self) -> str:
        """Return the plain values as CSV."""
        return self.data.to_csv(index=False, lineterminator="\n")

    def latex(self) -> str:
        """Return a LaTeX table (booktabs, pifont) with caption and label."""
        frame = self.frame.map(_latex).rename(columns=_latex)
        return frame.to_latex(
            index=False, caption=_latex(self.caption), label=f"tab:{self.key}",
            column_format="".join("r" if c in self.numbers else "l" for c in self.frame.columns),
        )  # fmt: skip

    def _repr_html_(self) -> str:
        body = self.frame.map(_inline).to_html(index=False, escape=False, border=0)
        return _html(self, f"<p>{_inline(self.caption)}</p>{body}<p>{self._downloads()}</p>")

    def _repr_markdown_(self) -> str:
        rule = ["---:" if c in self.numbers else ":---" for c in self.frame.columns]
        rows = [self.frame.columns, rule, *self.frame.to_numpy()]
        texts = (" | ".join(cell.replace("|", r"\|") for cell in row) for row in rows)
        body = "\n".join(f"| {text} |" for text in texts)
        here = "-here" in self.key  # as for figures: no caption, no number
        above, title = (f"{self.caption}\n\n", "") if here else ("", f" {self.caption}")
        table = f"{above}````{{table}}{title}\n:name: {self.key}\n\n{body}\n````"
        return _myst(self, f"{table}\n\n{self._downloads()}")

    def _downloads(self) -> str:
        files = ("CSV", "csv", self.csv()), ("LaTeX", "tex", self.latex())
        links = [
            _download(f"{self.key}.{suffix}", "text/plain;charset=utf-8", text.encode(), label)
            for label, suffix, text in files
        ]
        return f"Download: {' · '.join(links)}"


def _download(name: str, kind: str, content: bytes, label: str) -> str:
    """Return an HTML link to a file that is embedded in the page."""
    return f'<a download="{name}" href="data:{kind};base64,{_base64(content)}">{label}</a>'


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _html(shown: Picture | Table, body: str) -> str:
    """Put a figure or table between its finding and its sources."""
    finding = f"<p>{_inline(minus(shown.finding))}</p>" * bool(shown.finding)
    fold = f"<details><summary>Sources</summary>{_inline(minus(shown.sources))}</details>"
    return f"{finding}{body}{fold * bool(shown.sources)}"


def _myst(shown: Picture | Table, body: str) -> str:
    """Put a figure or table between its finding and its sources, in Markdown."""
    finding = f"{minus(shown.finding)}\n\n" * bool(shown.finding)
    sources = minus(shown.sources).replace("$", r"\$")  # two would enclose a formula
    fold = f"```{{dropdown}} Sources\n{sources}\n```\n" * bool(sources)
    return f"{finding}{body}\n\n{fold}"


# The little Markdown that captions and cells use: code, bold, italics.
_MARKUP = re.compile(r"`(?P<code>[^`]+)`|\*\*(?P<bold>.+?)\*\*|\*(?P<italic>[^*]+)\*")
_HTML = {"code": "<code>{}</code>", "bold": "<b>{}</b>", "italic": "<i>{}</i>"}
_TEX = {"code": r"\texttt{{{}}}", "bold": r"\textbf{{{}}}", "italic": r"\emph{{{}}}"}
_MATH = {
    "ε": "varepsilon", "α": "alpha", "η": "eta", "ζ": "zeta", "λ": "lambda", "μ": "mu",
    "×": "times", "±": "pm", "≥": "geq", "≤": "leq", "→": "to", "·": "cdot", "τ": "tau",
}  # fmt: skip
# It contains none of that Markdown's characters, so a text is translated before it is marked up.
_LATEX: dict[str, str | int | None] = {
    **{sign: f"$\\{name}$" for sign, name in _MATH.items()},
    "†": r"$^\dagger$", "‡": r"$^\ddagger$", "°": r"$^\circ$", "…": r"\dots{}", "–": "--",
    "—": "---", "−": "$-$", "✓": r"\ding{51}", "✗": r"\ding{55}", "\N{NO-BREAK SPACE}": "~",
    **{c: f"${c}$" for c in "<>|"},
    "\\": r"\textbackslash{}",
    **{c: f"$^{{{p}}}$" for c, p in zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789", strict=True)},
    **{c: "\\" + c for c in "&%$#_{}"},
}  # fmt: skip


def _unlinked(text: Any) -> str:
    """Return a text without MyST's links, which nothing else understands."""
    return re.sub(r"\{ref\}`(.+?) <.+?>`", r"\1", str(text))


def _marked(text: str, forms: Mapping[str, str]) -> str:
    return _MARKUP.sub(lambda m: forms[str(m.lastgroup)].format(m[str(m.lastgroup)]), text)


def _inline(text: Any) -> str:
    return _marked(html.escape(_unlinked(text)), _HTML)


def _latex(text: Any) -> str:
    return _marked(_unlinked(text).translate(str.maketrans(_LATEX)), _TEX)
