#!/usr/bin/env bash
# Record the timeline of steady chunks with Nsight Systems.
#   profiles/nsys.sh OUT [nsys options] [-- options of profiles.steady]
set -euo pipefail

if [[ $# -lt 1 || $1 == -* ]]; then
    echo "usage: profiles/nsys.sh OUT [nsys options] [-- options of profiles.steady]" >&2
    exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/profiles/arguments.sh"
parse_arguments "$@"

cd "$root"
# Trace the nodes of graphs; otherwise a replayed graph is a single bar. "stop" lets the program end and print
# its table.
nsys profile \
    --capture-range=cudaProfilerApi --capture-range-end=stop \
    --trace=cuda,nvtx,cublas --cuda-graph-trace=node \
    --sample=none --cpuctxsw=none \
    --output="$out/steady" --force-overwrite=true \
    ${options[@]+"${options[@]}"} \
    python -m profiles.steady ${steady_options[@]+"${steady_options[@]}"}
nsys stats --force-export=true --report nvtx_sum,nvtx_gpu_proj_sum,cuda_gpu_kern_sum "$out/steady.nsys-rep" \
    >"$out/steady.txt"
