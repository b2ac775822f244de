"""Makes the pictures of the documentation that show results, from runs made here: ``python docs/tools/pictures.py [frontier] [report]``.

``frontier`` trains the quickstart at four epsilons and without privacy, three seeds each, writes the figures to
``docs/pictures/frontier.json`` and draws them. ``report`` trains it once and takes a picture of its report with Chromium, which must be
installed. Fifteen runs and one take about ten minutes on two cores.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import ray
from PIL import Image

import fedray

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
CONFIG = ROOT / "configs" / "digits.yaml"
EPSILONS = (1.0, 2.0, 4.0, 8.0)
SEEDS = (0, 1, 2)


def _train(output: Path, *overrides: str) -> fedray.Result:
    store = f"tracking.uri=sqlite:///{output.parent / 'mlflow.db'}"
    return fedray.run(CONFIG, overrides=[store, *overrides], output=output)


def measure_frontier(folder: Path) -> None:
    """Writes ``frontier.json``: for each epsilon, and for no privacy, the final test accuracies of the seeds."""
    rows: list[dict[str, object]] = []
    for epsilon in (*EPSILONS, None):
        privacy = "privacy={regime: none}" if epsilon is None else f"privacy.target_epsilon={epsilon}"
        results = [_train(folder / f"run-{epsilon}-{seed}", privacy, f"seed={seed}") for seed in SEEDS]
        accuracies = [round(result.summary["final"]["eval/accuracy"], 4) for result in results]
        rows.append({"epsilon": epsilon, "accuracy": accuracies})
    written = {"config": "configs/digits.yaml", "seeds": SEEDS, "fedray": fedray.__version__, "rows": rows}
    (PICTURES / "frontier.json").write_text(json.dumps(written, indent=1) + "\n")


def draw_frontier() -> None:
    """Draws ``frontier.json``: the mean over seeds, each seed as a dot, and the run without privacy as a line."""
    rows = json.loads((PICTURES / "frontier.json").read_text())["rows"]
    private, (plain,) = [r for r in rows if r["epsilon"]], [r for r in rows if not r["epsilon"]]
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fedray", "font.family": "sans-serif", "font.size": 11})
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    epsilons = [r["epsilon"] for r in private]
    means = [statistics.mean(r["accuracy"]) for r in private]
    axes.plot(epsilons, means, marker="o", color="#3949ab", label="record-level privacy: mean of three seeds")
    for row in private:
        axes.plot([row["epsilon"]] * len(row["accuracy"]), row["accuracy"], ".", color="#9fa8da", zorder=1)
    level = statistics.mean(plain["accuracy"])
    axes.axhline(level, linestyle="--", color="#00897b", label=f"without privacy: {level:.3f}")
    for epsilon, mean in zip(epsilons, means, strict=True):
        axes.annotate(f"{mean:.3f}", (epsilon, mean), textcoords="offset points", xytext=(-12, -18), fontsize=10)
    axes.set_xscale("log", base=2)
    axes.set_xticks(epsilons, [f"{e:g}" for e in epsilons])
    axes.set_xlabel("epsilon of a record, delta 4e-4 (smaller is more private)")
    axes.set_ylabel("test accuracy")
    axes.set_title("digits: ten clients, 60 rounds", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False)
    figure.tight_layout()
    figure.savefig(PICTURES / "frontier.svg", metadata={"Date": None})


def take_report(folder: Path) -> None:
    """Writes ``report.png``: the top of the report of one run, as a browser shows it. The operator is withheld, the host has another name."""
    (folder / "configs").symlink_to(CONFIG.parent)
    environment = {**os.environ, "FEDRAY_OPERATOR": "", "PYTHONPATH": str(ROOT)}
    for command in (["run", "configs/digits.yaml", "--output", "runs/digits"], ["report", "runs/digits"]):
        subprocess.run([sys.executable, "-m", "fedray", *command], check=True, cwd=folder, env=environment)
    page = folder / "runs" / "digits" / "report.html"
    page.write_text(page.read_text().replace(f"on {socket.gethostname()}", "on this machine"))
    shot = folder / "report.png"
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,1100"]
    subprocess.run([*browser, f"--screenshot={shot}", f"file://{page}"], check=True, cwd=folder)
    with Image.open(shot) as picture:
        picture.convert("RGB").quantize(64).save(PICTURES / "report.png", optimize=True)


def main(names: list[str]) -> None:
    """Makes the pictures that are named, by default all."""
    with tempfile.TemporaryDirectory() as scratch:
        if not names or "frontier" in names:
            ray.init(log_to_driver=False)
            measure_frontier(Path(scratch))
            ray.shutdown()
        if (PICTURES / "frontier.json").exists():
            draw_frontier()
        if not names or "report" in names:
            take_report(Path(scratch))


if __name__ == "__main__":
    main(sys.argv[1:])
