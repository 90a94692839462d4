#!/usr/bin/env bash
# Record the timeline of steady chunks with Nsight Systems.
#   profiles/nsys.sh OUT [nsys options] [-- options of profiles.steady]
set -euo pipefail

if [[ $# -lt 1 || $1 == -* ]]; then
    echo "usage: profiles/nsys.sh OUT [nsys options] [-- options of profiles.steady]" >&2
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
options=()
while [[ $# -gt 0 && $1 != -- ]]; do
    options+=("$1")
    shift
done
[[ $# -eq 0 ]] || shift

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Node by node, because a replayed graph is otherwise one bar. "stop" lets the program end and print its table.
nsys profile \
    --capture-range=cudaProfilerApi --capture-range-end=stop \
    --trace=cuda,nvtx,cublas --cuda-graph-trace=node \
    --sample=none --cpuctxsw=none \
    --output="$out/steady" --force-overwrite=true \
    ${options[@]+"${options[@]}"} \
    python -m profiles.steady "$@"
nsys stats --force-export=true --report nvtx_sum,nvtx_gpu_proj_sum,cuda_gpu_kern_sum "$out/steady.nsys-rep" \
    >"$out/steady.txt"
