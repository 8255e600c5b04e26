"""Stand-ins for the store and the engine. They show faults that a test cannot provoke in the real ones.

``FolderObjects`` keeps objects as files. ``FakeEngine`` answers SGLang's admin API and fails where a test asks for it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import pickle
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web
from aiohttp.test_utils import TestServer

from aurora_protocol.agent_api import MEASUREMENT_HEADER
from aurora_protocol.draft_records import DraftSizes, Lineage, Registration, TargetIdentity, TensorSpec
from aurora_runtime.engine.draft_config import config_json, lineage_config
from aurora_runtime.engine.draft_update import DIGEST_BUFFER, DIGEST_TENSOR, PATH_TENSOR
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.pod_files import Withdrawal
from aurora_store import ObjectStore, StoreConfig
from aurora_store.errors import DigestMismatch, ObjectExists, ObjectMissing, ObjectTooLarge, StoreError
from aurora_store.objects import MAX_LISTED_OBJECTS, MAX_RECORD_BYTES, ObjectInfo
from tests.assets.range_client import answer_ranges
from tests.assets.trainer_output import publish_draft

KEY = "the-admin-key"
SIZES = DraftSizes(
    intermediate_size=4, heads=1, kv_heads=1, head_dim=2, rms_norm_eps=1e-5, rope_theta=1e4, max_positions=64
)
D2T = struct.pack("<4q", 0, 1, 2, 3)


class FolderObjects(ObjectStore):
    """Objects as files below a folder. ``down`` makes every call fail; the next ``writes_to_refuse`` writes fail.

    ``refused``: the objects that cannot be read, each with its error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = StoreConfig("bucket", "aurora/team/chat-1a2b3c4d")
        self.down = False
        self.writes_to_refuse = 0
        self.refused: dict[str, StoreError] = {}
        answer_ranges(self)

    def _file(self, key: str) -> Path:
        if self.down:
            raise StoreError("the store is down")
        return self.path / key

    def put(self, key: str, data: bytes) -> None:
        file = self._file(key)
        if self.writes_to_refuse:
            self.writes_to_refuse -= 1
            raise StoreError("the store refuses")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def create(self, key: str, data: bytes) -> None:
        file = self._file(key)
        if file.exists() and file.read_bytes() != data:
            raise ObjectExists(key)
        self.put(key, data)

    def upload(self, key: str, path: Path) -> None:
        self.put(key, path.read_bytes())

    def create_file(self, key: str, path: Path) -> None:
        if self._file(key).exists():
            raise ObjectExists(key)
        self.put(key, path.read_bytes())

    def get(self, key: str, sha256: str | None = None, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
        if key in self.refused:
            raise self.refused[key]
        try:
            data = self._file(key).read_bytes()
        except FileNotFoundError as error:
            raise ObjectMissing(key) from error
        if len(data) > max_bytes:
            raise ObjectTooLarge(key)
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise DigestMismatch(key)
        return data

    def download(self, key: str, path: Path, sha256: str, *, max_bytes: int) -> None:
        path.write_bytes(self.get(key, sha256, max_bytes=max_bytes))

    def list_objects(self, prefix: str, *, after: str = "", limit: int = MAX_LISTED_OBJECTS) -> Iterator[ObjectInfo]:
        self._file("")
        files = sorted((str(file.relative_to(self.path)), file) for file in self.path.rglob("*") if file.is_file())
        stats = [(key, file.stat()) for key, file in files if key.startswith(prefix) and key > after]
        return iter([ObjectInfo(key, s.st_size, datetime.fromtimestamp(s.st_mtime, UTC)) for key, s in stats])

    def delete(self, key: str) -> None:
        self._file(key).unlink(missing_ok=True)


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """A safetensors file, written by hand so that a test can write a wrong one."""
    header, at, body = {}, 0, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
        body += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def draft_tensors(fill: float = 1.0) -> dict[str, tuple[str, list[int], bytes]]:
    """A small draft: one tensor of each float type and the vocabulary map."""
    bf16 = struct.pack("<f", fill)[2:]
    return {
        "fc.weight": ("BF16", [2, 3], bf16 * 6),
        "norm.weight": ("F32", [2], struct.pack("<2f", fill, fill)),
        "half.weight": ("F16", [2], struct.pack("<2e", fill, fill)),
        "d2t": ("I64", [4], D2T),
        "t2d": ("BOOL", [8], b"\x01\x00" * 4),
    }


def lineage(number: int = 1) -> Lineage:
    return Lineage(
        number=number,
        target=TargetIdentity(
            model="m", config_sha256="0" * 64, tokenizer_sha256="1" * 64, hidden_size=2, vocab_size=8
        ),
        architecture="EAGLE3",
        draft_vocab_size=4,
        aux_layers=(1, 2, 3),
        tensors={n: TensorSpec(shape=tuple(s), dtype=d) for n, (d, s, _) in draft_tensors().items()},
        draft_sizes=SIZES,
        created=datetime.now(UTC),
    )


def publish_bytes(
    registry: PodRegistry, folder: Path, version: int, data: bytes, *, of_lineage: int = 1
) -> Registration:
    """Publish ``data``, valid or not, as the weights of ``version``."""
    source = folder / f"source-{version}"
    source.mkdir(parents=True)
    (source / "model.safetensors").write_bytes(data)
    (source / "config.json").write_text(json.dumps(config_json(lineage_config(lineage()))))
    return publish_draft(registry, source, version, lineage=of_lineage)


class FakeEngine:
    """SGLang's admin API over a draft that is a file's bytes. ``faults`` maps a route to the fault of its next call.

    ``before``: status 500, nothing done. ``after``: done, then status 500. ``silent``: status 200, nothing done.
    ``unloaded``: the version changes, the weights and their digest stay. ``one rank``: as ``unloaded``, but only on the
    last rank. ``no draft``: the version changes, and there are no weights. ``version``: the weights load under another
    version. ``slow``: status 200 after a while, nothing done. ``gone``: the connection ends instead of an answer. One
    call uses up a fault, unless ``faults_persist`` is set. An engine without a ``key`` refuses a call that carries one.
    """

    def __init__(self, key: str | None = KEY) -> None:
        self.key = key
        self.ranks: int | None = 2
        self.has_running_requests = False
        self.weights = b""
        self.digests = ["", ""]  # what each rank reports
        self.version = "0"
        self.paused = False
        self.updating = False
        self.faults: dict[str, str] = {}
        self.faults_persist = False
        self.calls: list[str] = []
        self.unpaused_updates: list[str] = []
        self.withdrawal_file: Path | None = None  # the file that the real engine's guard reads

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/ready", self._ready),
                web.get("/model_info", self._info),
                web.get("/server_info", self._server),
                web.get("/metrics/", self._metrics),
                web.post("/flush_cache", self._flush),
                *(web.post(f"/{name}", self._admin_call) for name in self.ADMIN_ROUTES),
            ]
        )
        return app

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self.paused else 200)

    async def _info(self, _: web.Request) -> web.Response:
        file = self.withdrawal_file
        withdrawal = Withdrawal.from_json(file.read_bytes()) if file is not None and file.exists() else None
        headers = {MEASUREMENT_HEADER: withdrawal.measurement} if withdrawal else {}
        return web.json_response({"weight_version": self.version}, headers=headers)

    async def _server(self, _: web.Request) -> web.Response:
        return web.json_response({} if self.ranks is None else {"tp_size": self.ranks})

    async def _flush(self, request: web.Request) -> web.Response:
        assert int(request.query["timeout"]) > 0
        return (
            web.Response(status=400, text="requests are running")
            if self.has_running_requests
            else web.Response(text="Cache flushed.")
        )

    async def _metrics(self, _: web.Request) -> web.Response:
        series = {"num_requests_total": 2, "num_running_reqs": 3, "num_queue_reqs": 1}
        return web.Response(text="".join(f'sglang:{name}{{a="b"}} {value}.0\n' for name, value in series.items()))

    ADMIN_ROUTES = (
        "pause_generation",
        "begin_weight_update",
        "update_weights_from_tensor",
        "end_weight_update",
        "continue_generation",
        "weights_checker",
    )

    async def _admin_call(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != (None if self.key is None else f"Bearer {self.key}"):
            return web.Response(status=401)
        name = request.path.removeprefix("/")
        body = await request.json()
        self.calls.append(name)
        fault = self.faults.get(name, "") if self.faults_persist else self.faults.pop(name, "")
        if fault == "before":
            return web.json_response({"success": False, "message": "a fault of the test"}, status=500)
        if fault == "gone":
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if fault == "slow":
            await asyncio.sleep(0.2)
        ignored = fault in ("silent", "slow")
        answer = web.json_response({"success": True}) if ignored else self._apply(name, body, fault)
        return web.json_response({"success": False}, status=500) if fault == "after" else answer

    def _apply(self, name: str, body: dict[str, object], fault: str) -> web.Response:
        if name == "pause_generation":
            assert body == {"mode": "in_place"}
            self.paused = True
        elif name == "begin_weight_update":
            if self.updating:
                return web.json_response({"success": False, "message": "begun already"}, status=400)
            assert body == {"selector": "draft"}
            self.updating = True
        elif name == "update_weights_from_tensor":
            if not (self.paused and self.updating):
                self.unpaused_updates.append(name)
            self._load(body, fault)
        elif name == "end_weight_update":
            if not self.updating:
                return web.json_response({"success": False, "message": "not begun"}, status=400)
            self.updating = False
        elif name == "continue_generation":
            assert body == {"torch_empty_cache": False}
            self.paused = False
        else:
            ranks = [{"checksums": {"w": self.checksum(), **self._digest_buffer(digest)}} for digest in self.digests]
            return web.json_response({"success": True} | ({"ranks": ranks} if ranks else {}))
        return web.json_response({"success": True})

    def _load(self, body: dict[str, object], fault: str) -> None:
        assert body["selector"] == "draft"
        assert body["flush_cache"] is False
        assert body["abort_all_requests"] is False
        payloads = body["serialized_named_tensors"]
        assert isinstance(payloads, list)
        assert len(payloads) == self.ranks, "one per tensor-parallel rank"
        path, digest = request_of(payloads[0])
        if fault == "no draft":
            self.digests = []
        elif fault != "unloaded":
            self.weights = Path(path).read_bytes()
            changed = len(self.digests) - (fault == "one rank")
            self.digests[:changed] = [digest] * changed
        self.version = "99" if fault == "version" else str(body["weight_version"])

    def start(self, weights: bytes, version: str) -> None:
        """Start again with a draft that no load has brought."""
        self.weights, self.version, self.digests = weights, version, ["", ""]
        self.paused = self.updating = False

    @staticmethod
    def _digest_buffer(digest: str) -> dict[str, str]:
        return {f"draft.{DIGEST_BUFFER}{digest}": "0"} if digest else {}

    def checksum(self) -> str:
        return hashlib.sha256(self.weights).hexdigest()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        async with TestServer(self.app()) as server:
            yield str(server.make_url("")).rstrip("/")


def request_of(payload: str) -> tuple[str, str]:
    """The path and the digest in a loader's payload, read with torch as SGLang reads it."""
    path, digest = pickle.loads(base64.b64decode(payload))  # noqa: S301 - written by the code under test
    assert (path[0], digest[0]) == (PATH_TENSOR, DIGEST_TENSOR)
    return bytes(path[1].tolist()).decode(), bytes(digest[1].tolist()).hex()
