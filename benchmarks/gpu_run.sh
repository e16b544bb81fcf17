#!/usr/bin/env bash
# Everything that only a GPU can prove, in under ten minutes: build, GPU tests, compute-sanitizer, all benchmarks.
# Needs torch >= 2.10 with CUDA, Triton >= 3.5, nvcc, and the packages of the test extra; nothing is downloaded.
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

# step NAME SECONDS COMMAND...: the output goes to NAME.log too, and a failure does not stop the other steps
step() {
    local name=$1 limit=$2
    shift 2
    printf '\n== %s (%d s since the start)\n' "$name" "$SECONDS"
    if ! timeout "$limit" "$@" 2>&1 | tee "$out/$name.log"; then
        failed+=("$name")
        printf '== %s FAILED\n' "$name"
    fi
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/machine.txt"
arch=$(python -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || exit 2

COND_DETR_CUDA=1 COND_DETR_CUDA_ARCHS=$arch step build 240 \
    python -m pip install --no-build-isolation --no-deps --no-index --target "$work/site" .
export PYTHONPATH=$work/site
step tests 240 python -m pytest tests/kernels -p no:cacheprovider
PYTORCH_NO_CUDA_MEMORY_CACHING=1 step sanitizer 120 \
    compute-sanitizer --tool memcheck --error-exitcode 1 \
    python -m pytest tests/kernels -p no:cacheprovider -k "(one and query) or bit_by_bit or any_dtype"
PYTORCH_NO_CUDA_MEMORY_CACHING=1 step racecheck 120 \
    compute-sanitizer --tool racecheck --error-exitcode 1 \
    python -m pytest tests/kernels/test_assignment.py -p no:cacheprovider -k "cuda and (reference or bit_by_bit)"
step matcher_bench 120 python benchmarks/matcher_bench.py --quick --seconds 0.1 --json "$out/matcher_bench.json"
step attn_bench 240 python benchmarks/attn_bench.py --quick --seconds 0.1 --json "$out/attn_bench.json"
step kernel_report 120 python benchmarks/kernel_report.py --arch "$arch" --json "$out/kernel_report.json"

printf '\n%d s, results in %s\n' "$SECONDS" "$2"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[*]}"
    exit 1
fi
