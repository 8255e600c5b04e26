"""A stand-in for SGLang whose two gauges of load a test sets. Its metrics have the names and labels of SGLang's.

Without a setting the engine has no request, as after each start of a pod.
"""

from __future__ import annotations

import json
import urllib.request
from typing import Final

from aurora_operator.kubernetes_api import POD
from aurora_protocol.agent_api import ENGINE_PORT
from tests.integration.operator.operator_rig import Rig
from tests.rig.prometheus.engine_stand_in import RANK

PODS: Final = "app.kubernetes.io/instance={},app.kubernetes.io/component=inference"
_LABELS: Final = ",".join(f'{name}="{value}"' for name, value in RANK.items())
PROGRAM: Final = f"""
import http.server, json
load = {{"running": 0, "queue": 0}}

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        lines = [f'sglang:num_{{name}}_reqs{{{{{_LABELS}}}}} {{value}}' for name, value in load.items()]
        self.answer("".join(f"{{line}}\\n" for line in lines).encode())

    def do_PUT(self):
        load.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer(b"")

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("0.0.0.0", {ENGINE_PORT}), Handler).serve_forever()
"""


def set_load(rig: Rig, name: str, *, running: int = 0, queue: int = 0) -> None:
    """Let each engine that runs now compute ``running`` requests, and hold ``queue`` more back."""
    body = json.dumps({"running": running, "queue": queue}).encode()
    for pod in rig.list(POD, PODS.format(name)):
        if pod["status"].get("podIP") and "deletionTimestamp" not in pod["metadata"]:
            url = f"http://{pod['status']['podIP']}:{ENGINE_PORT}/"
            with urllib.request.urlopen(urllib.request.Request(url, body, method="PUT"), timeout=10):
                pass
