"""The whole page: one file without a script and without a reference to anything outside.

Invariants: the page states a content security policy that allows its own style sheet and nothing else, so a browser
loads and runs nothing, whatever a text in it says. The same report gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Final

from aurora_cli.report.page import sections
from aurora_cli.report.page.markup import Markup, element, joined, style_sheet
from aurora_cli.report.page.tables import earlier_attempts, evidence
from aurora_cli.report.report import Report

STYLE: Final = (resources.files("aurora_cli.report.page") / "page.css").read_text(encoding="utf-8")
_CONTENTS: Final = (
    ("speedup", "Speedup"),
    ("throughput", "Tokens/s"),
    ("acceptance", "Acceptance"),
    ("traffic", "Sources"),
    ("shapes", "Shapes"),
    ("coverage", "Vocabulary"),
    ("history", "Rolls"),
    ("cost", "Cost"),
    ("evidence", "Evidence"),
    ("unknown", "Not known"),
)


def render(report: Report) -> str:
    """The page as HTML."""
    page = element("html", _head(report), _body(report), lang="en")
    return f"<!DOCTYPE html>\n{page.html}\n"


def _head(report: Report) -> Markup:
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("meta", name="robots", content="noindex"),
        element("title", f"Aurora report: {report.name} in {report.namespace}"),
        style_sheet(STYLE),
    )


def _body(report: Report) -> Markup:
    return element(
        "body",
        element(
            "header",
            element("p", "Aurora report", class_="kicker"),
            element("h1", report.name),
            element("p", f"in {report.namespace}, drafts for {report.target or 'an unknown target'}", class_="lead"),
            element("p", f"{report.ready}. Made {report.made:%Y-%m-%d %H:%M} UTC.", class_="lead"),
        ),
        element(
            "nav",
            *(element("a", title, href=f"#{anchor}") for anchor, title in _CONTENTS),
            aria_label="Contents",
        ),
        element("main", sections.figures(report.figures), _sections(report)),
        element("footer", element("p", "Made by kubectl aurora report. This page loads nothing and runs no program.")),
    )


def _sections(report: Report) -> Markup:
    active = report.served[-1].version if report.served else None
    lead = "The last attempt at each version, the newest first. Records are shown as stored; no signature is checked."
    found = evidence(report.measurements, active) if report.measurements else sections.nothing("No evidence was read.")
    return joined(
        (
            sections.speedup(report),
            sections.tokens_per_second(report),
            sections.acceptance_length(report),
            sections.traffic(report),
            sections.round_shapes(report),
            sections.coverage(report),
            sections.history(report),
            sections.cost(report),
            sections.section("evidence", "What is the evidence?", lead, found, earlier_attempts(report.earlier)),
            sections.unknown(report),
        )
    )
