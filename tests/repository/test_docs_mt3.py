"""docs/mt3.md agrees with the code: its numbers, its examples, and the names of code in all pages."""

import ast
import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "mt3.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
CODE = re.compile(r"`((?:mt3data|mt3train|docs)/[\w/]+\.py)(?::([\w.]+))?`")
PARTS = re.compile(r"<!-- made: (\w+) -->\n(.*?)\n<!-- end -->", re.DOTALL)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def same(written: str, made: str) -> bool:
    """Returns whether two texts differ in nothing but the last digits of fractions.

    Whole numbers must be equal. Fractions may differ by two units of their last digit or a
    twentieth, because the order of float32 sums depends on the processor.
    """
    if NUMBER.sub("#", written) != NUMBER.sub("#", made):
        return False
    for one, other in zip(NUMBER.findall(written), NUMBER.findall(made), strict=True):
        if "." not in one or len(one.partition(".")[2]) != len(other.partition(".")[2]):
            if one != other:
                return False
        elif abs(float(one) - float(other)) > max(
            2.01 * 10.0 ** -len(one.partition(".")[2]), float(other) / 20
        ):
            return False
    return True


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """The piece, and the toy model that has learned it."""
    pytest.importorskip("midirenderer", reason="the piece is rendered: needs the extra `synth`")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        import make_mt3
        import toy_mt3

        piece = make_mt3.walk(tmp_path_factory.mktemp("piece"))
        with toy_mt3.one_thread():
            yield piece, toy_mt3.learn(piece.windows)


def test_every_number_and_table_of_the_page_is_what_the_code_gives(walked: tuple[Any, Any]) -> None:
    from make_mt3 import made

    written, texts = dict(PARTS.findall(PAGE)), made(*walked)
    assert set(written) == set(texts)
    assert [name for name in written if not same(written[name], texts[name])] == []


def test_the_examples_of_the_page_give_the_results_that_it_shows() -> None:
    examples = "\n".join(re.findall(r"```pycon\n(.*?)```", PAGE, re.DOTALL))
    test = doctest.DocTestParser().get_doctest(examples, {}, "mt3.md", None, 0)
    printed: list[str] = []
    result = doctest.DocTestRunner().run(test, out=printed.append)
    assert (result.failed, result.attempted) == (0, len(re.findall("^>>> ", PAGE, re.MULTILINE))), (
        "".join(printed)
    )


def test_pictures_can_be_drawn_and_the_page_shows_them_all(
    walked: tuple[Any, Any], tmp_path: Path
) -> None:
    from draw_mt3 import draw

    draw(*walked, tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in DOCS.glob("mt3-*.png")}
    assert drawn == set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGE))
    assert max((DOCS / name).stat().st_size for name in drawn) < 100_000


@pytest.mark.parametrize(
    ("written", "holds"),
    [
        ("pitch 33, 0.97 at 2.040", True),
        ("pitch 33, 0.96 at 2.041", True),
        ("pitch 34, 0.97 at 2.040", False),
        ("pitch 33, 0.90 at 2.040", False),
        ("pitch 33, 0.97 till 2.040", False),
        ("pitch 33, 0.97 at 2.04", False),
    ],
)
def test_only_the_last_digits_of_fractions_may_differ(written: str, holds: bool) -> None:
    assert same(written, "pitch 33, 0.97 at 2.040") == holds


# --- the code that pages name --------------------------------------------------------------------


def defined(path: Path) -> set[str]:
    """Returns the functions, classes and constants of a module, and the members of its classes."""

    def names(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from names(node.body, f"{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else []
            yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))

    return set(names(ast.parse(path.read_text(encoding="utf-8")).body, ""))


@pytest.mark.parametrize("name", PAGES)
def test_code_that_a_page_names_exists(name: str) -> None:
    wrong = []
    for path, member in CODE.findall(PAGES[name]):
        file = DOCS.parent / path
        written_by_the_page = name == "new-dataset.md" and f"`{path}`:\n" in PAGES[name]
        if not written_by_the_page and (
            not file.is_file() or (member and member not in defined(file))
        ):
            wrong.append(f"{path}:{member}")
    assert wrong == []


def test_a_name_that_does_not_exist_would_be_found() -> None:
    assert "NoteDecoder.decode_segment" in defined(
        DOCS.parent / "mt3data" / "music" / "detokenizer.py"
    )
    assert "NoteDecoder.other" not in defined(DOCS.parent / "mt3data" / "music" / "detokenizer.py")
