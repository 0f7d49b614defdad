#!/usr/bin/env bash
# Measure einfuse beside llama.cpp, CTranslate2 and OpenVINO GenAI, in turn, and print one table.
#
#   scripts/peers.sh setup FOLDER MODEL            build and install the peers into FOLDER, and convert MODEL for them
#   scripts/peers.sh run FOLDER MODEL [OPTION ...] measure; the options are those of `scripts/peers.py run --help`
#
# MODEL is a Llama-shaped Hugging Face folder with one model.safetensors and tied embeddings, as scripts/fetch-smollm2
# makes it. Setting up needs Python with pip and venv, a C++ compiler and make, some 3 GB, and half an hour on two cores; what is
# there is not made again. docs/benchmarks.md says how to read the table.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

LLAMA=0.3.36 # of llama-cpp-python, whose source carries llama.cpp
CT2=4.8.5
OPENVINO=2026.4.1

usage() { sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2; }
[ $# -ge 3 ] || usage
what=$1 folder=$(mkdir -p "$2" && cd "$2" && pwd) model=$(cd "$3" && pwd)
shift 3
files=$folder/models/$(basename "$model")

install() { # a name, then packages: into a Python of their own
  [ -x "$folder/venv-$1/bin/python" ] || python3 -m venv "$folder/venv-$1"
  "$folder/venv-$1/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}"
}

setup() {
  local build=$folder/llama-build cmake kind
  if [ ! -e "$build/version" ]; then
    cmake=$(command -v cmake) || { install build cmake; cmake=$folder/venv-build/bin/cmake; }
    mkdir -p "$folder/source"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
      --dest "$folder/source" "llama-cpp-python==$LLAMA"
    tar -xzf "$folder/source/llama_cpp_python-$LLAMA.tar.gz" -C "$folder/source"
    "$cmake" -S "$folder/source/llama_cpp_python-$LLAMA/vendor/llama.cpp" -B "$build" -DCMAKE_BUILD_TYPE=Release \
      -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
    "$cmake" --build "$build" -j "$(nproc)" --target llama-bench llama-quantize llama-completion
    echo "of llama-cpp-python $LLAMA" > "$build/version"
  fi
  install ct2 "ctranslate2==$CT2" numpy gguf
  install ov "openvino==$OPENVINO" "openvino-genai==$OPENVINO.0" "openvino-tokenizers==$OPENVINO.0" numpy
  mkdir -p "$files"
  for kind in f32 f16 bf16; do
    [ -e "$files/$kind.gguf" ] || "$folder/venv-ct2/bin/python" "$here/peers.py" gguf "$model" "$files/$kind.gguf" --type $kind
  done
  for kind in q8_0 q4_0; do
    [ -e "$files/$kind.gguf" ] || "$build/bin/llama-quantize" "$files/f32.gguf" "$files/$kind.gguf" "$kind" > "$files/$kind.log" 2>&1
  done
  [ -d "$files/ct2" ] || "$folder/venv-ct2/bin/python" "$here/peers.py" ct2 "$model" "$files/ct2"
}

case $what in
  setup) setup ;;
  run) exec python3 "$here/peers.py" run "$folder" "$model" "$files" "$@" ;;
  *) usage ;;
esac
