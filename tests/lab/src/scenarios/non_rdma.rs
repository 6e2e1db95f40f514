//! Programs that use no RDMA are the same under the shim: output, exit status, threads, sockets, and silence.

use std::path::Path;
use std::process::{Command, Output};

use crate::boot::run_tool;
use crate::figures::Figures;
use crate::pair::Setup;
use crate::trouble::{require, Concerning, Result};

use super::Scenario;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::no_boot("non-rdma-preload", "ls, python and a forking shell are unchanged under the shim", run)]
}

/// Counts its own threads and sockets, then those of a child.
const PYTHON: &str = "
import os
def seen():
    links = []
    for fd in os.listdir('/proc/self/fd'):
        try: links.append(os.readlink('/proc/self/fd/' + fd))
        except OSError: pass
    return len(os.listdir('/proc/self/task')), sum(link.startswith('socket') for link in links)
print('threads, sockets:', *seen(), flush=True)
if os.fork() == 0:
    print('child:', *seen(), flush=True)
    os._exit(5)
print('status:', os.wait()[1])
raise SystemExit(3)
";

/// Forks with and without exec, and ends with a status of its own.
const SHELL: &str = "(echo sub; (echo subsub)); grep -c . /proc/self/status; ls /proc/self/task | wc -l; ls -l /proc/self/fd | grep -c socket; false; exit 7";

fn run(setup: &Setup, _seed: u64) -> Result<Figures> {
    let shim = setup.shim();
    require(shim.exists(), || format!("{} was not built", shim.display()))?;
    let symbols = run_tool(Command::new("nm").args(["-D", "--defined-only"]).arg(&shim))?;
    require(symbols.contains(" ibv_post_send"), || "the shim exports no ibv_post_send: nothing to show yet".into())?;
    let programs: [(&str, &[&str]); 5] = [
        ("/bin/ls", &["/", "/proc/self/task/self/../../fd/0"]),
        ("/bin/ls", &["-l", "/usr/share"]),
        ("/usr/bin/python3", &["-c", PYTHON]),
        ("/bin/bash", &["-c", SHELL]),
        ("/bin/dash", &["-c", SHELL]),
    ];
    for (program, args) in programs {
        let (without, with) = (execute(program, args, None)?, execute(program, args, Some(&shim))?);
        let named = |output: &Output| {
            format!("{:?} {}", output.status, String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()))
        };
        require(without == with, || {
            format!("{program} {}: {} became {}", args.join(" "), named(&without), named(&with))
        })?;
    }
    Ok(Figures::new().with("programs", programs.len()).with("exported_symbols", symbols.lines().count()))
}

fn execute(program: &str, args: &[&str], shim: Option<&Path>) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(args).env_remove("LD_PRELOAD");
    if let Some(shim) = shim {
        // A key that cannot be used is told as soon as it is read: silence shows that it is not.
        command.env("LD_PRELOAD", shim).env("SHIFT_JOB_KEY_FILE", "/");
    }
    command.output().concerning(program)
}
