//! nullverbs: a library with libibverbs' name, versions and shapes whose devices carry nothing, and a libmlx5 to it; and C programs that
//! bind to them in every way. For how programs reach verbs, for verbs that soft-RoCE lacks, for benchmarks and sanitizers. Never for survival.
//!
//! `c/null.h` says what the library can be told. Both libraries and the programs of `programs/` are built by this crate's build script and lie
//! in [`directory`]. [`Run`] runs a program over them, with or without the shim.

//!
//! The tests can be run in another system: NULLVERBS_ROOT names the directory that is to be its root, in whose `/nullverbs` lies a copy of
//! [`directory`], and NULLVERBS_SHIM a library to load there instead of the one that these sources make. NULLVERBS_RUNNER is an emulator that runs
//! the programs of another machine, and takes their variables by `-E`. See ci/portable.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;
use std::time::Duration;

/// Where programs of another system find [`directory`].
const INSIDE: &str = "/nullverbs";

/// How long a program may take: none needs a second, but on a machine that has much else to do, under a tool that runs one thread at a time.
const BOUND: Duration = Duration::from_secs(600);

/// How `timeout` ends if the program did not: by its first signal, and by its last.
const BY_TIMEOUT: [i32; 2] = [124, 137];

/// The root of another system, if the tests are to run there.
fn root() -> Option<PathBuf> {
    std::env::var_os("NULLVERBS_ROOT").map(PathBuf::from)
}

/// Where libibverbs.so.1, libmlx5.so.1 and the programs are.
#[must_use]
pub fn directory() -> PathBuf {
    root().map_or_else(|| PathBuf::from(env!("NULLVERBS_DIRECTORY")), |root| root.join("nullverbs"))
}

/// The path by which the programs know a file of [`directory`].
#[must_use]
pub fn inside(name: &str) -> String {
    let directory = if root().is_some() { INSIDE } else { env!("NULLVERBS_DIRECTORY") };
    format!("{directory}/{name}")
}

/// libshift_verbs.so, built from the sources as they are, with the profile of the caller. `Err`: what cargo said.
pub fn shim() -> Result<PathBuf, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(|| std::env::var_os("NULLVERBS_SHIM").map_or_else(build_shim, |path| Ok(path.into()))).clone()
}

fn build_shim() -> Result<PathBuf, String> {
    build("shift-verbs", "libshift_verbs.so")
}

/// shiftctl, built in the same way.
pub fn shiftctl() -> Result<PathBuf, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(|| build("shiftctl", "shiftctl")).clone()
}

fn build(package: &str, file: &str) -> Result<PathBuf, String> {
    // target/PROFILE/build/PACKAGE/out
    let profile =
        Path::new(env!("NULLVERBS_DIRECTORY")).ancestors().nth(3).ok_or("the build directory has no profile")?;
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "-p", package, "--manifest-path"]);
    cargo.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"));
    cargo.arg("--target-dir").arg(profile.parent().ok_or("the profile has no directory")?);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let output = cargo.output().map_err(|error| format!("cargo does not run: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    output.status.success().then(|| profile.join(file)).ok_or(said)
}

/// A run of a program over nullverbs.
#[derive(Debug)]
pub struct Run {
    words: Vec<OsString>,
    environment: Vec<(String, OsString)>,
    log: String,
    bound: Duration,
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
        Self::words([inside(name).as_str()])
    }

    /// Of any command.
    #[must_use]
    pub fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = format!("/tmp/nullverbs-{}-{count}.log", std::process::id());
        let words = words.into_iter().map(OsString::from).collect();
        let run = Self { words, environment: Vec::new(), log: log.clone(), bound: BOUND };
        run.env("LD_LIBRARY_PATH", inside("")).env("NULLVERBS_LOG", log)
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.words.extend(args.into_iter().map(OsString::from));
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Bounds the time that it may take, in whole seconds.
    #[must_use]
    pub fn within(self, bound: Duration) -> Self {
        Self { bound, ..self }
    }

    /// Loads the shim.
    ///
    /// # Errors
    /// The shim does not build.
    pub fn preloaded(self) -> Result<Self, String> {
        self.preloaded_with("", "")
    }

    /// Loads other libraries before the shim and behind it, each list as LD_PRELOAD wants it.
    ///
    /// # Errors
    /// The shim does not build.
    pub fn preloaded_with(self, before: &str, behind: &str) -> Result<Self, String> {
        let shim = if root().is_some() { inside("libshift_verbs.so") } else { shim()?.to_string_lossy().into_owned() };
        let list = [before, &shim, behind].join(" ");
        Ok(self.env("LD_PRELOAD", list.trim()))
    }

    /// The command that starts it; it keeps its process.
    #[must_use]
    pub fn command(&self) -> Command {
        // Not by this process' environment: what is preloaded is for the program alone.
        let mut command = Command::new("env");
        if let Some(root) = root() {
            command = Command::new("chroot");
            command.arg(root).arg("/usr/bin/env");
        }
        let runner = std::env::var_os("NULLVERBS_RUNNER");
        command.args(&runner);
        for (name, value) in &self.environment {
            command.args(runner.as_ref().map(|_| "-E"));
            let mut pair = OsString::from(name);
            pair.push("=");
            pair.push(value);
            command.arg(pair);
        }
        command.args(&self.words);
        command
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It cannot be started, or was ended because it did not end by itself: with what it said until then.
    pub fn run(self) -> Result<Ran, String> {
        let program = self.command();
        let mut command = Command::new("timeout");
        command.arg("--kill-after=10").arg(self.bound.as_secs().to_string()).arg(program.get_program());
        command.args(program.get_args());
        let output = command.output().map_err(|error| format!("{command:?} does not run: {error}"))?;
        let ran = Ran { output, verbs: self.take_log() };
        if ran.output.status.code().is_some_and(|code| BY_TIMEOUT.contains(&code)) {
            let said = [ran.stdout(), ran.stderr()].concat();
            return Err(format!("{:?} did not end within {} s: {said}", self.words, self.bound.as_secs()));
        }
        Ok(ran)
    }

    fn take_log(&self) -> Vec<String> {
        let log = root().unwrap_or_default().join(if root().is_some() {
            self.log.trim_start_matches('/')
        } else {
            &self.log
        });
        let verbs = std::fs::read_to_string(&log).unwrap_or_default().lines().map(str::to_owned).collect();
        let _ = std::fs::remove_file(&log);
        verbs
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_end_is_ended_and_named() {
        let ran = Run::words(["sh", "-c", "echo so far; exec sleep 3600"]).within(Duration::from_secs(1)).run();
        let why = ran.map(|ran| ran.stdout());
        assert!(why.as_ref().is_err_and(|why| why.contains("sleep 3600") && why.contains("so far")), "{why:?}");
    }

    #[test]
    fn how_a_program_ends_is_told_as_it_is() {
        let status = |script| Run::words(["sh", "-c", script]).run().map(|ran| ran.output.status);
        assert_eq!(status("exit 3").map(|status| status.code()), Ok(Some(3)));
        let killed = status("kill -ABRT $$").map(|status| std::os::unix::process::ExitStatusExt::signal(&status));
        assert_eq!(killed, Ok(Some(6)));
    }
}
