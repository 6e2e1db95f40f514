//! A directory in a folder that all hosts see: one file for each queue pair.
//!
//! A file comes whole or not at all (a new name, then a rename), and its age is judged by the folder's clock and not by this host's: the
//! time that the folder gave to what this process wrote there last. Nothing is followed or opened that is not a plain file, since
//! others may write there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use nix::libc::{EACCES, EISDIR, ELOOP, ENXIO, EPERM, O_NOFOLLOW, O_NONBLOCK};

use super::entry::{is_name, MAX_ENTRY};
use super::worker::{Store, EXPIRY};

/// Files that one look for old ones goes through.
const MAX_SWEPT: usize = 10_000;
/// The end of the name of a file that is being written.
const HALF: &str = ".half";

/// See the module.
pub(super) struct Folder {
    path: PathBuf,
    /// The folder's time, and when that was.
    clock: Option<(SystemTime, Instant)>,
    /// The name under which this process writes; random, so that nobody can be there before.
    half: String,
    /// Something was in the way of an entry.
    told: AtomicBool,
}

impl Folder {
    /// `process` is the random name of this process.
    pub fn new(path: &Path, process: &str) -> Self {
        Self { path: path.to_owned(), clock: None, half: format!("{process}{HALF}"), told: AtomicBool::new(false) }
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let half = self.path.join(&self.half);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o644).custom_flags(O_NOFOLLOW);
        let file = options.open(&half).or_else(|error| {
            // Left by a write of this process that failed in the middle.
            if error.kind() == io::ErrorKind::AlreadyExists {
                fs::remove_file(&half)?;
            }
            options.open(&half)
        });
        file.and_then(|mut file| file.write_all(text.as_bytes()))?;
        let renamed = fs::rename(&half, self.path.join(name));
        let is_in_the_way = |error: &io::Error| matches!(error.raw_os_error(), Some(EACCES | EPERM | EISDIR));
        if renamed.as_ref().is_err_and(is_in_the_way) {
            // Another user left it in a folder with the sticky bit: the other queue pairs are published all the same.
            let level = if self.told.swap(true, Ordering::Relaxed) { log::Level::Debug } else { log::Level::Warn };
            log::log!(
                level,
                "{} belongs to another user: peers do not find the queue pair there",
                self.path.join(name).display()
            );
            return fs::remove_file(&half);
        }
        renamed
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let opened = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(self.path.join(name));
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Of a folder that is not there, or not mounted, nothing can be said.
                fs::metadata(&self.path)?;
                return Ok(None);
            }
            // Somebody put something there that is no entry, or none for this user.
            Err(error) if matches!(error.raw_os_error(), Some(ELOOP | ENXIO | EACCES | EPERM)) => {
                fs::metadata(&self.path)?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let about = file.metadata()?;
        if !about.is_file() || about.modified().is_ok_and(|at| self.is_older(at, EXPIRY)) {
            return Ok(None);
        }
        read_whole(file).map(Some)
    }

    fn is_older(&self, at: SystemTime, than: Duration) -> bool {
        self.clock.is_some_and(|(seen, since)| {
            let now = seen + since.elapsed();
            now.duration_since(at).is_ok_and(|age| age > than)
        })
    }
}

/// One byte more than an entry has, so that a longer one is seen to be none.
fn read_whole(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_ENTRY as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Store for Folder {
    fn publish(&mut self, names: &[String], text: &str) -> Result<(), String> {
        let written = names.iter().try_for_each(|name| self.write(name, text)).map_err(|error| error.to_string());
        if let Some(at) = names.last().and_then(|name| fs::metadata(self.path.join(name)).ok()?.modified().ok()) {
            self.clock = Some((at, Instant::now()));
        }
        written
    }

    fn find(&mut self, names: &[String]) -> Result<Vec<Option<Vec<u8>>>, String> {
        names.iter().map(|name| self.read(name).map_err(|error| error.to_string())).collect()
    }

    fn withdraw(&mut self, names: &[String], text: &str) -> Result<(), String> {
        for name in names {
            let is_own = self.read(name).map_err(|error| error.to_string())?.is_some_and(|it| it == text.as_bytes());
            let removed = if is_own { fs::remove_file(self.path.join(name)) } else { Ok(()) };
            if let Err(error) = removed.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) }) {
                return Err(error.to_string());
            }
        }
        Ok(())
    }

    /// Of processes that ended without a word.
    fn sweep(&mut self) -> Result<(), String> {
        let listed = fs::read_dir(&self.path).map_err(|error| error.to_string())?;
        for file in listed.take(MAX_SWEPT).flatten() {
            let name = file.file_name();
            let is_ours = name.to_str().is_some_and(|name| is_name(name) || name.ends_with(HALF));
            let about = file.metadata().ok().filter(|about| about.is_file() && is_ours);
            if about.and_then(|about| about.modified().ok()).is_some_and(|at| self.is_older(at, 2 * EXPIRY)) {
                // Somebody else may not want it removed, or did so first.
                let _ = fs::remove_file(file.path());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails should say where")]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::process::Command;
    use std::slice;

    use super::super::entry::name_of;
    use super::*;
    use crate::datapath::Gid;

    struct Temporary(PathBuf);

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn folder(name: &str) -> (Temporary, Folder, String) {
        let path = std::env::temp_dir().join(format!("shift-folder-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let folder = Folder::new(&path, "me");
        (Temporary(path), folder, name_of((Gid([7; 16]), 17)))
    }

    fn found(folder: &mut Folder, name: &str) -> Option<Vec<u8>> {
        folder.find(&[name.to_owned()]).unwrap().remove(0)
    }

    fn set_age(path: &Path, age: Duration) {
        File::options().write(true).open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
    }

    #[test]
    fn what_is_published_is_found_until_its_owner_withdraws_it() {
        let (_path, mut folder, name) = folder("published");
        assert_eq!(found(&mut folder, &name), None);
        folder.publish(slice::from_ref(&name), "here").unwrap();
        assert_eq!(found(&mut folder, &name).as_deref(), Some(b"here".as_slice()));
        folder.withdraw(slice::from_ref(&name), "somewhere else").unwrap();
        assert!(found(&mut folder, &name).is_some(), "nobody withdraws what another process wrote");
        folder.withdraw(slice::from_ref(&name), "here").unwrap();
        folder.withdraw(slice::from_ref(&name), "here").unwrap();
        assert_eq!(found(&mut folder, &name), None);
        assert_eq!(fs::read_dir(&folder.path).unwrap().count(), 0);
    }

    #[test]
    fn an_entry_that_nobody_refreshes_counts_no_more_and_is_swept() {
        let (_path, mut folder, name) = folder("old");
        let fresh = name_of((Gid([8; 16]), 18));
        folder.publish(&[name.clone(), fresh.clone()], "here").unwrap();
        let notes = folder.path.join("notes");
        fs::write(&notes, "not ours").unwrap();
        set_age(&notes, 9 * EXPIRY);
        set_age(&folder.path.join(&name), EXPIRY + Duration::from_secs(60));
        assert_eq!(found(&mut folder, &name), None);
        folder.sweep().unwrap();
        assert!(folder.path.join(&name).exists(), "who is a little late may come back");
        set_age(&folder.path.join(&name), 3 * EXPIRY);
        folder.sweep().unwrap();
        assert!(!folder.path.join(&name).exists() && notes.exists());
        assert!(found(&mut folder, &fresh).is_some());
    }

    #[test]
    fn the_age_is_judged_by_the_folders_clock() {
        let (_path, mut folder, name) = folder("clock");
        folder.publish(slice::from_ref(&name), "here").unwrap();
        // The server is hours behind this host.
        let hours = Duration::from_secs(4 * 3600);
        set_age(&folder.path.join(&name), hours);
        folder.clock = Some((SystemTime::now() - hours, Instant::now()));
        assert!(found(&mut folder, &name).is_some());
    }

    #[test]
    fn links_devices_and_long_files_are_no_entries() {
        let (_path, mut folder, name) = folder("links");
        let elsewhere = folder.path.join("elsewhere");
        fs::write(&elsewhere, "secret").unwrap();
        symlink(&elsewhere, folder.path.join(&name)).unwrap();
        assert_eq!(found(&mut folder, &name), None, "a link is not followed");
        folder.publish(slice::from_ref(&name), "here").unwrap();
        assert_eq!(fs::read(&elsewhere).unwrap(), b"secret", "nor written through");
        fs::remove_file(folder.path.join(&name)).unwrap();
        assert!(Command::new("mkfifo").arg(folder.path.join(&name)).status().unwrap().success());
        assert_eq!(found(&mut folder, &name), None, "a pipe is not waited for");
        fs::remove_file(folder.path.join(&name)).unwrap();
        let _socket = UnixListener::bind(folder.path.join(&name)).unwrap();
        assert_eq!(found(&mut folder, &name), None, "a socket is no trouble of the folder");
        folder.publish(slice::from_ref(&name), &"x".repeat(3 * MAX_ENTRY)).unwrap();
        assert_eq!(found(&mut folder, &name).unwrap().len(), MAX_ENTRY + 1);
    }

    #[test]
    fn what_is_in_the_way_of_one_entry_keeps_no_other_from_its_place() {
        let (_path, mut folder, name) = folder("way");
        let other = name_of((Gid([8; 16]), 18));
        fs::create_dir(folder.path.join(&name)).unwrap();
        folder.publish(&[name.clone(), other.clone()], "here").unwrap();
        assert_eq!(found(&mut folder, &name), None);
        assert!(found(&mut folder, &other).is_some());
        assert_eq!(fs::read_dir(&folder.path).unwrap().count(), 2, "nothing half is left");
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_and_no_answer() {
        let mut folder = Folder::new(Path::new("/no/such/folder"), "me");
        let name = name_of((Gid([7; 16]), 17));
        for words in [folder.publish(slice::from_ref(&name), "here").unwrap_err(), folder.find(&[name]).unwrap_err()] {
            assert!(words.contains("No such file or directory"), "{words}");
        }
        assert!(folder.sweep().is_err());
    }
}
