//! The world in lock step with an atomic distributed object for each direction: the receiver is the one acceptor, the sender in an epoch is a
//! leader of that term. A request that a NIC is given is a method (*invoke*), one that the receiver's NIC executes is committed (*push*), and a fence
//! whose count is told is an election (*pull*): the acceptor promises the term, and the new leader begins where the old one's requests end.
//!
//! It owns which step is which operation. What must hold: each is one; the committed methods are what was executed, in that order; without what was
//! executed again, which only WRITEs and READs may be, they are the requests in the order of their posting.

use std::sync::Arc;

use shift_proto::id::Epoch;

use super::world::World;
use super::Setting;
use crate::ado::{Ado, Cache, Node, Quorums, Refused, Replica, Time};

/// The receiver of a direction.
const ACCEPTOR: Replica = 0;

/// The sender in that epoch. Each is another replica than the one before, which does not know that it is one no more.
const fn leader(epoch: Epoch) -> Replica {
    epoch.0 as Replica + 1
}

const fn term(epoch: Epoch) -> Time {
    epoch.0 as Time + 1
}

/// Where the first incarnation begins.
pub(super) fn object(setting: &Setting) -> Ado<usize> {
    let mut ado = Ado::new(leader(Epoch::FIRST) + 1, Quorums::With(ACCEPTOR));
    if setting.refines {
        let voters = [ACCEPTOR, leader(Epoch::FIRST)];
        ado.pull(voters[1], &voters, Node::ROOT, term(Epoch::FIRST)).expect("nobody has promised anything");
    }
    ado
}

impl World {
    fn operate<T>(
        &mut self,
        setting: &Setting,
        sender: usize,
        operation: impl FnOnce(&mut Ado<usize>) -> Result<T, Refused>,
    ) {
        if !setting.refines {
            return;
        }
        let ado = Arc::make_mut(&mut self.objects[sender]);
        match operation(ado) {
            Ok(_) => *ado = ado.canonical(),
            Err(refused) => self.fault(format!("the object: {refused}")),
        }
    }

    /// A NIC is given a request.
    pub(super) fn invoke(&mut self, setting: &Setting, sender: usize, epoch: Epoch, want: usize) {
        self.operate(setting, sender, |ado| {
            ado.admit(leader(epoch));
            ado.invoke(leader(epoch), want)
        });
    }

    /// What an end tells of its incarnations is what it found now, and it is to be final.
    pub(super) fn elect(&mut self, setting: &Setting, receiver: usize) {
        let epoch = self.ends[receiver].machine.epoch();
        self.operate(setting, 1 - receiver, |ado| {
            let leader = leader(epoch);
            ado.admit(leader);
            ado.pull(leader, &[ACCEPTOR, leader], ado.active(ACCEPTOR), term(epoch))
        });
    }

    /// All of a request was executed. The leader hears of it at once if it has posted nothing since, which is as good a time as any.
    pub(super) fn commit(&mut self, setting: &Setting, sender: usize, epoch: Epoch, want: usize) {
        self.operate(setting, sender, |ado| {
            let leader = leader(epoch);
            let is_it =
                |cache: &Cache<usize>| matches!(cache, Cache::Method { by, method, .. } if (*by, *method) == (leader, want));
            let chosen = ado.tree().nodes().find(|(_, cache)| is_it(cache)).map(|(node, _)| node);
            let chosen = chosen.expect("what a NIC executes was posted on it");
            let voters = [ACCEPTOR, leader];
            let count = if ado.active(leader) == chosen { 2 } else { 1 };
            ado.push(leader, &voters[..count], chosen)
        });
        self.compare(setting, sender);
    }

    fn compare(&mut self, setting: &Setting, sender: usize) {
        if !setting.refines || self.wrong.is_some() {
            return;
        }
        let wants = &setting.wants[sender];
        let lines = self.lines.iter().filter(|line| line.sender == sender);
        let executed = lines.flat_map(|line| line.postings[..line.executed(wants)].iter().map(|(want, _)| *want));
        let committed = self.objects[sender].committed();
        if !executed.eq(committed.iter().copied()) {
            return self.fault(format!("the object: {committed:?} are committed and something else was executed"));
        }
        if let Some(words) = self.objects[sender].broken() {
            return self.fault(format!("the object: {words}"));
        }
        let mut next = 0;
        for want in committed {
            if want == next {
                next += 1;
            } else if want > next || !wants[want].may_repeat() {
                return self.fault(format!("the object: #{want} is committed where #{next} is due"));
            }
        }
    }

    /// A completion is the answer to a push.
    pub(super) fn is_committed(&self, setting: &Setting, sender: usize, want: usize) -> bool {
        !setting.refines || self.objects[sender].committed().contains(&want)
    }
}

/// What a step was for an object, of which it grew a cache.
pub(super) fn words(before: &Ado<usize>, after: &Ado<usize>) -> Option<String> {
    let grown: Vec<_> = after.tree().nodes().map(|(_, cache)| cache).collect();
    let is_new = |cache: &&&Cache<usize>| before.tree().nodes().all(|(_, known)| known != **cache);
    match grown.iter().find(is_new) {
        Some(Cache::Election { time, .. }) => {
            Some(format!("a pull: term {time} begins behind {:?}", after.committed()))
        }
        Some(Cache::Method { time, method, .. }) => Some(format!("an invoke of #{method} in term {time}")),
        Some(Cache::Commit { .. }) | None => {
            (before.committed() != after.committed()).then(|| format!("a push: {:?} are committed", after.committed()))
        }
    }
}
