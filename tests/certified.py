"""A federation's certificates for tests: an authority, the gateway's at 127.0.0.1, silos'."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from fedray.silos.certificates import GatewayCredentials, SiloCredentials, life_of
from fedray.silos.issuing import new_authority, new_gateway, new_key, new_request, new_silo, read_request


@dataclass
class CertifiedFederation:
    """Certificates are made when they are asked for; ``revoked`` grows by :meth:`revoke`."""

    names: tuple[str, ...] = ("127.0.0.1", "localhost")
    revoked: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._key, self.authority = new_authority(datetime.now(UTC) - timedelta(days=400))
        self._gateway = self.gateway_identity(datetime.now(UTC))

    def gateway_identity(self, now: datetime) -> bytes:
        return new_gateway(self.names, self._key, self.authority, now)

    def gateway(self, identity: bytes | None = None) -> GatewayCredentials:
        key, _, certificate = (identity or self._gateway).partition(b"-----BEGIN CERTIFICATE")
        return GatewayCredentials(key, b"-----BEGIN CERTIFICATE" + certificate, self.authority, frozenset(self.revoked))

    def silo(self, client: str, now: datetime | None = None, days: int = 30) -> SiloCredentials:
        key, pem = new_key()
        request = read_request(new_request(client, "0" * 64, key))
        return SiloCredentials(client, pem, new_silo(request, self._key, self.authority, now or datetime.now(UTC), days), self.authority)

    def revoke(self, credentials: SiloCredentials) -> None:
        self.revoked.add(life_of(credentials.certificate)[0])
