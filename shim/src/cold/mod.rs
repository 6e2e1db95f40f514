//! What control verbs and the agent do: may allocate, log and make system calls; never waits for a peer.

pub mod asynchronous;
pub mod bell;
pub mod caps;
pub mod channel;
pub mod cm;
pub mod cq;
pub mod datapath;
pub mod device;
pub mod extended;
pub mod fence;
pub mod mlx5;
pub mod mr;
pub mod notify;
pub mod pd;
pub mod presence;
pub mod probe;
pub mod qp;
pub mod rail;
pub mod reaper;
pub mod replay;
pub mod settle;
pub mod slice;
pub mod srq;
pub mod tell;
pub mod twin;
pub mod withdraw;
