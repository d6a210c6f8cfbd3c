#!/usr/bin/env bash
# Builds the optional environment in which the frameworks' own parsers judge moeplan's launch files:
#
#     MOEPLAN_FRAMEWORKS=DIR bash tests/frameworks/build.sh
#     MOEPLAN_FRAMEWORKS=DIR python -m pytest tests/frameworks
#
# DIR gets a virtual environment (about 2 GB, CPU only) and one folder per torchtitan version. Nothing here needs a GPU.
# MOEPLAN_FRAMEWORKS_MINUTES (default 15) limits how long it may take; a folder that is already built is left as it is.
set -euo pipefail

directory="${MOEPLAN_FRAMEWORKS:?set MOEPLAN_FRAMEWORKS to the folder to build in}"
minutes="${MOEPLAN_FRAMEWORKS_MINUTES:-15}"
# Python 3.11 where there is one: its torch may be a CPU build kept on the machine; any other is the caller's.
python="python3.11"
"$python" -c 'import venv, ensurepip' 2>/dev/null || python="${PYTHON:-python3}"
stamp="$directory/built-1"

if [ -e "$stamp" ]; then
    echo "frameworks: already built in $directory"
    exit 0
fi

if [ -z "${MOEPLAN_FRAMEWORKS_LIMITED:-}" ]; then
    # The whole build runs under one time limit, so that a slow registry cannot hold up whoever called.
    MOEPLAN_FRAMEWORKS_LIMITED=1 exec timeout "${minutes}m" bash "${BASH_SOURCE[0]}" "$@"
fi

mkdir -p "$directory"
[ -x "$directory/venv/bin/python" ] || "$python" -m venv "$directory/venv"
pip=("$directory/venv/bin/python" -m pip --disable-pip-version-check install --quiet)

# torch first and by version: with it in place no other package pulls in a CUDA build.
"${pip[@]}" "torch==2.13.0" numpy packaging triton PyYAML pytest pydantic
"${pip[@]}" "accelerate==1.15.0"
DS_BUILD_OPS=0 "${pip[@]}" --no-build-isolation setuptools wheel "deepspeed==0.19.8"

# torchtitan's two command line generations live side by side, each in a folder that its test puts on the path.
"${pip[@]}" "torchtitan==0.2.2" "spmd_types==0.2.3"
for version in 0.2.2 0.3.0; do
    target="$directory/torchtitan-$version"
    [ -d "$target" ] || "${pip[@]}" --no-deps --target "$target" "torchtitan==$version"
done

# megatron-core carries its training parser since 0.17, in wheels that ask for Python 3.12. They are pure Python apart
# from a data helper that nothing here uses, so Python 3.11 reads them too (with one name of `typing` supplied).
if [ ! -d "$directory/megatron-core-0.19.2" ]; then
    "$directory/venv/bin/python" -m pip --disable-pip-version-check download --quiet --no-deps \
        --python-version 3.12 --only-binary=:all: --dest "$directory/wheels" "megatron-core==0.19.2"
    "$directory/venv/bin/python" -m zipfile -e "$directory"/wheels/megatron_core-0.19.2-*.whl \
        "$directory/megatron-core-0.19.2"
fi

touch "$stamp"
echo "frameworks: built in $directory"
