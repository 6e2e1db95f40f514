//! The words that threads share: the machine's, or in a build with `--cfg loom` loom's, under which models try every interleaving of the same code, and
//! every outcome that its orders allow (`ci/loom`).
//!
//! There each access that is ordered has a site, its line in the sources, and one of them at a time can be made Relaxed. A model says which it needs:
//! without one of those it must fail, without another it must not. Statics, and words that no model looks at, stay the machine's.

#[cfg(not(loom))]
mod machine {
    pub use core::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU16, AtomicU32, AtomicU64, AtomicU8, AtomicUsize, Ordering,
    };

    /// The end of an exclusion that an exchange began.
    #[inline]
    pub fn leave(word: &AtomicU32, value: u32) {
        word.store(value, Ordering::Release);
    }
}

#[cfg(loom)]
mod modelled {
    #![allow(missing_docs, reason = "each is what it stands for")]
    #![allow(clippy::expect_used, clippy::panic, reason = "a model that fails should say where")]

    use core::panic::Location;
    pub use core::sync::atomic::Ordering;
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::io::Write;
    use std::path::PathBuf;
    use std::process::Command;

    /// A file and a line.
    pub type Site = (&'static str, u32);

    thread_local! {
        static SITES: RefCell<BTreeSet<Site>> = const { RefCell::new(BTreeSet::new()) };
        static WEAKENED: RefCell<Option<(String, u32)>> = const { RefCell::new(None) };
    }

    /// Runs with the order at that site left out; gives what came of it and every site that has one.
    pub fn weakened<R>(site: Option<(String, u32)>, run: impl FnOnce() -> R) -> (R, BTreeSet<Site>) {
        SITES.take();
        WEAKENED.set(site);
        let result = run();
        WEAKENED.set(None);
        (result, SITES.take())
    }

    #[track_caller]
    fn ordered(order: Ordering) -> Ordering {
        if order == Ordering::Relaxed {
            return order;
        }
        let site = (Location::caller().file(), Location::caller().line());
        SITES.with_borrow_mut(|sites| sites.insert(site));
        let is_left_out =
            WEAKENED.with_borrow(|left| left.as_ref().is_some_and(|(file, line)| (file.as_str(), *line) == site));
        if is_left_out {
            Ordering::Relaxed
        } else {
            order
        }
    }

    macro_rules! words {
        ($($name:ident: $plain:ty { $($more:tt)* })*) => { $(
            #[derive(Debug, Default)]
            pub struct $name(loom::sync::atomic::$name);

            #[allow(dead_code, reason = "each has what the machine's has")]
            impl $name {
                pub fn new(value: $plain) -> Self {
                    Self(loom::sync::atomic::$name::new(value))
                }

                #[track_caller]
                pub fn load(&self, order: Ordering) -> $plain {
                    self.0.load(ordered(order))
                }

                #[track_caller]
                pub fn store(&self, value: $plain, order: Ordering) {
                    self.0.store(value, ordered(order));
                }

                #[track_caller]
                pub fn swap(&self, value: $plain, order: Ordering) -> $plain {
                    self.0.swap(value, ordered(order))
                }

                #[track_caller]
                pub fn fetch_or(&self, value: $plain, order: Ordering) -> $plain {
                    self.0.fetch_or(value, ordered(order))
                }

                #[track_caller]
                pub fn fetch_and(&self, value: $plain, order: Ordering) -> $plain {
                    self.0.fetch_and(value, ordered(order))
                }

                #[track_caller]
                pub fn compare_exchange(&self, from: $plain, to: $plain, good: Ordering, bad: Ordering) -> Result<$plain, $plain> {
                    self.0.compare_exchange(from, to, ordered(good), ordered(bad))
                }

                words!(@ $plain; $($more)*);
            }
        )* };
        (@ $plain:ty; sums) => {
            #[track_caller]
            pub fn fetch_add(&self, value: $plain, order: Ordering) -> $plain {
                self.0.fetch_add(value, ordered(order))
            }

            #[track_caller]
            pub fn fetch_sub(&self, value: $plain, order: Ordering) -> $plain {
                self.0.fetch_sub(value, ordered(order))
            }
        };
        (@ $plain:ty; ) => {};
    }

    words! {
        AtomicBool: bool {}
        AtomicU8: u8 { sums }
        AtomicU16: u16 { sums }
        AtomicU32: u32 { sums }
        AtomicU64: u64 { sums }
        AtomicUsize: usize { sums }
    }

    /// As above.
    #[derive(Debug)]
    pub struct AtomicPtr<T>(loom::sync::atomic::AtomicPtr<T>);

    impl<T> AtomicPtr<T> {
        pub fn new(value: *mut T) -> Self {
            Self(loom::sync::atomic::AtomicPtr::new(value))
        }

        #[track_caller]
        pub fn load(&self, order: Ordering) -> *mut T {
            self.0.load(ordered(order))
        }

        #[track_caller]
        pub fn store(&self, value: *mut T, order: Ordering) {
            self.0.store(value, ordered(order));
        }

        #[track_caller]
        pub fn swap(&self, value: *mut T, order: Ordering) -> *mut T {
            self.0.swap(value, ordered(order))
        }
    }

    /// As an exchange: loom lets a store come before exchanges that read what it follows, for which there is no room in between.
    #[track_caller]
    pub fn leave(word: &AtomicU32, value: u32) {
        word.swap(value, Ordering::Release);
    }

    /// In the environment of a control: FILE:LINE.
    const SITE: &str = "WEAKENED";

    /// Tries the model, and then with each order left out. `needs`: words of the lines whose order it needs, and of no others.
    pub fn holds(preemptions: usize, needs: &[&str], model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        (builder.preemption_bound, builder.max_branches) = (Some(preemptions), 20_000);
        if let Ok(place) = std::env::var(SITE) {
            let (file, line) = place.rsplit_once(':').expect("FILE:LINE");
            weakened(Some((file.to_owned(), line.parse().expect("a line"))), || builder.check(model));
            return;
        }
        let ((), sites) = weakened(None, || builder.check(model));
        assert!(!sites.is_empty(), "nothing is ordered here");
        let mut wrong = Vec::new();
        for site in sites {
            let text = line_of(&site);
            let is_needed = fails_without(&site);
            let verdict = if is_needed { "needed" } else { "not needed" };
            let _ = writeln!(std::io::stdout(), "{}:{}: {verdict}: {}", site.0, site.1, text.trim());
            if is_needed != needs.iter().any(|words| text.contains(words)) {
                wrong.push(format!("{}:{}: {}", site.0, site.1, text.trim()));
            }
        }
        assert!(wrong.is_empty(), "needed or not, against what the model says: {wrong:#?}");
    }

    fn line_of((file, line): &Site) -> String {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
        let text = std::fs::read_to_string(path).expect("the sources are there");
        text.lines().nth(*line as usize - 1).expect("the line is there").to_owned()
    }

    /// The test that runs, alone, in another process.
    fn fails_without((file, line): &Site) -> bool {
        let test = std::thread::current().name().expect("a test has a name").to_owned();
        let program = std::env::current_exe().expect("it runs");
        let output = Command::new(program).args([&test, "--exact"]).env(SITE, format!("{file}:{line}")).output();
        let output = output.expect("it runs again");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("running 1 test"), "{said}");
        !output.status.success()
    }
}

#[cfg(not(loom))]
pub use machine::*;
#[cfg(loom)]
pub use modelled::*;
