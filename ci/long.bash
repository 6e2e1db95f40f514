# Sourced by `scripts/test --long`: what takes longer than a change can wait for, in parts. Each writes its result into tests/CAMPAIGN.md.

# In the order in which they run.
parts=(faults migrations programs network models sanitizers miri fuzzing mutants systems)

# The day: each campaign makes its choices anew, and whoever reads its table can repeat them.
seed=$(date -u +%Y%m%d)

# It takes what time it takes.
endurance=shim-thousand

# An hour. Every fault that the default run leaves out, and what judges only the lab itself or one mode of the checking application.
part_faults() {
    local name pattern rest=()
    build_lab
    while read -r name _; do
        for pattern in "${scenarios[@]}" 'program-*' 'nccl-*' 'open-*' '*-short' "$endurance"; do
            # shellcheck disable=SC2053 # The right side is a pattern.
            [[ $name == $pattern ]] && continue 2
        done
        rest+=("$name")
    done < <("$built/shift-lab" list)
    run_lab --seed "$seed" "${lab_options[@]}" "${rest[@]}"
    ci/campaign faults "$logs/objects"
}

# More than a thousand on real packets, of a job that goes on.
part_migrations() {
    build_lab
    run_lab --seed "$seed" "${lab_options[@]}" "$endurance"
    ci/campaign migrations "$logs/objects"
}

# Every program that was tried, for the table in README.md too.
part_programs() {
    build_lab
    run_lab --seed "$seed" "${lab_options[@]}" 'program-*' 'nccl-*'
    ci/campaign programs "$logs/objects"
    ci/programs "$logs/objects" README.md
}

# Two machines over a random network, more than a million schedules in all.
part_network() {
    export SHIFT_SEEDS=160000
    check_many "random networks" "$testing|^[a-z_]+: \\{" cargo test --release -p shift-proto --test network -- --nocapture
    ci/campaign network "$log"
}

# The models as far as is worth waiting for.
part_models() {
    check_many "models" . scripts/models --long
    ci/campaign models "$log"
}

# With the control that wants a library of its own, and valgrind.
part_sanitizers() {
    check_many "sanitizers" "^sanitizers:" sanitizers
    ci/campaign sanitizers "$log"
}

sanitizers() {
    require_sanitizers && ci/sanitizers address threads weakened memory
}

# The unit tests of what is unsafe and needs no device, interpreted.
part_miri() {
    check_many "miri" "$testing" miri
    ci/campaign miri "$log"
}

miri() {
    require_miri && ci/miri
}

# Three hours: one for each of six targets, in pairs. The table of it is in tests/fuzz/README.md.
part_fuzzing() {
    packages+=(g++)
    install_packages
    check_many "bytes from outside" "^fuzz:" ci/fuzz --keep
}

# Each change of one place in the protocol's core; goes on where it was interrupted.
part_mutants() {
    check_many "mutants" "^mutants:" mutants
    ci/campaign mutants "$log"
}

mutants() {
    require_mutants && ci/mutants
}

# The released library in the releases of Debian with the oldest and the newest glibc that are supported, and the one for aarch64 under emulation.
part_systems() {
    check_many "one library for every system" "^portable:|^ " systems
    ci/campaign systems "$log"
}

systems() {
    local systems=() failures=0
    require_zig && require_systems && cargo build --quiet -p shift-verbs || return 1
    emulated || failures=1
    build_portable "$(uname -m)" --release || return 1
    check_portable "${systems[@]}" || failures=1
    return "$failures"
}

# The library of the other machine, and the unit tests of what is close to the machine.
emulated() {
    packages+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user libc6:arm64 libgcc-s1:arm64)
    dpkg --print-foreign-architectures | grep -qx arm64 || as_root dpkg --add-architecture arm64
    install_packages
    build_portable aarch64 --release && ci/portable "$portable" none || return 1
    local rustc=/usr/bin/rustc
    [[ ! -d $(rustc --print sysroot)/lib/rustlib/aarch64-unknown-linux-gnu ]] || rustc=rustc
    env RUSTC=$rustc CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64 \
        cargo test --target aarch64-unknown-linux-gnu -p shift-abi -p shift-verbs --lib
}

# Root directories of bullseye (where dlsym is in libdl) and trixie, from the mirror that this machine's packages come from.
require_systems() {
    local release mirror cache
    packages+=(debootstrap debian-archive-keyring)
    install_packages
    mirror=$(apt-get indextargets --format '$(ORIGIN)|$(CODENAME)|$(REPO_URI)' | sed -n 's/^Debian|bookworm|//p' | head -n 1)
    cache="${SHIFT_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/shift-verbs}/systems"
    for release in bullseye trixie; do
        if [[ ! -e $cache/$release/made ]]; then
            rm -rf "${cache:?}/$release" && mkdir -p "$cache/$release"
            as_root debootstrap --variant=minbase --include=python3 "$release" "$cache/$release" "$mirror" >"$logs/debootstrap" ||
                { cat "$logs/debootstrap" && return 1; }
            touch "$cache/$release/made"
        fi
        systems+=("$cache/$release")
    done
}

# Parts, none for all.
run_long() {
    local part
    (($#)) || set -- "${parts[@]}"
    for part in "$@"; do
        [[ " ${parts[*]} " == *" $part "* ]] || fail "there is no part $part: ${parts[*]}"
    done
    for part in "$@"; do
        "part_$part"
    done
}
