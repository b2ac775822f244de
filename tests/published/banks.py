"""Payments of seven banks, of which few are fraud: a table by a known law, for banks publish none.

All draws follow from the seed. A payment has eight features. For each bank:

* records: 2,000 to 8,000 for training, log-uniform, and 6,000 for tests;
* share of frauds: 0.1 % to 0.45 %, log-uniform, and at least three of them;
* ordinary payments: normal about the bank's own mean, which is N(0, 0.5^2) in each feature, with the bank's own spread, uniform in [0.7, 1.3];
* frauds: one of three patterns, normal with spread 0.6 about the bank's mean and the pattern's offset, a direction of length 4 that is the
  same at all banks; the patterns' shares are Dirichlet(0.5), so most frauds of a bank are of one pattern;
* unusual payments, which are no frauds: a twentieth, normal with spread 1 about the bank's mean and half the offset of a pattern drawn uniformly.

So banks differ in their features, in how rare frauds are, and in which frauds they see. The test set joins all banks' test records: patterns
that a bank has hardly seen count as the others do.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedray.data.records import Federation, Records

BANKS, FEATURES, PATTERNS, TEST, UNUSUAL = 7, 8, 3, 6_000, 0.05

_Table = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def banks(seed: int) -> tuple[Federation, Records]:
    """The banks' training records, and the test records of all; class 1 is fraud."""
    draws = np.random.default_rng([seed, 7])
    offsets = draws.normal(size=(PATTERNS, FEATURES))
    offsets *= 4 / np.linalg.norm(offsets, axis=1, keepdims=True)
    train, test = list[_Table](), list[_Table]()
    for _ in range(BANKS):
        size, share = int(np.exp(draws.uniform(*np.log([2_000, 8_000])))), float(np.exp(draws.uniform(*np.log([0.001, 0.0045]))))
        mean, spread = draws.normal(0, 0.5, FEATURES), draws.uniform(0.7, 1.3, FEATURES)
        shares = draws.dirichlet([0.5] * PATTERNS)
        for records, part in ((size, train), (TEST, test)):
            frauds, unusual = max(3, round(share * records)), round(UNUSUAL * records)
            x = mean + spread * draws.normal(size=(records, FEATURES))
            odd = 0.5 * offsets[draws.choice(PATTERNS, unusual)] + draws.normal(0, 1.0, (unusual, FEATURES))
            x[frauds : frauds + unusual] = mean + odd
            x[:frauds] = mean + offsets[draws.choice(PATTERNS, frauds, p=shares)] + draws.normal(0, 0.6, (frauds, FEATURES))
            part.append((x.astype(np.float32), (np.arange(records) < frauds).astype(np.int64)))
    ends = np.concatenate([[0], np.cumsum([len(y) for _, y in train])]).astype(np.int64)
    return Federation([f"bank-{k + 1}" for k in range(BANKS)], _joined(train), ends, None, None, None, 2), _joined(test)


def _joined(parts: list[_Table]) -> Records:
    return Records(np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts]))
