"""The rows and panels of the Grafana dashboard: what each one asks Prometheus, and why a person looks at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SPECULATOR: Final = 'namespace="$namespace",name="$name"'
"""Selects the series of the chosen speculator, whoever exports them."""
DRAFT: Final = f'{SPECULATOR},source="draft"'


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


def _rate(metric: str, selector: str = SPECULATOR, window: str = "$__rate_interval") -> str:
    return f"rate({metric}{{{selector}}}[{window}])"


def _sum_rate(metric: str, by: str = "", selector: str = SPECULATOR) -> str:
    return f"sum {f'by ({by}) ' if by else ''}({_rate(metric, selector)})"


def _quantile(quantile: float, metric: str, selector: str, window: str = "$__rate_interval") -> str:
    buckets = _rate(f"{metric}_bucket", selector, window)
    return f"histogram_quantile({quantile}, sum by (le) ({buckets}))"


_ANSWERS: Final = _rate("aurora_agent_answer_tokens_total")

WORTH: Final = Row(
    "What the draft is worth",
    (
        Panel(
            "Speed against no speculation",
            "Measured: the gate's last measurement of the active version, with its interval. Estimated: from the costs"
            " of the engines' own rounds, over live traffic. Above 1 the draft pays.",
            (
                Query(f"max by (bound) (aurora_speculator_active_speedup{{{SPECULATOR}}})", "measured, {{bound}}"),
                Query(
                    f"sum({_ANSWERS}) / sum({_ANSWERS} / aurora_agent_estimated_speedup{{{SPECULATOR}}})",
                    "estimated, live",
                ),
            ),
        ),
        Panel(
            "Acceptance length",
            "Answer tokens per verify round, bonus token included. The draft alone counts only rounds in which it"
            " proposed. Held-out is the newest draft, which may not serve yet.",
            (
                Query(f"sum({_ANSWERS}) / {_sum_rate('aurora_agent_verify_rounds_total')}", "live, all sources"),
                Query(
                    f"1 + {_sum_rate('aurora_agent_accepted_draft_tokens_total')}"
                    f" / {_sum_rate('aurora_agent_proposed_chains_total', selector=DRAFT)}",
                    "live, the draft alone",
                ),
                Query(f"max(aurora_speculator_held_out_accept_length{{{SPECULATOR}}})", "held-out, newest draft"),
            ),
        ),
        Panel(
            "Acceptance of the draft by position",
            "Share of the draft's tokens at each position of the chain that the target accepted. Position 1 is the"
            " first proposed token.",
            (
                Query(
                    f"{_sum_rate('aurora_agent_accepted_tokens_total', 'position', DRAFT)}"
                    f" / {_sum_rate('aurora_agent_proposed_tokens_total', 'position', DRAFT)}",
                    "position {{position}}",
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            "Accepted tokens by source",
            "Tokens per second that did not need a decode round of their own, by who proposed them.",
            (
                Query(_sum_rate("aurora_agent_accepted_draft_tokens_total"), "draft"),
                Query(_sum_rate("aurora_agent_accepted_lookup_tokens_total"), "lookup"),
            ),
            stacked=True,
        ),
    ),
)
ROUNDS: Final = Row(
    "Decode rounds",
    (
        Panel(
            "Decode rounds by arm",
            "Rounds per second: off, or the source and the number of proposed tokens.",
            (Query(_sum_rate("aurora_agent_decode_rounds_total", "arm"), "{{arm}}"),),
            unit="ops",
            stacked=True,
        ),
        Panel(
            "Round time by shape",
            "Measured time of a decode round, by arm and number of running requests, mean of the pods.",
            (
                Query(
                    f"avg by (arm, requests) (aurora_agent_decode_round_seconds{{{SPECULATOR}}})",
                    "{{arm}}, {{requests}} running",
                ),
            ),
            unit="s",
        ),
        Panel(
            "Share of rounds that explore",
            "Rounds that tried another arm than the best known one, since each engine started.",
            (Query(f"aurora_agent_exploring_share{{{SPECULATOR}}}", "{{pod}}"),),
            unit="percentunit",
        ),
    ),
)
TRAFFIC: Final = Row(
    "Traffic",
    (
        Panel(
            "Answer tokens per second",
            "Answer tokens of ended requests, by pod.",
            (Query(_sum_rate("aurora_agent_answer_tokens_total", "pod"), "{{pod}}"),),
            stacked=True,
        ),
        Panel(
            "Requests in the engines",
            "Requests that run and requests that wait, over all pods that are ready.",
            (
                Query(f"sum(sglang:num_running_reqs{{{SPECULATOR}}})", "running"),
                Query(f"sum(sglang:num_queue_reqs{{{SPECULATOR}}})", "waiting"),
            ),
        ),
        Panel(
            "Time to first token",
            "As the engines measure it.",
            tuple(
                Query(_quantile(quantile, "sglang:time_to_first_token_seconds", SPECULATOR), name)
                for quantile, name in ((0.5, "median"), (0.95, "95th percentile"))
            ),
            unit="s",
        ),
        Panel(
            "KV cache in use",
            "Share of the engine's room for tokens, by pod. At 100% requests wait.",
            (Query(f"max by (pod) (sglang:token_usage{{{SPECULATOR}}})", "{{pod}}"),),
            unit="percentunit",
        ),
    ),
)
LEARNING: Final = Row(
    "Capture and training",
    (
        Panel(
            "Captured records and losses",
            "Prompts and verify rounds per second that capture took, and that it lost before they became traces.",
            (
                Query(_sum_rate("aurora_agent_captured_records_total"), "captured"),
                Query(_sum_rate("aurora_agent_dropped_records_total"), "lost"),
            ),
            unit="ops",
        ),
        Panel(
            "Losses by reason",
            "The reference of metrics says what each reason counts.",
            (Query(f"sum by (reason) (increase(aurora_agent_losses_total{{{SPECULATOR}}}[1h]))", "{{reason}}"),),
        ),
        Panel(
            "Captured bytes",
            "Bytes per second of the traces that the pods upload to the store.",
            (Query(_sum_rate("aurora_agent_uploaded_bytes_total"), "uploaded"),),
            unit="Bps",
        ),
        Panel(
            "Age of the oldest trace that waits",
            "How long the oldest shard of each pod has waited for its upload. It rises while the store is away.",
            (Query(f"aurora_agent_spool_oldest_shard_seconds{{{SPECULATOR}}}", "{{pod}}"),),
            unit="s",
        ),
        Panel(
            "Spool",
            "Share of the spool's limit that waits for its upload. At 100% the oldest traces are dropped.",
            (
                Query(
                    f"aurora_agent_spool_bytes{{{SPECULATOR}}} / aurora_agent_spool_limit_bytes{{{SPECULATOR}}}",
                    "{{pod}}",
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            "Training lag in tokens",
            "Estimated token positions of new traces that wait to be trained. A line that keeps rising says that the"
            " trainer falls behind.",
            (Query(f"max(aurora_speculator_training_lag_tokens{{{SPECULATOR}}})", "waiting"),),
        ),
        Panel(
            "Tokens trained per second",
            "New token positions that the trainer sees.",
            (Query(f"max({_rate('aurora_speculator_trained_tokens_total', window='10m')})", "trained"),),
        ),
        Panel(
            "Vocabulary coverage",
            "Share of held-out answer tokens that the draft can propose at all.",
            (Query(f"max(aurora_speculator_vocabulary_coverage{{{SPECULATOR}}})", "coverage"),),
            unit="percentunit",
        ),
    ),
)
VERSIONS: Final = Row(
    "Versions, rolls and swaps",
    (
        Panel(
            "Pods by version",
            "Versions that the engines serve. At most two at a time; unknown means that an agent does not answer.",
            (Query(f"max by (version) (aurora_speculator_pods{{{SPECULATOR}}})", "version {{version}}"),),
            stacked=True,
        ),
        Panel(
            "Decisions in the last hour",
            "Decisions about versions, by the reason of their event.",
            (
                Query(
                    f"sum by (decision) (increase(aurora_speculator_decisions_total{{{SPECULATOR}}}[1h])) > 0",
                    "{{decision}}",
                ),
            ),
        ),
        Panel(
            "Phase of the roll",
            "The present phase has the value 1.",
            (Query(f"max by (phase) (aurora_speculator_rollout_phase{{{SPECULATOR}}})", "{{phase}}"),),
            kind="state-timeline",
        ),
        Panel(
            "Conditions",
            "1 while the condition is True. Degraded, NameTaken and InvalidSpec are abnormal when 1.",
            (Query(f"max by (type) (aurora_speculator_condition{{{SPECULATOR}}})", "{{type}}"),),
            kind="state-timeline",
        ),
        Panel(
            "Swaps in the last hour",
            "Swaps of a pod's draft, by result.",
            (Query(f"sum by (result) (increase(aurora_agent_swaps_total{{{SPECULATOR}}}[1h]))", "{{result}}"),),
        ),
        Panel(
            "Pause of a swap",
            "How long swaps of the last hour paused generation.",
            tuple(
                Query(_quantile(quantile, "aurora_agent_swap_pause_seconds", SPECULATOR, "1h"), name)
                for quantile, name in ((0.5, "median"), (0.99, "99th percentile"))
            ),
            unit="s",
        ),
    ),
)
OPERATOR: Final = Row(
    "Operator (all speculators)",
    (
        Panel(
            "Leader",
            "One pod of each installation has the value 1.",
            (Query("max by (job, pod) (aurora_operator_leading)", "{{pod}}"),),
            kind="state-timeline",
        ),
        Panel(
            "Reconciles by outcome",
            "Reconciles per second. Errors that stay need a look at the operator's log.",
            (Query("sum by (outcome) (rate(aurora_reconciles_total[$__rate_interval]))", "{{outcome}}"),),
            unit="ops",
        ),
        Panel(
            "Time of a reconcile and of a store read",
            "99th percentiles.",
            (
                Query(
                    "histogram_quantile(0.99, sum by (le) (rate(aurora_reconcile_seconds_bucket[$__rate_interval])))",
                    "reconcile",
                ),
                Query(
                    "histogram_quantile(0.99, sum by (le) (rate(aurora_store_read_seconds_bucket[$__rate_interval])))",
                    "store read",
                ),
            ),
            unit="s",
        ),
        Panel(
            "Calls",
            "Calls per second of the API server by verb, and of the stores by operation.",
            (
                Query("sum by (verb) (rate(aurora_api_calls_total[$__rate_interval]))", "API server, {{verb}}"),
                Query(
                    "sum by (operation) (rate(aurora_store_requests_total[$__rate_interval]))", "store, {{operation}}"
                ),
            ),
            unit="ops",
        ),
        Panel(
            "Memory",
            "Resident memory of the operator's pods.",
            (Query("process_resident_memory_bytes and on (job, pod) aurora_operator_leading", "{{pod}}"),),
            unit="bytes",
        ),
    ),
)
ROWS: Final = (WORTH, ROUNDS, TRAFFIC, LEARNING, VERSIONS, OPERATOR)
