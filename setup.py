"""What pyproject.toml cannot say: three source roots, generated protobuf code, a C++ library.

`opsd` is one namespace package spread over daemon/, trainer/ and proto/. No root ever holds an
opsd/__init__.py: it would hide the other two (tests/unit/house guards this).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from setuptools import Command, Extension, find_namespace_packages, setup
from setuptools.command.build import build

HERE = Path(__file__).resolve().parent
ROOTS = {"opsd.daemon": "daemon", "opsd.trainer": "trainer", "opsd.v1": "proto"}
CSRC = Path("trainer/opsd/trainer/csrc")

sys.path.insert(0, str(HERE / "scripts"))

NVCC_FLAGS = ["-O3", "-std=c++20", "-Werror", "all-warnings"]
# Every generation from A100 on runs one of these two, or the second one's PTX.
CUDA_ARCHITECTURES = ("8.0", "9.0")

# The oldest torch whose stable C++ ABI the trainer's operators may use, as torch encodes it.
TORCH_ABI = "0x020b000000000000"


class BuildProto(Command):
    """Generate opsd.v1 into the source tree, for wheels and editable installs alike."""

    description = "generate Python code from proto/"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []
    build_lib: str | None = None
    editable_mode = False

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        import build_proto

        build_proto.generate()

    # build_py collects the results; this command adds no file of its own to a distribution.
    def get_source_files(self) -> list[str]:
        return [str(p.relative_to(HERE)) for p in sorted(HERE.glob("proto/opsd/v1/*.proto"))]

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class CompileCuda(Command):
    """Compiles the CUDA sources on a machine without a GPU: nothing is linked or kept."""

    description = "compile the CUDA sources, warnings as errors, to see that they do"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        from torch.utils.cpp_extension import CUDA_HOME, include_paths

        nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=f"{CUDA_HOME}/bin")
        if nvcc is None:
            print("cuda: not compiled, there is no nvcc on PATH or under CUDA_HOME")
            return
        numbers = [name.replace(".", "") for name in CUDA_ARCHITECTURES]
        architectures = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers]
        sources = sorted(CSRC.glob("*.cu"))
        for source in sources:
            target = HERE / "build" / f"{source.stem}.cuda.o"
            target.parent.mkdir(exist_ok=True)
            command = [nvcc, "-c", str(source), "-o", str(target), *NVCC_FLAGS, *architectures]
            command += ["-Xcompiler", "-fPIC,-Wall,-Wextra,-Werror", *cuda_defines()]
            for folder in include_paths():
                command += ["-isystem", folder]
            if subprocess.run(command, check=False).returncode != 0:
                raise SystemExit(f"cuda: {source} does not compile with {nvcc}")
            target.unlink()
        print(f"cuda: {len(sources)} source for sm_{', sm_'.join(numbers)} compiled")


class Build(build):
    # Before build_py, which lists the modules that exist.
    sub_commands: ClassVar = [("build_proto", None), *build.sub_commands]

    def run(self) -> None:
        super().run()
        # A wheel has no repository to ask; the audit log names the commit that it was built from.
        commit = git_commit()
        if commit:
            target = Path(self.build_lib) / "opsd" / "daemon" / "commit.txt"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(commit + "\n")


def git_commit() -> str:
    """Of this checkout; "" for an unpacked source distribution, or without git."""
    if not (HERE / ".git").exists() or shutil.which("git") is None:
        return ""
    asked = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def wants_cuda() -> bool:
    """CUDA operators are built against a CUDA torch where a compiler is at hand.

    OPSD_CUDA=1 insists (and fails without nvcc), OPSD_CUDA=0 forbids.
    """
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    wish = os.environ.get("OPSD_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"OPSD_CUDA={wish}: expected 0, 1 or auto")
    if wish == "auto":
        return torch.version.cuda is not None and CUDA_HOME is not None
    if wish == "1" and torch.version.cuda is None:
        raise SystemExit("OPSD_CUDA=1, but torch is a CPU build: run make setup FLAVOUR=cuda")
    if wish == "1" and CUDA_HOME is None:
        raise SystemExit("OPSD_CUDA=1, but no nvcc: set CUDA_HOME to the CUDA toolkit's folder")
    return wish == "1"


def cuda_defines() -> list[str]:
    """For every source of a CUDA build."""
    return [f"-DTORCH_TARGET_VERSION={TORCH_ABI}", "-DOPSD_CUDA", "-DUSE_CUDA"]


def trainer_library() -> Extension:
    """opsd.trainer._C: operators against torch's stable ABI and CPython's limited API, so that one
    build serves every Python and later torch releases."""
    import torch
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    sources = sorted(CSRC.glob("*.cpp"))
    if not sources:
        raise SystemExit(f"no C++ sources under {CSRC}/: is this a complete checkout?")
    # No -fopenmp: torch brings its own OpenMP runtime, and a second one in the process would fight
    # it for the cores. No -march: the wheel must run where it was not built; functions choose
    # their instruction set with target attributes.
    cxx = ["-O3", "-std=c++20", "-ffp-contract=fast", "-fvisibility=hidden"]
    cxx += ["-Wall", "-Wextra", "-Werror"]
    define = [f"-DTORCH_TARGET_VERSION={TORCH_ABI}"]
    flags = {"cxx": cxx + define}
    kind = CppExtension
    if wants_cuda():
        kind = CUDAExtension
        sources += sorted(CSRC.glob("*.cu"))
        define = cuda_defines()
        flags = {"cxx": cxx + define, "nvcc": [*NVCC_FLAGS, *define]}
        if not torch.cuda.is_available():
            # Nobody to ask which one; a machine with GPUs builds for those it has.
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(CUDA_ARCHITECTURES) + "+PTX")
    library: Extension = kind(
        "opsd.trainer._C",
        [str(source) for source in sources],
        depends=[str(header) for header in sorted([*CSRC.glob("*.h"), *CSRC.glob("*.cuh")])],
        extra_compile_args=flags,
        py_limited_api=True,
    )
    # Our own code compiles without a warning; torch's headers are not ours to mend.
    for folder in library.include_dirs:
        for arguments in flags.values():
            arguments += ["-isystem", folder]
    library.include_dirs = []
    return library


def compiled() -> dict[str, Any]:
    """Arguments of setup() that need torch. Asking for metadata alone must work without it."""
    if {"egg_info", "dist_info", "--version", "--name", "clean", "compile_cuda"} & set(
        sys.argv[1:]
    ):
        return {}
    from torch.utils.cpp_extension import BuildExtension

    if shutil.which("ninja") is None:
        # pip calls this file without the virtual environment's bin/ on PATH.
        os.environ["PATH"] = os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        )
    return {"ext_modules": [trainer_library()], "cmdclass": {"build_ext": BuildExtension}}


packages = [
    package
    for name, root in ROOTS.items()
    for package in find_namespace_packages(
        root,
        include=[name, f"{name}.*"],
        exclude=["*.__pycache__", "*.__pycache__.*", "*.csrc", "*.csrc.*"],
    )
]
extra = compiled()
setup(
    packages=packages,
    package_dir={name: f"{root}/{name.replace('.', '/')}" for name, root in ROOTS.items()},
    package_data={
        "": ["py.typed", "*.pyi", "*.proto", "*.sql", "*.json", "*.toml", "*.ini", "*.mako"],
        "opsd.daemon": ["web/static/**", "web/templates/**"],
    },
    # MANIFEST.in is about the source distribution: no C++ source goes into a wheel.
    include_package_data=False,
    ext_modules=extra.get("ext_modules", []),
    cmdclass={
        "build": Build,
        "build_proto": BuildProto,
        "compile_cuda": CompileCuda,
        **extra.get("cmdclass", {}),
    },
    # One wheel for CPython 3.11 and later.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
