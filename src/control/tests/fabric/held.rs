//! Posts that wait for a key of the peer's standby, or for an exclusion to end.

use shift_control::datapath::{RemoteKey, RemoteKeys, ReplayProgress};
use shift_proto::id::{PathId, WrSeq};

use super::{Kind, Qp};

impl Qp {
    pub(super) fn translate(&mut self, at: usize, path: PathId, keys: &dyn RemoteKeys) -> Option<ReplayProgress> {
        let Kind::Write { rkey } = self.sent[at].kind else {
            return None;
        };
        if path == PathId::PRIMARY {
            return None;
        }
        match keys.remote(rkey) {
            RemoteKey::Known(standby) => {
                self.sent[at].kind = Kind::Write { rkey: standby };
                None
            }
            RemoteKey::Unknown | RemoteKey::Absent => Some(ReplayProgress::NeedsKey { seq: WrSeq(at as u64), rkey }),
        }
    }

    pub(super) fn post_all_held(&mut self, path: PathId, keys: &dyn RemoteKeys) -> Option<ReplayProgress> {
        for at in 0..self.sent.len() {
            if self.sent[at].posted.is_none() && !self.sent[at].done {
                if let Some(progress) = self.translate(at, path, keys) {
                    return Some(progress);
                }
                self.post_entry(at);
            }
        }
        None
    }
}
