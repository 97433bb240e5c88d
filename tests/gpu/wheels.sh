#!/usr/bin/env bash
# Collects what a machine without a network needs to run `make test-gpu`: a wheel of this tree, and those that it asks
# for, for Python 3.12 on Linux x86_64. It runs where there is a network; the folder goes along with the tree.
#
#     tests/gpu/wheels.sh [FOLDER]        (default: .gpu-wheels)
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-.gpu-wheels}
python=${PYTHON:-python3}
most=$((60 * 1024 * 1024))

rm -rf "$folder"
mkdir -p "$folder"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" .
wheel=("$folder"/fdtrace-*.whl)
# NumPy comes with PyTorch, which is there already.
"$python" -m pip download --quiet --dest "$folder" --only-binary :all: --implementation cp --python-version 3.12 \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 \
    --platform manylinux_2_17_x86_64 "${wheel[0]}"
rm -f "$folder"/numpy-*.whl
size=$(du -sb "$folder" | cut -f1)
echo "$folder: $(find "$folder" -name '*.whl' | wc -l) wheels, $((size / 1024 / 1024)) MiB"
if [ "$size" -gt "$most" ]; then
    echo "more than 60 MiB" >&2
    exit 1
fi
