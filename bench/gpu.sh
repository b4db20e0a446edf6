#!/usr/bin/env bash
# Builds, tests and measures on a machine with an NVIDIA GPU that has its own torch and Triton; under ten minutes.
#
#   bench/gpu.sh [--authors CHECKOUT] [--python PYTHON]
#
# Results: bench/results/<device>-<commit>/ with environment.txt, one log per part, and summary.txt. Every part runs,
# whatever the others did; the exit status is 1 where one failed.
set -uo pipefail
cd "$(dirname "$0")/.."

python=python3 authors=""
while (($#)); do
    case $1 in
        --authors) authors=$2 && shift 2 ;;
        --python) python=$2 && shift 2 ;;
        *) sed -n 2,8p "$0" && exit 2 ;;
    esac
done

if ! command -v nvidia-smi > /dev/null || ! nvidia-smi -L > /dev/null 2>&1; then
    echo "bench/gpu.sh: no NVIDIA GPU: nvidia-smi is missing or finds none" >&2
    exit 2
fi
if ! "$python" -c 'import torch, triton; assert torch.cuda.is_available()' 2> /dev/null; then
    echo "bench/gpu.sh: $python needs a CUDA build of torch that sees the GPU, and triton (see --python)" >&2
    exit 2
fi

device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr ' /' '--')
commit=$(git rev-parse --short HEAD 2> /dev/null || echo unknown)
out=$PWD/bench/results/$device-$commit
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

part() { # part NAME SECONDS COMMAND...: runs with a limit, keeps the log and the time
    local name=$1 limit=$2 begin=$SECONDS status
    shift 2
    echo "== $name"
    timeout "$limit" "$@" > "$out/$name.log" 2>&1
    status=$?
    printf '%s: exit %d, %d s\n' "$name" "$status" $((SECONDS - begin)) | tee -a "$out/summary.txt"
    ((status == 0)) || { failed=1 && tail -15 "$out/$name.log"; }
}

: > "$out/summary.txt"
"$python" -m venv --system-site-packages "$work/venv"
bin=$work/venv/bin
{
    date -u +%FT%TZ
    echo "commit $commit$(git diff --quiet HEAD 2> /dev/null || echo ' with changes')"
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv
    "$python" -c 'import sys, torch, triton; print(sys.version); print("torch", torch.__version__, "cuda", torch.version.cuda, "triton", triton.__version__)'
} > "$out/environment.txt" 2>&1

part build 120 "$bin/pip" install --quiet --disable-pip-version-check . pytest scipy
"$bin/python" -m ipvae_kernels >> "$out/environment.txt" 2>&1
part tests 180 "$bin/python" -m pytest -m gpu -q tests
part poisson-correlation 60 "$bin/python" bench/poisson_correlation.py --out "$out/poisson_correlation.md"
if command -v compute-sanitizer > /dev/null; then
    part sanitizer 120 compute-sanitizer --error-exitcode 1 "$bin/python" -m pytest -m gpu -q \
        tests/ipvae_kernels/test_gpu.py -k "rollout_spikes and (1-1-1 or 3-7-9 or '(3, 7, 9)') or test_update"
else
    echo "sanitizer: skipped, compute-sanitizer is not on the PATH" | tee -a "$out/summary.txt"
fi
if "$bin/ipvae" bench --help > /dev/null 2>&1; then
    part bench 240 "$bin/ipvae" bench --suite full --device cuda --backend triton --backend eager \
        --seconds 2 --json "$out/bench.json" ${authors:+--reference "$authors"}
else
    echo "bench: skipped, this checkout has no 'ipvae bench' (or its requirements: pip install '.[train]')" |
        tee -a "$out/summary.txt"
fi
echo "results in $out"
exit $failed
