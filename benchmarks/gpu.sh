#!/usr/bin/env bash
# Checks and measures everything that needs a GPU, in under ten minutes: benchmarks/gpu.sh
#
# PYTHON names the interpreter (python3 by default). WHEELS names a folder of wheels for what it lacks, where the machine
# cannot download: pip download --dest wheels 'jsonargparse[signatures]' datasets
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
if [[ -n ${WHEELS:-} ]]; then
    "$PYTHON" -m pip install --quiet --no-index --find-links "$WHEELS" 'jsonargparse[signatures]' datasets
fi
exec "$PYTHON" benchmarks/gpu.py "$@"
