//! Taking a rail out of use with the jobs running: every process is told, and asked until no connection of it is there any more.
//!
//! What root drains is written down too, for processes that start later; what another user drains holds for the processes of that user that run now.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use serde::Serialize;
use shift_control::counters::DEVICES;
use shift_control::drains::DIRECTORY;
use shift_control::status::{Request, Status};

use crate::process::{self, NoAnswer};

/// How often the processes are asked.
const PACE: Duration = Duration::from_millis(200);

/// What is asked for.
pub struct Order {
    /// The device.
    pub device: String,
    /// It is to be empty, or used again.
    pub drained: bool,
    /// How long to wait until it is empty.
    pub wait: Duration,
    /// One JSON object at the end instead of words.
    pub json: bool,
}

/// How a rail stands, over all processes that were asked. `shiftctl drain --json` prints this: none of the fields is renamed or removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rail {
    /// The device.
    pub device: String,
    /// It is drained, or not any more.
    pub drained: bool,
    /// No queue pair of these processes is on it.
    pub empty: bool,
    /// It holds for processes that start later too.
    pub lasting: bool,
    /// Processes that answered.
    pub processes: usize,
    /// Those that did not, or cannot be told.
    pub unanswered: Vec<u32>,
    /// Queue pairs on it, by process: those that can be moved, and those that cannot, with the first reason.
    pub on_it: Vec<OnIt>,
}

/// The queue pairs of one process that are on the rail.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OnIt {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub program: String,
    /// Queue pairs that will be moved.
    pub to_move: usize,
    /// Queue pairs that nothing moves.
    pub stuck: usize,
    /// Why, of the first of them.
    pub reason: Option<String>,
}

impl Rail {
    fn take(&mut self, status: &Status) {
        self.processes += 1;
        let here =
            || status.queue_pairs.iter().filter(|qp| qp.path == self.device || (qp.moving && qp.device == self.device));
        let stuck = || here().filter(|qp| !qp.protected);
        if here().next().is_some() {
            self.on_it.push(OnIt {
                pid: status.pid,
                program: status.program.clone(),
                to_move: here().count() - stuck().count(),
                stuck: stuck().count(),
                reason: stuck().find_map(|qp| qp.reason.clone()),
            });
        }
        self.empty = self.on_it.is_empty() && self.unanswered.is_empty();
    }

    fn words(&self) -> String {
        let sum = |of: fn(&OnIt) -> usize| self.on_it.iter().map(of).sum::<usize>();
        let (to_move, stuck) = (sum(|one| one.to_move), sum(|one| one.stuck));
        format!("{}: {to_move} to move, {stuck} that cannot be moved, of {} processes", self.device, self.processes)
    }
}

/// `false`: it is not empty, or somebody did not answer.
pub fn run(order: &Order, out: &mut impl Write, err: &mut impl Write) -> io::Result<bool> {
    if !is_name(&order.device) || !Path::new(DEVICES).join(&order.device).exists() {
        writeln!(err, "shiftctl: there is no device {}; see {DEVICES}", order.device)?;
        return Ok(false);
    }
    let lasting = match write_down(order) {
        Ok(lasting) => lasting,
        Err(error) => {
            writeln!(err, "shiftctl: {DIRECTORY}/{}: {error}", order.device)?;
            return Ok(false);
        }
    };
    if !lasting {
        writeln!(
            err,
            "shiftctl: only processes of this user that run now are told; as root it holds for all, and for later ones"
        )?;
    }
    let until = Instant::now() + order.wait;
    let mut told = String::new();
    loop {
        let rail = ask_all(order, lasting, err)?;
        let is_over = !order.drained || rail.empty || Instant::now() >= until;
        if !order.json && order.drained && rail.words() != told && !rail.empty {
            told = rail.words();
            writeln!(out, "{told}")?;
        }
        if is_over {
            return tell(order, &rail, out);
        }
        std::thread::sleep(PACE);
    }
}

/// A device is a file's name in two folders, and leads nowhere else.
fn is_name(device: &str) -> bool {
    !device.contains('/') && !matches!(device, "" | "." | "..")
}

fn tell(order: &Order, rail: &Rail, out: &mut impl Write) -> io::Result<bool> {
    if order.json {
        serde_json::to_writer_pretty(&mut *out, rail)?;
        writeln!(out)?;
    } else if !order.drained {
        writeln!(out, "{}: may be used again by {} processes", rail.device, rail.processes)?;
    } else if rail.empty {
        let whose = if rail.lasting { "" } else { ", as far as the processes of this user go" };
        writeln!(out, "{}: empty{whose}", rail.device)?;
    } else {
        for one in &rail.on_it {
            let reason = one.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            writeln!(out, "  {} {}: {} to move, {} stuck{reason}", one.pid, one.program, one.to_move, one.stuck)?;
        }
        writeln!(out, "{}: not empty", rail.device)?;
    }
    Ok(rail.unanswered.is_empty() && (rail.empty || !order.drained))
}

/// For processes that start later. `false`: this user cannot.
fn write_down(order: &Order) -> io::Result<bool> {
    if !geteuid().is_root() {
        return Ok(false);
    }
    let place = Path::new(DIRECTORY).join(&order.device);
    if order.drained {
        std::fs::create_dir_all(DIRECTORY)?;
        std::fs::write(place, "")?;
        return Ok(true);
    }
    match std::fs::remove_file(place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(true),
    }
}

/// Tells every process, those that came since the last time too; it does not matter how often one is told.
fn ask_all(order: &Order, lasting: bool, err: &mut impl Write) -> io::Result<Rail> {
    let device = order.device.clone();
    let request = if order.drained { Request::Drain { device } } else { Request::Undrain { device } };
    let mut rail =
        Rail { device: order.device.clone(), drained: order.drained, empty: true, lasting, ..Rail::default() };
    for socket in process::sockets(&std::fs::read_to_string("/proc/net/unix")?) {
        match process::ask(&socket, &request) {
            Ok(status) => rail.take(&status),
            // It belongs to somebody else.
            Err(NoAnswer::Silent) if !lasting => {}
            // It has ended meanwhile.
            Err(_) if !process::is_there(&socket) => {}
            Err(error) => {
                writeln!(err, "shiftctl: process {}: {error}", socket.pid)?;
                rail.unanswered.push(socket.pid);
                rail.empty = false;
            }
        }
    }
    Ok(rail)
}

#[cfg(test)]
mod tests {
    use shift_control::status::QueuePair;

    use super::*;

    fn on(path: &str, protected: bool) -> QueuePair {
        let reason = (!protected).then(|| "its type is UD".to_owned());
        QueuePair { device: "rxe0".to_owned(), path: path.to_owned(), protected, reason, ..QueuePair::default() }
    }

    #[test]
    fn a_device_is_no_path() {
        assert!(is_name("rxe0") && is_name("mlx5_0"));
        assert!(["", ".", "..", "../net", "/etc", "rxe0/"].into_iter().all(|wrong| !is_name(wrong)));
    }

    #[test]
    fn a_rail_is_empty_when_no_queue_pair_is_on_it() {
        let mut rail = Rail { device: "rxe0".to_owned(), drained: true, empty: true, ..Rail::default() };
        rail.take(&Status { queue_pairs: vec![on("rxe1", true)], ..Status::default() });
        assert!(rail.empty && rail.processes == 1);
        rail.take(&Status { pid: 7, queue_pairs: vec![on("rxe0", true), on("rxe0", false)], ..Status::default() });
        assert!(!rail.empty);
        let expected =
            OnIt { pid: 7, to_move: 1, stuck: 1, reason: Some("its type is UD".to_owned()), ..OnIt::default() };
        assert_eq!(rail.on_it, [expected]);
        assert_eq!(rail.words(), "rxe0: 1 to move, 1 that cannot be moved, of 2 processes");
    }
}
