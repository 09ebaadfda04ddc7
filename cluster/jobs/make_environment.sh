#!/usr/bin/env bash
# make_environment.sh DIRECTORY PYTHON CHECK_DRIVER REQUIREMENT...
# Makes the virtual environment of training, once, where all nodes see it. Run as a job on a node that trains: only there
# is a Neuron driver to be looked at. PIP_EXTRA_INDEX_URL names the index that has Neuron's packages.
set -euo pipefail

directory=$1 python=$2 check_driver=$3
shift 3
sys=${SYS:-/sys}
neuron=${NEURON:-/opt/aws/neuron}
complete=$directory/.complete
unfinished=$directory.unfinished # beside it: venv --clear empties the directory

say() { echo "make_environment: $*"; }
refuse() {
    say "$*" >&2
    exit 1
}

# Runtime library and driver of one release, from AWS's own list (aws-neuron-sdk, n2-manifest.json). A driver goes with
# older libraries, not with newer ones.
driver_of() {
    case $1 in
    2.25) echo 2.21 ;;
    2.26) echo 2.22 ;;
    2.27) echo 2.23 ;;
    2.28) echo 2.24 ;;
    2.29) echo 2.25 ;;
    2.30) echo 2.26 ;;
    2.31) echo 2.27 ;;
    2.32) echo 2.28 ;;
    2.33) echo 2.29 ;;
    2.34) echo 2.30 ;;
    esac
}

minor() { cut -d. -f1,2 <<<"$1"; }

# The library's file carries its version: libnrt.so.1 -> libnrt.so.2.28.23.0
runtime_version() {
    local file
    if dpkg-query -W -f '${Version}' aws-neuronx-runtime-lib 2>/dev/null; then return; fi
    for file in "$neuron"/lib/libnrt.so.[0-9]*.*; do
        [[ -e $file ]] && basename "$file" | cut -d. -f3-
    done | sort -V | tail -n 1
}

# modinfo would name the driver on the disk, which need not be the one that is loaded.
check_versions() {
    local driver runtime needed
    [[ -r $sys/module/neuron/version ]] || refuse "no Neuron driver is loaded on $(hostname): is this a Trainium node?"
    driver=$(minor "$(<"$sys/module/neuron/version")")
    runtime=$(minor "$(runtime_version)")
    [[ -n $runtime ]] || refuse "no Neuron runtime library in $neuron/lib on $(hostname)"
    needed=$(driver_of "$runtime")
    if [[ -z $needed ]]; then
        say "Neuron driver $driver, runtime library $runtime: which driver it needs is not known here, so not checked"
    elif [[ $(printf '%s\n' "$needed" "$driver" | sort -V | head -n 1) == "$needed" ]]; then
        say "Neuron driver $driver is new enough for runtime library $runtime (needs $needed)"
    else
        refuse "Neuron driver $driver is too old for runtime library $runtime, which needs $needed: move the cluster" \
            "to a newer image (aws sagemaker update-cluster-software); a driver is never installed by hand"
    fi
}

# The exit code, for the day when Slurm has forgotten the job: launcher/executors/slurm/task.py has the same of a stage.
note_end() {
    local code=$?
    if [[ -n ${END_FILES:-} && -n ${SLURM_JOB_ID:-} ]]; then
        echo "{\"exit_code\": $code}" >"$END_FILES/$SLURM_JOB_ID.end.json" || true
    fi
}
trap note_end EXIT
trap 'exit 143' TERM

if [[ $check_driver == true ]]; then check_versions; fi

wanted=$(printf '%s\n' "$python" "$@")
if [[ -f $complete && $(<"$complete") == "$wanted" ]]; then
    say "$directory is complete already"
    exit 0
fi
if [[ -f $complete ]]; then
    refuse "$directory was made with other requirements ($(paste -sd' ' "$complete")), and runs may be using it:" \
        "give another environment.directory, or remove this one first"
fi
if [[ -e $directory && ! -e $unfinished && -n $(ls -A "$directory") ]]; then
    refuse "$directory is there and holds something else: give another environment.directory, or remove it first"
fi
command -v "$python" >/dev/null || refuse "no $python on $(hostname): give environment.python"

mkdir -p "$(dirname "$directory")"
touch "$unfinished"
"$python" -m venv --clear "$directory"
"$directory/bin/python" -m pip install --disable-pip-version-check --no-input "$@"
"$directory/bin/python" -m pip check || say "pip finds the requirements above at odds; tests of the packages decide"
"$directory/bin/python" -m pip freeze >"$directory/packages.txt"
echo "$wanted" >"$complete"
rm -f "$unfinished"
say "$directory is complete; its packages are listed in $directory/packages.txt"
