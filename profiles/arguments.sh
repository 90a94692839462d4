# Argument parsing for nsys.sh and ncu.sh, which source this file.

# parse_arguments OUT [profiler options] [-- options of profiles.steady]
# Create OUT and set three variables: out, its absolute path; options, the profiler options; steady_options, the
# options of profiles.steady.
parse_arguments() {
    mkdir -p "$1"
    out=$(cd "$1" && pwd)
    shift
    options=()
    while [[ $# -gt 0 && $1 != -- ]]; do
        options+=("$1")
        shift
    done
    [[ $# -eq 0 ]] || shift
    steady_options=("$@")
}
