"""Identities that outlive a round: with them, members know that keys and confirmations come from other members and not from the driver."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: Bytes of a public key, and of a signature.
PUBLIC, SIGNATURE = 32, 64


@dataclass(frozen=True)
class Signer:
    """A client's identity, and the identities that it takes for clients (Ed25519, RFC 8032).

    Attributes:
        own: the client's private key.
        known: public keys of all clients, 32 bytes each.
    """

    own: Ed25519PrivateKey
    known: frozenset[bytes]

    @property
    def public(self) -> bytes:
        """The client's public key, 32 bytes."""
        return self.own.public_key().public_bytes_raw()

    def check(self, public: bytes, signature: bytes, message: bytes, what: str) -> None:
        """Refuse what no known client has signed.

        Args:
            public: the public key of the client that should have signed, 32 bytes.
            signature: 64 bytes.
            message: what should be signed.
            what: what that is, for the error.

        Raises:
            ValueError: the public key is not known, or the signature is not that of the message.
        """
        if public not in self.known:
            raise ValueError(f"the identity behind {what} is not known")
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
        except InvalidSignature:
            raise ValueError(f"the signature of {what} is not right") from None
