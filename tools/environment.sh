#!/bin/sh
# environment.sh PYTHON WHAT: a virtual environment in .venv with WHAT (such as ".[dev]") installed, editable.
# On a machine without an NVIDIA GPU, torch is the small CPU build; a torch already there is kept.
set -eu
python=$1
what=$2

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "undiffuse needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Try: make PYTHON=python3.12 ..." >&2
    exit 1
}

if [ ! -x .venv/bin/pip ]; then
    if ! "$python" -m venv .venv 2>/dev/null; then
        echo "python3-venv is missing; installing it ..." >&2
        sudo=$([ "$(id -u)" = 0 ] || echo sudo)
        $sudo apt-get update -qq && $sudo apt-get install -y -qq python3-venv || {
            echo "could not. Run: sudo apt-get install python3-venv   and try again." >&2
            exit 1
        }
        rm -rf .venv
        "$python" -m venv .venv
    fi
fi

if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    if [ "$(uname)" = Darwin ] || command -v nvidia-smi >/dev/null 2>&1; then
        .venv/bin/pip install -q "torch>=2.5"
    else
        # --no-deps: what torch needs comes from the usual index with the rest.
        .venv/bin/pip install -q --no-deps --retries 0 --timeout 30 "torch==2.13.0+cpu" \
            --extra-index-url https://download.pytorch.org/whl/cpu || .venv/bin/pip install -q "torch==2.13.0"
    fi
fi
.venv/bin/pip install -q -e "$what"
