#!/usr/bin/env bash
# Builds, tests and measures on a machine with an NVIDIA GPU that has its own torch and Triton; under ten minutes.
#
#   tools/gpu.sh [--reference CHECKOUT] [--python PYTHON] [--wheel FILE] [--out FOLDER] [--only REGEX] [--seconds N] [--dry-run]
#
# CHECKOUT is one of hadivafaii/IterativeVAE, the authors' code. Results: FOLDER, or bench/results/<device>-<commit>/, with
# environment.txt, a log of each part, tables, and summary.txt. Once built, every part runs, whatever the others did; the
# exit status is 1 where one failed. --only: parts with such a name. --seconds: of all, 585 where left out; what does not fit
# is skipped. --dry-run needs no GPU and prints what would run. PYTHON, which may be that of a virtual environment, stays as
# it is. --wheel: of this commit, built elsewhere for this Python and GPU, instead of building here. Without a network, what
# PYTHON lacks comes from wheels: PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER.
#
# On an H100 with 16 processors (36 s of building): tests 100, 140 and over 120 s, sanitizers 110, a case 10 to 30 without Triton.
# `bench` trains the state of its cases first, two minutes of that machine's processor, unless the user's cache holds it.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD

python=python3 reference="" wheel="" folder="" only="" deadline=585 dry=""
while (($#)); do
    case $1 in
        --reference) reference=$(realpath "$2") && shift 2 ;;
        --python) python=$2 && shift 2 ;;
        --wheel) wheel=$(realpath "$2") && shift 2 ;;
        --out) folder=$(realpath -m "$2") && shift 2 ;;
        --only) only=$2 && shift 2 ;;
        --seconds) deadline=$2 && shift 2 ;;
        --dry-run) dry=1 && shift ;;
        *) sed -n 2,13p "$0" && exit 2 ;;
    esac
done

failed=0
# Each case is a process, so that none takes another's time. What compiles for long comes last, as far as the time goes: Triton
# compiles and tunes for a minute a case (with it, three cases of 60 s ended without a number), then torch.compile.
cases="train-paper-sigmoid-0.1 infer-paper-1000 train-paper-cubic-0.1 sample-paper-cubic-0.1 infer-paper sample-floor"
triton="infer-paper train-paper-cubic-0.1"
compiled="infer-paper train-paper-cubic-0.1 sample-paper-cubic-0.1"

part() { # part NAME SECONDS COMMAND...: runs within a limit and the time left, keeps the log and the time
    local name=$1 limit=$2 begin=$SECONDS status
    shift 2
    [[ $name =~ ^(tools|build)$ || $name =~ $only ]] || return 0
    if [[ $dry ]]; then
        printf '%s (%d s):' "$name" "$limit" && printf ' %q' "$@" && echo
        return
    fi
    ((limit > deadline - SECONDS)) && limit=$((deadline - SECONDS))
    if ((limit < 5)); then
        echo "$name: skipped, the time is over" | tee -a "$out/summary.txt"
        failed=1
        return
    fi
    echo "== $name"
    timeout -k 5 "$limit" "$@" > "$out/$name.log" 2>&1
    status=$?
    printf '%s: exit %d, %d s; %s\n' "$name" "$status" $((SECONDS - begin)) "$(tail -1 "$out/$name.log")" |
        tee -a "$out/summary.txt"
    ((status == 0)) || { failed=1 && tail -15 "$out/$name.log"; }
    return $status
}

skip() { # skip NAME REASON
    echo "$1: skipped, $2" | if [[ $dry ]]; then cat; else tee -a "$out/summary.txt"; fi
}

if [[ $dry ]]; then
    out=bench/results/DEVICE-COMMIT bin=BIN work=.
else
    if ! command -v nvidia-smi > /dev/null || ! nvidia-smi -L > /dev/null 2>&1; then
        echo "tools/gpu.sh: no NVIDIA GPU: nvidia-smi is missing or finds none" >&2
        exit 2
    fi
    if ! "$python" -c 'import pip, torch, triton; assert torch.cuda.is_available()' 2> /dev/null; then
        echo "tools/gpu.sh: $python needs pip, a CUDA build of torch that sees the GPU, and triton (see --python)" >&2
        exit 2
    fi
    device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr ' /' '--')
    commit=$(git rev-parse --short HEAD 2> /dev/null || echo unknown)
    out=${folder:-$root/bench/results/$device-$commit}
    mkdir -p "$out"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    : > "$out/summary.txt"
    "$python" -m venv --without-pip "$work/venv"
    bin=$work/venv/bin
    # --system-site-packages would show those of the system behind a virtual environment, not the environment's.
    "$python" -c 'import sys; print(*(path for path in sys.path if path.endswith("-packages")), sep="\n")' \
        > "$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
    {
        date -u +%FT%TZ
        echo "commit $commit$(git diff --quiet HEAD 2> /dev/null || echo ' with changes')"
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv
        "$python" -c 'import sys, torch, triton
print(sys.version)
print("torch", torch.__version__, "cuda", torch.version.cuda, "triton", triton.__version__)'
    } > "$out/environment.txt" 2>&1
fi

# The kernels of this GPU alone: the others would take the time of the benchmarks. Without nvcc there would be none.
command -v nvcc > /dev/null || PATH=$PATH:/usr/local/cuda/bin
export CMAKE_ARGS=-DIPVAE_CUDA=ON
[[ $dry ]] || export CUDAARCHS=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1
part tools 60 "$bin/python" -m pip install pytest pytest-xdist scipy cmake ninja 'setuptools>=77' 'scikit-build-core[setuptools]>=1.1' \
    'pybind11>=2.12' || exit 1
part build 240 "$bin/python" -m pip install --no-build-isolation "${wheel:-$root}[train]" || exit 1
cd "$work" # in the checkout, Python would import its packages, which lack the compiled module
[[ $dry ]] || "$bin/python" -m ipvae_kernels >> "$out/environment.txt" 2>&1
bench() { # bench NAME SECONDS CASE OPTION...
    part "$1" "$2" "$bin/ipvae" bench --case "$3" --device cuda --seconds 4 --updates 3000 --no-memory \
        --json "$out/$1.json" ${reference:+--reference "$reference"} "${@:4}"
}
for backend in cuda triton; do
    part "profile-$backend" 120 "$bin/python" "$root/tools/gpu_profile.py" --backend $backend --out "$out/profile-$backend.md"
done
for case in $cases; do
    bench "bench-$case" 60 "$case" --backend cuda --without compiled --without jax_scan
done
tests() { # tests NAME SECONDS PATH...: the tests that need a GPU, side by side, since most of the time Triton compiles
    part "tests-$1" "$2" "$bin/python" -m pytest -m gpu -v -n 12 --durations 5 \
        --tb short --show-capture no -o faulthandler_timeout=60 "${@:3}"
    [[ ! -e $out/tests-$1.log ]] || grep -q ' passed' "$out/tests-$1.log" || failed=1 # all may have been skipped
}
tests cuda 120 "$root/tests/ipvae_kernels/cuda"
tests triton 180 "$root/tests/ipvae_kernels/test_gpu.py"
tests wrapper 160 "$root/tests/ipvae" "$root/tests/bench"
if [[ $dry ]] || command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck synccheck; do
        part "cuda-$tool" 60 compute-sanitizer --tool $tool --error-exitcode 1 "$bin/python" "$root/tools/cuda_small.py"
    done
    part triton-memcheck 90 compute-sanitizer --error-exitcode 1 "$bin/python" -m pytest -m gpu -q \
        "$root/tests/ipvae_kernels/test_gpu.py" -k "3x7x9 or test_update"
else
    skip sanitizer "compute-sanitizer is not on the PATH"
fi
for case in $triton; do # beside the CUDA kernels, so that both are of one run
    bench "triton-$case" 120 "$case" --backend cuda --backend triton --without compiled
done
part train 60 "$bin/ipvae" train --data patches --device cuda --out "$work/run"
part poisson-correlation 40 "$bin/python" "$root/tools/poisson_correlation.py" --out "$out/poisson_correlation.md"
part limits 90 "$bin/python" "$root/tools/gpu_limits.py" --out "$out/limits.md"
for case in $compiled; do
    bench "compiled-$case" 110 "$case" --backend cuda --without jax_scan
done
if [[ $dry ]] || command -v ncu > /dev/null; then
    part ncu 60 ncu --kernel-name regex:rollout --set full "$bin/python" "$root/tools/cuda_small.py" --paper
else
    skip ncu "it is not on the PATH"
fi
part self-test 120 "$bin/ipvae" info --test
[[ $reference ]] || skip "authors' code" "no --reference"
# The cases that were measured, as tables.
[[ $dry ]] || for case in $cases; do
    for json in "$out/compiled-$case.json" "$out/triton-$case.json" "$out/bench-$case.json"; do
        [[ -s $json ]] && set -- "$@" "$json" && break
    done
done
if [[ $dry ]] || (($#)); then
    part report 30 "$bin/ipvae" bench report "$@" --out "$out/report"
fi
echo "results in $out"
exit $failed
