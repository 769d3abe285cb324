#!/usr/bin/env bash
# Puts the weights' face graph into a copy of the model repository and starts Triton on it.
set -euo pipefail
repository=${MODEL_REPOSITORY:-/tmp/model_repository}
graph=$INSTANTID_WEIGHTS/face_analysis.onnx
[ -f "$graph" ] || { echo "no weights in $INSTANTID_WEIGHTS: $graph is missing" >&2; exit 1; }
rm -rf "$repository" /dev/shm/triton_*
cp -r /opt/instantid/model_repository "$repository"
ln -sf "$graph" "$repository/face_analysis/1/model.onnx"
exec tritonserver --model-repository="$repository" --model-control-mode=none --disable-auto-complete-config \
    --exit-timeout-secs=120 "$@"
