#!/usr/bin/env bash
# Serves the weights in $INSTANTID_WEIGHTS; further arguments go to tritonserver last, where they override.
# Triton is a child, not process 1: the kernel lets no process kill number 1 of its container, and a server with a
# dead engine must be killed if it cannot stop (src/instantid/serving/board.py).
set -euo pipefail
home=$(dirname "$(dirname "$(readlink -f "$0")")")
graph=${INSTANTID_WEIGHTS:?names the folder of a set of weights}/face_analysis.onnx
[ -f "$graph" ] || { echo "no weights in $INSTANTID_WEIGHTS: $graph is missing" >&2; exit 1; }

repository=$(mktemp -d)
cp -r "$home/model_repository/." "$repository"
ln -s "$graph" "$repository/face_analysis/1/model.onnx"

# Without a key nobody gets in: it is drawn.
key_file=${TRITON_ADMIN_KEY_FILE:-/run/secrets/admin_key}
[ -s "$key_file" ] || { key_file=$repository/.admin_key && od -vAn -tx8 -N32 /dev/urandom | tr -d ' \n' >"$key_file"; }
admin="model-repository,model-config,shared-memory,trace,logging,statistics:admin-key=$(<"$key_file")"

# The caller's trace context becomes a parameter; with a collector, Triton's own spans join it too.
trace=() collector=${OTEL_EXPORTER_OTLP_ENDPOINT:-}
[ -z "$collector" ] || trace=(
    --trace-config=mode=opentelemetry --trace-config=level=TIMESTAMPS --trace-config=rate=1
    "--trace-config=opentelemetry,url=${collector%/}/v1/traces"
    "--trace-config=opentelemetry,resource=service.name=triton"
)

# Regions that a killed container left in a /dev/shm that outlives it.
regions=triton_instantid_$$_
rm -f /dev/shm/"$regions"*

tritonserver \
    --model-repository="$repository" \
    --model-control-mode=none \
    --disable-auto-complete-config \
    --backend-config="python,shm-region-prefix-name=$regions" \
    --exit-timeout-secs="${TRITON_EXIT_TIMEOUT:-600}" \
    --log-format=ISO8601 \
    --log-verbose="${TRITON_LOG_VERBOSE:-0}" \
    --pinned-memory-pool-byte-size="$((${TRITON_PINNED_MEMORY_MB:-256} << 20))" \
    --metrics-interval-ms="${TRITON_METRICS_INTERVAL_MS:-2000}" \
    --http-address="${TRITON_HTTP_ADDRESS:-127.0.0.1}" \
    --metrics-address=0.0.0.0 \
    --grpc-keepalive-time="$((${TRITON_KEEPALIVE_SECONDS:-60} * 1000))" \
    --grpc-keepalive-permit-without-calls=1 \
    --grpc-http2-max-pings-without-data=0 \
    --grpc-http2-min-recv-ping-interval-without-data=10000 \
    --grpc-header-forward-pattern=traceparent \
    --http-header-forward-pattern=traceparent \
    --grpc-restricted-protocol="$admin" \
    --http-restricted-api="$admin" \
    "${trace[@]}" \
    "$@" &
server=$!
# A signal ends `wait` before the server has ended: then it is waited for again. A second one waits for no request.
signals=0 signal=TERM
trap 'signals=$((signals + 1)); kill -s "$signal" "$server" || true; signal=KILL' TERM INT
while seen=$signals code=0; wait "$server" || code=$?; [ "$seen" != "$signals" ]; do :; done
rm -rf "$repository" /dev/shm/"instantid-$server-"*
exit "$code"
