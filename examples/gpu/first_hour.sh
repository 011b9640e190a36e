#!/usr/bin/env bash
# Runs all checks that need a GPU: tests, sanitizer, benchmarks, an engine of each backend, Polygraphy, Triton.
# A step that fails does not stop the others. report.md has the result of each step.
#
#     examples/gpu/first_hour.sh [-o DIR] [--only NAME,NAME] [--list]
#
# TENSORRT_ROOT names TensorRT's headers, which are else downloaded (plugin/README.md). PYTHON needs PyTorch for CUDA and
# pytest for the kernels' tests. The step `install` needs a network and several GB; without it, the steps after it use
# the .venv that is there.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit

out=out/first_hour only="" list=""
while [ $# -gt 0 ]; do
  case $1 in
    -o) out=$2; shift 2 ;;
    --only) only=,$2,; shift 2 ;;
    --list) list=1; shift ;;
    *) echo "unknown argument $1; known: -o DIR, --only NAME,NAME, --list" >&2; exit 2 ;;
  esac
done
# nvcc and compute-sanitizer, where an installer left them off the path
PATH=$PATH:/usr/local/cuda/bin
PYTHON=${PYTHON:-python3}
VLKV=${VLKV:-.venv/bin/vlkv}
plugin=build/gpu/plugin/libvlkv_tensorrt.so
checkpoint=examples/tiny_vlm/checkpoint picture=examples/tiny_vlm/example.png
question=$("$PYTHON" -c 'import json; print(json.load(open("examples/tiny_vlm/example.json"))["prompt"])')
seconds=${STEP_SECONDS:-900}

# step NAME COMMAND: runs the command in a shell of its own for at most $seconds, with its output in NAME.log.
step() {
  local name=$1 command=$2 begin=$SECONDS code
  if [ -n "$list" ]; then printf '%-24s %s\n' "$name" "$command"; return; fi
  case $only in "" | *",$name,"*) ;; *) return ;; esac
  echo "== $name"
  timeout "$seconds" bash -c "set -e; $command" >"$out/$name.log" 2>&1 </dev/null
  code=$?
  case $code in
    0) result=passed ;;
    77) result=skipped ;;
    124) result="no end after $seconds s" ;;
    *) result="failed ($code)" ;;
  esac
  echo "   $result, $((SECONDS - begin)) s"
  {
    printf '## %s: %s, %s s\n\n    %s\n\n' "$name" "$result" "$((SECONDS - begin))" "${command//$'\n'/ }"
    tail -n "${TAIL:-25}" "$out/$name.log" | sed 's/^/    /'
    echo
  } >>"$out/report.md"
}

# engine NAME WHERE OPTIONS [BEFORE]: runs the command BEFORE, builds an engine, asks it with the full cache and with
# 10%, compares with the CPU's answer.
engine() {
  local name=$1 where=$2 options=$3 before=${4:-}
  step "$name" "${before:+$before
    }rm -rf $out/$name
    $VLKV build $out/graphs -o $out/$name $options
    for policy in full vl-cache; do
      $VLKV run $out/$name --image $picture --prompt '$question' --policy \$policy --max-new-tokens 32 --json $where \
        >$out/$name.\$policy.json
      $PYTHON examples/gpu/same_answer.py $out/reference.\$policy.json $out/$name.\$policy.json || differs=1
    done
    exit \${differs:-0}"
}

if [ -z "$list" ]; then
  mkdir -p "$out"
  { echo "# First hour on a GPU, $(date -u '+%Y-%m-%d %H:%M UTC'), $(git rev-parse --short HEAD 2>/dev/null)"; echo; } >"$out/report.md"
fi
step machine "nvidia-smi; nvidia-smi --query-gpu=name,compute_cap,memory.total,driver_version --format=csv; nvcc --version"
step test-gpu "make test-gpu PYTHON=$PYTHON"
step sanitizer "for tool in memcheck racecheck initcheck synccheck; do
    compute-sanitizer --tool \$tool --error-exitcode 9 build/gpu/cpp/tests/cuda/vlkv_cuda_check 30 || failed=\$?
  done; exit \${failed:-0}"
step bench-gpu "make bench-gpu PYTHON=$PYTHON"
# vlkv requires onnxruntime, and onnxruntime-gpu writes the same files: the latter has to come last
seconds=$((4 * seconds)) step install "make .venv/tested .venv/served
    for extra in gpu tensorrt tensorrt-rtx; do
      .venv/bin/python -m pip install -q --no-build-isolation -e .[\$extra] || echo no \$extra
    done
    .venv/bin/python -m pip uninstall -q -y onnxruntime
    .venv/bin/python -m pip install -q --force-reinstall --no-deps onnxruntime-gpu"
step export "rm -rf $out/graphs; $VLKV export $checkpoint -o $out/graphs"
step reference "rm -rf $out/cpu; $VLKV build $out/graphs -o $out/cpu
    for policy in full vl-cache; do
      $VLKV run $out/cpu --image $picture --prompt '$question' --policy \$policy --max-new-tokens 32 --json \
        >$out/reference.\$policy.json
    done"
step install-cuda ".venv/bin/python -m pip install -q --no-build-isolation --no-deps -C cmake.define.VLKV_CUDA=ON -C cmake.define.VLKV_CUDA_ARCHITECTURES=native -e ."
for dtype in float16 bfloat16; do
  for operators in native functions; do
    engine "onnxruntime-cuda-$dtype-$operators" "--device cuda" "--dtype $dtype --operators $operators"
  done
done
capability="\$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1)"
has_float8="case $capability in 8.0 | 8.6 | 8.7) echo float8 needs compute capability 8.9 or later; exit 77 ;; esac"
engine onnxruntime-cuda-int8 "--device cuda" "--dtype float16 --operators functions --kv-dtype int8"
engine onnxruntime-cuda-float8 "--device cuda" "--dtype float16 --operators functions --kv-dtype float8" "$has_float8"
# steps that ONNX Runtime records: no note says that they are not; and drawn tokens, which are the CPU's for a seed
step recorded "$VLKV -v run $out/onnxruntime-cuda-float16-native --device cuda --image $picture --prompt '$question' \
      --max-new-tokens 32 >$out/recorded.txt 2>$out/recorded.notes
    cat $out/recorded.notes; ! grep -q 'not recorded' $out/recorded.notes"
drawn="--image $picture --prompt '$question' --temperature 0.7 --top-k 50 --top-p 0.9 --seed 1 --max-new-tokens 32 --json"
step drawn "$VLKV run $out/cpu $drawn >$out/drawn.cpu.json
    $VLKV run $out/onnxruntime-cuda-float16-native --device cuda $drawn >$out/drawn.cuda.json
    $PYTHON examples/gpu/same_answer.py $out/drawn.cpu.json $out/drawn.cuda.json"
step bench-engines "$VLKV bench $out/onnxruntime-cuda-float16-native --device cuda --prompt-tokens 640,900 --batch 1,4 \
      --new-tokens 64 --also functions=$out/onnxruntime-cuda-float16-functions --also int8=$out/onnxruntime-cuda-int8 \
      -o $out/bench"
step bench-float8 "$has_float8
    $VLKV bench $out/onnxruntime-cuda-float8 --device cuda --prompt-tokens 640,900 --batch 1,4 \
      --new-tokens 64 -o $out/bench-float8"
known_to_rtx="case $capability in 9.* | 10.*) echo TensorRT for RTX has no engines for $capability; exit 77 ;; esac"
for dtype in float32 float16 bfloat16; do
  engine "tensorrt-$dtype" "" "--backend tensorrt --dtype $dtype"
  engine "tensorrt-rtx-$dtype" "" "--backend tensorrt-rtx --compute-capability $capability --dtype $dtype" "$known_to_rtx"
done
for dtype in float16 bfloat16; do
  for cache in in-place dynamic; do
    engine "tensorrt-plugin-$dtype-$cache" "--plugin $plugin" \
      "--backend tensorrt --plugin $plugin --dtype $dtype --cache $cache"
  done
done
engine tensorrt-rtx-plugin "--plugin $plugin" \
  "--backend tensorrt-rtx --compute-capability $capability --plugin $plugin" "$known_to_rtx"
step backends "OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q tests/backend"
step polygraphy "rm -rf $out/lowered
    $VLKV build $out/graphs -o $out/lowered --backend tensorrt --operators native --lower-only --dtype float16
    .venv/bin/polygraphy run $out/lowered/decoder.onnx --trt --onnxrt --plugins $plugin \
      --preview-features ALIASED_PLUGIN_IO_10_03 --val-range 'length:[0,0]' 'row_index:[0,0]' --atol 0.05 --rtol 0.05"
step cuda-python "make cuda-python CUDA_ARCHITECTURES=native"
step triton-gpu "$VLKV triton $out/onnxruntime-cuda-float16-native -o $out/model_repository_gpu --gpus 0
    .venv/bin/python examples/triton/demo.py $out/onnxruntime-cuda-float16-native --gpus 0"
step triton "$VLKV triton $out/cpu -o $out/model_repository; .venv/bin/python examples/triton/demo.py $out/cpu"
[ -n "$list" ] && exit 0
{ echo "## Summary"; echo; grep '^## ' "$out/report.md" | sed 's/^## /- /'; } >"$out/summary"
cat "$out/summary" >>"$out/report.md"
echo "report: $out/report.md"
