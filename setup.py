"""Lists the packages that Duet needs. Duet runs in the root of its checkout. Tools are set up in pyproject.toml."""

from setuptools import find_packages, setup

# DALI has one wheel for each CUDA version. Both wheels also run on a machine without a GPU.
DALI = "2.4.0"

# For `python -m trainer export --format onnx`: torch's exporter writes the file.
EXPORT = ["onnx>=1.23", "onnxscript>=0.7"]

setup(
    name="duet-har",
    version="0.1.0",
    description=(
        "A trainer for RGB + skeleton action recognition: reads clips up to nineteen times as fast as MMAction2 "
        "on one CPU core; its speed on a GPU has not been measured yet"
    ),
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    # Tests and benchmarks run from the checkout and are not installed.
    packages=find_packages(include=["pipelines*", "kernels*", "models*", "trainer*"]),
    package_data={
        "pipelines.annotate.blazepose": ["*.onnx", "LICENSE", "NOTICE"],
        "trainer.report.page": ["page.html", "page.css", "*.js"],
    },
    install_requires=[
        # All tests passed with 2.11 and 2.13. With 2.14.1 and triton 3.8, we ran only the tests of kernels, benchmarks,
        # networks and fall-backs (over 600 tests, which passed) and six training steps of the demo. Older versions
        # (kernels/program.py refuses them with an error message) and 2.15 (no build for CUDA 12) have not been tested.
        "torch>=2.11,<2.15",
        "triton>=3.6; platform_system == 'Linux'",
        "numpy>=2",
        # PyAV 19 lacks `metadata_errors`, without which a video whose metadata are not UTF-8 does not open. FFmpeg
        # before 8.1.2, which PyAV before 18.1 contains, has known security holes (CVE-2026-8461, CVE-2026-40962).
        "av>=18.1,<19",
        "pillow>=11",
        "safetensors>=0.5",
        "tyro>=0.9",
        "rich>=13",
        "tensorboard>=2.18",
        "matplotlib>=3.9",
        "jinja2>=3.1",
        "nvtx>=0.2.10",
        "nvidia-ml-py>=12",  # torch asks this package for the load and the memory of a GPU
        # Estimates skeletons for videos that have none, and checks what `export --format onnx` wrote.
        "onnxruntime>=1.31",
        # Resizes the frames that a CPU decodes. Where there is no wheel, DALI does it (pipelines/dali.py).
        "cykooz-resizer>=4,<5; platform_machine == 'x86_64'",
    ],
    extras_require={
        "cu13": [f"nvidia-dali-cuda130=={DALI}"],
        "cu12": [f"nvidia-dali-cuda120=={DALI}"],
        # NVIDIA publishes no wheels of apex, and PyPI's "apex" is a different program: see docs/training.md.
        "apex": [],
        # rtmlib estimates skeletons better than the built-in BlazePose. It downloads its weights at the first use.
        "pose": ["rtmlib>=0.0.16"],
        "export": EXPORT,
        # With --set wandb=true, sends the curves to Weights & Biases as well.
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
