//! The directory's own thread, and the board on which the agent leaves what it wants and finds what came.
//!
//! The agent never waits for the thread: the board's lock is held for a few steps in memory, never while the directory is asked. A
//! directory that does not answer keeps its thread and nobody else. What the board holds is bounded by the queue pairs of the process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mio::Waker;

use super::entry::{name_of, Entry};
use crate::registry::Owned;

/// An entry that was not refreshed for so long counts no more.
pub(super) const EXPIRY: Duration = Duration::from_secs(120);
/// How often entries are refreshed.
const REFRESH: Duration = Duration::from_secs(30);
/// How often a folder is looked through for entries of processes that ended without a word.
const SWEEP: Duration = Duration::from_secs(600);
/// First wait until the same is looked up again; it doubles up to [`LAST_LOOK`].
const FIRST_LOOK: Duration = Duration::from_millis(20);
/// A peer may start minutes later.
const LAST_LOOK: Duration = Duration::from_secs(2);
/// The same after a directory failed.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// Entries in one question.
const BATCH: usize = 64;
/// Entries that wait to be removed; others expire.
const MAX_GONE: usize = 65_536;
/// A question takes longer only if something is wrong.
const SLOW: Duration = Duration::from_secs(1);
/// How often it is said that the directory failed.
const REPEAT: Duration = Duration::from_secs(60);

/// What a directory can do. Every call may take long; an error is of the directory as a whole.
pub(super) trait Store: Send {
    /// Writes the text under each name.
    fn publish(&mut self, names: &[String], text: &str) -> Result<(), String>;
    /// Reads what is under each name; nothing of what nobody refreshes.
    fn find(&mut self, names: &[String]) -> Result<Vec<Option<Vec<u8>>>, String>;
    /// Removes each name, if the text is still there.
    fn withdraw(&mut self, names: &[String], text: &str) -> Result<(), String>;
    /// Removes what nobody refreshes, if the directory does not do that by itself.
    fn sweep(&mut self) -> Result<(), String>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Publish,
    Withdraw,
    Find,
    Sweep,
}

struct Job {
    kind: Kind,
    keys: Vec<Owned>,
}

struct Look {
    due: Instant,
    wait: Duration,
}

struct Board {
    own: BTreeSet<Owned>,
    /// Of the own ones those that have to be written.
    unwritten: BTreeSet<Owned>,
    gone: BTreeSet<Owned>,
    sought: BTreeMap<Owned, Look>,
    found: BTreeMap<Owned, Entry>,
    refresh_due: Instant,
    sweep_due: Instant,
    /// The process ends: what is left is removed, then the thread ends.
    ending: bool,
    ended: bool,
    trouble: Option<String>,
    /// After a failure: when the directory is asked again, and the pause after that.
    retry: Option<(Instant, Duration)>,
    /// The directory is being asked since then.
    asking: Option<Instant>,
    told: Option<Instant>,
}

/// See the module.
pub(super) struct Shared {
    board: Mutex<Board>,
    /// The agent left something, or the thread ended.
    changed: Condvar,
    /// The directory, for people.
    place: String,
    waker: Arc<Waker>,
}

impl Shared {
    pub fn new(place: String, waker: Arc<Waker>) -> Self {
        let now = Instant::now();
        let board = Board {
            own: BTreeSet::new(),
            unwritten: BTreeSet::new(),
            gone: BTreeSet::new(),
            sought: BTreeMap::new(),
            found: BTreeMap::new(),
            refresh_due: now + REFRESH,
            sweep_due: now + REFRESH,
            ending: false,
            ended: false,
            trouble: None,
            retry: None,
            asking: None,
            told: None,
        };
        Self { board: Mutex::new(board), changed: Condvar::new(), place, waker }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn publish(&self, key: Owned) {
        let mut board = self.board();
        board.own.insert(key);
        board.unwritten.insert(key);
        board.gone.remove(&key);
        self.changed.notify_all();
    }

    pub fn withdraw(&self, key: Owned) {
        let mut board = self.board();
        board.unwritten.remove(&key);
        if board.own.remove(&key) && board.gone.len() < MAX_GONE {
            board.gone.insert(key);
        }
        self.changed.notify_all();
    }

    pub fn seek(&self, key: Owned) {
        self.board().sought.insert(key, Look { due: Instant::now(), wait: FIRST_LOOK });
        self.changed.notify_all();
    }

    pub fn stop(&self, key: Owned) {
        let mut board = self.board();
        board.sought.remove(&key);
        board.found.remove(&key);
    }

    pub fn take_found(&self) -> BTreeMap<Owned, Entry> {
        std::mem::take(&mut self.board().found)
    }

    /// What is to be said of a peer that is not found.
    pub fn words(&self) -> String {
        let board = self.board();
        let place = &self.place;
        match (&board.trouble, board.asking) {
            (Some(trouble), _) => format!("SHIFT_DIRECTORY={place} cannot be used ({trouble})"),
            (None, Some(since)) if since.elapsed() > SLOW => format!("SHIFT_DIRECTORY={place} does not answer"),
            (None, _) => format!("SHIFT_DIRECTORY={place} leads to no such process"),
        }
    }

    /// The process ends: its entries are removed.
    pub fn end(&self) {
        let mut board = self.board();
        let own = std::mem::take(&mut board.own);
        board.gone.extend(own);
        board.unwritten.clear();
        board.sought.clear();
        board.ending = true;
        self.changed.notify_all();
    }

    /// Waits until they are, or for so long.
    pub fn wait_ended(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut board = self.board();
        while !board.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            board = self.changed.wait_timeout(board, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The thread.
    pub fn run(&self, store: &mut dyn Store, text: &str) {
        while let Some(job) = self.next_job() {
            let names: Vec<String> = job.keys.iter().map(|key| name_of(*key)).collect();
            let done = match job.kind {
                Kind::Publish => store.publish(&names, text).map(|()| Vec::new()),
                Kind::Withdraw => store.withdraw(&names, text).map(|()| Vec::new()),
                Kind::Find => store.find(&names),
                Kind::Sweep => store.sweep().map(|()| Vec::new()),
            };
            self.finish(&job, done);
        }
        self.set_ended();
    }

    /// Nobody asks the directory any more.
    pub fn set_ended(&self) {
        self.board().ended = true;
        self.changed.notify_all();
    }

    /// Waits for something to do; `None`: the process ends.
    fn next_job(&self) -> Option<Job> {
        let mut board = self.board();
        loop {
            let now = Instant::now();
            let pause = board.retry.map(|(due, _)| due).filter(|due| *due > now);
            if board.ending && (pause.is_some() || board.gone.is_empty()) {
                return None;
            }
            if let Some(job) = pause.is_none().then(|| board.due_job(now)).flatten() {
                board.asking = Some(now);
                return Some(job);
            }
            let until = pause.unwrap_or_else(|| board.next_due()).saturating_duration_since(now);
            board = self.changed.wait_timeout(board, until).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn finish(&self, job: &Job, done: Result<Vec<Option<Vec<u8>>>, String>) {
        let now = Instant::now();
        let mut board = self.board();
        board.asking = None;
        let answers = match done {
            Ok(answers) => answers,
            Err(error) => {
                let line = board.failed(error, now);
                drop(board);
                return self.tell_trouble(line);
            }
        };
        board.retry = None;
        let recovered = board.trouble.take().is_some();
        let news = board.settle(job, &answers, now);
        let tells = recovered && board.told.is_some();
        drop(board);
        if tells {
            log::info!("SHIFT_DIRECTORY={} answers again", self.place);
        }
        if news {
            if let Err(error) = self.waker.wake() {
                log::debug!("the agent was not woken: {error}");
            }
        }
    }

    fn tell_trouble(&self, line: Option<String>) {
        if let Some(error) = line {
            log::warn!(
                "SHIFT_DIRECTORY={} cannot be used ({error}): it is tried again; what is protected needs no directory, and a peer \
                 that the remote GID leads to is found all the same",
                self.place
            );
        }
    }
}

impl Board {
    /// What is to be done first; it stays on the board until it is done.
    fn due_job(&mut self, now: Instant) -> Option<Job> {
        if now >= self.refresh_due {
            self.refresh_due = now + REFRESH;
            self.unwritten.extend(self.own.iter().copied());
        }
        let batch = |keys: &BTreeSet<Owned>| keys.iter().copied().take(BATCH).collect::<Vec<Owned>>();
        let looks = self.sought.iter().filter(|(_, look)| now >= look.due).map(|(key, _)| *key).take(BATCH);
        let looks: Vec<Owned> = looks.collect();
        let job = |kind, keys| Some(Job { kind, keys });
        if !self.unwritten.is_empty() {
            job(Kind::Publish, batch(&self.unwritten))
        } else if !looks.is_empty() {
            job(Kind::Find, looks)
        } else if !self.gone.is_empty() {
            job(Kind::Withdraw, batch(&self.gone))
        } else if now >= self.sweep_due {
            self.sweep_due = now + SWEEP;
            job(Kind::Sweep, Vec::new())
        } else {
            None
        }
    }

    fn next_due(&self) -> Instant {
        let looks = self.sought.values().map(|look| look.due);
        looks.chain([self.refresh_due, self.sweep_due]).min().unwrap_or(self.refresh_due)
    }

    /// `Some`: it is to be told.
    fn failed(&mut self, error: String, now: Instant) -> Option<String> {
        let pause = self.retry.map_or(FIRST_PAUSE, |(_, pause)| pause);
        self.retry = Some((now + pause, (pause * 2).min(LAST_PAUSE)));
        let is_new = self.trouble.is_none() && self.told.is_none_or(|at| now.duration_since(at) > REPEAT);
        self.trouble = Some(error.clone());
        if is_new {
            self.told = Some(now);
        }
        is_new.then_some(error)
    }

    /// `true`: something was found.
    fn settle(&mut self, job: &Job, answers: &[Option<Vec<u8>>], now: Instant) -> bool {
        match job.kind {
            Kind::Publish => forget(&mut self.unwritten, &job.keys),
            Kind::Withdraw => forget(&mut self.gone, &job.keys),
            Kind::Find | Kind::Sweep => {}
        }
        for (key, answer) in job.keys.iter().zip(answers) {
            let Some(look) = self.sought.get_mut(key) else {
                continue;
            };
            (look.due, look.wait) = (now + look.wait, (look.wait * 2).min(LAST_LOOK));
            if let Some(entry) = answer.as_deref().and_then(Entry::read) {
                self.found.insert(*key, entry);
            }
        }
        !self.found.is_empty()
    }
}

fn forget(set: &mut BTreeSet<Owned>, keys: &[Owned]) {
    for key in keys {
        set.remove(key);
    }
}
