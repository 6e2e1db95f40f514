//! The muster of a group: what comes before a planned move of queue pairs that share their receives.
//!
//! One member that commits makes its whole group follow, and through peers' groups all that are connected ([`super::group`]). After a fault that
//! is right; by plan it would cut off what others have outstanding. So nobody commits before everybody holds new sends and is complete, and that is
//! found out by an echo (Segall, "Distributed Network Protocols"; extinction of the smaller of two as in Chang's "Echo Algorithms"): the group that
//! wishes for the move, the *leader*, has its members hold and says COME to their peers; a group that hears it for the first time does the same to
//! all its other peers, and says PRESENT back when its own members are complete and all others have said PRESENT, or have said COME themselves. When
//! all have answered the leader everybody is complete and holds, and it departs: its members claim, and each group that a claim has moved departs in
//! its turn.
//!
//! What must hold: a leader departs only when every queue pair that would have to follow holds and is complete; whoever says PRESENT to the one that
//! called it holds on for longer than the leader may take; of two musters the larger stands; what cannot be done in time is left where it was.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use super::{GroupLimits, Member};
use crate::id::{Micros, PathId, ProcessId, Site};

/// How often COME is said again to who has not answered.
const REPEAT: Micros = Micros::from_millis(100);
/// Musters that are remembered when they are over: a frame may come late, or twice.
const MOST_REMEMBERED: usize = 16;

/// The name of a muster. The larger of two stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Call {
    /// The process whose group leads.
    pub leader: ProcessId,
    /// That process's number of it.
    pub number: u64,
}

/// What is said of a muster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Word {
    /// The sender's group takes part: the receiver's is to do so too.
    Come,
    /// Everybody holds and is complete to whom the receiver's COME led, or was called in another way.
    Present,
    /// It is off.
    Dismissed,
}

/// How far a planned move is that has not committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is of that queue pair alone.
    Alone,
    /// New sends are held, for the group; some that were out may not be complete.
    Holding,
    /// They are.
    Complete,
    /// It is claimed.
    Leaving,
}

/// A planned move that has not committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where to.
    pub target: PathId,
    /// How far it is.
    pub progress: Progress,
}

/// What has to be done for a muster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand<K> {
    /// Say that to the peer of this member, with the path that leads to the site.
    Say(K, Call, Site, Word),
    /// Give it [`super::Input::Muster`] with the path that leads there.
    Hold(K, Site),
    /// Give it [`super::Input::Depart`].
    Depart(K),
    /// Give it [`super::Input::Dismiss`].
    Dismiss(K),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It cannot go there by plan.
    Unable,
    /// It could hold.
    Able,
    /// It is not complete.
    Waiting,
    /// It is, or is claimed.
    Complete,
}

#[derive(Clone, Debug)]
struct UnderWay<K> {
    call: Call,
    /// Where this group is to go: a group at another end names the same rail by another site.
    target: Site,
    /// Whose peer called first; `None`: this group leads.
    parent: Option<K>,
    since: Micros,
    /// Who was told to hold.
    held: BTreeSet<K>,
    /// Who was, for another muster, and is to be told again: it holds for so long from then on.
    renewed: BTreeSet<K>,
    /// Since when somebody holds, for this one or for others that it stands in place of.
    holding_since: Micros,
    /// To whose peers COME was said, and when last.
    called: BTreeMap<K, Micros>,
    /// Whose peers need not be waited for.
    present: BTreeSet<K>,
    /// PRESENT was said to the parent's peer.
    has_answered: bool,
    /// It is to be said, again if it was.
    owes_answer: bool,
    /// The leader's members were told to depart.
    has_departed: bool,
}

/// The musters of one group, or of one queue pair that shares its receives with nobody and whose peer does.
#[derive(Clone, Debug)]
pub struct Muster<K> {
    under_way: Option<UnderWay<K>>,
    /// Those that are over, oldest first, and whether they were given up.
    over: VecDeque<(Call, bool)>,
    limits: GroupLimits,
}

impl<K: Copy + Ord> Muster<K> {
    /// None so far.
    #[must_use]
    pub const fn new(limits: GroupLimits) -> Self {
        Self { under_way: None, over: VecDeque::new(), limits }
    }

    /// The one that is under way.
    #[must_use]
    pub fn call(&self) -> Option<Call> {
        self.under_way.as_ref().map(|under_way| under_way.call)
    }

    /// Where this group is to go by it.
    #[must_use]
    pub fn target(&self) -> Option<Site> {
        self.under_way.as_ref().map(|under_way| under_way.target)
    }

    /// Begins to lead one, if none is under way; [`Muster::turn`] does the rest.
    pub fn lead(&mut self, now: Micros, call: Call, target: Site) {
        if self.under_way.is_none() {
            self.under_way = Some(UnderWay::new((call, target), None, now));
        }
    }

    /// The peer of that member said something of a move to that site.
    pub fn hear(&mut self, now: Micros, from: K, (call, target): (Call, Site), word: Word) -> Vec<Errand<K>> {
        match (word, &mut self.under_way) {
            (Word::Come, Some(known)) if known.call == call && known.target != target => {
                // There it leads elsewhere: not all of this group could follow.
                let mut errands = self.call_off(from);
                errands.push(Errand::Say(from, call, target, Word::Dismissed));
                errands
            }
            (Word::Come, Some(known)) if known.call == call => {
                if known.parent == Some(from) {
                    known.owes_answer = true;
                    return Vec::new();
                }
                known.present.insert(from);
                [Errand::Say(from, call, target, Word::Present)].into()
            }
            (Word::Come, _) => self.hear_of(now, from, call, target),
            (Word::Present, Some(known)) if known.call == call => {
                known.present.insert(from);
                Vec::new()
            }
            (Word::Dismissed, Some(known)) if known.call == call => self.call_off(from),
            (Word::Present | Word::Dismissed, _) => Vec::new(),
        }
    }

    /// It cannot be done where the peer of that member is.
    fn call_off(&mut self, from: K) -> Vec<Errand<K>> {
        let Some(known) = &self.under_way else { return Vec::new() };
        match known.parent.filter(|parent| known.has_answered && *parent != from) {
            // Until who called it says so, it may be departed from there.
            Some(parent) => [Errand::Say(parent, known.call, known.target, Word::Dismissed)].into(),
            None if known.has_departed => Vec::new(),
            None => self.give_up(),
        }
    }

    /// COME of a muster that this group does not take part in.
    fn hear_of(&mut self, now: Micros, from: K, call: Call, target: Site) -> Vec<Errand<K>> {
        if let Some((_, is_given_up)) = self.over.iter().find(|(known, _)| *known == call) {
            let off = Errand::Say(from, call, target, Word::Dismissed);
            return is_given_up.then_some(off).into_iter().collect();
        }
        let limits = self.limits;
        let mut next = UnderWay::new((call, target), Some(from), now);
        if let Some(known) = &mut self.under_way {
            if known.has_departed || call < known.call || target != known.target {
                // Who is in the smaller one hears of the larger one.
                return Vec::new();
            }
            if now.since(known.holding_since) >= limits.plan {
                // One after the other they could hold posts for ever.
                self.remember(call, true);
                return [Errand::Say(from, call, target, Word::Dismissed)].into();
            }
            (next.held, next.holding_since) = (core::mem::take(&mut known.held), known.holding_since);
            next.renewed = next.held.clone();
            let known = known.call;
            self.remember(known, true);
        }
        self.under_way = Some(next);
        Vec::new()
    }

    /// Looks at all members, which come in the order of their keys; to be called whenever one of them may have changed, and every [`Muster::pace`].
    pub fn turn(&mut self, now: Micros, members: &[Member<K>]) -> Vec<Errand<K>> {
        let limits = self.limits;
        let Some(under_way) = &mut self.under_way else { return Vec::new() };
        let live: Vec<&Member<K>> = members.iter().filter(|member| member.is_live()).collect();
        let target = under_way.target;
        if live.iter().any(|member| member.site == target && under_way.held.contains(&member.key)) {
            // The others follow it: the group sees to that.
            let call = under_way.call;
            self.under_way = None;
            self.remember(call, false);
            return Vec::new();
        }
        if under_way.is_hopeless(now, &live, &limits) {
            return self.give_up();
        }
        if under_way.has_departed {
            return Vec::new();
        }
        let mut errands = under_way.hold(&live);
        errands.extend(under_way.call_others(now, &live));
        if errands.iter().any(|errand| matches!(errand, Errand::Hold(..))) || !under_way.is_everybody_there(&live) {
            return errands;
        }
        match under_way.parent {
            None => {
                under_way.has_departed = true;
                errands.extend(live.iter().map(|member| Errand::Depart(member.key)));
            }
            Some(parent) if under_way.owes_answer => {
                (under_way.has_answered, under_way.owes_answer) = (true, false);
                errands.push(Errand::Say(parent, under_way.call, target, Word::Present));
            }
            Some(_) => {}
        }
        errands
    }

    /// How often [`Muster::turn`] is wanted while one is under way.
    #[must_use]
    pub const fn pace() -> Micros {
        REPEAT
    }

    fn give_up(&mut self) -> Vec<Errand<K>> {
        let Some(under_way) = self.under_way.take() else { return Vec::new() };
        let (call, target) = (under_way.call, under_way.target);
        self.remember(call, true);
        let told = under_way.called.keys().copied().chain(under_way.parent);
        let say = told.map(|key| Errand::Say(key, call, target, Word::Dismissed));
        say.chain(under_way.held.iter().map(|key| Errand::Dismiss(*key))).collect()
    }

    fn remember(&mut self, call: Call, is_given_up: bool) {
        if self.over.len() >= MOST_REMEMBERED {
            self.over.pop_front();
        }
        self.over.push_back((call, is_given_up));
    }
}

impl<K: Copy + Ord> UnderWay<K> {
    const fn new((call, target): (Call, Site), parent: Option<K>, since: Micros) -> Self {
        Self {
            call,
            target,
            parent,
            since,
            held: BTreeSet::new(),
            renewed: BTreeSet::new(),
            holding_since: since,
            called: BTreeMap::new(),
            present: BTreeSet::new(),
            has_answered: false,
            owes_answer: true,
            has_departed: false,
        }
    }

    /// The leader has the plan's deadline. Those who take part hold on until its claims may have reached them, and so does it once it departed.
    const fn limit(&self, limits: &GroupLimits) -> Micros {
        if self.parent.is_none() && !self.has_departed {
            limits.plan
        } else {
            limits.muster
        }
    }

    fn is_hopeless(&self, now: Micros, live: &[&Member<K>], limits: &GroupLimits) -> bool {
        let is_late = now.since(self.since) >= self.limit(limits);
        let is_parent_there = self.parent.is_none_or(|parent| live.iter().any(|member| member.key == parent));
        is_late || !is_parent_there || live.is_empty() || live.iter().any(|m| self.standing(m) == Standing::Unable)
    }

    fn standing(&self, member: &Member<K>) -> Standing {
        let could = member.has_peer && member.is_movable && member.is_ready_for(self.target);
        match member.plan {
            _ if !could => Standing::Unable,
            Some((_, Progress::Alone)) => Standing::Waiting,
            Some((target, _)) if target != self.target => Standing::Unable,
            Some((_, Progress::Holding)) => Standing::Waiting,
            Some((_, Progress::Complete | Progress::Leaving)) => Standing::Complete,
            // It held, and has given up.
            None if self.held.contains(&member.key) => Standing::Unable,
            None if self.target.of(&member.can_go) == Some(&true) => Standing::Able,
            None => Standing::Unable,
        }
    }

    fn hold(&mut self, live: &[&Member<K>]) -> Vec<Errand<K>> {
        let is_told = |member: &&&Member<K>| {
            let holds =
                member.plan.is_some_and(|(_, progress)| matches!(progress, Progress::Holding | Progress::Complete));
            self.standing(member) == Standing::Able || (holds && self.renewed.contains(&member.key))
        };
        let told: Vec<K> = live.iter().filter(is_told).map(|member| member.key).collect();
        self.held.extend(told.iter().copied());
        self.renewed.clear();
        told.into_iter().map(|key| Errand::Hold(key, self.target)).collect()
    }

    fn call_others(&mut self, now: Micros, live: &[&Member<K>]) -> Vec<Errand<K>> {
        let mut errands = Vec::new();
        for key in live.iter().map(|member| member.key).filter(|key| self.parent != Some(*key)) {
            let is_due = self.called.get(&key).is_none_or(|last| now >= *last + REPEAT);
            if is_due && !self.present.contains(&key) {
                self.called.insert(key, now);
                errands.push(Errand::Say(key, self.call, self.target, Word::Come));
            }
        }
        errands
    }

    fn is_everybody_there(&self, live: &[&Member<K>]) -> bool {
        let is_there = |key: K| self.parent == Some(key) || self.present.contains(&key);
        live.iter().all(|member| is_there(member.key) && self.standing(member) == Standing::Complete)
    }
}
