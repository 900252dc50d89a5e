"""What TVM's LLVM makes of a target, held against what the target's file declares."""

from __future__ import annotations

from dataclasses import dataclass

from edgecsi.cpu import LLVM_FEATURE
from edgecsi.errors import TargetError
from edgecsi.target import Target


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
        TargetError: LLVM does not know the target's ``mcpu``, or uses features that the target does not declare.
    """
    if undeclared := check_features(target).undeclared:
        raise TargetError(
            f"target {target.id} does not declare {', '.join(undeclared)}",
            f"LLVM uses them for {target.mcpu}, and a CPU without them would crash instead of being refused",
            "add them to features in the target's file, or choose another mcpu",
        )


def llvm_version() -> str:
    """Major version of the LLVM inside TVM."""
    from tvm.target import codegen

    return str(codegen.llvm_version_major())
