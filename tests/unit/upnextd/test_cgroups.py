"""CPU quotas of control groups, in either version of the interface, at any level."""

from __future__ import annotations

from pathlib import Path

import pytest

from upnextd.shared import cgroups


def limit(tmp_path: Path, proc: str, files: dict[str, str]) -> int | None:
    root = tmp_path / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (tmp_path / "proc").write_text(proc)
    return cgroups.cpus(str(tmp_path / "proc"), str(root))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"a/b/cpu.max": "max 100000\n"}, None),
        ({"a/b/cpu.max": "250000 100000\n"}, 3),
        ({"a/b/cpu.max": "1000 100000\n"}, 1),
        ({"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ({"a/b/cpu.max": "max 100000\n", "cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "nonsense\n"}, None),
        ({"unified/a/cpu.max": "200000 100000\n"}, 2),
    ],
)
def test_version_2(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    assert limit(tmp_path, "0::/a/b\n", files) == expected


def version_1(folder: str, quota: str, period: str = "100000") -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (version_1("cpu/a/b", "-1"), None),
        (version_1("cpu/a/b", "150000"), 2),
        (version_1("cpu,cpuacct/a/b", "150000"), 2),
        (version_1("cpu/a/b", "-1") | version_1("cpu/a", "300000"), 3),
        # In a container, whose root is the host's /a/b.
        (version_1("cpu", "200000"), 2),
        (version_1("cpu", "200000", "0"), None),
    ],
)
def test_version_1(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    assert limit(tmp_path, "5:memory:/a/b\n4:cpu,cpuacct:/a/b\n0::/\n", files) == expected


def test_no_control_groups(tmp_path: Path) -> None:
    assert cgroups.cpus(str(tmp_path / "nowhere"), str(tmp_path)) is None
