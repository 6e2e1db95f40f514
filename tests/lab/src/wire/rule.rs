//! Rules: which frames a scenario singles out, and what becomes of them.
//!
//! The first rule that matches and still has budget decides; a frame that no rule takes passes. Rules are pure: they decide, the
//! switchboard does.

use serde::{Deserialize, Serialize};

use super::packet::Packet;
use crate::place::{Host, Link};

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
    /// Lets so many matching frames pass first.
    pub skip: u64,
    /// Acts on so many and then no more.
    pub count: Option<u64>,
    /// What is done.
    pub action: Action,
}

impl Rule {
    /// A rule that matches every frame on `link`.
    pub fn on(link: Link, action: Action) -> Rule {
        Rule { link: Some(link), from: None, opcodes: Vec::new(), psn: None, qpn: None, skip: 0, count: None, action }
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
        if self.opcodes.is_empty() && self.psn.is_none() && self.qpn.is_none() {
            return true;
        }
        let Some(bth) = packet.roce else { return false };
        (self.opcodes.is_empty() || self.opcodes.contains(&bth.opcode))
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

/// The installed rules, in the order of installation.
#[derive(Debug, Default)]
pub struct Rules {
    installed: Vec<(RuleId, Rule, Hits)>,
    last_id: u16,
}

impl Rules {
    /// Installs `rule` behind the others.
    pub fn add(&mut self, rule: Rule) -> RuleId {
        self.last_id = self.last_id.wrapping_add(1).max(1);
        let id = RuleId(self.last_id);
        self.installed.push((id, rule, Hits::default()));
        id
    }

    /// Takes a rule away; false if there is none of that name.
    pub fn remove(&mut self, id: RuleId) -> bool {
        let before = self.installed.len();
        self.installed.retain(|(each, ..)| *each != id);
        self.installed.len() != before
    }

    /// Takes all rules away.
    pub fn clear(&mut self) {
        self.installed.clear();
    }

    /// What a rule has done so far.
    pub fn hits(&self, id: RuleId) -> Option<Hits> {
        self.installed.iter().find(|(each, ..)| *each == id).map(|(.., hits)| *hits)
    }

    /// Decides the fate of one frame.
    pub fn decide(&mut self, link: Link, from: Host, packet: &Packet, now_ns: u64) -> Option<(RuleId, Action)> {
        for (id, rule, hits) in &mut self.installed {
            if !rule.matches(link, from, packet) {
                continue;
            }
            hits.matched += 1;
            if hits.matched <= rule.skip || rule.count.is_some_and(|count| hits.acted >= count) {
                continue;
            }
            hits.acted += 1;
            hits.first_ns.get_or_insert(now_ns);
            hits.last_ns = Some(now_ns);
            return Some((*id, rule.action));
        }
        None
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
    fn skip_and_count_bound_what_a_rule_does() {
        let mut rules = Rules::default();
        rules.add(Rule::on(Link::Rail0, Action::Drop).after(2).times(3));
        let acted: Vec<bool> =
            (0..8).map(|psn| rules.decide(Link::Rail0, Host::A, &packet(0x0a, 1, psn), 0).is_some()).collect();
        assert_eq!(acted, [false, false, true, true, true, false, false, false]);
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
}
