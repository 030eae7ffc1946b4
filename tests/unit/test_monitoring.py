"""The dashboard and the alert rules under docs/monitoring: they name metrics that exist, and promtool accepts them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from test_metrics import SAMPLE

from lb.control.telemetry.metrics import DEFINITIONS, Metrics

FOLDER = Path(__file__).parents[2] / "docs" / "monitoring"
FILES = ("grafana.json", "alerts.yml", "alerts-test.yml", "README.md")
NAME = re.compile(r"\blb_[a-z0-9_]+\b")


def exported() -> set[str]:
    """Return the names of all series that a scrape holds."""
    text = generate_latest(Metrics(lambda: SAMPLE).registry()).decode()
    return {row.name for family in text_string_to_metric_families(text) for row in family.samples}


@pytest.mark.parametrize("name", FILES)
def test_file_names_only_metrics_that_exist(name: str) -> None:
    """A metric that was renamed, or never was, would be an empty panel or an alert that never fires."""
    named = set(NAME.findall((FOLDER / name).read_text()))
    assert named
    assert named - exported() - set(DEFINITIONS) == set()


def test_readme_lists_every_metric() -> None:
    """What there is is written down."""
    named = set(NAME.findall((FOLDER / "README.md").read_text()))
    assert set(DEFINITIONS) - named == set()


def test_dashboard_panels_have_queries_units_and_places() -> None:
    """It is valid JSON; no two panels lie on each other; each has a query and a unit."""
    panels = json.loads((FOLDER / "grafana.json").read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])
    assert len({panel["id"] for panel in panels}) == len(panels)


def promtool(*arguments: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("the command promtool (Debian's package prometheus) is not installed")
    done = subprocess.run([program, *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_accepted_by_promtool() -> None:
    """Prometheus' own check of the file."""
    promtool("check", "rules", "alerts.yml")


def test_rules_fire_when_they_should() -> None:
    """Made-up series, and which alerts come of them."""
    promtool("test", "rules", "alerts-test.yml")


def test_scrape_passes_promtools_lint() -> None:
    """Names, help texts and types as Prometheus wants them."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("the command promtool (Debian's package prometheus) is not installed")
    text = generate_latest(Metrics(lambda: SAMPLE).registry())
    done = subprocess.run([program, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
