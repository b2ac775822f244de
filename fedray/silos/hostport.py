"""Addresses of the gateway and of the enrolment: a host and a port."""

from __future__ import annotations

from dataclasses import dataclass

from fedray.errors import ConfigError


@dataclass(frozen=True)
class Address:
    """A host and a port."""

    host: str
    port: int

    @classmethod
    def of(cls, text: str, key: str) -> Address:
        """Read ``HOST:PORT``; see :func:`split_address`.

        Raises:
            ConfigError: it is none; ``key`` is what the sentence begins with.
        """
        try:
            return cls(*split_address(text, least_port=0))
        except ValueError:
            raise ConfigError(f"{key} {text}: is no HOST:PORT; an IPv6 address stands in brackets.") from None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def split_address(address: str, least_port: int = 1) -> tuple[str, int]:
    """Return host and port of ``host:port`` or ``[IPv6]:port``.

    Raises:
        ValueError: it is not of that form.
    """
    host, _, port = address.rpartition(":")
    if (
        not host
        or not (port.isascii() and port.isdigit())
        or not least_port <= int(port) < 65536
        or (":" in host and host[0] + host[-1] != "[]")
    ):
        raise ValueError(f"'{address}' is not host:port with a port from 1 to 65535")
    return host.strip("[]"), int(port)
