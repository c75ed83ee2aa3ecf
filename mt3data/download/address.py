"""Distinguishes addresses of remote files from paths, and opens the file system of an address.

http and https are read by our own code (http.py), as for all datasets. fsspec reads and writes the
others: s3://, gs://, az://, hf:// and more. It comes with torch. The package that knows the protocol
is installed by the user, for example s3fs for s3://.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

from mt3data.errors import UserError

HTTP = ("http", "https")


def scheme_of(place: str | Path) -> str:
    """Returns the scheme of an address in lower case; "" for a path. One letter is a drive."""
    found = None if isinstance(place, PurePath) else re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", place)
    return found[1].lower() if found else ""


def is_address(place: str | Path) -> bool:
    """Checks whether a build is given by the address of a server; paths and file: addresses are not.

    An existing file or folder is a path, even if its name has a colon.

    Raises:
        UserError: an address of an unknown kind, a command ("pipe:"), or one file system inside
            another ("zip://a::s3://b").
    """
    scheme = scheme_of(place)
    if scheme in ("", "file") or ("://" not in str(place) and os.path.exists(place)):  # noqa: PTH110
        return False
    is_known = str(place)[len(scheme) :].startswith("://") and "::" not in str(place)
    if not (is_known and (scheme in HTTP or scheme in _protocols())):
        raise UserError(
            f"{place}: {scheme}: is not read; expected a folder, or an address that begins with "
            "http://, https://, s3://, gs://, az://, hf:// or another protocol of fsspec"
        )
    return True


def local_path(place: str | Path) -> Path:
    """Returns the path of a build that is given by a path or a file: address.

    Raises:
        UserError: a file: address of another machine.
    """
    if scheme_of(place) != "file":
        return Path(place)
    parts = urlsplit(str(place))
    if parts.netloc not in ("", "localhost"):
        raise UserError(
            f"{place}: {parts.netloc} is read as the name of a machine; expected file:///FOLDER, or a path"
        )
    from urllib.request import url2pathname  # brings the modules of http

    return Path(url2pathname(parts.path))


def folder_address(address: str) -> str:
    """Returns the address of the folder of a build: in its usual form, without a slash at its end.

    Raises:
        UserError: the names of files cannot be added to it.
    """
    scheme = scheme_of(address)
    base = f"{scheme}{address[len(scheme) :]}".rstrip("/")
    rest = base.partition("://")[2]
    if not rest:
        raise UserError(f"{address}: names no folder; expected an address such as s3://bucket/demo")
    if scheme in HTTP and (found := re.search("[?#].*", rest)):
        raise UserError(
            f"{address}: the names of files cannot follow {found[0]}; expected the address of a folder"
        )
    if "*" in rest:
        raise UserError(
            f"{address}: patterns are for folders on this machine; name each build by its address"
        )
    return base


def file_system(address: str) -> tuple[Any, str]:
    """Returns the fsspec file system of an address, and the path in it.

    Raises:
        UserError: the package for this protocol is missing, or the address is invalid.
    """
    from fsspec.core import url_to_fs

    try:
        scheme = scheme_of(address)
        return url_to_fs(f"{scheme}{address[len(scheme) :]}")  # type: ignore[no-any-return]
    except ImportError as error:
        raise UserError(f"{address}: {error}") from error
    except Exception as error:  # whatever the package of the protocol raises
        raise UserError(f"{address}: cannot be opened ({error})") from error


def _protocols() -> set[str]:
    import fsspec

    return {*fsspec.available_protocols(), *fsspec.registry}
