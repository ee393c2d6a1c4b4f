#!/usr/bin/env bash
# Figures of the server under load, beside a PyTorch server that reads whole pages.
#
#   launch/serving_figures.sh DATA OUT
#
# DATA is SQuAD's JSON file, OUT a folder for what is made and measured: a store, and one JSON file a
# measurement. Needs no network. For 1,000 pages on GPUs, unless the environment says otherwise:
#
#   STEPS       of: fill ours cold peer replicas (those that DATA and GPUs allow, in this order)
#   PAGES, CLIENTS, REQUESTS, PEER_REQUESTS, WARM_UP, PROCESSES (of the load test)
#   PEERS       flags of each peer, apart by commas; "" is one without
#   REPLICAS    numbers of replicas, and GPUS of each
#   FLAGS       of gistjax, such as --config.model.compute_dtype=float32 on CPUs
#   PEER_FLAGS  of all peers, such as --model=FILE.gguf
#   LIMIT       the most seconds of a load test
#
# For a rehearsal on two cores:
#   PAGES=50 CLIENTS=16 REQUESTS=300 PEER_REQUESTS=32 WARM_UP=48 PROCESSES=1 GPUS=0 REPLICAS="2" \
#       FLAGS=--config.model.compute_dtype=float32 PEERS=--rows=8 launch/serving_figures.sh DATA OUT
set -euo pipefail
data=$1 out=$2
mkdir -p "$out"
export PYTHONUNBUFFERED=1
: "${STEPS:=fill ours cold peer replicas}" "${PAGES:=1000}" "${CLIENTS:=256}" "${REQUESTS:=50000}"
: "${PEER_REQUESTS:=5000}" "${WARM_UP:=2000}" "${PROCESSES:=4}" "${PEERS=,--static}"
: "${REPLICAS:=1 2}" "${GPUS:=1}" "${FLAGS=}" "${PEER_FLAGS=}" "${LIMIT:=120}"
ours=(--config.evaluation.max_answer_tokens=16)
read -ra more <<< "$FLAGS"
ours+=("${more[@]}")
read -ra of_peers <<< "$PEER_FLAGS"
server=
trap 'stop' EXIT

say() { echo "== $(date -u +%T) $*"; }

start() { # a server, in the background: LOG COMMAND…
    local log=$1
    shift
    say "starting: $*"
    since=$(date +%s.%N)
    timeout 1800 "$@" > "$out/$log" 2>&1 &
    server=$!
}

stop() { # the server: `timeout` passes the signal on
    [ -n "$server" ] || return 0
    kill -TERM "$server" 2> /dev/null || true
    for _ in $(seq 60); do
        kill -0 "$server" 2> /dev/null || break
        sleep 1
    done
    kill -KILL "$server" 2> /dev/null || true
    wait "$server" 2> /dev/null || true
    server=
}

load() { # a load test: FILE PORT REQUESTS [FLAGS…]
    local file=$1 port=$2 requests=$3
    shift 3
    say "load test: $file"
    timeout $((LIMIT + 700)) python -m launch.load --asked "$out/asked.json" \
        --url "http://127.0.0.1:$port" --clients "$CLIENTS" --requests "$requests" \
        --seconds "$LIMIT" --processes "$PROCESSES" --since "$since" "$@" | tee "$out/$file" \
        || say "it failed: see $out for the server's log"
}

for step in $STEPS; do
    case $step in
        fill)
            say "filling a store with $PAGES pages"
            timeout 1500 python -m launch.load_store --data "$data" --store "$out/store" \
                --asked "$out/asked.json" --pages "$PAGES" "${ours[@]}" | tee "$out/fill.json"
            timeout 300 python -m gistjax.export --run gistjax/shipped/smollm2_135m --to peft \
                --output "$out/adapter"
            ;;
        ours)
            start server.log python -m gistjax.serve --store "$out/store" --port 8000 "${ours[@]}"
            load ours_within.json 8000 "$REQUESTS" --warm_up "$WARM_UP"
            load ours_everywhere.json 8000 "$REQUESTS" --warm_up "$WARM_UP" --everywhere
            stop
            ;;
        cold) # seconds until the first answer of a new process, with programs that are kept
            start server_again.log python -m gistjax.serve --store "$out/store" --port 8000 \
                "${ours[@]}"
            load cold.json 8000 1
            stop
            ;;
        peer)
            IFS=, read -ra peers <<< "$PEERS,"
            for number in "${!peers[@]}"; do
                read -ra own <<< "${peers[$number]}"
                JAX_PLATFORMS=cpu start "peer_$number.log" python -m launch.torch_peer_server \
                    --asked "$out/asked.json" --adapter "$out/adapter" --port 8001 \
                    "${of_peers[@]}" "${own[@]}"
                load "peer_$number.json" 8001 "$PEER_REQUESTS" --warm_up "$CLIENTS"
                stop
                tail -n 1 "$out/peer_$number.log"
            done
            ;;
        replicas)
            for number in $REPLICAS; do
                start "replicas_$number.log" python -m launch.serve_ray --store "$out/store" \
                    --port 8002 --replicas "$number" --gpus "$GPUS" "${ours[@]}"
                load "replicas_$number.json" 8002 "$REQUESTS" --warm_up "$WARM_UP"
                stop
            done
            ;;
        *)
            say "there is no step $step: see the first lines of this script"
            exit 2
            ;;
    esac
done
say "done"
