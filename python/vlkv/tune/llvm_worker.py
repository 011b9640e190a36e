"""Runs pass pipelines with llvmlite. A program of its own that imports nothing of vlkv: `llvm_worker.py IN OUT FLAGS`.

FLAGS are those of LLVM's `opt`, as far as llvmlite has them: `-O2`, or `-passes=` with `default<O3>`, `function(NAME)`
and `function(loop(NAME))`, separated by commas.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

FUNCTION_PASSES = {
    "instcombine": "instruction_combine",
    "aggressive-instcombine": "aggressive_instcombine",
    "gvn": "new_gvn",
    "sroa": "sroa",
    "simplifycfg": "simplify_cfg",
    "reassociate": "reassociate",
    "dse": "dead_store_elimination",
    "loop-unroll": "loop_unroll",
    "loop-rotate": "loop_rotate",
    "loop-simplify": "loop_simplify",
    "loop-unroll-and-jam": "loop_unroll_and_jam",
    "loop-reduce": "loop_strength_reduce",
    "jump-threading": "jump_threading",
    "sccp": "sccp",
    "memcpyopt": "mem_copy_opt",
    "sink": "sinking",
    "adce": "aggressive_dce",
}
"""LLVM's names of passes, and llvmlite's."""
PART = re.compile(r"default<O([0-3])>|function\((?:loop\()?([\w-]+)\)*")


def parts(flags: list[str]) -> list[str]:
    """Returns the parts of a pipeline. Raises `ValueError` for a flag or a part that is not known."""
    found: list[str] = []
    for flag in flags:
        if re.fullmatch(r"-O[0-3]", flag):
            found.append(f"default<{flag[1:]}>")
        elif flag.startswith("-passes="):
            found += flag.removeprefix("-passes=").split(",")
        else:
            raise ValueError(f"error: unknown flag {flag!r}")
    for part in found:
        match = PART.fullmatch(part)
        if match is None or (match.group(2) and match.group(2) not in FUNCTION_PASSES):
            raise ValueError(f"error: unknown pass {part!r}; known are {', '.join(FUNCTION_PASSES)}")
    return found


def run(module: Any, machine: Any, binding: Any, pipeline: list[str]) -> None:
    """Runs the parts of a pipeline on a module, in order."""
    for part in pipeline:
        match = PART.fullmatch(part)
        assert match is not None
        options = binding.create_pipeline_tuning_options(speed_level=int(match.group(1) or 3))
        options.loop_vectorization = options.slp_vectorization = True
        builder = binding.create_pass_builder(machine, options)
        if match.group(1):
            passes = builder.getModulePassManager()
        else:
            passes = binding.create_new_module_pass_manager()
            getattr(passes, f"add_{FUNCTION_PASSES[match.group(2)]}_pass")()
        passes.run(module, builder)


def main() -> None:
    """Reads IN, runs the passes, writes the assembly for this machine's processor to OUT."""
    source, target, *flags = sys.argv[1:]
    try:
        pipeline = parts(flags)
    except ValueError as error:
        sys.exit(str(error))
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    try:
        module = binding.parse_assembly(Path(source).read_text())
        module.verify()
    except RuntimeError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    found = binding.Target.from_triple(binding.get_process_triple())
    machine = found.create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="default",
    )
    run(module, machine, binding, pipeline)
    Path(target).write_text(machine.emit_assembly(module))


if __name__ == "__main__":
    main()
