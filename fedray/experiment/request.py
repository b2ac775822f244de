"""What the command asks of the driver. The module imports no torch, because the command sends its request before torch is loaded."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray import cloudpickle

from fedray.errors import ConfigError
from fedray.experiment.origin import Origin
from fedray.stores.object_path import Location

#: Bytes up to which objects given by the caller travel with the request itself; Ray stores arguments above 100 kB.
SMALL = 50_000


@dataclass(frozen=True)
class PartOf:
    """What a run is a part of, such as a sweep.

    Attributes:
        tags: for the MLflow run.
        origin: of the whole.
        quiet: whether the run's figures are kept from Ray's metrics endpoint.
    """

    tags: Mapping[str, str]
    origin: Origin
    quiet: bool = False


@dataclass(frozen=True)
class Request:
    """What the driver actor is asked to run.

    Attributes:
        output: where the run's files go: a directory, or the address of a prefix in an object store.
        id: names this request; a driver that Ray restarts after the run's end recognises by it that nothing is left to do.
        resume: whether to continue from the newest checkpoint.
        elastic: whether the cluster may grow (an autoscaler), so that the driver waits for resources instead of refusing.
        provided: objects that the caller of :func:`fedray.run` gave, by the name of the config key that they replace.
        awaits: whether these objects are sent separately (see :meth:`packed`).
        profile: whether to write where the rounds' time went.
        origin: by whom and how the run was started.
        part_of: what the run is a part of; its model is logged, but not registered. None: it stands alone.
    """

    output: Location
    id: str = ""
    resume: bool = False
    elastic: bool = False
    provided: Mapping[str, Any] = field(default_factory=dict)
    awaits: bool = False
    profile: bool = False
    origin: Origin = field(default_factory=Origin)
    part_of: PartOf | None = None

    def packed(self) -> Request:
        """Return the request as an argument of the driver's actor, without large objects.

        Ray keeps small arguments with an actor as long as it may be restarted, but not large ones. The process that follows the driver
        sends those again to each new driver process.
        """
        if len(cloudpickle.dumps(self.provided)) <= SMALL:
            return self
        return replace(self, provided={}, awaits=True)

    @property
    def quiet(self) -> bool:
        """Whether the run's figures are kept from Ray's metrics endpoint."""
        return self.part_of is not None and self.part_of.quiet

    @property
    def mark(self) -> Path | None:
        """A file that the command leaves in the output directory, by which the driver checks that both see the same directory."""
        return self.output / f".request-{self.id}" if isinstance(self.output, Path) else None

    def check_visible(self) -> None:
        """Check that the driver's node sees the output directory that the command made.

        Raises:
            ConfigError: the node does not see it.
        """
        if self.mark is not None and not self.mark.exists():
            raise ConfigError(
                f"--output {self.output}: the driver's node {socket.gethostname()} does not see the directory that the command made; "
                "name one on storage that all nodes share, or an address such as s3://bucket/prefix."
            )
