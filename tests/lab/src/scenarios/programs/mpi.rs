//! A message-passing job: Open MPI over UCX's rc_verbs, two ranks on each host.
//!
//! mpirun starts its daemon on the other host by a "remote shell" that is two lines of shell and a socket: nothing else of a guest's is needed.
//! Ranks inherit the shim from mpirun and from the listener of that shell.

use std::time::Duration;

use super::table::{Row, Unusual};
use crate::guest::Program;
use crate::lab::{Lab, Listens};
use crate::place::Host;
use crate::trial::ServerEnd;
use crate::trouble::Result;

const SHELL_PORT: u16 = 18700;
/// Sends a command line to the shell that listens on the host.
const REMOTE_SHELL: &str = "#!/bin/dash\nhost=$1\nshift\necho \"$*\" | /bin/busybox nc $host 18700\n";
const REMOTE_SHELL_AT: &str = "/tmp/remote-shell";
const JOB: &str = include_str!("allreduce.py");
const JOB_AT: &str = "/tmp/allreduce.py";
/// Without this file the job waits after its first rounds.
pub const GATE: &str = "/tmp/allreduce-go-on";
const ROUNDS: u32 = 150;
/// mpirun, its daemon, and four times Python are long in starting, and say nothing.
pub const STALL: Duration = Duration::from_secs(60);
/// Two of each host, each connected with both of the other.
const QPS: u64 = 8;

/// The job as a row of the table.
pub fn row() -> Row {
    let ranks = "-np 4 -H a:2,b:2 --bind-to none --mca mpi_yield_when_idle 1 --allow-run-as-root";
    let launch = format!("--mca plm_rsh_agent {REMOTE_SHELL_AT} --mca oob_tcp_if_include eth0");
    let transport = "--mca pml ucx --mca pml_ucx_tls any --mca pml_ucx_devices any --mca osc ^ucx";
    let job = format!("/usr/bin/python3 {JOB_AT} {ROUNDS} none");
    let client = Program::words(&format!("/usr/bin/mpirun {ranks} {launch} {transport} {job}"));
    let server = Program::words(&format!("/bin/busybox nc -ll -p {SHELL_PORT} -e /bin/dash"));
    let row = Row::special("mpirun, 4 ranks, allreduce over UCX rc_verbs", "openmpi-bin", server, client);
    let row = Row {
        slug: "mpirun".to_owned(),
        listens: Listens::Tcp(SHELL_PORT),
        server_end: ServerEnd::Killed,
        qps: QPS,
        unusual: Unusual::Mpi,
        ..row
    };
    // UCX makes the first contact by UD, and would take soft-RoCE's IPv4 headers there for those of somebody else.
    let row = row.env("UCX_TLS", "rc_v,sm,self").env("UCX_UD_VERBS_ETH_DGID_CHECK", "n");
    row.env("UCX_NET_DEVICES", "rxe0:1").env("TMPDIR", "/tmp")
}

/// What the job needs on both hosts.
pub fn prepare(lab: &Lab) -> Result<()> {
    for host in Host::ALL {
        lab.guest(host).write(REMOTE_SHELL_AT, REMOTE_SHELL, 0o755)?;
        lab.guest(host).write(JOB_AT, JOB, 0o644)?;
    }
    Ok(())
}

/// The same job, which waits for the file.
pub fn gated(mut client: Program) -> Program {
    if let Some(last) = client.argv.last_mut() {
        GATE.clone_into(last);
    }
    client
}
