//! `shift-fuzz TARGET FILE…` runs a target on inputs.

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
