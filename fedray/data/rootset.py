"""The root set: some of the driver's held-out records, with which it trains itself."""

from __future__ import annotations

from fedray.data.holdout import split
from fedray.data.records import Federation, Records, offsets_of
from fedray.errors import ConfigError
from fedray.rng import generator


def split_root(test: Records | None, share: float | None, classes: int | None, seed: int) -> tuple[Records | None, Federation | None]:
    """The test records that are left, and the root set as the records of one client; without a share no record is taken.

    Args:
        test: the driver's test set.
        share: fraction of it that becomes the root set; each class gives the same fraction.
        classes: number of classes; None in regression.
        seed: of the draw.

    Raises:
        ConfigError: there are too few records.
    """
    if share is None:
        return test, None
    if test is None:
        raise ConfigError(
            "root.share: the driver holds no test records of which some could be the root set; set data.holdout.at=driver with a "
            "fraction above 0, or name a test set in the data section."
        )
    left, taken = split(test.y, share, True, generator(seed, "root"))
    if not len(taken):
        raise ConfigError(f"root.share: {share:g} of {len(test)} test records is less than one; make it larger.")
    records = Records(test.x[taken], test.y[taken])
    root = Federation(["root"], records, offsets_of([len(taken)]), None, None, None, classes)
    return Records(test.x[left], test.y[left]), root
