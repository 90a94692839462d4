#!/usr/bin/env bash
# Measure some kernels of steady chunks with Nsight Compute.
#   profiles/ncu.sh OUT KERNEL [ncu options] [-- options of profiles.steady]
# KERNEL is a regular expression on kernel names. Every launch that matches is replayed about forty times:
# bound their number with --launch-count.
set -euo pipefail

if [[ $# -lt 2 || $1 == -* || $2 == -* ]]; then
    echo "usage: profiles/ncu.sh OUT KERNEL [ncu options] [-- options of profiles.steady]" >&2
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
kernel=$2
shift 2
options=()
while [[ $# -gt 0 && $1 != -- ]]; do
    options+=("$1")
    shift
done
[[ $# -eq 0 ]] || shift

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Without graphs, so that a kernel's report carries the ranges of its stage and layer.
ncu --profile-from-start off --target-processes all \
    --kernel-name-base function --kernel-name "regex:$kernel" \
    --set full --import-source yes --nvtx \
    --export "$out/steady" --force-overwrite \
    ${options[@]+"${options[@]}"} \
    python -m profiles.steady --no-graphs --chunks 1 "$@"
ncu --import "$out/steady.ncu-rep" --print-summary per-kernel >"$out/steady.txt"
