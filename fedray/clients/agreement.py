"""What a client has agreed to train on: it compares what it has loaded, and without the registered records it has nothing to train on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fedray.clients.messages import ClientTask
from fedray.data.records import ClientData, Federation, Records
from fedray.data.registration import Registration
from fedray.stores.object_path import location


@dataclass(frozen=True)
class Agreement:
    """A registration, and where the salt is.

    Attributes:
        registration: of this client at least.
        salts: directory of the salt, at the place of the client's records.
        quiet: say only that data changed, and not what: whole clients are protected, whose number of records is private, too.
    """

    registration: Registration
    salts: str
    quiet: bool

    def of(self, name: str) -> Agreement:
        """What one client needs of it."""
        registration = self.registration
        return replace(self, registration=replace(registration, clients={name: registration.clients[name]}))

    def changed(self, data: ClientData) -> str:
        """What of a client's records is not as registered, as a sentence; see :meth:`Registration.compare`."""
        return self.registration.compare(data, location(self.salts, "agreed.salts"), self.quiet)

    def changes(self, federation: Federation) -> dict[str, str]:
        """The clients of a federation whose records are not as registered, with a sentence for each."""
        found = ((name, self.changed(federation.client(k))) for k, name in enumerate(federation.names))
        return {name: sentence for name, sentence in found if sentence}


def agreed_or_nothing(data: ClientData, agreement: Agreement | None) -> tuple[ClientData, str]:
    """A client's data if they are as registered, read-only from here on; else zeros of the registered form, and what changed.

    So nothing that was not agreed on is left in the process, while whatever needs the form of the records goes on.
    """
    for array in (data.train.x, data.train.y) if agreement is not None else ():
        array.flags.writeable = False
    changed = "" if agreement is None else agreement.changed(data)
    if agreement is None or not changed:
        return data, ""
    registration = agreement.registration
    form, records = registration.schema, registration.clients[data.name].records
    nothing: Records = form.zeros(records)
    about = {"classes": form.classes, "columns": form.columns, "scale": form.scale, "inputs": form.inputs}
    return replace(data, train=nothing, test=None, **about), changed  # type: ignore[arg-type]


def refusing(changed: str) -> Callable[[int, ClientTask], ClientTask | str] | None:
    """What refuses a client each turn because its data changed; None if they did not."""
    return (lambda round_, client: changed) if changed else None
