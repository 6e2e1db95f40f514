//! Every target over the inputs that were kept of it.

use std::path::Path;

use shift_fuzz::TARGETS;

type Outcome = Result<(), String>;

#[test]
fn every_target_takes_whatever_was_found_so_far() -> Outcome {
    for (name, run) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let mut count = 0;
        for entry in std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))? {
            let path = entry.map_err(|error| error.to_string())?.path();
            // Of a target that panics the name of the input stands before it.
            eprintln!("{}", path.display());
            run(&std::fs::read(&path).map_err(|error| error.to_string())?);
            count += 1;
        }
        assert!(count >= 5, "{name}: the inputs are gone");
    }
    Ok(())
}
