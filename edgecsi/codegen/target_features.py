"""What TVM's LLVM makes of a target, held against what the target's file declares."""

from __future__ import annotations

from dataclasses import dataclass

from edgecsi.cpu import LLVM_FEATURE
from edgecsi.errors import TargetError
from edgecsi.target import Target

# Where the CPU says that it has a feature: a word of CPUID (leaf 1, 7 or 7.1, register) and the bit in it. Intel SDM
# vol. 2A, CPUID; AMD APM vol. 3, appendix E.
X86_BITS = {
    "pni": ("leaf1_c", 0), "pclmulqdq": ("leaf1_c", 1), "ssse3": ("leaf1_c", 9), "fma": ("leaf1_c", 12),
    "cx16": ("leaf1_c", 13), "sse4_1": ("leaf1_c", 19), "sse4_2": ("leaf1_c", 20), "movbe": ("leaf1_c", 22),
    "popcnt": ("leaf1_c", 23), "aes": ("leaf1_c", 25), "avx": ("leaf1_c", 28), "f16c": ("leaf1_c", 29),
    "lahf_lm": ("ext_c", 0), "abm": ("ext_c", 5), "bmi1": ("leaf7_b", 3), "avx2": ("leaf7_b", 5),
    "bmi2": ("leaf7_b", 8), "avx512f": ("leaf7_b", 16), "avx512dq": ("leaf7_b", 17), "adx": ("leaf7_b", 19),
    "avx512ifma": ("leaf7_b", 21), "avx512cd": ("leaf7_b", 28), "sha_ni": ("leaf7_b", 29),
    "avx512bw": ("leaf7_b", 30), "avx512vl": ("leaf7_b", 31), "avx512vbmi": ("leaf7_c", 1),
    "avx512_vbmi2": ("leaf7_c", 6), "gfni": ("leaf7_c", 8), "vaes": ("leaf7_c", 9), "vpclmulqdq": ("leaf7_c", 10),
    "avx512_vnni": ("leaf7_c", 11), "avx512_bitalg": ("leaf7_c", 12), "avx512_vpopcntdq": ("leaf7_c", 14),
    "avx512_vp2intersect": ("leaf7_d", 8), "amx_bf16": ("leaf7_d", 22), "avx512_fp16": ("leaf7_d", 23),
    "amx_tile": ("leaf7_d", 24), "amx_int8": ("leaf7_d", 25), "avx_vnni": ("leaf71_a", 4),
    "avx512_bf16": ("leaf71_a", 5), "avx_ifma": ("leaf71_a", 23), "avx_vnni_int8": ("leaf71_d", 4),
}  # fmt: skip
# Registers the operating system must save for features of these names to be usable: bits of XCR0.
X86_STATE = {
    "avx512": 0xE6,
    "avx": 0x6,
    "fma": 0x6,
    "f16c": 0x6,
    "vaes": 0x6,
    "vpclmulqdq": 0x6,
    "amx": 0x60000,
}
# Linux, arch/arm64/include/uapi/asm/hwcap.h.
ARM_BITS = {
    "fp": ("hwcap", 0), "asimd": ("hwcap", 1), "aes": ("hwcap", 3), "pmull": ("hwcap", 4), "sha1": ("hwcap", 5),
    "sha2": ("hwcap", 6), "crc32": ("hwcap", 7), "atomics": ("hwcap", 8), "fphp": ("hwcap", 9),
    "asimdhp": ("hwcap", 10), "asimdrdm": ("hwcap", 12), "jscvt": ("hwcap", 13), "fcma": ("hwcap", 14),
    "lrcpc": ("hwcap", 15), "dcpop": ("hwcap", 16), "sha3": ("hwcap", 17), "sm3": ("hwcap", 18), "sm4": ("hwcap", 19),
    "asimddp": ("hwcap", 20), "sha512": ("hwcap", 21), "sve": ("hwcap", 22), "asimdfhm": ("hwcap", 23),
    "sve2": ("hwcap2", 1), "i8mm": ("hwcap2", 13), "bf16": ("hwcap2", 14),
}  # fmt: skip


@dataclass(frozen=True)
class FeatureCheck:
    """Difference between the features a target declares and those LLVM will use for it."""

    undeclared: tuple[str, ...]
    """LLVM may emit these, but the target does not ask the CPU for them: a crash in waiting."""
    unused: tuple[str, ...]
    """The target asks for these, but LLVM does not use them: CPUs are turned away for nothing."""

    @property
    def ok(self) -> bool:
        """Whether both agree."""
        return not self.undeclared and not self.unused


def derived_features(target: Target) -> tuple[str, ...]:
    """The features LLVM uses for the target's ``mcpu`` and ``mattr``, named as in /proc/cpuinfo.

    Raises:
        TargetError: LLVM does not know the target's ``mcpu``.
    """
    import tvm
    from tvm.target import codegen

    if not codegen.llvm_is_valid_cpu(target.mcpu, target.triple):
        raise TargetError(
            f"target {target.id}: LLVM knows no CPU {target.mcpu!r} for {target.triple}",
            f"LLVM {codegen.llvm_version_major()} comes with TVM {tvm.__version__}",
            "correct mcpu in the target's file",
        )
    used = codegen.llvm_get_cpu_features(tvm.target.Target(target.tvm()))
    return tuple(name for name, llvm in LLVM_FEATURE[target.arch].items() if llvm in used)


def check_features(target: Target) -> FeatureCheck:
    """Hold the declared features against the derived ones.

    Raises:
        TargetError: LLVM does not know the target's ``mcpu``.
    """
    derived = derived_features(target)
    return FeatureCheck(
        undeclared=tuple(name for name in derived if name not in target.features),
        unused=tuple(name for name in target.features if name not in derived),
    )


def refuse_undeclared_features(target: Target) -> None:
    """Refuse a target whose libraries could use instructions that they do not ask the CPU for.

    Raises:
        TargetError: LLVM does not know the target's ``mcpu``, or uses features that the target does not declare, or
            it declares one that a library cannot ask for.
    """
    feature_bits(target)
    if undeclared := check_features(target).undeclared:
        raise TargetError(
            f"target {target.id} does not declare {', '.join(undeclared)}",
            f"LLVM uses them for {target.mcpu}, and a CPU without them would crash instead of being refused",
            "add them to features in the target's file, or choose another mcpu",
        )


def feature_bits(target: Target) -> list[tuple[str, str, int]]:
    """How a library asks its CPU for every feature its target declares.

    Returns:
        For each: the name for people, the word of the driver to look at, and the bits of it that must all be set.

    Raises:
        TargetError: the target declares a feature that a library does not know how to ask for.
    """
    bits = X86_BITS if target.arch == "x86_64" else ARM_BITS
    if unknown := [name for name in target.features if name not in bits]:
        raise TargetError(
            f"target {target.id} asks for {', '.join(unknown)}, which a library cannot check",
            f"it can ask an {target.arch} CPU for {', '.join(sorted(bits))}",
            "correct features in the target's file",
        )
    asked = [(name, bits[name][0], 1 << bits[name][1]) for name in target.features]
    if target.arch == "x86_64":
        asked += [
            (f"{state} (the operating system does not save its registers)", "xcr0", mask)
            for state, mask in X86_STATE.items()
            if any(name.startswith(state) for name in target.features)
        ]
    return asked


def llvm_version() -> str:
    """Major version of the LLVM inside TVM."""
    from tvm.target import codegen

    return str(codegen.llvm_version_major())
