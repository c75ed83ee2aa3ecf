"""What is public is documented: purpose, arguments, result, errors, units and source.

The code is read, not imported. Public is what has no leading underscore. A docstring names the arguments,
in prose or under `Args:`, but for those that CONTRIBUTING.md defines once for all, those of a type of
this project, which has a docstring of its own, and where it refers to another one ("As `stream`").
The result is to be told where the first line tells of an action ("Reads a manifest.") and not of the
result ("The manifest of a dataset.").
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for name in ("mt3data", "mt3train") for path in (ROOT / name).rglob("*.py"))

Function = ast.FunctionDef | ast.AsyncFunctionDef

# A first line that opens so is about the result; the other ones are looked at more closely.
ABOUT_THE_RESULT = set(
    "The A An What Whether How Why Where When Which This One Each Every All Everything No Its About "
    "In For".split()
)
# What follows a verb, and hardly ever a noun at the beginning of a sentence.
AFTER_A_VERB = set(
    "a an the its it their each every all one what this these those any out whether how".split()
)
REFERS = re.compile(r"\A.*(\b[Aa]s `|[;:] see `?\w+)|Args: as ")
SAYS_THE_RESULT = re.compile(r"\b(return|yield)(s|ed)?\b", re.IGNORECASE)

# Types from elsewhere that leave nothing to say about an argument of theirs.
SPEAKING_TYPES = {"Random", "Generator", "Device", "device", "Module", "Connection"}
# A path is the file or folder that a docstring tells of.
OTHER_WORDS = {
    "path": "file|folder", "paths": "files|folders", "root": "folder", "out": "file", "file": "path",
    "folder": "build|dataset|run|checkpoint",
}  # fmt: skip
# The words of the house: "- `seed`, `rank`: ..." in CONTRIBUTING.md.
DEFINED = {
    name
    for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("- `")
    for name in re.findall(r"`(\w+)`", line.partition(":")[0])
}

UNIT = re.compile(
    r"second|hour|minute|\bms\b|\bms$|frame|sample|hop|step|beat|bpm|\bHz\b|rate|fps|semitone|cent\b|MIDI"
    r"|velocity|byte|\bGB\b|pixel|share|fraction|ratio|factor|times|weight|temperature|threshold|scale"
    r"|\bunits?\b|probab|confidence|\bdB\b|\bnats?\b|0 to 1|\[0, 1\]|\b1\.0|exponent|count|number|F1|score|strength"
    r"|\bUNIX time\b",
    re.IGNORECASE,
)

# Modules that do what a file of the original does, and the files that there are to follow.
FOLLOWERS = (
    "mt3data/vocabulary mt3data/notes mt3data/midi mt3data/events mt3data/tokens mt3data/merging "
    "mt3data/detokenize mt3data/spectrogram mt3data/windows mt3data/mix mt3data/track "
    "mt3train/model mt3train/loss mt3train/optim mt3train/search mt3train/decode mt3train/transcribe "
    "mt3train/mixing mt3train/matching mt3train/pianoroll mt3train/metrics "
    "mt3train/t5x"
).split()
ORIGINALS = set(
    "datasets event_codec inference layers metrics metrics_utils mixing models network note_sequences "
    "preprocessors run_length_encoding spectral_ops spectrograms summaries tasks vocabularies".split()
)


@dataclass(frozen=True)
class Documented:
    """A public module, class or function, and the docstring that speaks for it."""

    where: str
    node: ast.Module | ast.ClassDef | Function
    docstring: str
    lines: tuple[str, ...]


def public(source: str, where: str) -> Iterator[Documented]:
    """Everything public in a module. A constructor is documented together with its class."""
    tree = ast.parse(source)
    lines = tuple(source.splitlines())

    def below(node: ast.Module | ast.ClassDef, name: str, class_doc: str) -> Iterator[Documented]:
        for child in node.body:
            if not isinstance(child, ast.ClassDef | Function):
                continue
            own = ast.get_docstring(child) or ""
            if child.name == "__init__":
                yield Documented(f"{name}.__init__", child, f"{class_doc}\n{own}", lines)
            elif not child.name.startswith("_"):
                inner = f"{name}.{child.name}"
                yield Documented(inner, child, own, lines)
                if isinstance(child, ast.ClassDef):
                    yield from below(child, inner, own)

    yield Documented(where, tree, ast.get_docstring(tree) or "", lines)
    yield from below(tree, where, "")


PARSED = [
    found
    for path in FILES
    for found in public(
        path.read_text(encoding="utf-8"), str(path.relative_to(ROOT).with_suffix(""))
    )
]
OUR_TYPES = {item.node.name for item in PARSED if isinstance(item.node, ast.ClassDef)}


def functions(items: list[Documented]) -> Iterator[tuple[Documented, Function]]:
    """The functions and methods, but for commands: their docstring is what --help prints."""
    for item in items:
        if isinstance(item.node, Function) and not re.search(
            r"\.(command|group)\(", decorators(item.node)
        ):
            yield item, item.node


def decorators(function: Function) -> str:
    return " ".join(ast.unparse(node) for node in function.decorator_list)


def arguments(function: Function) -> list[ast.arg]:
    """Those that a caller gives, in their order."""
    found = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return [arg for arg in found if arg.arg not in ("self", "cls") and not arg.arg.startswith("_")]


def type_names(annotation: ast.expr | None) -> set[str]:
    return set(re.findall(r"\w+", ast.unparse(annotation))) if annotation else set()


def is_named(name: str, docstring: str) -> bool:
    """Whether a text has an argument's name, or all words of it: "start frame", "x" for x_BLD."""
    bare = re.sub(r"_[A-Z]+$", "", re.sub(r"^(n|is|has|on)_", "", name))
    return all(
        re.search(
            rf"\b(?:{word}s?|{word.removesuffix('s')}|{OTHER_WORDS.get(word, word)}|{name})\b",
            docstring,
            re.IGNORECASE,
        )
        for word in bare.split("_")
    )


def undocumented(items: list[Documented]) -> list[str]:
    return [item.where for item in items if not item.docstring.strip()]


def unnamed_arguments(items: list[Documented]) -> list[str]:
    """Arguments that the docstring does not name and whose type does not explain itself."""
    return [
        f"{item.where}: {arg.arg}"
        for item, function in functions(items)
        for arg in arguments(function)
        if arg.arg not in DEFINED
        and not type_names(arg.annotation) & (OUR_TYPES | SPEAKING_TYPES)
        and not REFERS.search(item.docstring)
        and not is_named(arg.arg, item.docstring)
    ]


def untold_results(items: list[Documented]) -> list[str]:
    """Functions whose docstring tells what they do, and not what they return."""
    found = []
    for item, function in functions(items):
        annotation = ast.unparse(function.returns) if function.returns else "None"
        words = item.docstring.split()
        if annotation in ("None", "NoReturn", "Iterator[None]") or len(words) < 2:
            continue
        is_action = words[0].isalpha() and words[0] not in ABOUT_THE_RESULT
        is_action = is_action and words[1] in AFTER_A_VERB
        if is_action and not SAYS_THE_RESULT.search(item.docstring):
            found.append(f"{item.where}: {item.docstring.splitlines()[0]}")
    return found


def unnamed_errors(items: list[Documented]) -> list[str]:
    """Errors that a function raises by name in its own body, and does not name in its docstring."""
    return [
        f"{item.where}: {error}"
        for item, function in functions(items)
        for error in sorted(raised(function))
        if not re.search(rf"\b{error}s?\b", item.docstring)
    ]


def raised(function: Function) -> set[str]:
    calls = [node.exc for node in ast.walk(function) if isinstance(node, ast.Raise)]
    names = {ast.unparse(call.func) for call in calls if isinstance(call, ast.Call)}
    return {name.split(".")[-1] for name in names}


def floats_without_unit(items: list[Documented]) -> list[str]:
    """Arguments and fields of type float, of which nothing near says what they are counted in."""
    found = []
    for item, function in functions(items):
        for arg in arguments(function):
            if "float" not in type_names(arg.annotation) or REFERS.search(item.docstring):
                continue
            if not UNIT.search(f"{arg.arg} {item.docstring}"):
                found.append(f"{item.where}: {arg.arg}")
    for item in items:
        for field in item.node.body if isinstance(item.node, ast.ClassDef) else ():
            if isinstance(field, ast.AnnAssign) and "float" in type_names(field.annotation):
                near = "\n".join(item.lines[field.lineno - 2 : field.end_lineno])
                if not UNIT.search(near + item.docstring):
                    found.append(f"{item.where}: {ast.unparse(field.target)}")
    return found


@pytest.mark.parametrize(
    "faults",
    [undocumented, unnamed_arguments, untold_results, unnamed_errors, floats_without_unit],
)
def test_docstrings_are_complete(faults: Callable[[list[Documented]], list[str]]) -> None:
    assert faults(PARSED) == []


@pytest.mark.parametrize("module", FOLLOWERS)
def test_a_module_that_follows_the_original_names_its_source(module: str) -> None:
    docstrings = "\n".join(item.docstring for item in PARSED if item.where.startswith(module))
    assert re.search(r"^ *Sources?(: | of )", docstrings, re.MULTILINE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_is_a_file_that_the_original_has(path: Path) -> None:
    cited = re.findall(r"\bmt3/(\w+)\.py", path.read_text(encoding="utf-8"))
    assert set(cited) <= ORIGINALS


def control(body: str) -> list[Documented]:
    return list(public(f'"""A module."""\n\n{body}', "control"))


@pytest.mark.parametrize(
    ("faults", "body"),
    [
        (undocumented, "def f() -> None:\n    pass"),
        (undocumented, "class A:\n    'A class.'\n    def f(self) -> None:\n        pass"),
        (unnamed_arguments, "def f(notes: list, rate: int) -> None:\n    'Plays notes.'"),
        (unnamed_arguments, "class A:\n    'A.'\n    def __init__(self, rate: int): pass"),
        (untold_results, "def f(rate: int) -> int:\n    'Changes the rate.'"),
        (unnamed_errors, "def f() -> None:\n    'Fails.'\n    raise ValueError('x')"),
        (floats_without_unit, "def f(start: float) -> None:\n    'Begins at start.'"),
        (floats_without_unit, "class A:\n    'A note.'\n    onset: float"),
    ],
)
def test_each_check_finds_what_it_looks_for(
    faults: Callable[[list[Documented]], list[str]], body: str
) -> None:
    assert len(faults(control(body))) == 1


@pytest.mark.parametrize(
    "body",
    [
        "def f(rate: int) -> int:\n    'The rate, doubled.'",
        "def f(n_frames: int) -> int:\n    'Changes the frames; returns how many there are.'",
        "def f(split_scheme: str) -> None:\n    'Takes another split scheme.'",
        "def f(x_BLD: object) -> object:\n    'Attention from x.'",
        "def f(start: float) -> None:\n    'Begins at start, in seconds.'",
        "def f() -> None:\n    'Fails with a ValueError.'\n    raise ValueError('x')",
        "class A:\n    'A note.'\n    onset: float  # seconds",
        "def _f(rate: int) -> int:\n    pass",
    ],
)
def test_short_docstrings_that_say_all_are_left_alone(body: str) -> None:
    items = control(body)
    checks = (undocumented, unnamed_arguments, untold_results, unnamed_errors, floats_without_unit)
    assert [fault for check in checks for fault in check(items)] == []
