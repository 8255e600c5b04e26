"""The rows and panels of the Grafana dashboard: what each one asks Prometheus, and why a person looks at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SPECULATOR: Final = 'namespace="$namespace",name="$name"'
"""Selects the series of the chosen speculator, whoever exports them."""
DRAFT: Final = f'{SPECULATOR},source="draft"'
DRAFT_FIRST: Final = f'{DRAFT},position="1"'
TOTAL: Final = f'{SPECULATOR},priority=""'
"""Selects SGLang's totals. With priority scheduling, engines report each priority beside them."""
FIXED: Final = "with a fixed shape (draft.shape: Fixed)"
"""When the controller's metrics have no series, because the engine chooses nothing."""
ALL: Final = ""
"""Selects all series of a metric."""


@dataclass(frozen=True)
class Query:
    """A query of Prometheus. ``legend`` may name labels: ``{{arm}}``."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel."""

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    stacked: bool = False


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


def _panel(
    title: str,
    description: str,
    *queries: tuple[str, str],
    unit: str = "short",
    kind: str = "timeseries",
    stacked: bool = False,
) -> Panel:
    """A panel of ``queries``: legends and expressions."""
    return Panel(title, description, tuple(Query(ask, legend) for legend, ask in queries), unit, kind, stacked)


def _series(metric: str, selector: str = SPECULATOR) -> str:
    return f"{metric}{{{selector}}}" if selector else metric


def _of(aggregate: str, by: str, expression: str) -> str:
    """``expression`` aggregated over all labels but ``by``."""
    return f"{aggregate} by ({by}) ({expression})" if by else f"{aggregate}({expression})"


def _max(metric: str, by: str = "") -> str:
    return _of("max", by, _series(metric))


def _rate(metric: str, selector: str = SPECULATOR, window: str = "$__rate_interval") -> str:
    return f"rate({_series(metric, selector)}[{window}])"


def _sum_rate(metric: str, by: str = "", selector: str = SPECULATOR) -> str:
    return f"sum {f'by ({by}) ' if by else ''}({_rate(metric, selector)})"


def _last_hour(metric: str, by: str) -> str:
    return _of("sum", by, f"increase({_series(metric)}[1h])")


def _quantile(quantile: float, metric: str, selector: str = SPECULATOR, window: str = "$__rate_interval") -> str:
    buckets = _rate(f"{metric}_bucket", selector, window)
    return f"histogram_quantile({quantile}, sum by (le) ({buckets}))"


_ANSWERS: Final = _rate("aurora_agent_answer_tokens_total")
_ESTIMATE: Final = _series("aurora_agent_estimated_speedup")

WORTH: Final = Row(
    "What the draft is worth",
    (
        _panel("Speed against no speculation",
            "Measured: the gate's last measurement of the active version, with its interval, over an engine without"
            " speculation. Above 1 the draft pays. Estimated: from the costs of the engines' own rounds, over the live"
            " traffic of pods that estimate. The estimate compares with the pod's own rounds without proposals. A pod"
            " that hardly proposed was 4 to 13 % slower than an engine without speculation (small model on a CPU, four"
            f" requests in flight). So an estimate near 1 may hide a loss. There is no estimate {FIXED}.",
            ("measured, {{bound}}", _max("aurora_speculator_active_speedup", "bound")),
            ("estimated, live", f"sum({_ANSWERS} and {_ESTIMATE}) / sum({_ANSWERS} / {_ESTIMATE})")),
        _panel("Acceptance length",
            "Answer tokens per verify round, bonus token included. The draft alone counts only rounds in which it"
            " proposed. Held-out is the newest draft, which may not serve yet. The line of the draft alone is missing"
            f" {FIXED}.",
            ("live, all sources", f"sum({_ANSWERS}) / {_sum_rate('aurora_agent_verify_rounds_total')}"),
            ("live, the draft alone", f"1 + {_sum_rate('aurora_agent_accepted_tokens_total', selector=DRAFT)}"
                f" / {_sum_rate('aurora_agent_proposed_tokens_total', selector=DRAFT_FIRST)}"),
            ("held-out, newest draft", _max("aurora_speculator_held_out_accept_length"))),
        _panel("Acceptance of the draft by position",
            "Share of the draft's tokens at each position of the chain that the target accepted. Position 1 is the"
            f" first proposed token. Empty {FIXED}.",
            ("position {{position}}", f"{_sum_rate('aurora_agent_accepted_tokens_total', 'position', DRAFT)}"
                f" / {_sum_rate('aurora_agent_proposed_tokens_total', 'position', DRAFT)}"),
            unit="percentunit"),
        _panel("Accepted tokens by source",
            "Tokens per second that did not need a decode round of their own, by who proposed them."
            f" Empty {FIXED}.",
            ("{{source}}", _sum_rate("aurora_agent_accepted_tokens_total", "source")), stacked=True),
        _panel("Cost of training and saving",
            "GPUs by kind. Cost: what the trainer holds while training is not suspended."
            " Saving: the engines' estimate over about a day, lookup included."
            " What the plugin itself costs is not deducted. A line is missing while its figure is not known, as the"
            f" saving is {FIXED}.",
            ("training costs, {{device}}", _max("aurora_speculator_training_devices", "device")),
            ("speculation saves, {{device}}", _max("aurora_speculator_saved_devices", "device"))),
    ),
)  # fmt: skip
ROUNDS: Final = Row(
    "Decode rounds",
    (
        _panel("Decode rounds by arm",
            f"Rounds per second: off, or the source and the number of proposed tokens. Empty {FIXED}.",
            ("{{arm}}", _sum_rate("aurora_agent_decode_rounds_total", "arm")), unit="ops", stacked=True),
    ),
)  # fmt: skip
TRAFFIC: Final = Row(
    "Traffic",
    (
        _panel("Answer tokens per second",
            "Answer tokens of ended requests, by pod.",
            ("{{pod}}", _sum_rate("aurora_agent_answer_tokens_total", "pod")), stacked=True),
        _panel("Requests in the engines",
            "Requests that run and requests that wait, over all pods that are ready.",
            ("running", _of("sum", "", _series("sglang:num_running_reqs", TOTAL))),
            ("waiting", _of("sum", "", _series("sglang:num_queue_reqs", TOTAL)))),
        _panel("Time to first token",
            "As the engines measure it.",
            ("median", _quantile(0.5, "sglang:time_to_first_token_seconds")),
            ("95th percentile", _quantile(0.95, "sglang:time_to_first_token_seconds")), unit="s"),
        _panel("KV cache in use",
            "Share of the engine's room for tokens, by pod. At 100% requests wait.",
            ("{{pod}}", _max("sglang:token_usage", "pod")), unit="percentunit"),
    ),
)  # fmt: skip
LEARNING: Final = Row(
    "Capture and training",
    (
        _panel("Captured records and losses",
            "Prompts and verify rounds per second that capture took, and that it lost before they became traces.",
            ("captured", _sum_rate("aurora_agent_captured_records_total")),
            ("lost", _sum_rate("aurora_agent_dropped_records_total")), unit="ops"),
        _panel("Losses by reason",
            "The reference of metrics says what each reason counts.",
            ("{{reason}}", _last_hour("aurora_agent_losses_total", "reason"))),
        _panel("Captured bytes",
            "Bytes per second of the traces that the pods upload to the store.",
            ("uploaded", _sum_rate("aurora_agent_uploaded_bytes_total")), unit="Bps"),
        _panel("Age of the oldest trace that waits",
            "How long the oldest shard of each pod has waited for its upload. It rises while the store is away.",
            ("{{pod}}", _series("aurora_agent_spool_oldest_shard_seconds")), unit="s"),
        _panel("Spool",
            "Share of the spool's limit that waits for its upload. At 100% the oldest traces are dropped.",
            ("{{pod}}", f"{_series('aurora_agent_spool_bytes')} / {_series('aurora_agent_spool_limit_bytes')}"),
            unit="percentunit"),
        _panel("Training lag",
            "Shards of new traces that wait to be trained. A line that keeps rising: the trainer falls behind.",
            ("waiting", _max("aurora_speculator_pending_shards"))),
    ),
)  # fmt: skip
VERSIONS: Final = Row(
    "Versions, rolls and swaps",
    (
        _panel("Pods by version",
            "Versions that the engines serve. At most two at a time; unknown means that an agent does not answer.",
            ("version {{version}}", _max("aurora_speculator_pods", "version")), stacked=True),
        _panel("Decisions in the last hour",
            "Decisions about versions, by the reason of their event.",
            ("{{decision}}", f"{_last_hour('aurora_speculator_decisions_total', 'decision')} > 0")),
        _panel("Phase of the roll",
            "The present phase has the value 1.", ("{{phase}}", _max("aurora_speculator_rollout_phase", "phase")),
            kind="state-timeline"),
        _panel("Conditions",
            "1 while the condition is True. Reconciling and Stalled are abnormal when 1.",
            ("{{type}}", _max("aurora_speculator_condition", "type")), kind="state-timeline"),
        _panel("Swaps in the last hour",
            "Swaps of a pod's draft, by result.", ("{{result}}", _last_hour("aurora_agent_swaps_total", "result"))),
        _panel("Pause of a swap",
            "How long swaps of the last hour paused generation.",
            ("median", _quantile(0.5, "aurora_agent_swap_pause_seconds", window="1h")),
            ("99th percentile", _quantile(0.99, "aurora_agent_swap_pause_seconds", window="1h")), unit="s"),
    ),
)  # fmt: skip
OPERATOR: Final = Row(
    "Operator (all speculators)",
    (
        _panel("Leader",
            "One pod of each installation has the value 1.",
            ("{{pod}}", _of("max", "job, pod", "aurora_operator_leading")), kind="state-timeline"),
        _panel("Reconciles by outcome",
            "Reconciles per second. Errors that stay need a look at the operator's log.",
            ("{{outcome}}", _sum_rate("aurora_reconciles_total", "outcome", ALL)), unit="ops"),
        _panel("Time of a reconcile and of a store read",
            "99th percentiles.", ("reconcile", _quantile(0.99, "aurora_reconcile_seconds", ALL)),
            ("store read", _quantile(0.99, "aurora_store_read_seconds", ALL)), unit="s"),
        _panel("Calls",
            "Calls per second of the API server by verb, and of the stores by operation.",
            ("API server, {{verb}}", _sum_rate("aurora_api_calls_total", "verb", ALL)),
            ("store, {{operation}}", _sum_rate("aurora_store_requests_total", "operation", ALL)), unit="ops"),
        _panel("Memory",
            "Resident memory of the operator's pods.",
            ("{{pod}}", "process_resident_memory_bytes and on (job, pod) aurora_operator_leading"), unit="bytes"),
    ),
)  # fmt: skip
ROWS: Final = (WORTH, ROUNDS, TRAFFIC, LEARNING, VERSIONS, OPERATOR)
