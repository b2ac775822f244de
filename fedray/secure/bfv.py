"""Sums under the scheme BFV, whose plaintexts are whole numbers: the sum that is decrypted has the bytes of a plain sum.

Brakerski 2012, Fully Homomorphic Encryption without Modulus Switching from Classical GapSVP; Fan & Vercauteren 2012, Somewhat Practical Fully
Homomorphic Encryption. An integer of 64 bits is two limbs of 32 bits, and each is a number modulo a prime t of 42 bits, which sums of up to
1000 limbs do not reach. Decryption is exact while the noise is below q / 2t = 2**17, for the modulus q of 60 bits. A new ciphertext has noise
of 22 at the most (21 for the binomial noise of SEAL, 1 for rounding), so a sum of 1000 has 22000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedray.secure.ciphertexts import Scheme, Slots, tenseal
from fedray.secure.encrypted import Encrypted
from fedray.secure.marks import own_marks, products
from fedray.secure.protocol import Ring

#: The prime t: the largest below 2**42 that is 1 modulo 2N, which a slot for each of the N coefficients takes.
PRIME = 4398046486529
_LIMB = 32


class BfvScheme(Scheme):
    """BFV for sums of limbs."""

    name = "bfv"
    slots = Scheme.degree
    most = 1000

    def context(self) -> Any:
        """See :meth:`Scheme.context`."""
        library = tenseal(self.name)
        kinds = library.SCHEME_TYPE.BFV, library.ENCRYPTION_TYPE.SYMMETRIC
        return library.context(kinds[0], self.degree, PRIME, list(self.moduli), kinds[1], n_threads=1)

    def encode(self, values: Ring) -> Slots:
        """The lower limbs of all values, then the upper ones."""
        numbers = np.ascontiguousarray(values).view(np.uint64)
        return np.concatenate([numbers & np.uint64((1 << _LIMB) - 1), numbers >> np.uint64(_LIMB)]).view(np.int64)

    def decode(self, numbers: Slots) -> Ring:
        """See :meth:`Scheme.decode`."""
        lower, upper = np.split(numbers, 2)
        values: Ring = lower + (upper << _LIMB)  # modulo 2**64
        return values

    def marks(self, numbers: Slots, key: bytes, owns: Sequence[bytes]) -> Slots:
        """See :meth:`Scheme.marks`."""
        own = np.array([own_marks(one, PRIME) for one in owns], dtype=np.int64).sum(axis=0)
        marks: Slots = (np.array(products(numbers, key, PRIME), dtype=np.int64) + own) % PRIME
        return marks

    def agree(self, found: Slots, marks: Slots) -> bool:
        """See :meth:`Scheme.agree`."""
        return bool(np.array_equal(found, marks))

    def decrypt(self, context: Any, ciphertexts: Sequence[bytes]) -> Slots:
        """See :meth:`Scheme.decrypt`."""
        return super().decrypt(context, ciphertexts) % PRIME


@dataclass(frozen=True)
class Bfv(Encrypted):
    """Sums of encrypted updates that have the bytes of plain sums; all clients hold one key, and the driver none.

    Source: Fan & Vercauteren 2012, Somewhat Practical Fully Homomorphic Encryption

    Attributes:
        key: path of the consortium's secret key on each client's machine.
        fewest: clients whose sum a client opens at the least, at least 3; ``cohort.min_clients`` counts if it is more.
        patience: seconds that a phase waits for answers.
    """

    scheme = BfvScheme()


PROTOCOLS = {"bfv": Bfv}
