#!/usr/bin/env bash
# Everything that only a GPU can prove: build, tests, benchmarks. "gpu_run.sh --help" says how.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: benchmarks/gpu_run.sh [option]... [step]...

Without steps: the quick set, whose limits add up to less than ten minutes. Steps run in the order of --list, after the
build, which takes a second if its sources have not changed.

  --full             all steps, at all sizes, with limits that add up to 70 minutes
  --output-dir DIR   for JSON, pictures and log.txt (default: benchmarks/results/NAME_OF_THE_GPU)
  --wheels DIR       packages that this machine lacks; there is no download
  --limit SECONDS    for each step, instead of its own
  --list             the steps, their limits in seconds in the quick and the full set, and what they do
  --dry-run          without a GPU: every step's command starts, and does next to nothing

Needs torch >= 2.10 with CUDA, Triton >= 3.6, nvcc, pip, setuptools >= 77, pybind11 and the packages of the test extra;
says what it cannot import. compute-sanitizer may be missing. Keeps what it builds and compiles in build/gpu.
TEXT
}

# name, limit in the quick set (- if it is not in it), limit in the full set, what it does
readonly steps="\
build                120  400  the package with its extension module, for this GPU alone, unless it is there
compile_kernels      110  300  compiles the attention kernels on all processors into the cache
tests                110  600  tests of kernels, CUDA graphs and host synchronisation
memcheck               -  400  tests of kernels under compute-sanitizer's memcheck
racecheck              -  200  tests of the matcher under compute-sanitizer's racecheck
attn_bench           110  900  attention against the alternatives
matcher_bench         40  200  matching against the alternatives
step_bench            70  600  training steps against the transformers package
transformers_bench     -  300  the transformers package's detectors with their losses and with ours
kernel_report          -  200  registers, spills and instructions of all kernels"

python=${PYTHON:-python3}
full=false dry=false limit='' output='' wheels='' wanted=()

list_steps() {
    echo "step               quick full"
    echo "$steps"
}

die() {
    echo "$1" >&2
    exit 2
}

parse_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --full) full=true ;;
            --dry-run) dry=true ;;
            --list) list_steps && exit ;;
            --help | -h) usage && exit ;;
            --output-dir | --wheels | --limit)
                [ $# -ge 2 ] || die "$1 needs a value"
                case $1 in
                    --output-dir) output=$2 ;;
                    --wheels) wheels=$2 ;;
                    --limit) limit=$2 ;;
                esac
                shift
                ;;
            -*) usage >&2 && exit 2 ;;
            *)
                grep -q "^$1 " <<<"$steps" || die "there is no step $1; there are: $(awk '{printf "%s ", $1}' <<<"$steps")"
                wanted+=("$1")
                ;;
        esac
        shift
    done
}

# is_wanted NAME QUICK_LIMIT
is_wanted() {
    if [ ${#wanted[@]} -gt 0 ]; then
        [ "$1" = build ] || [[ " ${wanted[*]} " == *" $1 "* ]]
    else
        $full || $dry || [ "$2" != - ]
    fi
}

find_sanitizer() {
    local found
    found=$(command -v compute-sanitizer) && echo "$found" && return
    for found in "${CUDA_HOME:-/usr/local/cuda}"/bin/compute-sanitizer /usr/local/cuda*/bin/compute-sanitizer; do
        [ -x "$found" ] && echo "$found" && return
    done
    return 1
}

# command_of NAME: fills the array "cmd", or "reason" if the step cannot run here
command_of() {
    local size=(--quick) tests=("$python" -m pytest -p no:cacheprovider) sanitizer=() collect=() turn=0.5
    cmd=() reason=''
    $full && size=()
    if $dry; then
        size+=(--tiny --device cpu) turn=0.01
        collect=(--collect-only)
    elif "$python" -c 'import xdist' 2>/dev/null; then
        collect=(-n 8)
    fi
    case $1 in
        build)
            cmd=("$python" benchmarks/gpu_setup.py build --into "$kept/site" --arch "$arch")
            if $dry; then cmd+=(--dry-run); fi
            ;;
        compile_kernels)
            cmd=("$python" benchmarks/compile_kernels.py --arch "$arch")
            if $dry; then cmd+=(--tiny); fi
            ;;
        tests)
            # but those that stand in for a GPU where there is none
            cmd=("${tests[@]}" --continue-on-collection-errors "${collect[@]}" tests/kernels
                --ignore tests/kernels/test_launcher.py
                tests/cond_detr/test_cuda_graphs.py tests/cond_detr/test_host_sync.py)
            ;;
        memcheck | racecheck)
            if $dry; then
                tests+=(--collect-only)
            elif sanitizer=("$(find_sanitizer)"); then
                sanitizer+=(--target-processes all --report-api-errors no --error-exitcode 1 --tool "$1")
            else
                reason="there is no compute-sanitizer on PATH, in CUDA_HOME/bin or in /usr/local/cuda*/bin"
                return
            fi
            # only without torch's cache does every allocation have its own bounds
            cmd=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${sanitizer[@]}" "${tests[@]}")
            if [ "$1" = memcheck ]; then
                cmd+=(tests/kernels/test_{assignment,attention_kernels,conditional_attention}.py
                    -k "(one and query) or bit_by_bit or any_dtype")
            else
                cmd+=(tests/kernels/test_assignment.py -k "cuda and (reference or bit_by_bit)")
            fi
            ;;
        attn_bench | matcher_bench)
            cmd=("$python" "benchmarks/$1.py" "${size[@]}" --seconds 0.05 --json "$output/$1.json")
            ;;
        step_bench)
            cmd=("$python" benchmarks/step_bench.py "${size[@]}" --seconds "$turn" --json "$output/$1.json")
            ;;
        transformers_bench)
            cmd=("$python" benchmarks/transformers_bench.py "${size[@]}" --json "$output/$1.json")
            ;;
        kernel_report)
            cmd=("$python" benchmarks/kernel_report.py --arch "$arch" --json "$output/$1.json")
            if $dry; then cmd+=(--help); fi
            ;;
    esac
}

# run_step NAME LIMIT: adds a line to "summary"; a failure of the build ends the run, of another step it is noted
run_step() {
    local name=$1 seconds=$2 started=$SECONDS result code=0
    printf '\n== %s (%d s since the start, limit %d s)\n' "$name" "$SECONDS" "$seconds"
    command_of "$name"
    if [ -n "$reason" ]; then
        echo "skipped: $reason"
        summary+=("$(printf '%-18s %5d s  skipped because %s' "$name" 0 "$reason")")
        return
    fi
    printf '%q ' "${cmd[@]}"
    echo
    timeout --kill-after=5 "$seconds" "${cmd[@]}" || code=$?
    case $code in
        0) result=ok ;;
        124 | 137) result="timed out after $seconds s" ;;
        *) result="failed with exit code $code" ;;
    esac
    summary+=("$(printf '%-18s %5d s  %s' "$name" $((SECONDS - started)) "$result")")
    [ "$code" -eq 0 ] && return
    failed=true
    if [ "$name" = build ]; then stopped=true; fi
}

run_all() {
    local name quick most rest seconds failed=false stopped=false summary=() cmd=() reason=''
    command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv || true
    "$python" benchmarks/gpu_setup.py missing
    while read -r -u 3 name quick most rest; do
        is_wanted "$name" "$quick" || continue
        seconds=$quick
        if $full || [ "$quick" = - ]; then seconds=$most; fi
        run_step "$name" "${limit:-$seconds}"
        if $stopped; then
            echo "nothing else can run without the build"
            break
        fi
    done 3<<<"$steps"
    printf '\n== summary, %d s, results in %s\n' "$SECONDS" "$output"
    printf '%s\n' "${summary[@]}"
    if $failed; then return 1; fi
}

parse_arguments "$@"
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kept=$PWD/build/gpu
if $dry; then
    arch=90 device=dry_run
    kept=$(mktemp -d)
    trap 'rm -rf "$kept"' EXIT
    output=${output:-$kept/results}
    export CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=1
else
    description=$("$python" benchmarks/gpu_setup.py describe) || die "this needs a GPU; see --dry-run"
    read -r arch device <<<"$description"
    export PYTHONPATH=$kept/site:$kept/wheels${PYTHONPATH:+:$PYTHONPATH}
fi
output=${output:-$PWD/benchmarks/results/$device}
[[ $output == /* ]] || output=$caller/$output
[[ -z $wheels || $wheels == /* ]] || wheels=$caller/$wheels
mkdir -p "$output" "$kept"
export TRITON_CACHE_DIR=$kept/triton TORCHINDUCTOR_CACHE_DIR=$kept/inductor
{
    if [ -n "$wheels" ]; then
        "$python" benchmarks/gpu_setup.py wheels "$wheels" --into "$kept/wheels" || echo "the wheels were not installed"
    fi
    run_all
} 2>&1 | tee "$output/log.txt"
