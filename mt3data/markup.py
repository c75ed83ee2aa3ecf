"""HTML and SVG as text, put together from elements that escape what they hold.

Names of tracks and messages of errors come from files that anybody may have made. So text is never
pasted into markup: `element` escapes every child and every attribute, unless it is `Html`, which
only `element` makes.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

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
    """Children one after the other, escaped as `element` does."""
    return Html("".join(map(_markup, children)))


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
