//! What ends a pause: a line on stdin, or a file.

use std::io::{stdin, BufRead};
use std::path::PathBuf;
use std::sync::mpsc::{channel, Receiver, TryRecvError};

/// The end of a pause, to be asked for again and again.
#[derive(Debug)]
pub enum Trigger {
    /// The file appears.
    File(PathBuf),
    /// A line comes on stdin.
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
            // Where stdin ends or fails, the sender is dropped without a word.
            if stdin().lock().read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                let _ = send.send(());
            }
        });
        Trigger::Line(receive)
    }

    /// Whether it came; an error if it cannot come any more: a pause that nobody ends would prove nothing.
    pub fn fired(&mut self) -> Result<bool, String> {
        match self {
            Trigger::File(file) => Ok(file.exists()),
            Trigger::Line(line) => match line.try_recv() {
                Ok(()) => Ok(true),
                Err(TryRecvError::Empty) => Ok(false),
                Err(TryRecvError::Disconnected) => Err("stdin ended before the pause was ended".to_owned()),
            },
        }
    }
}
