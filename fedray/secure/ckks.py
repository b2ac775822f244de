"""Sums under the scheme CKKS, whose plaintexts are approximate reals: the sum that is decrypted is near the plain one.

Cheon, Kim, Kim & Song 2017, Homomorphic Encryption for Arithmetic of Approximate Numbers. An integer of 64 bits is a fraction of 2**62, which no sum
reaches (:mod:`fedray.aggregation.exact`), times the scale of 2**58. The noise of a ciphertext has a standard deviation of 2**-51 of that bound, and that of
a sum grows as the root of the ciphertexts' number.

Whoever sees a decryption under CKKS as it is, and its ciphertext, sees the noise, and computes the secret key from it (Li & Micciancio 2021, On the
Security of Homomorphic Encryption on Approximate Numbers). So the client that opens a sum adds noise of its own, with a standard deviation of 2**-46.
What it shows of the ciphertexts' noise is then a hint, beside which the key is about as hard to find as without (Kim, Lee, Seo & Song 2023, Toward
Practical Lattice-Based Proof of Knowledge from Hint-MLWE). That is no proof for this use: one for 30 bits of statistical security takes 2**15 times as
much noise, and more with each sum (Li, Micciancio, Schultz & Sorrell 2022, Securing Approximate Homomorphic Encryption Using Differential Privacy).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedray.secure.ciphertexts import Scheme, Slots, tenseal
from fedray.secure.encrypted import Encrypted
from fedray.secure.marks import MARKS, derived
from fedray.secure.protocol import Ring

#: Logarithms to the base 2: of the largest sum; of the scale; of the noise that is added to a sum; of a mark's own number; of the share of the values'
#: sum in a mark; and of the difference between marks of the same sum.
_BOUND, _SCALE, FLOOD, _OWN, _SHARE, _SLACK = 62, 58, -46, -11, -21, -40
_BLOCK = 1 << 17


class CkksScheme(Scheme):
    """CKKS for sums of real numbers between -1 and 1."""

    name = "ckks"
    slots = Scheme.degree // 2
    most = 1000

    def context(self) -> Any:
        """See :meth:`Scheme.context`."""
        library = tenseal(self.name)
        kinds = library.SCHEME_TYPE.CKKS, library.ENCRYPTION_TYPE.SYMMETRIC
        context = library.context(kinds[0], self.degree, None, list(self.moduli), kinds[1], n_threads=1)
        context.global_scale = 2.0**_SCALE
        return context

    def encode(self, values: Ring) -> Slots:
        """See :meth:`Scheme.encode`."""
        return np.ldexp(values.astype(np.float64), -_BOUND)

    def decode(self, numbers: Slots) -> Ring:
        """The sum with the noise that hides the ciphertexts' own."""
        noised = np.rint(np.ldexp(numbers + np.ldexp(gaussian(len(numbers)), FLOOD), _BOUND))
        values: Ring = np.clip(noised, -(2.0**_BOUND), 2.0**_BOUND).astype(np.int64)
        return values

    def marks(self, numbers: Slots, key: bytes, owns: Sequence[bytes]) -> Slots:
        """See :meth:`Scheme.marks`: as in :mod:`fedray.secure.marks`, with secret signs in place of secret numbers."""
        found = np.zeros(MARKS)
        for n in range(MARKS):
            stream = Cipher(algorithms.AES256(derived(key, b"signs", bytes([n]))), modes.CTR(bytes(16))).encryptor()
            for start in range(0, len(numbers), _BLOCK):
                block = numbers[start : start + _BLOCK]
                negative = np.unpackbits(np.frombuffer(stream.update(bytes(_BLOCK // 8)), dtype=np.uint8))[: len(block)]
                found[n] += block.sum() - 2.0 * block[negative.view(bool)].sum()
        own = [[int.from_bytes(derived(one, b"mark", bytes([n]))[:6], "little") / 2**47 - 1.0 for n in range(MARKS)] for one in owns]
        return np.asarray(np.ldexp(found, _SHARE) + np.ldexp(np.sum(own, axis=0), _OWN))

    def agree(self, found: Slots, marks: Slots) -> bool:
        """See :meth:`Scheme.agree`; whoever does not know the marks meets both with a probability of 2**-58."""
        return bool((np.abs(found - marks) < 2.0**_SLACK).all())


def gaussian(size: int) -> npt.NDArray[np.float64]:
    """Return standard normal numbers from the operating system's randomness (Box & Muller 1958)."""
    half = (size + 1) // 2
    uniform = (np.frombuffer(os.urandom(16 * half), dtype="<u8") >> np.uint64(11)).astype(np.float64).reshape(2, half) * 2.0**-53
    radius, angle = np.sqrt(-2.0 * np.log1p(-uniform[0])), 2.0 * np.pi * uniform[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]


@dataclass(frozen=True)
class Ckks(Encrypted):
    """Sums of encrypted updates that are near plain sums; all clients hold one key, and the driver none.

    Source: Cheon, Kim, Kim & Song 2017, Homomorphic Encryption for Arithmetic of Approximate Numbers

    Attributes:
        key: path of the consortium's secret key on each client's machine.
        fewest: clients whose sum a client opens at the least, at least 3; ``cohort.min_clients`` counts if it is more.
        patience: seconds that a phase waits for answers.
    """

    scheme = CkksScheme()

    @property
    def trust(self) -> str:
        """See :attr:`Protocol.trust`."""
        return (
            super().trust + "; the noise in sums that clients open is assumed, without a proof, to hide the key that they were opened with"
        )

    @property
    def approximate(self) -> bool:
        """See :attr:`Protocol.approximate`."""
        return True


PROTOCOLS = {"ckks": Ckks}
