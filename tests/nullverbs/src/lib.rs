//! nullverbs: a library with libibverbs' name, versions and shapes whose devices carry nothing, and a libmlx5 to it; and C programs that
//! bind to them in every way. For how programs reach verbs, for verbs that soft-RoCE lacks, for benchmarks and sanitizers. Never for survival.
//!
//! `c/null.h` says what the library can be told. Both libraries and the programs of `programs/` are built by this crate's build script and lie
//! in [`directory`]. [`Run`] runs a program over them, with or without the shim.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Where libibverbs.so.1, libmlx5.so.1 and the programs are.
#[must_use]
pub fn directory() -> &'static Path {
    Path::new(env!("NULLVERBS_DIRECTORY"))
}

/// libshift_verbs.so, built from the sources as they are, with the profile of the caller. `Err`: what cargo said.
pub fn shim() -> Result<PathBuf, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(build_shim).clone()
}

fn build_shim() -> Result<PathBuf, String> {
    // target/PROFILE/build/PACKAGE/out
    let profile = directory().ancestors().nth(3).ok_or("the build directory has no profile")?;
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "-p", "shift-verbs", "--manifest-path"]);
    cargo.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"));
    cargo.arg("--target-dir").arg(profile.parent().ok_or("the profile has no directory")?);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let output = cargo.output().map_err(|error| format!("cargo does not run: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    output.status.success().then(|| profile.join("libshift_verbs.so")).ok_or(said)
}

/// A run of a program over nullverbs.
#[derive(Debug)]
pub struct Run {
    /// The program, its arguments and its environment.
    pub command: Command,
    log: PathBuf,
}

/// What came of it.
#[derive(Debug)]
pub struct Ran {
    /// Exit status, standard output and standard error.
    pub output: Output,
    /// The control verbs that reached nullverbs, in order: "VERB DEVICE words".
    pub verbs: Vec<String>,
}

impl Run {
    /// Of a program of `programs/`.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self::command(Command::new(directory().join(name)))
    }

    /// Of any command.
    #[must_use]
    pub fn command(mut command: Command) -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let log = std::env::temp_dir().join(format!("nullverbs-{}-{count}.log", std::process::id()));
        command.env("LD_LIBRARY_PATH", directory()).env("NULLVERBS_LOG", &log);
        Self { command, log }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Loads the shim.
    ///
    /// # Errors
    /// The shim does not build.
    pub fn preloaded(self) -> Result<Self, String> {
        let shim = shim()?;
        Ok(self.env("LD_PRELOAD", shim))
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(mut self) -> Result<Ran, String> {
        let output = self.command.output().map_err(|error| format!("{:?} does not run: {error}", self.command))?;
        let verbs = std::fs::read_to_string(&self.log).unwrap_or_default().lines().map(str::to_owned).collect();
        let _ = std::fs::remove_file(&self.log);
        Ok(Ran { output, verbs })
    }
}

impl Ran {
    /// Standard output.
    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// Standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// The lines of the log that begin with this verb.
    pub fn calls<'a>(&'a self, verb: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.verbs.iter().map(String::as_str).filter(move |line| line.split(' ').next() == Some(verb))
    }
}
