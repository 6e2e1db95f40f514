//! What ends a pause: a line on stdin, or a file.

use std::io::{stdin, BufRead};
use std::path::PathBuf;
use std::sync::mpsc::{channel, Receiver};

/// The end of a pause, to be asked for again and again.
#[derive(Debug)]
pub enum Trigger {
    /// The file appears.
    File(PathBuf),
    /// A line comes on stdin, or stdin ends.
    Line(Receiver<()>),
}

impl Trigger {
    /// The file if one is named, else stdin.
    #[must_use]
    pub fn new(file: Option<PathBuf>) -> Self {
        if let Some(file) = file {
            return Trigger::File(file);
        }
        let (send, receive) = channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            // An end or an error of stdin must not leave the run idle for ever.
            let _ = stdin().lock().read_line(&mut line);
            let _ = send.send(());
        });
        Trigger::Line(receive)
    }

    /// Whether it came.
    pub fn fired(&mut self) -> bool {
        match self {
            Trigger::File(file) => file.exists(),
            Trigger::Line(line) => line.try_recv().is_ok(),
        }
    }
}
