#!/usr/bin/env bash
# Measure kernels of steady chunks with Nsight Compute.
#   profiles/ncu.sh OUT KERNEL [ncu options] [-- options of profiles.steady]
# KERNEL is a regular expression on kernel names. Each matching launch is replayed about forty times, so limit
# their number with --launch-count.
set -euo pipefail

if [[ $# -lt 2 || $1 == -* || $2 == -* ]]; then
    echo "usage: profiles/ncu.sh OUT KERNEL [ncu options] [-- options of profiles.steady]" >&2
    exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/profiles/arguments.sh"
kernel=$2
parse_arguments "$1" "${@:3}"

cd "$root"
# Without graphs, so that a kernel's report contains the ranges of its stage and layer.
ncu --profile-from-start off --target-processes all \
    --kernel-name-base function --kernel-name "regex:$kernel" \
    --set full --import-source yes --nvtx \
    --export "$out/steady" --force-overwrite \
    ${options[@]+"${options[@]}"} \
    python -m profiles.steady --no-graphs --chunks 1 ${steady_options[@]+"${steady_options[@]}"}
ncu --import "$out/steady.ncu-rep" --print-summary per-kernel >"$out/steady.txt"
