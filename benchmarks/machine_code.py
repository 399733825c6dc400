"""Analysis of compiled CUDA kernels without a GPU: registers, spills, instructions and loops.

Requires the wheels nvidia-cuda-nvrtc-cu12 (NVRTC 12), nvidia-cuda-nvrtc (NVRTC 13) and nvidia-cuda-nvdisasm.
"""

import ctypes
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

#: Wheel of each major version of the compiler, and the pattern of the library's file name.
_COMPILERS = {12: "nvidia-cuda-nvrtc-cu12", 13: "nvidia-cuda-nvrtc"}
_LIBRARY = r"libnvrtc\.so\.{0}|nvrtc64_{0}\d_\d\.dll"
_DISASSEMBLER, _PROGRAM = "nvidia-cuda-nvdisasm", r"nvdisasm(\.exe)?"

INSTRUCTION = 16  # bytes per instruction, from sm_70 on


class ToolMissing(RuntimeError):
    """A required NVIDIA wheel is not installed."""


class CompileError(RuntimeError):
    """Compilation failed; the message has the compiler's log."""


def _file_of(wheel: str, name: str) -> Path:
    """Return the file of an installed wheel whose name matches the pattern `name`."""
    try:
        files = distribution(wheel).files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        if re.fullmatch(name, file.name):
            return Path(str(file.locate()))
    raise ToolMissing(f"no file {name} of a wheel {wheel}: pip install {wheel}")


# ---- compiling


class Resources(NamedTuple):
    """Resources of a kernel; memory in bytes. `stack` is local memory for arrays and spills."""

    registers: int
    stack: int
    spilled: int
    shared: int


class Binary(NamedTuple):
    """A compiled program: the cubin, and the kernels' names in it and their resources, by template expression."""

    cubin: bytes
    names: dict[str, str]
    resources: dict[str, Resources]


def cupy_options(architecture: int, options: Sequence[str]) -> list[str]:
    """Return the options of a `RawModule` plus those that CuPy 14 adds, except include folders."""
    return [*options, "-ftz=true", f"-arch=sm_{architecture}", "--device-as-default-execution-space"]


class Compiler:
    """NVRTC of one major version; thread-safe."""

    def __init__(self, major: int) -> None:
        self._library = ctypes.CDLL(str(_file_of(_COMPILERS[major], _LIBRARY.format(major))))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        numbers = ctypes.c_int(), ctypes.c_int()
        self._call("Version", *map(ctypes.byref, numbers))
        self.version = f"{numbers[0].value}.{numbers[1].value}"

    def _call(self, function: str, *arguments) -> None:
        status = getattr(self._library, f"nvrtc{function}")(*arguments)
        if status:
            raise CompileError(f"nvrtc{function}: {self._library.nvrtcGetErrorString(status).decode()}")

    def _text(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, buffer)
        return buffer.raw

    def architectures(self) -> list[int]:
        """Return the supported real architectures; 90 is sm_90."""
        count = ctypes.c_int()
        self._call("GetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._call("GetSupportedArchs", found)
        return list(found)

    def compile(self, source: str, expressions: Sequence[str], architecture: int, options: Sequence[str]) -> Binary:
        """Compile template instances as CuPy's `RawModule` does.

        Parameters
        ----------
        source : str
            CUDA C++.
        expressions : sequence of str
            Template instances, such as ``kernel<float, 3>``.
        architecture : int
            90 is sm_90.
        options : sequence of str
            Compiler options.

        Raises
        ------
        CompileError
            With the compiler's log, if the source does not compile.
        """
        program = ctypes.c_void_p()
        self._call("CreateProgram", ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
        try:
            for expression in expressions:
                self._call("AddNameExpression", program, expression.encode())
            given = [option.encode() for option in cupy_options(architecture, options)]
            given.append(b"--ptxas-options=-v")  # log the resources of each kernel
            try:
                self._call("CompileProgram", program, len(given), (ctypes.c_char_p * len(given))(*given))
            except CompileError as error:
                raise CompileError(f"{error}\n{self._log(program)}") from None
            names = {expression: self._name(program, expression) for expression in expressions}
            taken = parse_log(self._log(program))
            return Binary(self._text("CUBIN", program), names, {key: taken[name] for key, name in names.items()})
        finally:
            self._call("DestroyProgram", ctypes.byref(program))

    def _log(self, program: ctypes.c_void_p) -> str:
        return self._text("ProgramLog", program).rstrip(b"\0").decode()

    def _name(self, program: ctypes.c_void_p, expression: str) -> str:
        name = ctypes.c_char_p()
        self._call("GetLoweredName", program, expression.encode(), ctypes.byref(name))
        assert name.value is not None
        return name.value.decode()


@cache
def compiler(major: int) -> Compiler:
    """Return NVRTC 12 or 13, loaded once per process.

    Raises
    ------
    ToolMissing
        If its wheel is not installed.
    """
    return Compiler(major)


def parse_log(log: str) -> dict[str, Resources]:
    """Parse the log of ``--ptxas-options=-v``; return the resources by the kernel's name in the cubin.

    Raises
    ------
    CompileError
        If the log lacks a kernel's resources.
    """
    found = {}
    for section in re.split(r"Compiling entry function ", log)[1:]:
        name = section.split("'")[1]

        def number(pattern: str, text: str = section) -> int:
            match = re.search(pattern, text)
            return int(match[1]) if match else 0

        properties = section.partition(f"Function properties for {name}\n")[2]
        stack = number(r"(\d+) bytes stack frame", properties)
        spilled = number(r"(\d+) bytes spill stores", properties) + number(r"(\d+) bytes spill loads", properties)
        registers, shared = number(r"Used (\d+) registers"), number(r"(\d+) bytes smem")
        if not (properties and registers):
            raise CompileError(f"a log that does not say what {name} takes:\n{log}")
        found[name] = Resources(registers, stack, spilled, shared)
    return found


# ---- machine code


class Instruction(NamedTuple):
    """A machine instruction; `target` is the index of the instruction that it may jump to."""

    opcode: str
    conditional: bool
    operands: str
    target: int | None

    @property
    def kind(self) -> str:
        """Opcode without modifiers: LDS for LDS.128."""
        return self.opcode.partition(".")[0]


def disassembler() -> Path:
    """Return the path of the program nvdisasm.

    Raises
    ------
    ToolMissing
        If its wheel is not installed.
    """
    return _file_of(_DISASSEMBLER, _PROGRAM)


def disassemble(cubin: bytes) -> dict[str, list[Instruction]]:
    """Return the instructions of each kernel, by its name in the cubin."""
    program = disassembler()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.cubin"
        file.write_bytes(cubin)
        done = subprocess.run([program, "-json", "-ndf", file], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nvdisasm: {done.stderr.strip()}")
    kernels = json.loads(done.stdout)[1]
    return {kernel["function-name"]: [_instruction(line) for line in kernel["sass-instructions"]] for kernel in kernels}


def _instruction(line: dict) -> Instruction:
    opcode, operands = line["opcode"], line.get("operands", "")
    conditional = line.get("predicate", "@PT") != "@PT"
    target = None
    if re.fullmatch(r"(BRA|JMP|CALL|BSSY)\b.*|WARPSYNC\.COLLECTIVE", opcode):
        *conditions, last = operands.split(",")
        if last.startswith("0x"):
            target = int(last, 16) // INSTRUCTION
            conditional |= bool(conditions)  # a second predicate or a divergence operand
    return Instruction(opcode, conditional, operands, target)


def successors(code: Sequence[Instruction], index: int) -> list[int]:
    """Return the indices of the instructions that may follow this one.

    Calls are assumed to return. Some compilers encode a plain jump as a call; the additional edge is harmless.
    """
    instruction, after = code[index], [index + 1] if index + 1 < len(code) else []
    kind, target = instruction.kind, instruction.target
    if kind in ("EXIT", "RET"):
        return after if instruction.conditional else []
    if kind in ("BRA", "JMP") and target is not None:
        return [*after, target] if instruction.conditional else [target]
    if kind == "BSYNC":
        return [_meeting_point(code, index)]
    if kind in ("CALL", "WARPSYNC") and target is not None:
        return [*after, target]
    if kind in ("BRX", "JMX", "BRA", "JMP", "CALL"):
        raise RuntimeError(f"a jump to where only the GPU knows: {instruction.opcode} {instruction.operands}")
    return after


def _meeting_point(code: Sequence[Instruction], index: int) -> int:
    """Return the index at which threads continue after a BSYNC: the target of the BSSY with its register."""
    register = code[index].operands
    targets = [
        (entry.target, place)
        for place, entry in enumerate(code)
        if entry.kind == "BSSY" and entry.operands.split(",")[0] == register and entry.target is not None
    ]
    if any(target == index + 1 for target, _ in targets):
        return index + 1
    before = [target for target, place in targets if place < index]
    if not before:
        raise RuntimeError(f"no BSSY {register} before instruction {index}")
    return before[-1]


# ---- loops


class MachineLoop(NamedTuple):
    """A natural loop: index of its first instruction, its own opcodes (without inner loops), and its inner loops."""

    header: int
    opcodes: Counter[str]
    inner: tuple["MachineLoop", ...]

    def count(self, kind: str) -> int:
        """Count the instructions of an opcode, including inner loops."""
        return self.opcodes[kind] + sum(loop.count(kind) for loop in self.inner)

    @property
    def idle(self) -> bool:
        """True if the loop has no load, store or arithmetic: the remains of a loop without work in this instance."""
        works = any(re.match(r"LD[^C]|ST|ATOM|RED|[FD](ADD|MUL|FMA)", kind) for kind in self.opcodes)
        return not works and all(loop.idle for loop in self.inner)

    def format(self, indent: str = "") -> Iterator[str]:
        """Yield lines that show the loop nest and its opcodes."""
        text = " ".join(f"{kind} {count}" for kind, count in self.opcodes.most_common())
        yield f"{indent}loop at {self.header * INSTRUCTION:#x}: {self.opcodes.total()} own: {text}"
        for loop in self.inner:
            yield from loop.format(indent + "    ")


def find_loops(code: Sequence[Instruction]) -> tuple[tuple[MachineLoop, ...], Counter[str]]:
    """Find the natural loops of a kernel.

    A natural loop is closed by a jump back to an instruction that dominates the jump.

    Returns
    -------
    loops : tuple of MachineLoop
        The outermost loops, in code order.
    rest : Counter of str
        Opcodes outside all loops.
    """
    after = [successors(code, index) for index in range(len(code))]
    starts = _block_starts(after)
    blocks = [range(start, end) for start, end in zip(starts, [*starts[1:], len(code)], strict=True)]
    number = {start: block for block, start in enumerate(starts)}
    edges = [[number[index] for index in after[block[-1]]] for block in blocks]
    members = _natural_loops(_reached(edges))
    headers = sorted(members, key=lambda header: len(members[header]))  # inner before outer
    parents = {
        header: next((other for other in headers[place + 1 :] if header in members[other]), None)
        for place, header in enumerate(headers)
    }
    opcodes: dict[int | None, Counter[str]] = {header: Counter() for header in [*headers, None]}
    for block, instructions in enumerate(blocks):
        home = next((header for header in headers if block in members[header]), None)
        opcodes[home].update(code[index].kind for index in instructions)

    def inside(parent: int | None) -> tuple[MachineLoop, ...]:
        found = sorted(header for header in headers if parents[header] == parent)
        return tuple(MachineLoop(blocks[header].start, opcodes[header], inside(header)) for header in found)

    return inside(None), opcodes[None]


def _block_starts(after: Sequence[Sequence[int]]) -> list[int]:
    starts = {0}
    for index, following in enumerate(after):
        if list(following) != [index + 1]:
            starts.update(following)
            if index + 1 < len(after):
                starts.add(index + 1)
    return sorted(starts)


def _reached(edges: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Drop the edges of unreachable blocks, such as the endless loop at the end of every kernel."""
    found, waiting = {0}, [0]
    while waiting:
        new = set(edges[waiting.pop()]) - found
        found |= new
        waiting.extend(new)
    return [following if block in found else [] for block, following in enumerate(edges)]


def _natural_loops(edges: Sequence[Sequence[int]]) -> dict[int, set[int]]:
    """Return the blocks of each loop by its header block."""
    before: list[list[int]] = [[] for _ in edges]
    for block, following in enumerate(edges):
        for other in following:
            before[other].append(block)
    dominators = _dominators(before)
    loops: dict[int, set[int]] = {}
    for block, following in enumerate(edges):
        for header in following:
            if header in dominators[block]:  # a back edge
                found, waiting = loops.setdefault(header, {header}), [block]
                while waiting:
                    member = waiting.pop()
                    if member not in found:
                        found.add(member)
                        waiting.extend(before[member])
    return loops


def _dominators(before: Sequence[Sequence[int]]) -> list[set[int]]:
    """Return the dominators of each block; unreachable blocks have only themselves."""
    everything, count = set(range(len(before))), len(before)
    dominators = [{0}] + [set(everything) for _ in range(1, count)]
    changed = True
    while changed:
        changed = False
        for block in range(1, count):
            ways = [dominators[other] for other in before[block]]
            new = {block} | (set.intersection(*ways) if ways else set())
            changed |= new != dominators[block]
            dominators[block] = new
    return dominators
