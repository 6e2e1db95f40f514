//! Rules: which frames a scenario singles out, and what becomes of them.
//!
//! The first rule that matches and still has budget decides; a frame that no rule takes passes. Rules are pure: they decide, the
//! switchboard does.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::packet::Packet;
use crate::place::{Host, Link};
use crate::seed::Seed;

/// Name of an installed rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleId(pub u16);

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It passes; later rules are not asked.
    Pass,
    /// It vanishes.
    Drop,
    /// It is kept until the rule is released; removing the rule drops what it holds.
    Hold,
    /// It goes on after that many microseconds; frames behind it may overtake it.
    Delay(u64),
    /// It goes on twice.
    Duplicate,
    /// One byte behind the transport header (the last one, if there is none) is changed; the checksum is not.
    Corrupt,
    /// It goes on behind that many later frames of its link and direction.
    Reorder(u32),
}

/// A match and an action. Conditions left out match everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Only on this link.
    pub link: Option<Link>,
    /// Only frames that this host sends.
    pub from: Option<Host>,
    /// Only RoCE packets with one of these opcodes; empty: any frame at all.
    pub opcodes: Vec<u8>,
    /// Only RoCE packets with a PSN from the first to the last of these, in 24-bit arithmetic.
    pub psn: Option<(u32, u32)>,
    /// Only RoCE packets to this queue pair.
    pub qpn: Option<u32>,
    /// No RoCE packets to one of these queue pairs.
    pub spared: Vec<u32>,
    /// Only TCP from or to a port from the first to the last of these.
    pub tcp: Option<(u16, u16)>,
    /// Only answers that say "receiver not ready".
    pub receiver_not_ready: bool,
    /// Lets so many matching frames pass first.
    pub skip: u64,
    /// Lets matching frames of each queue pair pass first, as many as the seed says.
    pub skip_each: Option<Spread>,
    /// Acts on a share of what matches, chosen by a seed.
    pub share: Option<Share>,
    /// Acts on so many and then no more.
    pub count: Option<u64>,
    /// Having acted on a packet, acts on everything behind it in its flow too (same cable, direction and queue pair), whatever it is.
    pub and_behind: bool,
    /// Sleeps until that rule would act on a frame; holds for the frames behind that one.
    pub woken_by: Option<Box<Rule>>,
    /// What is done.
    pub action: Action,
}

/// A number for each queue pair, by a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// All numbers come from it.
    pub seed: u64,
    /// The lowest.
    pub low: u64,
    /// One above the highest.
    pub high: u64,
}

impl Spread {
    fn of(self, qpn: u32) -> u64 {
        Seed::new(self.seed ^ u64::from(qpn) << 32, "queue pair").within(self.low..self.high)
    }
}

/// A share of the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Which ones.
    pub seed: u64,
    /// How many of a hundred.
    pub percent: u64,
}

impl Share {
    /// Whether the frame of that number is one of them.
    fn has(self, frame: u64) -> bool {
        Seed::new(self.seed ^ frame << 32, "share").within(0..100) < self.percent
    }
}

impl Rule {
    /// A rule that matches every frame on `link`.
    pub fn on(link: Link, action: Action) -> Rule {
        Rule {
            link: Some(link),
            from: None,
            opcodes: Vec::new(),
            psn: None,
            qpn: None,
            spared: Vec::new(),
            tcp: None,
            receiver_not_ready: false,
            skip: 0,
            skip_each: None,
            share: None,
            count: None,
            and_behind: false,
            woken_by: None,
            action,
        }
    }

    /// Only frames that `host` sends.
    pub fn from(mut self, host: Host) -> Rule {
        self.from = Some(host);
        self
    }

    /// Only RoCE packets with one of `opcodes`.
    pub fn opcodes(mut self, opcodes: &[u8]) -> Rule {
        self.opcodes = opcodes.to_vec();
        self
    }

    /// Only PSNs `first..=last`.
    pub fn psn(mut self, first: u32, last: u32) -> Rule {
        self.psn = Some((first, last));
        self
    }

    /// Only packets to the queue pair `qpn`.
    pub fn qpn(mut self, qpn: u32) -> Rule {
        self.qpn = Some(qpn);
        self
    }

    /// No packets to the queue pairs `qpns`.
    pub fn sparing(mut self, qpns: impl IntoIterator<Item = u32>) -> Rule {
        self.spared.extend(qpns);
        self
    }

    /// Only answers that say "receiver not ready".
    pub fn receiver_not_ready(mut self) -> Rule {
        self.receiver_not_ready = true;
        self
    }

    /// And everything behind what it acted on, flow by flow.
    pub fn and_behind(mut self) -> Rule {
        self.and_behind = true;
        self
    }

    /// Holds from the first frame on that `waker` would act on; that one itself passes.
    pub fn woken_by(mut self, waker: Rule) -> Rule {
        self.woken_by = Some(Box::new(waker));
        self
    }

    /// Lets matching frames of each queue pair pass first, as many as the seed says.
    pub fn after_each(mut self, spread: Spread) -> Rule {
        self.skip_each = Some(spread);
        self
    }

    /// Acts on so many of a hundred matching frames, chosen by the seed.
    pub fn percent(mut self, percent: u64, seed: u64) -> Rule {
        self.share = Some(Share { seed, percent });
        self
    }

    /// Lets `frames` matching frames pass first.
    pub fn after(mut self, frames: u64) -> Rule {
        self.skip = frames;
        self
    }

    /// Acts on `frames` frames only.
    pub fn times(mut self, frames: u64) -> Rule {
        self.count = Some(frames);
        self
    }

    fn matches(&self, link: Link, from: Host, packet: &Packet) -> bool {
        if self.link.is_some_and(|wanted| wanted != link) || self.from.is_some_and(|wanted| wanted != from) {
            return false;
        }
        if packet.roce.is_some_and(|bth| self.spared.contains(&bth.qpn)) {
            return false;
        }
        let ports = packet.tcp.map_or([0; 2], |(source, target)| [source, target]);
        if self.tcp.is_some_and(|(first, last)| !ports.iter().any(|port| (first..=last).contains(port))) {
            return false;
        }
        if self.opcodes.is_empty() && self.psn.is_none() && self.qpn.is_none() && !self.receiver_not_ready {
            return true;
        }
        let Some(bth) = packet.roce else { return false };
        (self.opcodes.is_empty() || self.opcodes.contains(&bth.opcode))
            && (!self.receiver_not_ready || bth.is_receiver_not_ready())
            && self.qpn.is_none_or(|wanted| wanted == bth.qpn)
            && self.psn.is_none_or(|(first, last)| psn_between(first, bth.psn, last))
    }
}

fn psn_between(first: u32, psn: u32, last: u32) -> bool {
    const MASK: u32 = 0x00ff_ffff;
    (psn.wrapping_sub(first) & MASK) <= (last.wrapping_sub(first) & MASK)
}

/// How often a rule matched and acted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Hits {
    /// Frames that matched, acted on or not.
    pub matched: u64,
    /// Frames it acted on.
    pub acted: u64,
    /// Host-monotonic time of its first action.
    pub first_ns: Option<u64>,
    /// Host-monotonic time of its last action.
    pub last_ns: Option<u64>,
}

/// A direction of a queue pair on a cable.
type Flow = (Link, Host, u32);

/// A rule, and what it has seen.
#[derive(Debug)]
struct Installed {
    id: RuleId,
    rule: Rule,
    hits: Hits,
    /// What it waits for, if it sleeps.
    waker: Option<Box<Installed>>,
    /// Frames that it let pass on each queue pair.
    skipped: BTreeMap<u32, u64>,
    /// Flows that it has acted on.
    taken: BTreeSet<Flow>,
}

impl Installed {
    fn new(id: RuleId, mut rule: Rule) -> Installed {
        let waker = rule.woken_by.take().map(|waker| Box::new(Installed::new(id, *waker)));
        Installed { id, rule, hits: Hits::default(), waker, skipped: BTreeMap::new(), taken: BTreeSet::new() }
    }

    /// Whether it acts on this frame, unless an earlier rule does; a rule that sleeps may wake up by it.
    fn acts(&mut self, link: Link, from: Host, packet: &Packet, now_ns: u64) -> bool {
        if let Some(waker) = &mut self.waker {
            if waker.acts(link, from, packet, now_ns) {
                self.waker = None;
            }
            return false;
        }
        let flow = packet.roce.map(|bth| (link, from, bth.qpn));
        let behind = flow.is_some_and(|flow| self.taken.contains(&flow));
        if !behind && !self.rule.matches(link, from, packet) {
            return false;
        }
        self.hits.matched += 1;
        let is_left_out = self.rule.share.is_some_and(|share| !share.has(self.hits.matched));
        let passes = !behind && (self.hits.matched <= self.rule.skip || is_left_out || self.skips(flow));
        if passes || self.rule.count.is_some_and(|count| self.hits.acted >= count) {
            return false;
        }
        if self.rule.and_behind {
            self.taken.extend(flow);
        }
        self.hits.acted += 1;
        self.hits.first_ns.get_or_insert(now_ns);
        self.hits.last_ns = Some(now_ns);
        true
    }

    fn skips(&mut self, flow: Option<Flow>) -> bool {
        let Some((spread, (_, _, qpn))) = self.rule.skip_each.zip(flow) else {
            return false;
        };
        let skipped = self.skipped.entry(qpn).or_default();
        *skipped += 1;
        *skipped <= spread.of(qpn)
    }
}

/// The installed rules, in the order of installation.
#[derive(Debug, Default)]
pub struct Rules {
    installed: Vec<Installed>,
    last_id: u16,
}

impl Rules {
    /// Installs `rule` behind the others.
    pub fn add(&mut self, rule: Rule) -> RuleId {
        self.last_id = self.last_id.wrapping_add(1).max(1);
        let id = RuleId(self.last_id);
        self.installed.push(Installed::new(id, rule));
        id
    }

    /// Takes a rule away; false if there is none of that name.
    pub fn remove(&mut self, id: RuleId) -> bool {
        let before = self.installed.len();
        self.installed.retain(|each| each.id != id);
        self.installed.len() != before
    }

    /// Takes all rules away.
    pub fn clear(&mut self) {
        self.installed.clear();
    }

    /// What a rule has done so far.
    pub fn hits(&self, id: RuleId) -> Option<Hits> {
        self.installed.iter().find(|each| each.id == id).map(|each| each.hits)
    }

    /// Decides the fate of one frame.
    pub fn decide(&mut self, link: Link, from: Host, packet: &Packet, now_ns: u64) -> Option<(RuleId, Action)> {
        let mut installed = self.installed.iter_mut();
        let first = installed.find_map(|each| {
            let acts = each.acts(link, from, packet, now_ns);
            acts.then_some((each.id, each.rule.action))
        });
        // Whoever sleeps behind it is woken by what an earlier rule takes, too.
        for each in installed.filter(|each| each.waker.is_some()) {
            each.acts(link, from, packet, now_ns);
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::{opcode, parse, sample};
    use super::*;

    fn packet(opcode: u8, qpn: u32, psn: u32) -> Packet {
        parse(&sample::roce4(opcode, qpn, psn, &[0; 8]))
    }

    #[test]
    fn a_rule_names_link_direction_opcode_queue_pair_and_psn() {
        let mut rules = Rules::default();
        let rule = Rule::on(Link::Rail0, Action::Drop).from(Host::B).opcodes(&[opcode::ACK]).qpn(17).psn(0xff_fffe, 1);
        let id = rules.add(rule);
        let named = packet(opcode::ACK, 17, 0);
        assert_eq!(rules.decide(Link::Rail0, Host::B, &named, 5), Some((id, Action::Drop)));
        assert_eq!(rules.decide(Link::Rail1, Host::B, &named, 5), None);
        assert_eq!(rules.decide(Link::Rail0, Host::A, &named, 5), None);
        for other in
            [packet(opcode::ACK, 18, 0), packet(opcode::ACK, 17, 2), packet(opcode::ATOMIC_ACK, 17, 0), parse(&[0; 60])]
        {
            assert_eq!(rules.decide(Link::Rail0, Host::B, &other, 5), None);
        }
        assert_eq!(rules.hits(id), Some(Hits { matched: 1, acted: 1, first_ns: Some(5), last_ns: Some(5) }));
    }

    #[test]
    fn a_rule_spares_the_queue_pairs_that_it_is_told_to() {
        let mut rules = Rules::default();
        let id = rules.add(Rule::on(Link::Rail1, Action::Drop).opcodes(&[opcode::ACK]).sparing([17, 19]));
        let fates = [16, 17, 18, 19].map(|qpn| rules.decide(Link::Rail1, Host::B, &packet(opcode::ACK, qpn, 0), 5));
        assert_eq!(fates, [Some((id, Action::Drop)), None, Some((id, Action::Drop)), None]);
    }

    #[test]
    fn skip_and_count_bound_what_a_rule_does() {
        let mut rules = Rules::default();
        rules.add(Rule::on(Link::Rail0, Action::Drop).after(2).times(3));
        let acted: Vec<bool> =
            (0..8).map(|psn| rules.decide(Link::Rail0, Host::A, &packet(0x0a, 1, psn), 0).is_some()).collect();
        assert_eq!(acted, [false, false, true, true, true, false, false, false]);
    }

    #[test]
    fn a_share_is_as_large_as_it_was_asked_for_and_the_seeds() {
        let taken = |seed| {
            let mut rules = Rules::default();
            rules.add(Rule::on(Link::Rail0, Action::Drop).percent(5, seed));
            let acted = (0..4000).map(|psn| rules.decide(Link::Rail0, Host::A, &packet(0x0a, 1, psn), 0).is_some());
            acted.collect::<Vec<bool>>()
        };
        let count = taken(3).into_iter().filter(|acted| *acted).count();
        assert!((150..250).contains(&count), "{count} of 4000");
        assert!(taken(3) == taken(3) && taken(3) != taken(4));
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let mut rules = Rules::default();
        let spared = rules.add(Rule::on(Link::Rail0, Action::Pass).qpn(1).times(1));
        let rest = rules.add(Rule::on(Link::Rail0, Action::Drop));
        assert_eq!(rules.decide(Link::Rail0, Host::A, &packet(4, 1, 0), 0), Some((spared, Action::Pass)));
        assert_eq!(rules.decide(Link::Rail0, Host::A, &packet(4, 1, 1), 0), Some((rest, Action::Drop)));
        assert!(rules.remove(rest) && !rules.remove(rest));
        assert_eq!(rules.decide(Link::Rail0, Host::A, &packet(4, 1, 2), 0), None);
    }

    #[test]
    fn tcp_is_named_by_either_port() {
        let segment = |source: u16, target: u16| {
            let mut frame = vec![0; 54];
            (frame[12], frame[14], frame[23]) = (8, 0x45, 6);
            frame[34..36].copy_from_slice(&source.to_be_bytes());
            frame[36..38].copy_from_slice(&target.to_be_bytes());
            parse(&frame)
        };
        let mut rules = Rules::default();
        rules.add(Rule { link: None, tcp: Some((21_000, 21_001)), ..Rule::on(Link::Rail0, Action::Drop) });
        let mut drops = |packet: &Packet| rules.decide(Link::Rail1, Host::B, packet, 0).is_some();
        assert!(drops(&segment(21_000, 5)) && drops(&segment(5, 21_001)));
        assert!(!drops(&segment(5, 21_002)) && !drops(&packet(opcode::ACK, 21_000, 0)));
    }

    #[test]
    fn behind_a_packet_everything_of_its_flow_is_named_and_nothing_else() {
        let mut rules = Rules::default();
        let id = rules.add(Rule::on(Link::Rail0, Action::Drop).opcodes(&[opcode::WRITE_FIRST]).after(1).and_behind());
        let drop = Some((id, Action::Drop));
        let mut fate = |from, code, qpn| rules.decide(Link::Rail0, from, &packet(code, qpn, 0), 0);
        assert_eq!(fate(Host::A, opcode::WRITE_FIRST, 1), None);
        assert_eq!(fate(Host::A, opcode::WRITE_ONLY, 1), None);
        assert_eq!(fate(Host::A, opcode::WRITE_FIRST, 1), drop);
        for code in [opcode::WRITE_ONLY, opcode::SEND_ONLY, opcode::READ_REQUEST] {
            assert_eq!(fate(Host::A, code, 1), drop);
            assert_eq!(fate(Host::A, code, 2), None);
            assert_eq!(fate(Host::B, code, 1), None);
        }
    }

    #[test]
    fn a_sleeping_rule_holds_behind_the_frame_that_wakes_it() {
        let mut rules = Rules::default();
        let other = rules.add(Rule::on(Link::Rail0, Action::Pass).qpn(9));
        let waker = Rule::on(Link::Rail0, Action::Pass).from(Host::B).receiver_not_ready().after(1);
        let id = rules.add(Rule::on(Link::Rail0, Action::Drop).from(Host::A).woken_by(waker));
        let answer = |syndrome, qpn| parse(&sample::roce4(opcode::ACK, qpn, 7, &[syndrome, 0, 0, 1]));
        let request = packet(opcode::SEND_ONLY, 3, 7);
        for (syndrome, qpn) in [(0x1f, 4), (0x60, 4), (0x2c, 4)] {
            assert_eq!(rules.decide(Link::Rail0, Host::B, &answer(syndrome, qpn), 0), None);
            assert_eq!(rules.decide(Link::Rail0, Host::A, &request, 0), None);
        }
        assert_eq!(rules.decide(Link::Rail0, Host::B, &answer(0x2c, 9), 0), Some((other, Action::Pass)));
        assert_eq!(rules.decide(Link::Rail0, Host::A, &request, 0), Some((id, Action::Drop)));
        assert_eq!(rules.decide(Link::Rail0, Host::B, &answer(0x2c, 4), 0), None);
    }

    #[test]
    fn each_queue_pair_is_spared_as_long_as_the_seed_says() {
        let spread = Spread { seed: 7, low: 3, high: 40 };
        let mut rules = Rules::default();
        rules.add(Rule::on(Link::Rail0, Action::Drop).opcodes(&[opcode::ACK]).after_each(spread));
        let mut spared = |qpn| {
            let passes = |psn: &u32| rules.decide(Link::Rail0, Host::B, &packet(opcode::ACK, qpn, *psn), 0).is_none();
            (0..100).filter(passes).count() as u64
        };
        let first: Vec<u64> = (1..30).map(&mut spared).collect();
        assert!(first.iter().all(|passed| (3..40).contains(passed)), "{first:?}");
        assert!(first.iter().any(|passed| *passed != first[0]), "{first:?}");
        assert_eq!(first, (1..30).map(|qpn| spread.of(qpn)).collect::<Vec<_>>());
    }
}
