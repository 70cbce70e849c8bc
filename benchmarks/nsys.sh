#!/bin/sh
# Profiles ten steps of an experiment on one GPU with Nsight Systems: sh benchmarks/nsys.sh ntu60_x3d [arguments]
# Needs nsys in PATH. Writes to work_dirs/nsys_EXP/, and prints the slowest kernels, the NVTX ranges and the idle gaps.
set -eu
exp=${1:?usage: sh benchmarks/nsys.sh EXPERIMENT [arguments of the trainer]}
shift
command -v nsys > /dev/null || { echo "nsys is not in PATH: install NVIDIA Nsight Systems" >&2; exit 2; }
python=.venv/bin/python
test -x $python || python=python
out=work_dirs/nsys_$exp
mkdir -p "$out"
# Steps 41 to 50 are profiled, because by then compilation and cuDNN's choice of algorithms are finished.
nsys profile --force-overwrite true --output "$out/report" \
  --trace cuda,nvtx,cudnn,cublas --cuda-memory-usage true --sample none --cpuctxsw none \
  --capture-range cudaProfilerApi --capture-range-end stop \
  $python -m trainer --exp "$exp" --ranks 1 --work-dir "$out/run" --max-steps 60 --profile steps=41..50 "$@"
nsys stats --force-export true --report cuda_gpu_kern_sum,nvtx_pushpop_sum --format column "$out/report.nsys-rep" | head -60
nsys stats --report cuda_gpu_trace --format csv --output - "$out/report.nsys-rep" > "$out/gpu_trace.csv"
$python -m benchmarks.nsys_gaps "$out/gpu_trace.csv"
