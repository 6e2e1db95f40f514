//! Programs that reach libibverbs by look-ups of their own are protected as linked ones are.

use serde_json::json;

use crate::figures::Figures;
use crate::lab::Lab;
use crate::place::{Host, Rail};
use crate::trial::{Fault, Moment};
use crate::trouble::Result;

use super::checker::Checker;
use super::survive::survives;
use super::Scenario;

/// A queue pair of each protected mode, and how many packets the run takes at least on rail 0.
const QPS: u64 = 5;
const OPTIONS: &str = "--mode write,write_imm,send,read,mixed --qps 5 --messages 800 --depth 64";
const PACKETS: u64 = 3000;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::guests(
        "shim-dlvsym",
        "the checking application, bound as NCCL is (dlopen with RTLD_LOCAL, dlvsym): no fault, then rail 0 down at the sender, then at the receiver",
        run,
    )]
}

fn run(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    let options = format!("{OPTIONS} --seed {seed}");
    figures.note("no fault", json!(survives(lab, &Checker::shimmed(&options).by_dlvsym(), None)?));
    for (index, (side, host)) in (0..).zip([("sender", Host::A), ("receiver", Host::B)]) {
        lab.reset()?;
        let moment = Moment::armed(QPS, seed.wrapping_mul(1000) + index, 0, PACKETS);
        let fault = Some((Fault::Cut(host, Rail::Zero), moment));
        figures.note(side, json!(survives(lab, &Checker::gated(&options).by_dlvsym(), fault)?));
    }
    Ok(figures)
}
