//! The wire itself: between guests that nothing is done to, everything arrives.

use std::time::Duration;

use crate::figures::Figures;
use crate::guest::Program;
use crate::lab::Lab;
use crate::place::{Host, Link, Rail};
use crate::trouble::{require, Result};
use crate::wire::log::Fate;

use super::Scenario;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::guests(
        "wire-transparent",
        "every link carries ping and RDMA both ways, and the wire loses nothing",
        run,
    )]
}

/// TCP port of ibv_rc_pingpong.
const PINGPONG_PORT: u16 = 18515;

fn run(lab: &mut Lab, _seed: u64) -> Result<Figures> {
    let before = lab.wire().position()?;
    for host in Host::ALL {
        for link in Link::ALL {
            let ping = format!("/bin/busybox ping -c 3 -A -w 20 {}", link.address(host.peer()));
            let ended = lab.guest(host).run(&Program::words(&ping), Duration::from_secs(30))?;
            require(ended.out.contains(" 0% packet loss"), || {
                format!("ping from {} on {link:?}: {}", host.name(), ended.brief())
            })?;
        }
    }
    for rail in Rail::ALL {
        for server in Host::ALL {
            pingpong(lab, rail, server)?;
        }
    }
    let records = lab.wire().records_since(before)?;
    let roce = records.iter().filter(|record| record.packet.roce.is_some()).count();
    let not_passed = records.iter().filter(|record| record.fate != Fate::Passed).count();
    require(not_passed == 0, || format!("{not_passed} frames did not just pass"))?;
    require(roce > 4 * 1000, || format!("only {roce} RoCE packets in the log"))?;
    Ok(Figures::new()
        .with("frames", records.len())
        .with("roce_packets", roce)
        .with("boot_ms", lab.pair().boot.as_millis() as u64))
}

/// GID 1 is the IPv4 address, RoCE v2.
fn pingpong(lab: &Lab, rail: Rail, server: Host) -> Result<()> {
    let line = format!("/usr/bin/ibv_rc_pingpong -d {} -g 1 -n 500", rail.device());
    let client = Program::words(&line).arg(Link::Management.address(server));
    let (server, client) = lab.start_pair(server, PINGPONG_PORT, &Program::words(&line), &client)?;
    for side in [client, server] {
        let ended = side.wait(Duration::from_secs(60))?;
        require(ended.succeeded(), || format!("ibv_rc_pingpong on {}: {}", rail.device(), ended.brief()))?;
    }
    Ok(())
}
