"""Progress for people: a live table on a terminal, one line per round in a log."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedray.clientfigures import models_of
from fedray.faults import Fault
from fedray.logs import fitted
from fedray.rounding import rounded_up
from fedray.tracking.journal import Row, number

#: The columns of means over clients, by the model; they are shown where there are several models to compare.
_AT_CLIENTS = {"fairness": "at clients", "global": "global", "fine_tuned": "fine-tuned"}
_SHOWN_ROUNDS = 8
_RATE_WINDOW = 8
_LOG_WIDTH = 400


class Progress:
    """Shows the progress of a run: one live display on a terminal, one line per round elsewhere.

    Use it as a context manager, or call :meth:`close`, after which it shows nothing more.
    """

    def __init__(self, stream: TextIO | None = None, console: Console | None = None) -> None:
        """Write to ``stream``, by default standard output, or to the rich ``console`` if it is given."""
        self._console = console or console_on(stream or sys.stdout)
        self._info: dict[str, Any] = {}
        self._rows: deque[Row] = deque(maxlen=_SHOWN_ROUNDS)
        self._ends: deque[tuple[float, float]] = deque(maxlen=_RATE_WINDOW + 1)
        self._done = 0
        self._last_round: int | None = None
        self._began = time.monotonic()
        self._first: tuple[float, float] | None = None  # the beginning of the first round, as in ``_ends``
        self._best: tuple[float, int] | None = None  # the best value of the metric, and its round
        self._live: Live | None = None
        self._closed = False
        self._lock = threading.RLock()  # the display redraws itself on a thread of rich

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def start(self, info: Mapping[str, Any]) -> None:
        """Show the facts of a run that begins.

        Args:
            info: any of ``name``, ``rounds`` (planned), ``first_round`` (number of rounds that were done before a resume), ``clients``,
                ``actors``, ``model``, ``parameters``, ``frozen_sha256``, ``engine``, ``regime``, ``unit``, ``delta``, ``budget`` (epsilon),
                ``metric`` (the metric to show, default ``eval/accuracy``), ``lower_is_better`` (of it), ``output`` (directory), ``mlflow`` (address of the run's page).
        """
        self._info = dict(info)
        self._done = int(info.get("first_round") or 0)
        self._began = time.monotonic()
        self._first = (self._began, 0.0)
        self._ends.append(self._first)
        if self._closed:
            return
        page = (
            [f"MLflow run {info['mlflow']}" + (" (while `fedray ui` runs)" if "//127.0.0.1" in info["mlflow"] else "")]
            if info.get("mlflow")
            else []
        )
        if draws(self._console):
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4, vertical_overflow="crop")
            for line in page:  # outside the panel, so that the address can be copied whole
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            self._live.start(refresh=True)
        else:
            self._say(" | ".join([*self._header(), *page]))

    def row(self, row: Row) -> None:
        """Show a finished round; the metrics of a second row of the same round are added to the first."""
        if self._closed:
            return
        with self._lock:
            again = self._last_round == row["round"] and bool(self._rows)
            if again:
                row = {**row, "metrics": {**self._rows.pop()["metrics"], **row["metrics"]}}
            else:
                self._done += 1
                self._ends.append((time.monotonic(), number(row["metrics"].get("round/clients_completed")) or 0.0))
            self._rows.append(row)
            self._last_round = row["round"]
            self._judge(row)
        if self._live is not None:
            self._live.refresh()
        elif not again:
            self._say(self._line(row))

    def _judge(self, row: Row) -> None:
        value = number(row["metrics"].get(self._metric()))
        sign = -1.0 if self._info.get("lower_is_better") else 1.0
        if value is not None and (self._best is None or sign * value > sign * self._best[0]):
            self._best = value, row["round"]

    def note(self, text: str) -> None:
        """Show a warning."""
        if self._closed:
            return
        if draws(self._console):
            shown = fitted(f"! {text}", self._console.width)
            self._console.print(Text.assemble((shown[:2], "bold yellow"), (shown[2:], "yellow")), soft_wrap=True)
        else:
            self._say(f"note: {text}")

    def close(self) -> None:
        """Leave the last state on the screen and release the terminal. May be called again."""
        if self._closed:
            return
        self._closed = True
        if self._live is not None:
            self._live.stop()
            self._live = None

    def fault(self, fault: Fault) -> None:
        """Show a fault."""
        self.note(fault.text)

    # -- figures ---------------------------------------------------------------------------------

    def _timed(self) -> list[tuple[float, float]]:
        """The ends of the rounds that tell the pace: without the first one, which warms everything up, once there is a second."""
        ends = list(self._ends)
        return ends[1:] if len(ends) > 2 and ends[0] == self._first else ends

    def _seconds_per_round(self) -> float | None:
        ends = self._timed()
        if len(ends) < 2:
            return None
        return (ends[-1][0] - ends[0][0]) / (len(ends) - 1)

    def _clients_per_second(self) -> float | None:
        ends = self._timed()
        if len(ends) < 2 or ends[-1][0] <= ends[0][0]:
            return None
        return sum(clients for _, clients in ends[1:]) / (ends[-1][0] - ends[0][0])

    def _eta(self) -> float | None:
        pace, planned = self._seconds_per_round(), self._info.get("rounds")
        if pace is None or planned is None:
            return None
        since = time.monotonic() - self._ends[-1][0]
        return max(0.0, pace * (int(planned) - self._done) - min(since, pace))

    def _metric(self) -> str:
        return str(self._info.get("metric") or "eval/accuracy")

    def _header(self) -> list[str]:
        info, parts = self._info, [str(self._info.get("name", "run"))]
        clients = info.get("clients")
        if clients is not None:
            actors = info.get("actors")
            parts.append(f"{clients:,} clients" + (f" on {actors} actors" if actors is not None else ""))
        if info.get("model") is not None:
            size = info.get("parameters")
            engine = f", engine {info['engine']}" if info.get("engine") is not None else ""
            frozen = f" beside a frozen base (sha256 {info['frozen_sha256'][:12]})" if info.get("frozen_sha256") else ""
            parts.append(f"{info['model']}" + (f", {size:,} parameters" if size is not None else "") + frozen + engine)
        if info.get("regime") not in (None, "none"):
            budget, delta = info.get("budget"), info.get("delta")
            text = f"DP: {info['regime']}" + (f", unit {info['unit']}" if info.get("unit") not in (None, info["regime"]) else "")
            parts.append(
                text + (f", epsilon <= {budget:g}" if budget is not None else "") + (f", delta {delta:g}" if delta is not None else "")
            )
        elif info.get("regime") == "none":
            parts.append("no differential privacy")
        if info.get("rounds") is not None:
            parts.append(f"{info['rounds']} rounds" + (f", {self._done} done before" if self._done and not self._rows else ""))
        return parts

    def _cells(self, row: Row) -> dict[str, str]:
        def get(*keys: str) -> float | None:
            return next((v for k in keys if (v := number(row["metrics"].get(k))) is not None), None)

        odd = row.get("not_finite") or {}
        dropped = sum(get(f"round/clients_{why}") or 0 for why in ("failed", "late", "refused"))
        done, quality = get("round/clients_completed"), get(self._metric())
        metric = self._metric().rpartition("/")[2]
        models = models_of(row["metrics"], metric)
        beside = {_AT_CLIENTS[model]: f"{get(f'{model}/{metric}_mean'):.4f}" for model in models if len(models) > 1}
        return {
            "round": str(row["round"]),
            metric: odd.get(self._metric(), "") if quality is None else f"{quality:.4f}",
            "loss": odd.get("eval/loss", "") if (loss := get("eval/loss", "train/loss_mean")) is None else f"{loss:.4f}",
            **beside,
            "epsilon": "" if (spent := get("privacy/epsilon")) is None else rounded_up(spent, 3, fixed=True),
            "clients": "" if done is None else f"{done:.0f}" + (f" (-{dropped:.0f})" if dropped else ""),
            "s/round": "" if (seconds := get("time/round_s")) is None else f"{seconds:.2f}",
        }

    # -- in a log --------------------------------------------------------------------------------

    def _say(self, line: str) -> None:
        line = fitted(line, self._console.width) if self._console.is_terminal else line
        self._console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _line(self, row: Row) -> str:
        cells = self._cells(row)
        budget = number(row["metrics"].get("privacy/budget")) or number(self._info.get("budget"))
        if cells["epsilon"] and budget:
            cells["epsilon"] += f"/{budget:g}"
        planned = self._info.get("rounds")
        parts = [f"round {cells.pop('round')}" + (f"/{planned}" if planned is not None else "")]
        parts += [f"{name} {value}" for name, value in cells.items() if value]
        eta = self._eta()
        if eta is not None and self._done < int(self._info["rounds"]):
            parts.append(f"ETA {_duration(eta)}")
        return "  ".join(parts)

    # -- on a terminal ---------------------------------------------------------------------------

    def _render(self) -> RenderableType:
        with self._lock:
            name, *rest = self._header()
            parts: list[RenderableType] = [
                Text.assemble((name, "bold"), *[piece for r in rest for piece in (("  ·  ", "dim"), r)]),
                self._bars(),
            ]
            if self._info.get("output"):
                parts.append(Text(f"in {self._info['output']}", style="dim", overflow="fold"))
            if self._rows:
                parts.append(self._table())
        return Panel(Group(*parts), box=box.ROUNDED, border_style="dim", padding=(0, 1), title="[bold]fedray[/]", title_align="left")

    def _bars(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(min_width=7)
        grid.add_column(width=max(10, min(40, self._console.width - 56)))
        grid.add_column()
        planned = self._info.get("rounds")
        clock = [_duration(time.monotonic() - self._began)]
        eta, pace = self._eta(), self._clients_per_second()
        if not self._closed and eta is not None and self._done < int(planned or 0):
            clock.append(f"ETA {_duration(eta)}")
        if pace:
            clock.append(f"{pace:.1f} clients/s" if pace < 100 else f"{pace:,.0f} clients/s")
        total = int(planned) if planned else None
        bar = ProgressBar(total=total, completed=self._done, complete_style="cyan", finished_style="green", pulse=total is None)
        grid.add_row("rounds", bar, f"{self._done}/{planned if planned is not None else '?'}  [dim]{' · '.join(clock)}[/]")
        row = self._rows[-1]["metrics"] if self._rows else {}
        spent, budget = number(row.get("privacy/epsilon")), number(row.get("privacy/budget")) or number(self._info.get("budget"))
        if budget:
            used = (spent or 0.0) / budget
            style = "green" if used < 0.75 else "yellow" if used < 1 else "red"
            bar = ProgressBar(total=budget, completed=min(spent or 0.0, budget), complete_style=style, finished_style=style)
            grid.add_row("epsilon", bar, f"{rounded_up(spent or 0.0, 3, fixed=True)}/{budget:g}  [dim]{used:.0%} of the budget[/]")
        if self._best is not None:
            value, when = self._best
            grid.add_row("best", "", f"{self._metric().rpartition('/')[2]} {value:.4f}  [dim]round {when}[/]")
        if not budget and spent is not None:
            grid.add_row("epsilon", "", f"{rounded_up(spent, 3, fixed=True)}  [dim]no budget set[/]")
        return grid

    def _table(self) -> Table:
        cells = [self._cells(row) for row in self._rows]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", padding=(0, 2))
        columns = [c for c in cells[0] if any(row.get(c) for row in cells)]
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
        for i, row in enumerate(cells):
            table.add_row(*[row.get(c, "") for c in columns], style="bold" if i == len(cells) - 1 else "")
        return table


class NoteHandler(logging.Handler):
    """Passes log records on as notes, e.g. to :meth:`Progress.note`, so that they do not disturb the live display."""

    def __init__(self, note: Callable[[str], None], level: int = logging.WARNING) -> None:
        super().__init__(level)
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one record's message on."""
        self._note(record.getMessage())


def console_on(stream: TextIO) -> Console:
    """A console that writes to a stream, with plain lines where that is no terminal."""
    if stream.isatty():
        return Console(file=stream)
    return Console(file=stream, force_terminal=False, no_color=True, width=_LOG_WIDTH)


def draws(console: Console) -> bool:
    """Whether the stream is a terminal that can move its cursor; a terminal with ``TERM=dumb`` gets lines, as a file does."""
    return console.is_terminal and not console.is_dumb_terminal


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
