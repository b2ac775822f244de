"""Vectors of numbers under additively homomorphic encryption: how they are encrypted, added by whoever has no key, and decrypted.

Ciphertexts are those of TenSEAL (Benaissa et al. 2021, TenSEAL: A Library for Encrypted Tensor Operations Using Homomorphic Encryption), which
uses Microsoft SEAL. They are symmetric: whoever encrypts has the secret key, and there is no public one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fedray.errors import ConfigError, FedrayError
from fedray.secure.protocol import Ring, SealedValues
from fedray.secure.wire import pack

#: Numbers that are encrypted: int64 or float64 ``[slots]``.
Slots = npt.NDArray[Any]


def tenseal(kind: str) -> Any:
    """Return the package TenSEAL.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import tenseal as found
    except ImportError as error:
        raise ConfigError(
            f"secure.kind: {kind} takes the package tenseal ({error}); pip install 'fedray[encrypted]' on all machines."
        ) from None
    return found


class Scheme(ABC):
    """A scheme with its parameters, the same in all runs; subclasses are named as in the config.

    Attributes:
        name: in the config.
        degree: of the polynomials, N; 128 bits of security for their coefficients' modulus (Albrecht et al. 2018, Homomorphic Encryption
            Standard, table 1: 109 bits for N = 4096).
        moduli: bits of the primes whose product is the modulus. Ciphertexts have all but the last, which is for products, of which there are none.
        slots: numbers in one ciphertext.
        most: vectors that can be added up.
    """

    name: ClassVar[str]
    degree: ClassVar[int] = 4096
    moduli: ClassVar[tuple[int, ...]] = (60, 49)
    slots: ClassVar[int]
    most: ClassVar[int]

    @abstractmethod
    def context(self) -> Any:
        """TenSEAL's context with a new secret key."""

    @abstractmethod
    def encode(self, values: Ring) -> Slots:
        """The numbers whose sums give the sum of such values, as :meth:`decode` reads it."""

    @abstractmethod
    def decode(self, numbers: Slots) -> Ring:
        """See :meth:`encode`."""

    @abstractmethod
    def marks(self, numbers: Slots, key: bytes, owns: Sequence[bytes]) -> Slots:
        """The marks of a sum of vectors (:mod:`fedray.secure.marks`), a few numbers.

        Args:
            numbers: the sum.
            key: from which the secret vectors are derived, 32 bytes.
            owns: for each vector the key of its own mark, 32 bytes.
        """

    @abstractmethod
    def agree(self, found: Slots, marks: Slots) -> bool:
        """Whether marks that were decrypted are these."""

    def encrypt(self, context: Any, *parts: Slots) -> Ciphertexts:
        """Numbers, one part after another, as ciphertexts."""
        numbers = np.concatenate(parts)
        ours, plain = getattr(tenseal(self.name), f"{self.name}_vector"), tenseal(self.name).plain_tensor
        kind = "int" if numbers.dtype.kind == "i" else "float"
        blocks = (plain(numbers[at : at + self.slots].tolist(), dtype=kind) for at in range(0, len(numbers), self.slots))
        public = context.serialize(save_public_key=False, save_secret_key=False, save_galois_keys=False, save_relin_keys=False)
        return Ciphertexts(self.name, public, [ours(context, block).serialize() for block in blocks])

    def decrypt(self, context: Any, ciphertexts: Sequence[bytes]) -> Slots:
        """The numbers in ciphertexts.

        Raises:
            ValueError: they are none of this scheme.
        """
        load = getattr(tenseal(self.name), f"{self.name}_vector_from")
        try:
            return np.concatenate([np.array(load(context, one).decrypt()) for one in ciphertexts])
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError(f"what was sent is no sum under this scheme ({error})") from None


class Ciphertexts(SealedValues):
    """Vectors that were encrypted, or a sum of such.

    Args:
        scheme: name of the scheme.
        public: the scheme's parameters, as a context of TenSEAL without keys.
        ciphertexts: of the vector, block by block.
    """

    def __init__(self, scheme: str, public: bytes, ciphertexts: Sequence[bytes]) -> None:
        self._scheme, self._public, self._ciphertexts = scheme, public, ciphertexts
        self._context: Any = None  # of TenSEAL, as the sums are, once something was added
        self._sums: list[Any] = []

    def __reduce__(self) -> Any:
        return Ciphertexts, self.written()

    def written(self) -> tuple[str, bytes, Sequence[bytes]]:
        """What it is made from."""
        return self._scheme, self._public, self._written()

    def add(self, other: SealedValues) -> None:
        """See :meth:`SealedValues.add`."""
        library = tenseal(self._scheme)
        load = getattr(library, f"{self._scheme}_vector_from")
        try:
            assert isinstance(other, Ciphertexts)
            self._context = self._context or library.context_from(self._public, 1)
            self._sums = self._sums or [load(self._context, one) for one in self._ciphertexts]
            for mine, theirs in zip(self._sums, other._written(), strict=True):
                mine.add_(load(self._context, theirs))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise FedrayError(
                f"parts of a sum were not encrypted alike under secure.kind={self._scheme}, so they cannot be added ({error})."
            ) from None

    @property
    def nbytes(self) -> int:
        """See :attr:`SealedValues.nbytes`."""
        return sum(map(len, self._written()))

    def data(self) -> bytes:
        """See :meth:`SealedValues.data`."""
        return pack(dict(enumerate(self._written())))

    def _written(self) -> Sequence[bytes]:
        if self._sums:
            self._ciphertexts, self._sums = [one.serialize() for one in self._sums], []
        return self._ciphertexts
