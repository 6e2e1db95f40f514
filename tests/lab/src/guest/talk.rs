//! What the runner and the agent in a guest say to each other: JSON lines.

use serde::{Deserialize, Serialize};

/// Name of the virtio-serial port.
pub const PORT: &str = "shift.agent";
/// A line of output longer than this is cut there. A shim's record of a migration has some 200 bytes of each request.
pub const LINE_BYTES: usize = 1 << 20;

/// A question with its number.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Question {
    /// Comes back with the answer.
    pub id: u64,
    /// What is asked.
    pub ask: Ask,
}

/// What can be asked of a guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// What time is it?
    Clock,
    /// Starts a program; `run` is the number that its lines and its end will carry.
    Start {
        /// Chosen by the runner.
        run: u64,
        /// What to start.
        program: super::program::Program,
    },
    /// Sends a signal to a program and all it started.
    Signal {
        /// Which.
        run: u64,
        /// Signal number.
        signal: i32,
    },
    /// Kills everything that was started and is still there.
    KillAll,
    /// Reads a text file.
    Read {
        /// Which.
        path: String,
    },
    /// Writes a text file.
    Write {
        /// Which.
        path: String,
        /// Contents.
        text: String,
        /// Permissions.
        mode: u32,
    },
}

/// What a guest says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Say {
    /// The answer to a question.
    Answer {
        /// Of the question.
        id: u64,
        /// What was asked for, or why not.
        result: Result<Fact, String>,
    },
    /// A program printed a line.
    Line {
        /// Which program.
        run: u64,
        /// To where.
        stream: Stream,
        /// Guest CLOCK_MONOTONIC, nanoseconds.
        at_ns: u64,
        /// The line.
        text: String,
    },
    /// A program has ended, and all its lines have been said.
    End {
        /// Which program.
        run: u64,
        /// Guest CLOCK_MONOTONIC, nanoseconds.
        at_ns: u64,
        /// Exit code, if it ended by itself.
        code: Option<i32>,
        /// Signal that ended it, if one did.
        signal: Option<i32>,
    },
}

/// An answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// It is done.
    Done,
    /// Process id of what was started.
    Started(u32),
    /// Both clocks, nanoseconds.
    Clock {
        /// CLOCK_MONOTONIC.
        monotonic: u64,
        /// CLOCK_REALTIME.
        realtime: u64,
    },
    /// Contents of a file.
    Text(String),
}

/// Where a line was printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}
