import subprocess
import sys
from pathlib import Path

import pytest

from edgecsi import cpu, target
from edgecsi.errors import TargetError
from edgecsi.kernels.tiling import read_gbps


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", target.list_targets())
def test_every_shipped_target_loads(name: str) -> None:
    loaded = target.load(name)
    assert loaded.description
    assert loaded.features
    assert loaded.tvm()["mcpu"] == loaded.mcpu
    assert loaded.l1_gbps >= loaded.l2_gbps >= loaded.l3_gbps >= loaded.memory_gbps
    assert loaded.l1_bytes < loaded.l2_bytes
    assert (loaded.l3_bytes == 0) == (loaded.memory_gbps == 0)
    assert (
        loaded.lanes_f32
        == {"x86_64": (8, 16), "aarch64": (4,)}[loaded.arch][
            loaded.arch == "x86_64" and "avx512f" in loaded.features
        ]
    )


def test_the_documented_targets_are_there() -> None:
    expected = ["arm", "host", "rpi3", "rpi4", "rpi5", "x86", "x86-64-v3", "x86-64-v4"]
    assert sorted(target.list_targets()) == expected


def test_an_alias_is_the_target_it_stands_for() -> None:
    assert target.load("arm") == target.load("rpi4")
    assert target.load("x86") == target.load("x86-64-v3")


def test_only_the_pi_5_has_the_dot_product() -> None:
    assert [t for t in ("rpi3", "rpi4", "rpi5") if "asimddp" in target.load(t).features] == ["rpi5"]
    assert [target.load(t).emulate for t in ("rpi3", "rpi4", "rpi5")] == [
        "cortex-a53",
        "cortex-a72",
        "cortex-a76",
    ]


def test_host_is_exactly_this_machine() -> None:
    host = target.host()
    assert host.arch == cpu.machine()
    assert host.missing_on_this_cpu() == []
    assert host.cores == cpu.cores()
    absent = [name for name in cpu.LLVM_FEATURE[host.arch] if name not in cpu.features()]
    assert not set(absent) & set(host.features)


def test_what_is_known_of_a_very_cpu_refines_its_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "features", lambda: frozenset(target.load("x86-64-v3").features))
    path = write(tmp_path, "own.toml", 'detect = ["x86-64-v3"]\n[cpu.znver3]\nl3_gbps = 70\n')
    monkeypatch.setattr(cpu, "llvm_name", lambda: "znver3")
    assert target.load(path).l3_gbps == 70
    monkeypatch.setattr(cpu, "llvm_name", lambda: "znver2")
    assert target.load(path).l3_gbps == target.load("x86-64-v3").l3_gbps


def test_avx512_targets_ask_for_full_width_vectors() -> None:
    assert "-prefer-256-bit" in target.load("x86-64-v4").mattr


def test_a_cpu_without_the_features_is_told_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "features", lambda: frozenset(target.load("x86-64-v3").features))
    assert target.load("x86-64-v3").missing_on_this_cpu() == []
    assert "avx512_vnni" in target.load("x86-64-v4").missing_on_this_cpu()
    assert target.load("rpi5").missing_on_this_cpu() == ["aarch64"]


def test_host_does_not_trust_the_name_of_a_cpu_whose_features_are_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "llvm_name", lambda: "znver5")
    monkeypatch.setattr(cpu, "features", lambda: frozenset(target.load("x86-64-v3").features))
    host = target.host()
    assert host.mcpu == "znver5"
    assert "-avx512f" in host.mattr
    assert (host.lanes_f32, host.vector_registers, host.dot) == (8, 16, "avx2")


def test_host_on_a_cpu_of_unknown_name_still_uses_its_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "llvm_name", lambda: "")
    monkeypatch.setattr(cpu, "features", lambda: frozenset(target.load("x86-64-v4").features))
    host = target.host()
    assert host.mcpu == "x86-64-v3"
    assert {"+avx512f", "+avx512vnni", "-prefer-256-bit"} <= set(host.mattr)
    assert (host.lanes_f32, host.dot) == (16, "avx512_vnni")


def test_host_on_a_raspberry_pi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "machine", lambda: "aarch64")
    monkeypatch.setattr(cpu, "llvm_name", lambda: "cortex-a72")
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"fp", "asimd", "evtstrm", "crc32", "cpuid"}))
    host = target.host()
    assert (host.mcpu, host.features) == ("cortex-a72", ("fp", "asimd", "crc32"))
    assert {"-aes", "-sha2"} <= set(host.mattr)


def test_host_on_a_cpu_too_old_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"sse2"}))
    with pytest.raises(TargetError, match="not supported") as error:
        target.host()
    assert "avx2" in error.value.why


def test_a_board_file_extends_a_shipped_target(tmp_path: Path) -> None:
    text = 'extends = "rpi4"\ndescription = "my board"\ncores = 2\nl2_bytes = 524288\n'
    board = target.load(write(tmp_path, "my-board.toml", text))
    assert (board.id, board.cores, board.l2_bytes) == ("my-board", 2, 524288)
    assert board.mcpu == "cortex-a72"


def test_a_board_file_extends_one_beside_it(tmp_path: Path) -> None:
    write(tmp_path, "base.toml", 'extends = "rpi5"\ncores = 3\n')
    board = target.load(write(tmp_path, "board.toml", 'extends = "base.toml"\n'))
    assert (board.id, board.cores, board.dot) == ("board", 3, "sdot")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('extends = "rpi4"\nspeed = 3\n', "speed"),
        ('extends = "rpi4"\nmattr = ["+dotprod\\nevil"]\n', "mattr"),
        ('extends = "rpi4"\nmattr = ["dotprod"]\n', "mattr"),
        ('extends = "rpi4"\nmattr = ["+a b"]\n', "mattr"),
        ('extends = "rpi4"\nmattr = "+aes"\n', "mattr"),
        ('extends = "rpi4"\nmcpu = "-x; rm"\n', "mcpu"),
        ('extends = "rpi4"\nmcpu = 72\n', "mcpu"),
        ('extends = "rpi4"\ncores = 0\n', "cores"),
        ('extends = "rpi4"\ncores = true\n', "cores"),
        ('extends = "rpi4"\nl2_bytes = 99999999999999\n', "l2_bytes"),
        ('extends = "rpi4"\nl2_bytes = 1.5\n', "l2_bytes"),
        ('extends = "rpi4"\nl3_gbps = nan\n', "nan"),
        ('extends = "rpi4"\nl3_gbps = -1\n', "l3_gbps"),
        ('extends = "rpi4"\nglibc = "latest"\n', "glibc"),
        ('extends = "rpi4"\nlanes_f32 = 5\n', "lanes_f32"),
        ('extends = "rpi4"\ndot = "magic"\n', "dot"),
        ('extends = "rpi4"\nfeatures = [["asimd"]]\n', "features"),
        ('extends = "rpi4"\narch = "riscv64"\n', "arch"),
        ('extends = "rpi4"\ntriple = "aarch64-apple-darwin"\n', "triple"),
        ('extends = "rpi4"\nemulate = "--help"\n', "emulate"),
        ('extends = "rpi4"\nid = "other"\n', "id"),
        ('extends = "no-such-board"\n', "no-such-board"),
        ('extends = "../../etc/passwd"\n', "passwd"),
        ("extends = 4\n", "extends"),
        ('alias = "rpi4"\ncores = 2\n', "alias"),
        ('detect = "rpi4"\n', "detect"),
        ('detect = ["rpi4"]\ncpu = 3\n', "cpu"),
        ('extends = "rpi4"\n[cpu.znver5]\nl3_gbps = 70\n', "cpu"),
        ('description = "half a board"\n', "arch is not valid\nexpected this field"),
        ("not toml at all", "TOML"),
        ("a = " + "[" * 5000, "TOML"),
        ("# " + "x" * 70_000, "64 KiB"),
    ],
)
def test_a_bad_target_file_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(TargetError) as error:
        target.load(write(tmp_path, "bad.toml", text))
    assert named in str(error.value)
    assert error.value.exit_code == 3
    assert str(error.value).count("\n") == 2


def test_a_cycle_of_extends_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.toml", 'extends = "b.toml"\n')
    write(tmp_path, "b.toml", 'extends = "a.toml"\n')
    with pytest.raises(TargetError, match="extends itself"):
        target.load(tmp_path / "a.toml")


@pytest.mark.parametrize("name", ["", "rpi9", "../rpi4", "rpi4.toml", "no\0file.toml", "/"])
def test_an_unknown_target_is_refused(name: str) -> None:
    with pytest.raises(TargetError):
        target.load(name)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TargetError, match="TOML"):
        target.load(path)
    with pytest.raises(TargetError):
        target.load(tmp_path)


@pytest.mark.parametrize("name", ["host", "rpi3", "rpi4", "rpi5", "x86-64-v3", "x86-64-v4"])
def test_the_c_compiler_knows_the_cpu(name: str, tmp_path: Path) -> None:
    board = target.load(name)
    source = write(tmp_path, "f.c", "float f(float x) { return x * x; }\n")
    options = ["-target", f"{board.triple}.{board.glibc}", f"-mcpu={board.zig_cpu}", "-c"]
    command = [sys.executable, "-m", "ziglang", "cc", *options, str(source), "-o", str(tmp_path / "f.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_third_level_does_not_hold_is_read_from_memory() -> None:
    """The 8 MB of CsiNet's dense layers on a Raspberry Pi 5, which has 2 MiB of it."""
    board = target.load("rpi5")
    rates = [read_gbps(board, size) for size in (1 << 14, 1 << 18, 1 << 20, 8 << 20)]
    assert rates == [board.l1_gbps, board.l2_gbps, board.l3_gbps, board.memory_gbps]
    assert read_gbps(target.load("rpi4"), 8 << 20) == target.load("rpi4").l3_gbps
