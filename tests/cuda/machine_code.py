"""Counts the instructions in the loop over tiles of each CUDA kernel, from the output of `cuobjdump -sass`.

python tests/cuda/machine_code.py BUILD      # a table of every kernel and architecture of a build
"""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FUNCTION = re.compile(r"^\s*Function : (\w+)", re.MULTILINE)
ARCHITECTURE = re.compile(r"^arch = sm_(\w+)", re.MULTILINE)
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
PRODUCTS = ("HMMA", "FFMA")


@dataclass(frozen=True)
class Loop:
    """The instructions of one pass of a loop, by the first part of their names. Both sides of a branch count.

    Padding (NOP), which SM 12.0 has between products, does not.
    """

    counts: Counter

    @property
    def total(self) -> int:
        """The number of all instructions."""
        return self.counts.total()

    def of(self, *names: str) -> int:
        """Returns the number of instructions of some kinds."""
        return sum(self.counts[name] for name in names)


def cuobjdump() -> str | None:
    """Returns the program, from the package nvidia-cuda-cuobjdump or from a toolkit."""
    found = importlib.util.find_spec("nvidia")
    for base in found.submodule_search_locations if found else ():
        for path in Path(base).glob("cu*/bin/cuobjdump"):
            return str(path)
    return shutil.which("cuobjdump")


def tile_loop(code: list[tuple[int, str, str]]) -> Loop | None:
    """Finds the innermost loop with the most matrix products. Returns None if no loop has products.

    Args:
        code: address, name and operands of each instruction of a kernel.
    """
    loops = []
    for address, name, operands in code:
        target = re.search(r"0x([0-9a-f]+)", operands)
        if name.split(".")[0] == "BRA" and target and int(target[1], 16) < address:
            first = int(target[1], 16)
            inside = Counter(op.split(".")[0] for at, op, _ in code if first <= at <= address and op != "NOP")
            loops.append((first, address, Loop(inside)))
    for product in PRODUCTS:
        with_products = [loop for loop in loops if loop[2].of(product) > 7]
        inner = [
            loop
            for loop in with_products
            if not any(o is not loop and loop[0] <= o[0] and o[1] <= loop[1] for o in with_products)
        ]
        if inner:
            return max(inner, key=lambda loop: loop[2].of(product))[2]
    return None


def kernels(objects: list[Path], program: str) -> dict[tuple[str, str], Loop | None]:
    """Reads {(mangled name, architecture): its loop over tiles} from object files."""
    return {key: tile_loop(code) for key, code in instructions(objects, program)}


def sizes(objects: list[Path], program: str) -> dict[tuple[str, str], int]:
    """Reads {(mangled name, architecture): its instructions}, without the padding after the last one."""
    return {key: sum(op != "NOP" for _, op, _ in code) for key, code in instructions(objects, program)}


def instructions(
    objects: list[Path], program: str
) -> Iterator[tuple[tuple[str, str], list[tuple[int, str, str]]]]:
    """Reads each kernel's mangled name and architecture, and its (address, operation, rest of the line)."""
    for path in objects:
        text = subprocess.check_output([program, "-sass", str(path)], text=True)
        for part in re.split(r"(?=^Fatbin )", text, flags=re.MULTILINE):
            architecture = ARCHITECTURE.search(part)
            names = list(FUNCTION.finditer(part))
            for name, following in zip(names, [*names[1:], None], strict=False):
                body = part[name.end() : following.start() if following else None]
                code = [(int(at, 16), op, rest) for at, op, rest in INSTRUCTION.findall(body)]
                yield (name[1], architecture[1]), code


def shown(mangled: str) -> str:
    """Shortens a kernel's name: `attend_rows Float16 128 1`, `score_rows TensorProduct BFloat16 64`."""
    words = re.sub(r"^_ZN4vlkv4cuda\d+", "", mangled)
    kernel = re.match(r"[a-z_]+?(?=I|ENS|E)", words)
    parts = re.findall(r"\d+(FloatProduct|TensorProduct|B?Float16|AnyType)|Li(\d+)E|Lb(\d)E", words)
    return " ".join([kernel[0] if kernel else words, *("".join(part) for part in parts)])


def main() -> None:
    """Prints the table."""
    program = cuobjdump() or sys.exit("no cuobjdump: pip install nvidia-cuda-cuobjdump")
    objects = sorted(Path(sys.argv[1]).glob("cpp/CMakeFiles/vlkv_core.dir/cuda/*.cu.o"))
    print(f"{'kernel':44} {'SM':>4} {'all':>5} {'HMMA':>5} {'LDSM':>5} LDGSTS {'MUFU':>5} {'BAR':>4} integer")
    for (name, architecture), loop in sorted(kernels(objects, program).items()):
        if loop and loop.of("HMMA"):
            integer = loop.of(
                "IMAD", "IADD3", "LEA", "SHF", "LOP3", "ISETP", "UIADD3", "UIMAD", "VIADD", "IADD"
            )
            print(f"{shown(name):44} {architecture:>4} {loop.total:5} {loop.of('HMMA'):5} {loop.of('LDSM'):5} "
                  f"{loop.of('LDGSTS'):6} {loop.of('MUFU'):5} {loop.of('BAR', 'WARPSYNC'):4} {integer:7}")  # fmt: skip


if __name__ == "__main__":
    main()
