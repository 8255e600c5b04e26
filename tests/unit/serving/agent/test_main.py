"""The agent process imports little and always ends in time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_the_agent_imports_neither_torch_nor_sglang() -> None:
    code = "import sys, aurora_runtime.serving.agent.main; sys.exit(bool({'torch', 'sglang'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("signalled", [True, False])
def test_an_agent_that_ends_does_not_wait_for_an_upload_that_hangs(tmp_path: Path, signalled: bool) -> None:
    code = f"""if True:
        import asyncio, os, signal, time
        from datetime import UTC, datetime
        from pathlib import Path
        from aurora_protocol.pod_settings import ADMIN_KEY, AGENT_TOKEN
        from aurora_runtime.serving.agent import main
        from aurora_runtime.serving.pod_files import EngineState, PodFolder, write_atomically
        from aurora_runtime.pod_registry import PodRegistry
        from tests.unit.fakes import FolderObjects
        from tests.unit.serving.agent.test_uploader import shard
        from tests.unit.serving.engine_starts import settings
        path, began = Path({str(tmp_path)!r}), asyncio.Event()

        class Slow(FolderObjects):
            def put(self, key, data):
                if {signalled}:
                    os.kill(os.getpid(), signal.SIGTERM)
                loop.call_soon_threadsafe(began.set)
                time.sleep(3600)

        async def fail(self):
            await began.wait()
            if not {signalled}:
                raise OSError("a part of the agent fails")
            await asyncio.sleep(3600)

        async def serve():
            global loop
            loop = asyncio.get_running_loop()
            await main.serve(settings(), options)

        main._open_registry = lambda _: PodRegistry(Slow(path / "store"))
        main.MeasurementLease.run = fail
        main.DraftCache.has_draft = True  # the pod serves a draft, so its shards may be uploaded
        main.EXIT_MARGIN_SECONDS = 0.2
        folder = PodFolder(path)
        folder.spool.mkdir()
        shard(folder.spool, 0)
        state = EngineState(boot="b", ready=True, started_at=datetime.now(UTC))
        write_atomically(folder.engine, state.to_json())
        for name in (ADMIN_KEY, AGENT_TOKEN):
            (path / name).write_text("secret")
        folders = [f"--state={{path}}", f"--keys={{path}}", f"--engine-key={{path / ADMIN_KEY}}"]
        addresses = ["--port=0", "--host=127.0.0.1", "--engine-port=1"]
        options = main.parse_options(["serve", *folders, *addresses, "--shutdown-seconds=0.2"])
        asyncio.run(serve())
        """
    process = subprocess.run([sys.executable, "-c", code], check=False, timeout=300, capture_output=True, text=True)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr, "the agent ends by its own deadline, not by an error of this test"
