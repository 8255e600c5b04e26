"""A stand-in for SGLang whose metrics look like traffic: ``python -m tests.rig.prometheus.engine_stand_in``.

No engine runs here. The admin API is that of the agent's tests (:class:`tests.unit.fakes.FakeEngine`). Invariant: every
series has a name that the source of the installed SGLang defines, so that no dashboard passes with invented names.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tests.generated import exported_metrics
from tests.unit.fakes import FakeEngine

MODEL: Final = {"model_name": "org/model", "engine_type": "unified"}
"""The labels of SGLang's tokenizer."""
RANK: Final = {**MODEL, "tp_rank": "0", "pp_rank": "0", "moe_ep_rank": "0"}
"""The labels of SGLang's scheduler."""
STREAMED: Final = {**MODEL, "is_streaming": "true"}


class EngineStandIn(FakeEngine):
    """An engine that has answered two more requests whenever somebody reads its metrics."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self._registry = CollectorRegistry()
        counters = ("num_requests_total", "generation_tokens_total")
        self._requests, self._tokens = (self._counter(name, STREAMED) for name in counters)
        self._rounds = self._counter("spec_verify_calls_total", MODEL)
        histograms = ("time_to_first_token_seconds", "request_time_per_output_token_seconds")
        self._first_token, self._gap = (self._histogram(name) for name in histograms)
        for name, value in (("num_running_reqs", 2), ("num_queue_reqs", 1), ("token_usage", 0.25)):
            gauge = Gauge(f"sglang:{name}", name, RANK, registry=self._registry)
            gauge.labels(**RANK).set(value)
        made = {sample.name for family in self._registry.collect() for sample in family.samples}
        invented = {name for name in made if not name.endswith("_created")} - exported_metrics.engine()
        if invented:
            raise ValueError(f"SGLang has no metrics of these names: {sorted(invented)}")

    def app(self) -> web.Application:
        app = super().app()
        app.add_routes([web.get("/metrics", self._metrics)])
        return app

    async def _metrics(self, _: web.Request) -> web.Response:
        for _number in range(2):
            self._requests.inc()
            self._tokens.inc(60)
            self._rounds.inc(30)
            self._first_token.observe(0.1)
            self._gap.observe(0.02)
        return web.Response(body=generate_latest(self._registry), content_type="text/plain", charset="utf-8")

    def _counter(self, name: str, labels: dict[str, str]) -> Counter:
        return Counter(f"sglang:{name}", name, labels, registry=self._registry).labels(**labels)

    def _histogram(self, name: str) -> Histogram:
        return Histogram(f"sglang:{name}", name, STREAMED, registry=self._registry).labels(**STREAMED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key", type=Path, required=True, help="file with the key of the admin API")
    options = parser.parse_args()
    engine = EngineStandIn(options.key.read_text().strip())
    web.run_app(engine.app(), host="127.0.0.1", port=options.port, print=None)


if __name__ == "__main__":
    main()
