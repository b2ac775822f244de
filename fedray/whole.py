"""Checks that the files of a run are as they were written, for commands that read a run which may have been damaged since."""

from __future__ import annotations

from collections.abc import Sequence

from fedray.config import Config
from fedray.configfile import load_config, parse_yaml
from fedray.errors import ConfigError
from fedray.runfiles import RunFiles
from fedray.storage import damaged, read_json, reading
from fedray.tracking.journal import journal, shortcomings
from fedray.tracking.starts import last_start


def check(files: RunFiles) -> list[str]:
    """Check those files of a run that exist.

    Returns:
        One sentence for each kind of line that the journal lacks.

    Raises:
        FedrayError: the first damaged file, by name.
    """
    for path in (files.partition, files.statement):
        read_json(path)
    last_start(files.root / "run.json")
    with reading(files.config):
        if files.config.exists() and not isinstance(parse_yaml(files.config.read_text(encoding="utf-8"), str(files.config)), dict):
            raise damaged(files.config, "it holds no sections")
    if files.model.exists():
        files.load_model()
    files.faults()
    rows = journal(files.root)
    rows.all()
    with reading(files.summary):
        rounds = int((files.read_summary() or {}).get("rounds", 0))
    return shortcomings(rows, rounds)


def read_config(files: RunFiles, overrides: Sequence[str] = ()) -> Config:
    """Read the resolved config of a run.

    Raises:
        ConfigError: the file is no config of this version; the sentence names the file.
    """
    try:
        return load_config(files.config, overrides)
    except ConfigError as error:
        text = str(error)
        raise error if str(files.config) in text else ConfigError(f"{files.config}: {text}") from None
