# Sourced by the scripts beside it: installs what is missing and builds. Leaves the caller in the repository's root.
#
# Needs Debian 12 (the lab takes its guests' programs and kernel from it) and Rust; everything else is installed here.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A linker and C headers for cargo; the rest is the lab's.
packages=(gcc libc6-dev qemu-system-x86 perftest rdma-core ibverbs-utils ibverbs-providers libibverbs-dev librdmacm-dev busybox-static
    kmod iproute2 xz-utils binutils python3-minimal rdmacm-utils qperf ucx-utils libfabric-bin openmpi-bin python3-mpi4py python3-pip
    libjemalloc2 libtcmalloc-minimal4 libfaketime strace gdb redis-server coq)

fail() {
    echo "$0: $*" >&2
    exit 2
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "not root and no sudo; as root, run: $*"
    fi
}

is_installed() {
    dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'
}

install_packages() {
    local package missing=()
    command -v apt-get >/dev/null || fail "there is no apt-get here; the lab needs Debian 12 and its packages ${packages[*]}"
    for package in "${packages[@]}"; do
        is_installed "$package" || missing+=("$package")
    done
    if ((${#missing[@]})); then
        echo "installing ${missing[*]}" >&2
        as_root apt-get update -qq >&2
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends "${missing[@]}" </dev/null >/dev/null
    fi
}

# With names of components (clippy, rustfmt): those too.
require_rust() {
    local component tool
    [[ -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]] && PATH+=:${CARGO_HOME:-$HOME/.cargo}/bin
    command -v cargo >/dev/null || fail "cargo is missing; install Rust 1.88 or newer: https://rustup.rs, or
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
    for component in "$@"; do
        tool=cargo-${component/rustfmt/fmt}
        command -v "$tool" >/dev/null && "$tool" --version >/dev/null 2>&1 && continue
        command -v rustup >/dev/null || fail "$component is missing, and so is rustup, which could install it"
        echo "installing $component" >&2
        rustup component add "$component" >&2 || fail "rustup cannot install $component"
    done
}

built="${CARGO_TARGET_DIR:-target}/release"

# A scenario must never judge what an earlier state of the sources built.
build_lab() {
    local part
    # The library with Redis, which may pose as another release and leave out parts of the protocol, lies beside the default one, which has none of it.
    cargo build --profile redis -p shift-verbs --features redis,other-versions,sabotage >&2 || rm -f "$built/../redis/libshift_verbs.so"
    cargo build --release -p shift-lab -p shift-checker -p shift-nccl -p shift-verbs -p shift-preload -p shiftctl >&2 && return
    cargo build --release -p shift-lab >&2 || fail "the lab does not build"
    for part in shift-checker:shift-checker shift-checker:shift-checker-dlvsym shift-nccl:shift-nccl shift-verbs:libshift_verbs.so shift-preload:libshift_preload.so shiftctl:shiftctl; do
        cargo build --quiet --release -p "${part%:*}" >&2 && continue
        rm -f "$built/${part#*:}"
        echo "${part%:*} does not build: what needs it will fail" >&2
    done
}

# Of PyPI, as wheels that hold the programs: zig links against the glibc that it is asked for, and brings an unwinder to link statically.
zig_packages=(ziglang==0.17.1 cargo-zigbuild==0.24.0)

require_zig() {
    zig="${SHIFT_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/shift-verbs}/zig"
    if [[ $(cat "$zig/packages" 2>/dev/null) != "${zig_packages[*]}" ]]; then
        python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip) install_packages
        echo "installing ${zig_packages[*]}" >&2
        rm -rf "$zig"
        python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --target "$zig" "${zig_packages[@]}" >&2
        echo "${zig_packages[*]}" >"$zig/packages"
    fi
}

# Of the registry of crates: it changes the protocol in one place at a time (ci/mutants).
mutants_version=27.1.0

require_mutants() {
    [[ $(cargo mutants --version 2>/dev/null) == "cargo-mutants $mutants_version" ]] && return
    echo "installing cargo-mutants $mutants_version" >&2
    cargo install --quiet --locked "cargo-mutants@$mutants_version" >&2
}

# Miri is a component of nightly compilers alone; it interprets the standard library too.
require_miri() {
    cargo +nightly miri --version >/dev/null 2>&1 && return
    echo "installing a nightly compiler with miri" >&2
    rustup toolchain install nightly --profile minimal --component miri --component rust-src >&2
}

# Sanitizers want the standard library built with them: Debian's compiler comes with its source, and clang's runtimes of the same LLVM.
require_sanitizers() {
    local llvm
    packages+=(rustc-web rust-web-src)
    install_packages
    llvm=$(/usr/bin/rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    packages+=("clang-$llvm" "libclang-rt-$llvm-dev" valgrind)
    install_packages
    export CLANG="clang-$llvm"
}

# The oldest glibc that the released library runs on.
oldest_glibc=2.28

# Machine, options for cargo: sets `portable` to the library. The standard library of another machine than this comes from rustup or, where that has
# none, from Debian, with the compiler that it is made for.
build_portable() {
    local triple="$1-unknown-linux-gnu" rustc=rustc
    if [[ ! -d $(rustc --print sysroot)/lib/rustlib/$triple ]]; then
        require_debian_rust "$1"
        rustc=/usr/bin/rustc
    fi
    env PYTHONPATH="$zig" PATH="$zig/bin:$PATH" RUSTC="$rustc" cargo zigbuild --quiet -p shift-verbs --target "$triple.$oldest_glibc" "${@:2}" >&2 ||
        return 1
    portable="${CARGO_TARGET_DIR:-target}/$triple/$([[ " ${*:2} " == *" --release "* ]] && echo release || echo debug)/libshift_verbs.so"
}

require_debian_rust() {
    local machine=${1/x86_64/amd64}
    machine=${machine/aarch64/arm64}
    packages+=(rustc-web "libstd-rust-web-dev:$machine")
    if ! dpkg --print-foreign-architectures | grep -qx "$machine"; then
        as_root dpkg --add-architecture "$machine"
    fi
    install_packages
}
