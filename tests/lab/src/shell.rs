//! `scripts/lab shell`: this terminal becomes the console of a guest.

use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;

use nix::sys::termios::{cfmakeraw, tcgetattr, tcsetattr, SetArg, Termios};

use crate::lab::Lab;
use crate::place::Host;
use crate::runner::say;
use crate::trouble::{Concerning, Result};

/// Ctrl-] ends the session, as in telnet.
const LEAVE: u8 = 0x1d;

/// Connects this terminal to the console of `host` until Ctrl-] or the end of input.
///
/// # Errors
/// The console is not there.
pub fn attach(lab: &mut Lab, host: Host) -> Result<()> {
    let console = UnixStream::connect(lab.pair().console_socket(host)).concerning("console")?;
    say(&format!(
        "host {}; the other is {}; what was built is in /shift; leave with Ctrl-]",
        host.name(),
        host.peer().name()
    ));
    let mut from_guest = console.try_clone()?;
    thread::spawn(move || std::io::copy(&mut from_guest, &mut std::io::stdout().lock()));
    let _raw = RawTerminal::enter();
    let mut to_guest = &console;
    to_guest.write_all(b"\n")?;
    let mut bytes = [0; 256];
    let mut stdin = std::io::stdin().lock();
    while let Ok(count @ 1..) = stdin.read(&mut bytes) {
        let typed = bytes.get(..count).unwrap_or(&[]);
        if typed.contains(&LEAVE) {
            break;
        }
        to_guest.write_all(typed)?;
    }
    Ok(())
}

/// Puts the terminal back when dropped.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter() -> RawTerminal {
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd()).ok().filter(|_| stdin.is_terminal());
        if let Some(before) = &before {
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            let _ = tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw);
        }
        RawTerminal(before)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, before);
        }
    }
}
