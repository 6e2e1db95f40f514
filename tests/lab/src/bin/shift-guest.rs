//! The agent in a guest: starts programs for the runner and tells what they say. Its port is the only thing it listens to.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sys::signal::{killpg, Signal};
use nix::unistd::Pid;
use shift_lab::clock::{monotonic_ns, realtime_ns};
use shift_lab::guest::talk::{Ask, Fact, Question, Say, Stream, LINE_BYTES, PORT};
use shift_lab::guest::Program;

fn main() -> io::Result<()> {
    let path = find_port()?;
    let port = OpenOptions::new().read(true).write(true).open(path)?;
    let agent = Agent { port: Arc::new(Mutex::new(port.try_clone()?)), groups: Arc::default() };
    for line in BufReader::new(port).lines() {
        match serde_json::from_str::<Question>(&line?) {
            Ok(Question { id, ask }) => {
                let result = agent.answer(ask).map_err(|error| error.to_string());
                agent.say(&Say::Answer { id, result });
            }
            Err(error) => eprintln!("agent: {error}"),
        }
    }
    Ok(())
}

/// There is no udev in a guest to make names for ports.
fn find_port() -> io::Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports")?.flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == PORT {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    Err(io::Error::other("agent: no port"))
}

/// Clones share the port and the table of what runs.
#[derive(Clone)]
struct Agent {
    port: Arc<Mutex<File>>,
    groups: Arc<Mutex<HashMap<u64, Pid>>>,
}

impl Agent {
    fn say(&self, say: &Say) {
        let Ok(mut line) = serde_json::to_vec(say) else {
            return;
        };
        line.push(b'\n');
        let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = port.write_all(&line) {
            eprintln!("agent: {error}");
        }
    }

    fn answer(&self, ask: Ask) -> io::Result<Fact> {
        match ask {
            Ask::Clock => return Ok(Fact::Clock { monotonic: monotonic_ns(), realtime: realtime_ns() }),
            Ask::Start { run, program } => return self.start(run, &program).map(Fact::Started),
            Ask::Signal { run, signal } => {
                let group = self.groups.lock().unwrap_or_else(PoisonError::into_inner).get(&run).copied();
                if let Some(group) = group {
                    killpg(group, Signal::try_from(signal)?)?;
                }
            }
            Ask::KillAll => {
                for group in self.groups.lock().unwrap_or_else(PoisonError::into_inner).values() {
                    let _ = killpg(*group, Signal::SIGKILL);
                }
            }
            Ask::Read { path } => {
                return fs::read(path).map(|bytes| Fact::Text(String::from_utf8_lossy(&bytes).into_owned()));
            }
            Ask::Write { path, text, mode } => {
                fs::write(&path, text)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            }
        }
        Ok(Fact::Done)
    }

    fn start(&self, run: u64, program: &Program) -> io::Result<u32> {
        let (name, args) = program.argv.split_first().ok_or_else(|| io::Error::other("no program"))?;
        let mut command = Command::new(name);
        command.args(args).env_clear().env("PATH", "/usr/sbin:/usr/bin").env("HOME", "/root");
        command.envs(program.env.iter().map(|(name, value)| (name, value)));
        command.current_dir(program.cwd.as_deref().unwrap_or("/")).process_group(0);
        if let Some(uid) = program.uid {
            command.uid(uid).gid(uid).env("HOME", "/home/user");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| io::Error::other(format!("{name}: {error}")))?;
        let pid = child.id();
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).insert(run, Pid::from_raw(pid as i32));
        let agent = self.clone();
        thread::Builder::new().spawn(move || agent.follow(run, child))?;
        Ok(pid)
    }

    /// The end is told when the program itself has ended and its pipes are empty; children that keep a pipe open delay it.
    fn follow(&self, run: u64, mut child: Child) {
        let (out, err) = (child.stdout.take(), child.stderr.take());
        thread::scope(|scope| {
            if let Some(out) = out {
                scope.spawn(move || self.tell_lines(run, Stream::Out, out));
            }
            if let Some(err) = err {
                scope.spawn(move || self.tell_lines(run, Stream::Err, err));
            }
        });
        let status = child.wait();
        let at_ns = monotonic_ns();
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).remove(&run);
        let code = status.as_ref().ok().and_then(|status| status.code());
        let signal = status.ok().and_then(|status| status.signal());
        self.say(&Say::End { run, at_ns, code, signal });
    }

    fn tell_lines(&self, run: u64, stream: Stream, pipe: impl Read) {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(pipe.by_ref().take(LINE_BYTES as u64).read_until(b'\n', &mut line), Ok(1..)) {
            let at_ns = monotonic_ns();
            let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
            self.say(&Say::Line { run, stream, at_ns, text });
            line.clear();
        }
    }
}
