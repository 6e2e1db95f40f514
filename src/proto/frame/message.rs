//! The bytes of the handshake's messages.

use alloc::vec::Vec;

use super::codec::{Reader, Writer};
use super::{FrameError, Handshake, MAX_REPORTS};
use crate::id::{Epoch, PathId, ProcessId, Tuple};
use crate::ledger::{IncarnationReport, Proof};
use crate::migrate::{Call, Cause, Word};

const CLAIM: u8 = 1;
const ACCEPT: u8 = 2;
const REFUSE: u8 = 3;
const WAIT: u8 = 4;
const COMMIT: u8 = 5;
const CANCEL: u8 = 6;
const REPORT: u8 = 7;
const READY: u8 = 8;
const CONFIRM: u8 = 9;
const DEAD: u8 = 10;
const SURFACE: u8 = 11;
const GONE: u8 = 12;
const MUSTER: u8 = 13;

const PROOF_NONE: u8 = 0;
const PROOF_COUNT: u8 = 1;
const PROOF_PSN: u8 = 2;

impl Writer {
    pub(super) fn handshake(&mut self, message: &Handshake) -> Result<(), FrameError> {
        match message {
            Handshake::Claim { tuple, cause } => {
                self.about(CLAIM, *tuple);
                self.cause(*cause);
            }
            Handshake::Accept { tuple } => self.about(ACCEPT, *tuple),
            Handshake::Refuse { tuple } => self.about(REFUSE, *tuple),
            Handshake::Wait { tuple } => self.about(WAIT, *tuple),
            Handshake::Commit { tuple } => self.about(COMMIT, *tuple),
            Handshake::Cancel { tuple } => self.about(CANCEL, *tuple),
            Handshake::Report { tuple, fenced, reports } => {
                self.about(REPORT, *tuple);
                self.flag(*fenced);
                self.count(reports.len(), MAX_REPORTS)?;
                for report in reports {
                    self.report(report);
                }
            }
            Handshake::Ready { tuple } => self.about(READY, *tuple),
            Handshake::Confirm { tuple, seen } => {
                self.about(CONFIRM, *tuple);
                self.flag(*seen);
            }
            Handshake::Dead { epoch } => {
                self.u8(DEAD);
                self.u32(epoch.0);
            }
            Handshake::Surface { tuple } => self.about(SURFACE, *tuple),
            Handshake::Gone => self.u8(GONE),
            Handshake::Muster { call, target, word } => {
                self.u8(MUSTER);
                self.u64(call.leader.0);
                self.u64(call.number);
                self.u8(target.0);
                self.u8(match word {
                    Word::Come => 1,
                    Word::Present => 2,
                    Word::Dismissed => 3,
                });
            }
        }
        Ok(())
    }

    fn about(&mut self, kind: u8, tuple: Tuple) {
        self.u8(kind);
        self.u32(tuple.epoch.0);
        self.endpoint(tuple.owner);
        self.u32(tuple.attempt);
        self.u8(tuple.target.0);
    }

    fn cause(&mut self, cause: Cause) {
        self.u8(cause as u8);
    }

    fn report(&mut self, report: &IncarnationReport) {
        self.u32(report.epoch.0);
        self.u8(report.path.0);
        self.flag(report.fenced);
        self.u64(report.receives);
        match report.proof {
            Proof::None => self.u8(PROOF_NONE),
            Proof::Count => self.u8(PROOF_COUNT),
            Proof::Psn(psn) => {
                self.u8(PROOF_PSN);
                self.psn(psn);
            }
        }
    }
}

impl Reader<'_> {
    pub(super) fn handshake(&mut self) -> Result<Handshake, FrameError> {
        Ok(match self.u8()? {
            CLAIM => Handshake::Claim { tuple: self.tuple()?, cause: self.cause()? },
            ACCEPT => Handshake::Accept { tuple: self.tuple()? },
            REFUSE => Handshake::Refuse { tuple: self.tuple()? },
            WAIT => Handshake::Wait { tuple: self.tuple()? },
            COMMIT => Handshake::Commit { tuple: self.tuple()? },
            CANCEL => Handshake::Cancel { tuple: self.tuple()? },
            REPORT => {
                Handshake::Report { tuple: self.tuple()?, fenced: self.flag("fenced")?, reports: self.reports()? }
            }
            READY => Handshake::Ready { tuple: self.tuple()? },
            CONFIRM => Handshake::Confirm { tuple: self.tuple()?, seen: self.flag("seen")? },
            DEAD => Handshake::Dead { epoch: Epoch(self.u32()?) },
            SURFACE => Handshake::Surface { tuple: self.tuple()? },
            GONE => Handshake::Gone,
            MUSTER => Handshake::Muster { call: self.call()?, target: PathId(self.u8()?), word: self.word()? },
            _ => return Err(FrameError::Value("message")),
        })
    }

    fn call(&mut self) -> Result<Call, FrameError> {
        Ok(Call { leader: ProcessId(self.u64()?), number: self.u64()? })
    }

    fn word(&mut self) -> Result<Word, FrameError> {
        Ok(match self.u8()? {
            1 => Word::Come,
            2 => Word::Present,
            3 => Word::Dismissed,
            _ => return Err(FrameError::Value("word")),
        })
    }

    fn tuple(&mut self) -> Result<Tuple, FrameError> {
        Ok(Tuple {
            epoch: Epoch(self.u32()?),
            owner: self.endpoint()?,
            attempt: self.u32()?,
            target: PathId(self.u8()?),
        })
    }

    fn cause(&mut self) -> Result<Cause, FrameError> {
        let number = self.u8()?;
        Cause::ALL.iter().copied().find(|cause| *cause as u8 == number).ok_or(FrameError::Value("cause"))
    }

    fn reports(&mut self) -> Result<Vec<IncarnationReport>, FrameError> {
        let count = self.count(MAX_REPORTS)?;
        (0..count).map(|_| self.report()).collect()
    }

    fn report(&mut self) -> Result<IncarnationReport, FrameError> {
        let (epoch, path) = (Epoch(self.u32()?), PathId(self.u8()?));
        let fenced = self.flag("fenced")?;
        let receives = self.u64()?;
        let proof = match self.u8()? {
            PROOF_NONE => Proof::None,
            PROOF_COUNT => Proof::Count,
            PROOF_PSN => Proof::Psn(self.psn()?),
            _ => return Err(FrameError::Value("proof")),
        };
        Ok(IncarnationReport { epoch, path, proof, receives, fenced })
    }
}
