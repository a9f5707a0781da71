#!/usr/bin/env bash
# What a GPU brings, in nine minutes, the most valuable first; every file is written as its part ends, and a part that is there is
# not run again.
#
#   benchmarks/gpu.sh DATA OUTPUT [EMBEDDINGS]
#
# DATA is the folder of amazon-beauty and the other datasets. OUTPUT takes tests.txt, speed-256.json, speed-4096.json,
# and the result files of models in results/ and of sizes and depths of codebooks in codebook-sweep/.
# EMBEDDINGS is a folder of <dataset>.npz with the arrays `items` and `embeddings`; without it the texts are encoded first.
# Nothing is downloaded. SECONDS_LEFT bounds the whole (default 540), PYTHON names the interpreter, SPEED and CELL add arguments,
# as for a rehearsal on a CPU: SPEED="--gpu_id= --rounds=1 --seconds=0.1" CELL="--gpu_id= --epochs=1".
set -euo pipefail

data=$(realpath "$1")
mkdir -p "$2"
output=$(realpath "$2")
embeddings=${3:+$(realpath "$3")}
here=$(realpath "$(dirname "$0")")
python=${PYTHON:-python}
limit=${SECONDS_LEFT:-540}
read -ra speed <<< "${SPEED:---gpu_id=0 --quick}"
read -ra cell <<< "${CELL:-}"

# Run a command within what is left of the time; say what did not end or failed.
bounded() {
    local left=$((limit - SECONDS)) status=124
    [ "$left" -gt 0 ] && { timeout "$left" "$@" && return 0 || status=$?; }
    if [ "$status" = 124 ]; then echo "no time left after $SECONDS s: $*"; else echo "failed with status $status: $*"; fi
    return "$status"
}

if [ ! -e "$output/tests.txt" ]; then
    (cd "$here/.." && bounded "$python" -m pytest -n 0 -q tests/test_cuda.py) 2>&1 | tee "$output/tests.part" || status=$?
    [ "${status:-0}" = 124 ] || mv "$output/tests.part" "$output/tests.txt" # failures are a result, half a run is none
fi

cd "$output"
parts=training,decoding
for targets in 256 4096; do
    [ -e "speed-$targets.json" ] || bounded "$python" -W ignore "$here/speed.py" --data_path="$data" --enable_amp=True \
        ${embeddings:+--item_embeddings="$embeddings/amazon-beauty.npz"} --train_batch_size=$targets --parts=$parts \
        "${speed[@]}" --output="speed-$targets.json" || true
    parts=training # decoding does not hang on the size of a step
done

# train MODEL DATASET SEED RESULTS [more]: a run, to its result file in the folder RESULTS.
train() {
    local model=$1 dataset=$2 seed=$3 results=$4 own=()
    [[ -n "$embeddings" && $model != SASRec ]] && own=(--item_embeddings="$embeddings/$dataset.npz")
    [ -d "$data/$dataset" ] || return 0
    bounded "$python" -W ignore -m recbole_tiger run --resume --model="$model" --dataset="$dataset" --data_path="$data" \
        --seed="$seed" --results_dir="$results" --enable_amp=True --show_progress=False "${own[@]}" "${@:5}" "${cell[@]}" || true
}

for seed in 2020 2021 2022; do
    for dataset in amazon-beauty amazon-toys-games amazon-sports-outdoors; do
        for model in VQRec-text TIGER-text SASRec TIGER; do
            train $model $dataset $seed results
        done
    done
done

for seed in 2020 2021; do
    for depth in 2 3 4; do
        for size in 64 128 256 512; do
            train TIGER-text amazon-beauty $seed codebook-sweep --label=TIGER-text-${size}x$depth \
                --quantizer=rq_vae --codebook_size=$size --codebook_depth=$depth
        done
    done
done
