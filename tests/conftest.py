"""What holds for every test: nothing leaves this machine."""

import ipaddress
import socket
from typing import Any

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
