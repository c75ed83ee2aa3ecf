"""Publishers of tiny twins: each dataset packed as its manifest states, on 127.0.0.1.

`published` serves what a manifest's sources name and writes a folder of manifests that differ from
ours in three things only: where the files are, their sizes and checksums, and the rows, which are
those of the twin.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import signal
import subprocess
import sys
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path
from unittest import mock
from urllib.parse import unquote, urlsplit

from click.testing import CliRunner, Result
from events import HANG_SECONDS
from fakes_listed import TREES
from server import Fault, Publisher

from mt3data.cli.main import main
from mt3data.datasets import manifest
from mt3data.datasets.manifest import DatasetManifest, Source
from mt3data.download.dataset import wanted_sources

TOPLESS = {"slakh", "cerberus4"}  # their twins are what the archive holds, without `folder` around
REAL = manifest._folder()  # whatever a test puts in its place later
BESIDE = {"musicnet_em": ("LICENSE.txt", "README.txt")}  # members that lie above the top folder

# What `mt3data` is in a process of its own; it kills itself when a log of members has argv[2] lines.
COMMAND = """
import os, signal, sys
from pathlib import Path
from mt3data.datasets import manifest
from mt3data.download.state import ExtractionLog
manifest._folder, left = lambda: Path(sys.argv[1]), int(sys.argv[2])
add = ExtractionLog.add
def dying(self, entry):
    if left and len(self.entries) == left:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, entry)
ExtractionLog.add = dying
from mt3data.cli.main import main
main(sys.argv[3:])
"""


def run(*words: object) -> Result:
    """One command in this process."""
    return CliRunner().invoke(main, [str(word) for word in words])


def start(manifests: Path, *words: object, members: int = 0) -> subprocess.Popen[bytes]:
    """One command in a process of its own; it dies once so many members were unpacked, if not 0."""
    path = os.pathsep.join(
        [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    )
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(manifests), str(members), *map(str, words)],
        env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def kill_in_download(web: Publisher, path: str, manifests: Path, *words: object) -> None:
    """Kills a command when half of a file was sent to it."""
    web.hanging.clear()
    web.faults[path] = [Fault(hang_after=len(web.files[path]) // 2)]
    process = start(manifests, *words)
    try:
        assert web.hanging.wait(HANG_SECONDS)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def kill_in_unpacking(manifests: Path, *words: object, members: int = 2) -> None:
    """Lets a command kill itself when so many members of an archive were unpacked."""
    assert start(manifests, *words, members=members).wait(HANG_SECONDS) == -signal.SIGKILL


def shards(folder: Path) -> dict[str, bytes]:
    """The shards of the builds in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.tar"))}


def published(name: str, web: Publisher, folder: Path) -> Path:
    """Has a dataset's twin served as its manifest describes it; returns the folder of manifests.

    Args:
        name: of the dataset.
        web: who serves it from now on.
        folder: an empty folder for twins and manifests.
    """
    here = folder / "manifests"
    here.mkdir(parents=True)
    for path in REAL.glob("*.*"):
        (here / path.name).write_bytes(path.read_bytes())
    with mock.patch.object(manifest, "_folder", lambda: REAL):
        _serve(manifest.load(name), web, folder, here)
    for path in here.glob("*.toml"):  # no address of the real publishers is left
        path.write_text(_redirected(path.read_text(encoding="utf-8"), web), encoding="utf-8")
    return here


def path_of(source: Source) -> str:
    """The path of a source's file on its server."""
    return unquote(urlsplit(source.url).path)


def _serve(described: DatasetManifest, web: Publisher, folder: Path, here: Path) -> None:
    """Puts what the sources name on the server, made from twins in the folder."""
    twin = _twin(described, folder)
    if any("audio" in row for row in described.rows.values()):
        _cut_rows(described, twin, here)
    for source in wanted_sources(described):
        if source.kind != "file":
            owner = manifest.load("musicnet") if source.id == "musicnet" else described
            web.files[path_of(source)] = _packed(source, _twin(owner, folder))
        elif (file := twin / source.into / source.id).is_file():
            web.files[path_of(source)] = file.read_bytes()


def _twin(described: DatasetManifest, folder: Path) -> Path:
    """Writes a dataset's twin, if it is not there; returns the folder that the manifest speaks of."""
    root = folder / described.name
    twin = root / described.folder
    if not twin.exists():
        TREES[described.name](twin if described.name in TOPLESS else root)
    return twin


def _packed(source: Source, folder: Path) -> bytes:
    """A zip or tar.gz of folder/into, with entries of folders, below `strip` top folders."""
    assert source.strip in (0, 1)
    top = (source.into or folder.name) if source.strip else ""
    members = sorted((folder / source.into).rglob("*"))
    content = BytesIO()
    if source.kind == "zip":
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as zipped:
            for beside in BESIDE.get(source.id, ()):
                zipped.writestr(beside, "words\n")
            for path in members:
                zipped.write(path, Path(top, path.relative_to(folder / source.into)))
    else:
        with tarfile.open(fileobj=content, mode="w:gz") as tarred:
            for path in members:
                inside = str(Path(top, path.relative_to(folder / source.into)))
                tarred.add(path, inside, recursive=False)
    return content.getvalue()


def _cut_rows(described: DatasetManifest, twin: Path, here: Path) -> None:
    """Leaves the rows of the twin, with the md5 of its files where there were checksums."""
    assert described.rows_path
    path = here / described.rows_path.name
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kept = []
    for row in rows:
        ours = described.rows.get(next(iter(row.values())), {})
        for kind in ("audio", "labels"):
            files = [twin / name for name in ours.get(kind, "").split(";")]
            column = described.derived.get(f"md5_{kind}", f"md5_{kind}").strip("{}")
            if row.get(column) and all(file.is_file() for file in files):
                row[column] = ";".join(_hash("md5", file.read_bytes()) for file in files)
        if ours and (twin / ours["audio"].split(";")[0]).is_file():
            kept.append(row)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)


def _redirected(text: str, web: Publisher) -> str:
    """A manifest whose sources are at the publisher's, with the sizes and sums of what it serves."""
    head, *entries = text.split("[[sources]]\n")
    return "[[sources]]\n".join([head, *(_entry(entry, web) for entry in entries)])


def _entry(entry: str, web: Publisher) -> str:
    url = re.search(r'^url = "(.*)"', entry, re.MULTILINE)
    assert url
    content = web.files.get(unquote(urlsplit(url[1]).path))
    facts, rest = (entry.split("\n\n", 1) + [""])[:2]
    facts = re.sub(r"https://[^/\"]+", web.url, facts)
    if content is not None:
        facts = re.sub(r"^bytes = [\d_]+", f"bytes = {len(content)}", facts, flags=re.MULTILINE)
        for name in ("md5", "sha256"):
            said = f'{name} = "{_hash(name, content)}"'
            facts = re.sub(rf'^{name} = ".*"', said, facts, flags=re.MULTILINE)
    return f"{facts}\n\n{rest}"


def _hash(name: str, content: bytes) -> str:
    return hashlib.new(name, content, usedforsecurity=False).hexdigest()
