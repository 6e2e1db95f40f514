//! Under ci/fuzz: libFuzzer on the target that FUZZ_TARGET names. Without: `shift-fuzz TARGET FILE…` runs a target on inputs.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static TARGET: std::sync::OnceLock<shift_fuzz::Target> = std::sync::OnceLock::new();
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let known = if name == "mistake" { Some(mistake as shift_fuzz::Target) } else { shift_fuzz::target(&name) };
        known.unwrap_or_else(|| panic!("FUZZ_TARGET={name} is no target"))
    });
    target(bytes);
});

/// What the fuzzer has to find before it is believed of the others.
#[cfg(fuzzing)]
fn mistake(bytes: &[u8]) {
    assert!(!bytes.starts_with(b"rkey"), "the mistake");
}

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(target) = words.next().and_then(|name| shift_fuzz::target(&name)) else {
        eprintln!("shift-fuzz TARGET FILE…; the targets are {:?}", shift_fuzz::TARGETS.map(|(name, _)| name));
        return std::process::ExitCode::from(2);
    };
    for file in words {
        match std::fs::read(&file) {
            Ok(bytes) => target(&bytes),
            Err(error) => {
                eprintln!("{file}: {error}");
                return std::process::ExitCode::from(2);
            }
        }
    }
    std::process::ExitCode::SUCCESS
}
