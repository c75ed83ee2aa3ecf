"""Distinguishes addresses of remote files from paths, and opens the file system of an address.

http and https are read by our own code (http.py), as for all datasets. fsspec reads and writes the
others: s3://, gs://, az://, hf:// and more. It comes with torch. The package that knows the protocol
is installed by the user, for example s3fs for s3://.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mt3data.errors import UserError

HTTP = ("http", "https")


def scheme_of(place: str | Path) -> str:
    """Returns the scheme of an address in lower case; "" for a path. One letter is a drive."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", str(place))
    return found[1].lower() if found else ""


def is_address(place: str | Path) -> bool:
    """Checks whether a build is given by the address of a server; paths and file: addresses are not.

    Raises:
        UserError: an address of an unknown kind, a command ("pipe:"), or one file system inside
            another ("zip://a::s3://b").
    """
    scheme = scheme_of(place)
    if scheme in ("", "file"):
        return False
    if "::" in str(place) or (scheme not in HTTP and scheme not in _protocols()):
        raise UserError(
            f"{place}: {scheme}: is not read; expected a folder, or an address that begins with "
            "http://, https://, s3://, gs://, az://, hf:// or another protocol of fsspec"
        )
    return True


def local_path(place: str | Path) -> Path:
    """Returns the path of a build that is given by a path or a file: address."""
    text = str(place)
    return Path(url2pathname(urlsplit(text).path) if text.startswith("file:") else text)


def file_system(address: str) -> tuple[Any, str]:
    """Returns the fsspec file system of an address, and the path in it.

    Raises:
        UserError: the package for this protocol is missing, or the address is invalid.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(address)  # type: ignore[no-any-return]
    except ImportError as error:
        raise UserError(f"{address}: {error}") from error
    except Exception as error:  # whatever the package of the protocol raises
        raise UserError(f"{address}: cannot be opened ({error})") from error


def _protocols() -> set[str]:
    import fsspec

    return {*fsspec.available_protocols(), *fsspec.registry}
