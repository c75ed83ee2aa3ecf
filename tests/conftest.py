"""What holds for every test: nothing leaves this machine; and what the tests of faults share."""

import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builds
import pytest


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses names and addresses beyond the loopback range, so that a test cannot download."""
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def is_here(host: Any) -> bool:
        if host in (None, "", "localhost", socket.gethostname()):
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def guarded_look_up(host: Any, *rest: Any, **options: Any) -> Any:
        if not is_here(host.decode() if isinstance(host, bytes) else host):
            raise socket.gaierror(f"a test asked for {host}; tests stay on this machine")
        return look_up(host, *rest, **options)

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and not is_here(address[0]):
            raise ConnectionRefusedError(f"a test went to {address}; tests stay on this machine")
        connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    monkeypatch.setattr(socket.socket, "connect", guarded_connect)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--speed", choices=builds.SPEEDS, default=builds.SPEEDS[0],
        help="of the builds in the tests of faults, which must come out the same for each",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    builds.speed = config.getoption("--speed")


@pytest.fixture(scope="session")
def long_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 tracks of 28 s, or of 4 s with --speed fast."""
    seconds = builds.FAST_SECONDS if builds.speed == "fast" else builds.SECONDS
    return builds.source_tree(tmp_path_factory.mktemp("source"), seconds)


@pytest.fixture(scope="session")
def undisturbed(long_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a build that nobody disturbed."""
    out = tmp_path_factory.mktemp("undisturbed")
    code, printed = builds.run(long_source, out, "--workers", 2)
    assert code == 0, printed
    return out / "slakh"


@pytest.fixture
def row(record_property: Callable[[str, object], None]) -> builds.Row:
    """Puts a row into the table of faults: the fault, and how the build came through."""
    return lambda fault, outcome: record_property("fault", (fault, outcome))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table of faults that builds came through: tests/mt3data/build/test_faults.py."""
    reports = [*terminalreporter.getreports("passed")]
    rows = [
        value for report in reports for name, value in report.user_properties if name == "fault"
    ]
    if rows:
        terminalreporter.section("faults that builds came through")
        for fault, outcome in rows:
            terminalreporter.line(f"{fault:60} {outcome}")
