"""Duet is a source-tree application: clone, `make demo`, run from the root. Tool settings: pyproject.toml."""

from setuptools import find_packages, setup

# DALI's wheels are named by CUDA version; both run on a machine without a GPU.
DALI = "2.4.0"

# ONNX, written by torch's exporter and compared in its runtime (python -m trainer export).
EXPORT = ["onnx>=1.23", "onnxscript>=0.7", "onnxruntime>=1.31"]

setup(
    name="duet-har",
    version="0.1.0",
    description="The fastest and most trustworthy trainer for RGB + skeleton action recognition",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    # tests and benchmarks run from the checkout and are never installed.
    packages=find_packages(include=["pipelines*", "kernels*", "models*", "trainer*"]),
    package_data={"kernels": ["faster.json"]},
    install_requires=[
        # torch 2.9 has a broken bf16 conv3d (pytorch#166122), 2.10 was never tried here; trainer/cli.py refuses them by
        # name.
        "torch>=2.11",
        "triton>=3.6; platform_system == 'Linux'",
        "numpy>=2",
        # 19 has no metadata_errors, by which videos open whose texts are no UTF-8.
        "av>=14,<19",
        "pillow>=11",
        "safetensors>=0.5",
        "tyro>=0.9",
        "rich>=13",
        "tensorboard>=2.18",
        "matplotlib>=3.9",
        "nvtx>=0.2.10",
    ],
    extras_require={
        "cu13": [f"nvidia-dali-cuda130=={DALI}"],
        "cu12": [f"nvidia-dali-cuda120=={DALI}"],
        # NVIDIA's apex has no wheels (PyPI's "apex" is something else): build it from source, see README.md.
        "apex": [],
        # Skeletons for videos that have none; it loads its weights from the web at the first use.
        "pose": ["rtmlib>=0.0.16", "onnxruntime>=1.17"],
        "export": EXPORT,
        # Curves on a server of theirs as well: --set wandb=true.
        "wandb": ["wandb>=0.31"],
        "test": [
            *EXPORT,
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            "scikit-learn>=1.5",
            "torchmetrics>=1.6",
            "ruff>=0.9",
            "pyright>=1.1.390",
        ],
    },
)
