"""What a silo decides for itself, in a file on its own machine: who it is, where its records are, and what must outlive its process."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fedray.choices import Section
from fedray.clients.receiptsigner import SigningPlace
from fedray.config import Data
from fedray.configfile import read_section

#: The name of a silo, which stands in certificates and in names of files.
CLIENT = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
#: HOST:PORT, of which the host may be an IPv6 address in brackets.
ADDRESS = r"^(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):[0-9]{1,5}$"


class SiteConfig(Section):
    """A silo's site file. Paths may be relative to the file; ``data.source`` is read as in a run's config."""

    client: str = Field(pattern=CLIENT, description="The silo's name, as in its certificate and in the runs' configs.")
    gateway: str = Field(pattern=ADDRESS, description="HOST:PORT of the federation's gateway, which the silo dials.")
    identity: str = Field(description="Directory of the silo's keys and certificates, made by `fedray silo enrol`.")
    state: str = Field(description="Directory of what must outlive the process, and be backed up: ledger, answers, approvals, log.")
    policy: str = Field(description="File that says what a run may ask of this silo.")
    data: Data = Field(description="This silo's own records; keys as in a run's section data.")
    device: str | None = Field(None, description="Device for torch, such as cuda:0; null = a GPU if there is one.")
    threads: int = Field(1, ge=1, description="Threads for torch.")

    @property
    def ledger(self) -> Path:
        """Directory of the silo's own privacy ledger."""
        return Path(self.state) / "ledger"

    def signing(self, pinned: str | None) -> SigningPlace:
        """The silo's own key of receipts, and its file of them, which must hold the receipt ``pinned``."""
        return SigningPlace(str(Path(self.identity) / "signing.pem"), str(Path(self.state) / "receipts"), pinned)


def read_site(path: str | Path) -> SiteConfig:
    """Read a site file; the paths in it become absolute.

    Raises:
        ConfigError: the file cannot be read, or is wrong, with one line for each problem.
    """
    site, beside = read_section(path, SiteConfig), Path(path).expanduser().absolute().parent
    paths = {name: str(beside / Path(getattr(site, name)).expanduser()) for name in ("identity", "state", "policy")}
    return site.model_copy(update=paths)
