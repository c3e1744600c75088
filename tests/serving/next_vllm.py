"""Makes a vLLM that has no build for CPUs run on them: `make test-vllm-next`.

    python tests/serving/next_vllm.py WHEELS FOLDER

Unpacks the Python files of the wheels in WHEELS into FOLDER, without vLLM's compiled CUDA kernels,
and links the compiled kernels of the installed CPU build in their place. With FOLDER in front on
PYTHONPATH, everything in Python is the new version's: configuration, processors, scheduler, model
runner, models. The kernels, torch and the other libraries stay those of the older build.
"""

from __future__ import annotations

import sys
from pathlib import Path
from sysconfig import get_path
from zipfile import ZipFile

KERNELS = "*.abi3.so"


def unpack(wheel: Path, folder: Path) -> None:
    """Unpacks a wheel; of vLLM's, the package without compiled files."""
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        if wheel.name.startswith("vllm-"):
            names = [name for name in names if name.startswith("vllm/") and name[-3:] != ".so"]
        archive.extractall(folder, names)


def link_kernels(package: Path) -> None:
    """Links the compiled files of this environment's vLLM into ``package``.

    Raises:
        RuntimeError: vLLM is not installed, or without compiled files.
    """
    kernels = sorted((Path(get_path("platlib")) / "vllm").glob(KERNELS))
    if not kernels:
        raise RuntimeError("no compiled vLLM is installed; run `make test-vllm` first")
    for kernel in kernels:
        link = package / kernel.name
        link.unlink(missing_ok=True)
        link.symlink_to(kernel)


def declare(version: str, folder: Path) -> None:
    """Writes the metadata of a CPU build, from which vLLM reads its platform and its version."""
    metadata = folder / f"vllm-{version}+cpu.dist-info"
    metadata.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
    (metadata / "METADATA").write_text(text)


def main(wheels: Path, folder: Path) -> None:
    """Puts the package together; arguments as in the module's docstring."""
    for wheel in sorted(wheels.glob("*.whl")):
        unpack(wheel, folder)
        if wheel.name.startswith("vllm-"):
            declare(wheel.name.split("-")[1], folder)
    link_kernels(folder / "vllm")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
