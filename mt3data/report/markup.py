"""HTML and SVG as text, put together from elements that escape what they hold.

Names of tracks and messages of errors come from files that anybody may have made. So text is never
pasted into markup: `element` escapes every child and every attribute, unless it is `Html`, which
only `element` makes.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from importlib import resources

MAX_ROWS = 200  # of a table; what is left out is counted under it
VOID = ("meta", "br")  # elements of HTML that have no end


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """One element.

    Args:
        name: such as "td" or "svg".
        children: Html stays as it is, lists stand for their items, None for nothing; anything else
            is turned to text and escaped.
        attributes: `class_` is class, `text_anchor` is text-anchor; None leaves an attribute out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{joined(children)}</{name}>")


def joined(children: Iterable[object]) -> Html:
    """Children in their order, escaped as `element` does."""
    return Html("".join(map(_markup, children)))


def document(title: str, policy: str, style: str, *body: object) -> Html:
    """A whole page for phones and screens, in a light and a dark scheme.

    Args:
        title: of the window.
        policy: content security policy, which says all that the page may load and run.
        style: the style sheet, see `style_sheet`.
        body: its children.
    """
    head = element(
        "head", element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title), element("style", Html(style)),
    )  # fmt: skip
    return Html(f"<!doctype html>\n{element('html', head, element('body', *body), lang='en')}\n")


def style_sheet(package: str, name: str) -> str:
    """The colours and type of all pages, then the style sheet of one, by its name in a package."""
    both = resources.files("mt3data.report") / "base.css", resources.files(package) / name
    return "".join(file.read_text(encoding="utf-8") for file in both)


def table(
    caption: str, names: Sequence[str], rows: Sequence[Sequence[object]],
    numbers: Sequence[int] = (), bars: Sequence[int] = (),
) -> Html:  # fmt: skip
    """A table that scrolls sideways where the page is narrow.

    Args:
        caption: what it shows.
        names: of the columns; rows: their cells, whole numbers get thousands separators.
        numbers: columns set as numbers; bars: columns that hold bars.
    """
    kinds: dict[int, str] = dict.fromkeys(numbers, "number") | dict.fromkeys(bars, "bars")
    head = [element("th", name, scope="col", class_=kinds.get(i)) for i, name in enumerate(names)]
    # The first cell names the row, unless it is a number.
    body = [
        element("tr", [
            element("td" if i or i in numbers else "th",
                    f"{cell:,}" if isinstance(cell, int) else cell,
                    class_=kinds.get(i), scope=None if i or i in numbers else "row")
            for i, cell in enumerate(row)
        ])
        for row in rows[:MAX_ROWS]
    ]  # fmt: skip
    whole = element(
        "table", element("caption", caption), element("thead", element("tr", head)),
        element("tbody", body),
    )  # fmt: skip
    more = len(rows) - MAX_ROWS
    rest = element("p", f"{more:,} more rows are left out.", class_="muted") if more > 0 else None
    return joined([element("div", whole, class_="scroll", tabindex=0), rest])


def _markup(child: object) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, list | tuple):
        return joined(child)
    return html.escape(str(child))
