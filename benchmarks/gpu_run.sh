#!/usr/bin/env bash
# Everything that only a GPU can prove, in about ten minutes: build, benchmarks, GPU tests, compute-sanitizer.
# Needs torch >= 2.10 with CUDA, Triton >= 3.5, nvcc, compute-sanitizer, and the packages of the test extra with ninja,
# pybind11 and setuptools >= 77; nothing is downloaded. Writes JSON, pictures and log.txt into DIR.
set -uo pipefail

if [ $# -ne 2 ] || [ "$1" != --output-dir ]; then
    echo "usage: benchmarks/gpu_run.sh --output-dir DIR" >&2
    exit 2
fi
mkdir -p "$2"
out=$(cd "$2" && pwd)
cd "$(dirname "$0")/.." || exit 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=()

for program in nvidia-smi nvcc compute-sanitizer; do
    command -v "$program" >/dev/null || { echo "$program is not on PATH" >&2; exit 2; }
done
for package in torch triton ninja pybind11 setuptools pytest hypothesis scipy transformers; do
    python -c "import $package" || { echo "the Python package $package is missing" >&2; exit 2; }
done
arch=$(python -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || exit 2
parallel=()
python -c 'import xdist' 2>/dev/null && parallel=(-n 8)

# step NAME SECONDS COMMAND...: a failure does not stop the other steps
step() {
    local name=$1 limit=$2
    shift 2
    printf '\n== %s (%d s since the start)\n' "$name" "$SECONDS"
    if ! timeout "$limit" "$@"; then
        failed+=("$name")
        printf '== %s FAILED\n' "$name"
    fi
}

everything() {
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
    COND_DETR_CUDA=1 COND_DETR_CUDA_ARCHS=$arch step build 150 \
        python -m pip install --no-build-isolation --no-deps --no-index --target "$work/site" .
    export PYTHONPATH=$work/site
    step attn_bench 200 python benchmarks/attn_bench.py --quick --seconds 0.05 --json "$out/attn_bench.json"
    step step_bench 150 python benchmarks/step_bench.py --quick --seconds 0.5 --json "$out/step_bench.json"
    step matcher_bench 60 python benchmarks/matcher_bench.py --quick --seconds 0.05 --json "$out/matcher_bench.json"
    step tests 200 python -m pytest tests/kernels tests/cond_detr/test_cuda_graphs.py tests/cond_detr/test_host_sync.py \
        -p no:cacheprovider "${parallel[@]}"
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    local sanitizer=(compute-sanitizer --target-processes all --report-api-errors no --error-exitcode 1)
    step memcheck 90 "${sanitizer[@]}" --tool memcheck \
        python -m pytest tests/kernels -p no:cacheprovider -k "(one and query) or bit_by_bit or any_dtype"
    step racecheck 60 "${sanitizer[@]}" --tool racecheck \
        python -m pytest tests/kernels/test_assignment.py -p no:cacheprovider -k "cuda and (reference or bit_by_bit)"
    step kernel_report 60 python benchmarks/kernel_report.py --arch "$arch" --json "$out/kernel_report.json"
    printf '\n%d s, results in %s\n' "$SECONDS" "$out"
    if [ ${#failed[@]} -gt 0 ]; then
        printf 'failed: %s\n' "${failed[*]}"
        return 1
    fi
}

everything 2>&1 | tee "$out/log.txt"
