"""The list of generated files."""

from __future__ import annotations

from tests.generated import chart_readme, dashboard, metrics_page, monitoring_page
from tests.generated.generated_file import GeneratedFile

FILES = (
    GeneratedFile(metrics_page.PAGE, metrics_page.render_page),
    GeneratedFile(monitoring_page.PAGE, monitoring_page.render_page),
    GeneratedFile(dashboard.FILE, dashboard.render),
    GeneratedFile(chart_readme.FILE, chart_readme.render),
)
