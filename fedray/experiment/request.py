"""What the command asks of the driver. Light to import: the command sends it before it needs torch."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray import cloudpickle

from fedray.errors import ConfigError
from fedray.runfiles import Output

#: Bytes up to which objects given by the caller travel with the request itself; Ray stores arguments above 100 kB.
SMALL = 50_000


@dataclass(frozen=True)
class Request:
    """What the driver actor is asked to run.

    Attributes:
        output: where the run's files go, a directory or the address of a prefix in an object store.
        id: of this request; a driver that is restarted after its end knows by it that it has ended.
        resume: continue from its newest checkpoint.
        elastic: the cluster may grow (an autoscaler), so wait for resources instead of refusing.
        provided: objects that the caller of :func:`fedray.run` gave.
        awaits: they come afterwards (:meth:`packed`).
        profile: show where the rounds' time goes.
    """

    output: Output
    id: str = ""
    resume: bool = False
    elastic: bool = False
    provided: Mapping[str, Any] = field(default_factory=dict)
    awaits: bool = False
    profile: bool = False

    def packed(self) -> Request:
        """As an argument of the driver's actor: of such arguments, Ray keeps small ones with the actor for as long as it may be
        restarted. Large ones come afterwards, from whoever follows the driver.
        """
        if len(cloudpickle.dumps(self.provided)) <= SMALL:
            return self
        return replace(self, provided={}, awaits=True)

    @property
    def mark(self) -> Path | None:
        """A file that the command leaves in the output, by which the driver knows that both see the same directory."""
        return self.output / f".request-{self.id}" if isinstance(self.output, Path) else None

    def check_visible(self) -> None:
        """See that the driver's node has the output directory that the command made.

        Raises:
            ConfigError: it has not.
        """
        if self.mark is not None and not self.mark.exists():
            raise ConfigError(
                f"--output {self.output}: the driver's node {socket.gethostname()} does not see the directory that the command made; "
                "name one on storage that all nodes share, or an address such as s3://bucket/prefix."
            )
