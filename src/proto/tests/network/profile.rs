//! What may go wrong in a run, how often, and the dice.

/// What may go wrong, in chances of 1000.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    pub drop: u64,
    pub repeat: u64,
    pub max_delay_us: u64,
    pub cuts: u64,
    pub outages: u64,
    pub weak_fence: u64,
    pub stuck_fence: u64,
    pub refusal: u64,
    pub stop: u64,
    pub hold: u64,
    pub sleep: u64,
    pub destroy: u64,
    pub application_error: u64,
    pub stuck_poster: u64,
    /// Wishes for a planned move, at most.
    pub plans: u64,
    /// Sends that do not end for a while, as to a peer that is not ready to receive.
    pub slow_drain: u64,
    /// The first path flaps, and both ends go back to it by the hold-down.
    pub flaps: bool,
    /// Paths that there are.
    pub paths: u8,
    /// They die in turn, and one of them is there at any time.
    pub in_turn: bool,
    /// Of an end that does not run, microseconds.
    pub longest_sleep: u64,
    /// Rails that an operator drains and lets back, at most, at each end.
    pub drains: u64,
    /// At each end a device is removed, and then it is torn out.
    pub removals: u64,
    pub torn: u64,
    /// Times without any network between the processes, at most.
    pub silences: u64,
    /// The process of an end dies.
    pub deaths: u64,
    /// Times in which a path answers late, at most.
    pub slow: u64,
    /// The faults end then, microseconds.
    pub span: u64,
}

impl Profile {
    pub const fn calm() -> Self {
        Self {
            drop: 0,
            repeat: 100,
            max_delay_us: 5_000,
            cuts: 0,
            outages: 1,
            weak_fence: 0,
            stuck_fence: 0,
            refusal: 0,
            stop: 0,
            hold: 0,
            sleep: 0,
            destroy: 0,
            application_error: 0,
            stuck_poster: 0,
            plans: 0,
            slow_drain: 0,
            flaps: false,
            paths: 2,
            in_turn: false,
            longest_sleep: 6_000_000,
            drains: 0,
            removals: 0,
            torn: 0,
            silences: 0,
            deaths: 0,
            slow: 0,
            span: 25_000_000,
        }
    }

    /// Nothing is wrong, and the connection is moved to and fro by plan, from both ends.
    pub const fn planned() -> Self {
        Self { outages: 0, plans: 12, slow_drain: 150, stuck_poster: 50, drop: 50, ..Self::calm() }
    }

    /// The same while links flap.
    pub const fn flapping() -> Self {
        Self { outages: 6, ..Self::planned() }
    }

    /// An hour of it, with the hold-down at both ends.
    pub const fn flapping_for_an_hour() -> Self {
        Self { flaps: true, span: 3_600_000_000, slow_drain: 100, drop: 20, max_delay_us: 20_000, ..Self::calm() }
    }

    pub const fn rough() -> Self {
        Self {
            drop: 150,
            repeat: 200,
            max_delay_us: 120_000,
            cuts: 3,
            outages: 4,
            weak_fence: 30,
            stuck_fence: 20,
            refusal: 10,
            stop: 60,
            hold: 300,
            sleep: 100,
            destroy: 20,
            application_error: 20,
            stuck_poster: 100,
            plans: 6,
            slow_drain: 200,
            ..Self::calm()
        }
    }

    /// Rails are drained and let back at both ends, and devices removed that go on for who has them open. Nothing is broken.
    pub const fn operated() -> Self {
        Self { outages: 0, paths: 3, drains: 4, removals: 300, slow_drain: 100, stuck_poster: 50, ..Self::calm() }
    }

    /// No network between the processes for seconds, ends that stand still; all paths are well.
    pub const fn silent() -> Self {
        Self { outages: 0, silences: 3, sleep: 300, longest_sleep: 15_000_000, drop: 50, ..Self::calm() }
    }

    /// Processes die, beside faults of a path.
    pub const fn mortal() -> Self {
        Self { deaths: 500, outages: 3, plans: 3, drop: 50, max_delay_us: 30_000, slow_drain: 100, ..Self::calm() }
    }

    /// All of it on three paths in a bad network, with faults of all kinds.
    pub const fn everything() -> Self {
        Self {
            drains: 2,
            removals: 200,
            torn: 500,
            silences: 2,
            deaths: 60,
            slow: 2,
            longest_sleep: 15_000_000,
            ..Self::rough_on_three()
        }
    }

    /// Three paths of which two die for good, and the first to die is back before the last does.
    pub const fn three_in_turn() -> Self {
        Self { paths: 3, in_turn: true, drop: 50, max_delay_us: 20_000, stuck_poster: 50, ..Self::calm() }
    }

    /// Everything goes wrong, on three paths.
    pub const fn rough_on_three() -> Self {
        Self { paths: 3, outages: 6, ..Self::rough() }
    }

    pub const fn weak_fences() -> Self {
        Self { weak_fence: 400, stuck_fence: 100, drop: 50, ..Self::calm() }
    }

    pub const fn destroyed() -> Self {
        Self { destroy: 700, drop: 100, max_delay_us: 60_000, outages: 2, ..Self::calm() }
    }
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
#[derive(Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub fn chance(&mut self, in_1000: u64) -> bool {
        self.below(1000) < in_1000
    }
}
