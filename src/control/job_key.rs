//! The job key: read once from the operator's file, and what is derived from it.
//!
//! The file holds any bytes; all of them count. It must be one that nobody but its owner can read or change, and its owner
//! must be the user of this process or root. What must hold: the key is never printed, and a file that cannot be used is
//! named with what to change about it.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc::{O_NOCTTY, O_NONBLOCK};
use nix::unistd::geteuid;

/// Fewer bytes are guessed.
pub const LEAST_BYTES: u64 = 16;
/// No key is longer; whoever names a log file by mistake is told.
pub const MOST_BYTES: u64 = 4096;
/// Permissions that somebody other than the owner must not have.
const OTHERS: u32 = 0o077;
/// What makes a job's MACs differ from any other use of the same file.
const PURPOSE: &str = "shift-verbs 2026-11 job key of the control connection";
const MAKE_ONE: &str =
    "make one with: head -c 32 /dev/urandom >FILE; chmod 600 FILE, the same on every host of the job";

/// The secret that the processes of one job share.
#[derive(Clone, PartialEq, Eq)]
pub struct JobKey([u8; blake3::KEY_LEN]);

impl JobKey {
    /// The key that these bytes are.
    pub fn new(bytes: &[u8]) -> Self {
        Self(blake3::derive_key(PURPOSE, bytes))
    }

    /// Reads the operator's file, and the one with the key before it, if there is one: the same name and `.old`.
    ///
    /// # Errors
    /// As [`JobKey::read`], of either.
    pub fn read_all(path: &Path) -> Result<(Self, Option<Self>), String> {
        let newest = Self::read(path)?;
        let before = older(path);
        let is_there = before.symlink_metadata().is_ok();
        let read = |path: &Path| Self::read(path).map_err(|why| format!("of {}: {why}", path.display()));
        Ok((newest, is_there.then(|| read(&before)).transpose()?))
    }

    /// Reads the operator's file.
    ///
    /// # Errors
    /// What is wrong with it, and what to do about it.
    pub fn read(path: &Path) -> Result<Self, String> {
        // Neither a pipe nor a device may keep the program waiting.
        let file = File::options().read(true).custom_flags(O_NONBLOCK | O_NOCTTY).open(path);
        let file = file.map_err(|error| format!("it cannot be opened ({error}); {MAKE_ONE}"))?;
        let facts = file.metadata().map_err(|error| format!("it cannot be examined ({error}); {MAKE_ONE}"))?;
        if facts.is_dir() {
            return Err(format!("it is a directory; name the file with the key: {MAKE_ONE}"));
        }
        if !facts.is_file() {
            return Err(format!("it is no regular file; {MAKE_ONE}"));
        }
        let user = geteuid().as_raw();
        if facts.uid() != user && facts.uid() != 0 {
            let owner = facts.uid();
            return Err(format!(
                "it belongs to user {owner}; give it to user {user}, who runs the program, or to root"
            ));
        }
        if facts.mode() & OTHERS != 0 {
            let mode = facts.mode() & 0o7777;
            return Err(format!("others than its owner have rights on it (mode {mode:04o}); chmod it to 0600"));
        }
        let mut bytes = Vec::new();
        let read = file.take(MOST_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(|error| format!("it cannot be read ({error}); {MAKE_ONE}"))?;
        let length = bytes.len() as u64;
        if length < LEAST_BYTES {
            return Err(format!(
                "it has {length} bytes, too few for a key, which has at least {LEAST_BYTES}; {MAKE_ONE}"
            ));
        }
        if length > MOST_BYTES {
            return Err(format!("it has more than {MOST_BYTES} bytes, which is no key; {MAKE_ONE}"));
        }
        Ok(Self::new(&bytes))
    }

    /// A key of one purpose, which says nothing about any other.
    pub(crate) fn derive(&self, purpose: &[u8]) -> [u8; blake3::KEY_LEN] {
        *blake3::keyed_hash(&self.0, purpose).as_bytes()
    }
}

impl fmt::Debug for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobKey")
    }
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".old");
    PathBuf::from(name)
}

/// Inode, size and time of change of a file: what differs when there is another key in it.
type Stamp = Option<(u64, u64, i64, i64)>;

fn stamp_of(path: &Path) -> Stamp {
    let found = path.metadata().ok()?;
    Some((found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
}

/// The operator's file, to be read again when it changes: keys are rotated with the job running.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    seen: [Stamp; 2],
    was_told: bool,
}

impl KeyFile {
    /// It was read a moment ago.
    pub fn new(path: PathBuf) -> Self {
        let seen = [stamp_of(&path), stamp_of(&older(&path))];
        Self { path, seen, was_told: false }
    }

    /// The keys, if there are others since this was asked last. What cannot be read is told, and changes nothing.
    pub fn changed(&mut self) -> Option<(JobKey, Option<JobKey>)> {
        let seen = [stamp_of(&self.path), stamp_of(&older(&self.path))];
        if std::mem::replace(&mut self.seen, seen) == seen {
            return None;
        }
        match JobKey::read_all(&self.path) {
            Ok(keys) => {
                let both = if keys.1.is_some() { "two keys are valid" } else { "one key is valid" };
                log::info!("SHIFT_JOB_KEY_FILE={} has changed: {both} for new connections", self.path.display());
                self.was_told = false;
                Some(keys)
            }
            Err(why) => {
                if !std::mem::replace(&mut self.was_told, true) {
                    let path = self.path.display();
                    log::warn!("SHIFT_JOB_KEY_FILE={path}: {why}; the keys that were read before stay valid");
                }
                None
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails should say where")]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("shift-key-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self, bytes: &[u8], mode: u32) -> PathBuf {
            let path = self.0.join("key");
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            path
        }

        fn file_named(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            path
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn refused(path: &Path, words: &str) {
        let why = JobKey::read(path).unwrap_err();
        assert!(why.contains(words), "{why}");
    }

    #[test]
    fn a_private_file_is_the_key_and_all_its_bytes_count() {
        let place = Place::new("good");
        let of = |bytes: &[u8]| JobKey::read(&place.file(bytes, 0o600)).unwrap();
        let key = of(&[7; 32]);
        assert_eq!(key, JobKey::new(&[7; 32]));
        assert!(key != of(&[&[7; 32][..], b"\n"].concat()));
        assert_eq!(JobKey::read(&place.file(&[7; 32], 0o400)).unwrap(), key);
        assert!(of(&[7; 16]) != key && of(&[7; 4096]) != key);
        std::os::unix::fs::symlink(place.0.join("key"), place.0.join("link")).unwrap();
        place.file(&[7; 32], 0o600);
        assert_eq!(JobKey::read(&place.0.join("link")).unwrap(), key);
    }

    #[test]
    fn a_file_that_others_may_read_or_change_is_refused() {
        let place = Place::new("mode");
        for mode in [0o644, 0o640, 0o604, 0o620, 0o602, 0o610, 0o777] {
            refused(&place.file(&[7; 32], mode), &format!("(mode {mode:04o}); chmod it to 0600"));
        }
    }

    #[test]
    fn a_missing_file_and_one_in_a_place_that_is_none_are_refused() {
        let place = Place::new("missing");
        refused(&place.0.join("none"), "cannot be opened (No such file");
        refused(Path::new("/proc/self/mem/none"), "cannot be opened");
        refused(Path::new("a\0b"), "cannot be opened");
    }

    #[test]
    fn a_directory_a_pipe_and_a_device_are_refused_at_once() {
        let place = Place::new("directory");
        refused(&place.0, "it is a directory");
        let pipe = place.0.join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        refused(&pipe, "no regular file");
        refused(Path::new("/dev/zero"), "no regular file");
    }

    #[test]
    fn an_empty_file_a_short_one_and_a_long_one_are_refused() {
        let place = Place::new("length");
        refused(&place.file(b"", 0o600), "it has 0 bytes");
        refused(&place.file(&[7; 15], 0o600), "it has 15 bytes");
        refused(&place.file(&[7; 4097], 0o600), "more than 4096 bytes");
    }

    #[test]
    fn a_file_that_cannot_be_read_or_is_somebody_elses_is_refused() {
        let place = Place::new("owner");
        let path = place.file(&[7; 32], 0o600);
        if geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(4242), None).unwrap();
            refused(&path, "it belongs to user 4242; give it to user 0");
        } else {
            refused(&place.file(&[7; 32], 0o000), "cannot be opened (Permission denied");
        }
    }

    #[test]
    fn a_rotated_key_is_read_again_and_the_older_one_beside_it() {
        let place = Place::new("rotated");
        let (one, two) = (JobKey::new(&[1; 32]), JobKey::new(&[2; 32]));
        let path = place.file(&[1; 32], 0o600);
        assert_eq!(JobKey::read_all(&path), Ok((one.clone(), None)));
        let mut file = KeyFile::new(path.clone());
        assert_eq!(file.changed(), None);
        // As README says: a copy of what is valid, then the new one in its place.
        fs::copy(&path, place.0.join("key.old")).unwrap();
        assert_eq!(file.changed(), Some((one.clone(), Some(one.clone()))));
        fs::rename(place.file_named("new", &[2; 32]), &path).unwrap();
        assert_eq!(file.changed(), Some((two.clone(), Some(one))));
        assert_eq!(file.changed(), None);
        fs::remove_file(place.0.join("key.old")).unwrap();
        assert_eq!(file.changed(), Some((two, None)));
        fs::remove_file(&path).unwrap();
        assert_eq!((file.changed(), file.changed()), (None, None), "what was read stays valid");
    }

    #[test]
    fn an_older_key_that_others_may_read_is_refused_by_its_name() {
        let place = Place::new("older");
        let path = place.file(&[1; 32], 0o600);
        fs::copy(&path, place.0.join("key.old")).unwrap();
        fs::set_permissions(place.0.join("key.old"), Permissions::from_mode(0o644)).unwrap();
        let why = JobKey::read_all(&path).unwrap_err();
        assert!(why.contains("key.old: others than its owner"), "{why}");
    }

    #[test]
    fn the_key_is_never_printed() {
        let key = JobKey::new(b"top secret bytes");
        assert_eq!(format!("{key:?}"), "JobKey");
    }
}
