"""The GPU bench. It imports the checkout as it is, so that nothing has to be installed beside torch and Triton."""

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
PACKAGE_FOLDERS = [str(CHECKOUT / name) for name in ("crds", "operator", "runtime")]
sys.path.extend(folder for folder in PACKAGE_FOLDERS if folder not in sys.path)
