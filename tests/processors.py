"""The test suite as other processors would run it: ``make processors [ARGS="tests/unit -n 2"]``.

oneDNN and torch choose their kernels by what the processor can do, and so the last bits of every product. Each setting below limits
both to what an older processor has; what the present one lacks is passed over. Without arguments the tests that compute are run.
"""

from __future__ import annotations

import os
import subprocess
import sys

#: Name, oneDNN's limit, torch's limit, and what /proc/cpuinfo must list for it.
SETTINGS = [
    ("SSE 4.1", "SSE41", "default", "sse4_1"),
    ("AVX2", "AVX2", "avx2", "avx2"),
    ("AVX-512", "AVX512_CORE", "avx512", "avx512f"),
    ("all that there is", "DEFAULT", "", ""),
]
#: What starts no Ray: the processes of a cluster compute with the same kernels.
TESTS = ["tests/unit", "tests/property", "-n", "auto"]


def main(arguments: list[str]) -> int:
    """Runs pytest once a setting; the exit code is 1 where one of them failed."""
    with open("/proc/cpuinfo") as file:
        flags = set(next((line for line in file if line.startswith("flags")), "").split())
    failed = []
    for name, onednn, torch, needed in SETTINGS:
        if needed and needed not in flags:
            print(f"{name}: this processor has no {needed}, so it was not tried.", flush=True)
            continue
        limits = {"ONEDNN_MAX_CPU_ISA": onednn, "OMP_NUM_THREADS": "1"} | ({"ATEN_CPU_CAPABILITY": torch} if torch else {})
        print(f"{name}: {' '.join(f'{k}={v}' for k, v in limits.items())}", flush=True)
        if subprocess.run([sys.executable, "-m", "pytest", *(arguments or TESTS)], env=os.environ | limits, check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}." if failed else "passed with every setting.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
