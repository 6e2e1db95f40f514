//! Both runs on one screen: bars of new data by rail over time, what happened when, how it ended.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use crate::clock::ms;
use crate::guest::Ended;
use crate::place::Rail;
use crate::trouble::Result;

use super::migration::Migration;
use super::{Run, Shown, STILL_LIMIT};

/// Columns of the bars: with names and rates beside them they fit into 80.
const COLUMNS: u64 = 56;
/// What a column may stand for, ms.
const STEPS_MS: [u64; 9] = [100, 150, 200, 300, 500, 1000, 2000, 5000, 10_000];
/// Rows of a rail's bars.
const ROWS: usize = 2;
/// Eighths of a row.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Before the bars.
const MARGIN: usize = 10;
const WIDTH: usize = 80;

#[derive(Clone, Copy)]
enum Ink {
    Bold,
    Red,
    Green,
    Rail(Rail),
}

impl Ink {
    fn code(self) -> &'static str {
        match self {
            Ink::Bold => "1",
            Ink::Red => "31",
            Ink::Green => "32",
            Ink::Rail(Rail::Zero) => "36",
            Ink::Rail(Rail::One) => "33",
            Ink::Rail(Rail::Two) => "35",
        }
    }
}

/// Whether colours are wanted: on a terminal that knows them, unless NO_COLOR is set (no-color.org).
#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn of_stdout() -> Paint {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Paint(std::io::stdout().is_terminal() && !refused && !dumb)
    }

    fn on(self, ink: Ink, text: &str) -> String {
        if self.0 {
            format!("\x1b[{}m{text}\x1b[0m", ink.code())
        } else {
            text.to_owned()
        }
    }
}

/// The picture, in colour if standard output is a terminal.
pub(super) fn draw(shown: &Shown) -> String {
    Picture { shown, paint: Paint::of_stdout() }.text()
}

/// To standard output.
pub(super) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", text.trim_end())?;
    Ok(out.flush()?)
}

struct Picture<'a> {
    shown: &'a Shown,
    paint: Paint,
}

impl Picture<'_> {
    fn text(&self) -> String {
        let Shown { options, without, with } = self.shown;
        let step_ns = self.step_ns();
        let mut text = format!(
            "\nib_write_bw, unmodified: {} writes of {} bytes over soft-RoCE; rail 0 of the {} goes down.\n",
            with.test.iterations,
            options.size,
            options.cut.name()
        );
        let _ = writeln!(
            text,
            "Bars: new data that arrived, counted on the wire; a column is {} ms.\n",
            step_ns / 1_000_000
        );
        let _ = writeln!(text, "{}", self.paint.on(Ink::Bold, "WITHOUT THE SHIM"));
        text.push_str(&self.bars(without));
        text.push_str(&self.ends(without));
        let _ = writeln!(
            text,
            "\n{}",
            self.paint.on(Ink::Bold, "WITH THE SHIM: LD_PRELOAD=libshift_verbs.so, nothing else changed")
        );
        text.push_str(&self.bars(with));
        text.push_str(&self.timeline(with));
        text.push_str(&self.ends(with));
        text.push('\n');
        text.push_str(&self.verdict());
        text
    }

    /// The shortest column with which the longer run fits.
    fn step_ns(&self) -> u64 {
        let longest = [&self.shown.without, &self.shown.with].map(|run| run.traffic.since_start(run.over_ns));
        let longest_ms = longest.into_iter().max().unwrap_or(0) / 1_000_000;
        let fits = |step: &u64| longest_ms.div_ceil(*step) <= COLUMNS;
        STEPS_MS.into_iter().find(fits).unwrap_or(longest_ms / COLUMNS + 1) * 1_000_000
    }

    /// Highest column of both runs: their bars have one scale.
    fn peak(&self) -> u64 {
        let highest = |run: &Run| {
            let series = Rail::ALL.map(|rail| run.traffic.series(rail, self.step_ns(), run.over_ns));
            series.into_iter().flatten().max().unwrap_or(0)
        };
        highest(&self.shown.without).max(highest(&self.shown.with)).max(1)
    }

    fn bars(&self, run: &Run) -> String {
        let mut text = String::new();
        for rail in Rail::ALL {
            let series = run.traffic.series(rail, self.step_ns(), run.over_ns);
            let rows = rows_of(&series, self.peak());
            let last = rows.len().saturating_sub(1);
            for (index, row) in rows.iter().enumerate() {
                let name = if index == last { format!("  {:8}", rail_name(rail)) } else { " ".repeat(MARGIN) };
                let rate = if index == last { rate(run, rail) } else { String::new() };
                let _ = writeln!(text, "{name}{}  {rate}", self.paint.on(Ink::Rail(rail), row));
            }
        }
        if let Some(down_ns) = run.down_ns() {
            let _ = writeln!(text, "{}", self.paint.on(Ink::Red, &self.mark(run, down_ns)));
        }
        text
    }

    /// An arrow below the column in which rail 0 fell silent, with words on the side where there is room.
    fn mark(&self, run: &Run, down_ns: u64) -> String {
        let since = run.traffic.since_start(down_ns);
        let at = MARGIN + usize::try_from(since / self.step_ns()).unwrap_or(0);
        let words = format!("{:.2} s: rail 0 is dead", since as f64 / 1e9);
        if at + words.len() + 2 <= WIDTH {
            format!("{:at$}▲ {words}", "")
        } else {
            format!("{words:>width$} ▲", width = at - 1)
        }
    }

    fn ends(&self, run: &Run) -> String {
        let mut text = String::new();
        for (name, side) in [("sender", &run.story.client), ("receiver", &run.story.server)] {
            let (well, words) = match side {
                None => (false, format!("no progress for {} s; ended by the demo", STILL_LIMIT.as_secs())),
                Some(ended) if ended.succeeded() => (true, "exit 0".to_owned()),
                Some(ended) => (false, last_words(ended)),
            };
            let sign = if well { self.paint.on(Ink::Green, "✓") } else { self.paint.on(Ink::Red, "✗") };
            let iterations = if well && name == "sender" { self.iterations(run) } else { String::new() };
            let _ = writeln!(text, "  {name:8}  {sign} {words}{iterations}");
        }
        text
    }

    fn iterations(&self, run: &Run) -> String {
        match run.test.require_complete(&run.story) {
            Ok(_) => format!(", all {} iterations", run.test.iterations),
            Err(why) => format!(", but: {why}"),
        }
    }

    fn timeline(&self, run: &Run) -> String {
        let [Some(sender), receiver] = &run.migrations else {
            return "  the shim left no record of a migration\n".to_owned();
        };
        let mut moments: Vec<(u64, String)> =
            PHASES.into_iter().filter_map(|(phase, words)| Some((sender.at(phase)?, words.to_owned()))).collect();
        moments.extend(noticed(sender, receiver.as_ref()));
        moments.extend(
            run.story
                .fault_ns
                .map(|at| (at, format!("`ip link set eth1 down` is started on the {}", self.shown.options.cut.name()))),
        );
        moments.extend(run.down_ns().map(|at| (at, "the last new data by rail 0".to_owned())));
        moments
            .extend(run.traffic.span(Rail::One).map(|(first, _)| (first, "the first new data by rail 1".to_owned())));
        moments.extend(run.story.standby_ns.map(|at| (at, self.paint.on(Ink::Bold, "the first success by rail 1"))));
        moments.sort_by_key(|(at, _)| *at);
        let zero = run.down_ns().unwrap_or(0);
        let mut text = String::new();
        for (at, words) in moments {
            let after = (at as f64 - zero as f64) / 1e6;
            let _ = writeln!(text, "  {:>10}  {words}", format!("{after:+.1} ms"));
        }
        text.push_str(&decided(run, sender));
        text
    }

    fn verdict(&self) -> String {
        let Shown { without, with, .. } = self.shown;
        let total = u64::from(with.test.iterations) * u64::from(with.test.size);
        let arrived = without.traffic.bytes(Rail::Zero) * 100 / total;
        if !self.shown.holds() {
            return self.paint.on(Ink::Red, "This is not what should have happened: see above.\n");
        }
        let mut text = format!("Without the shim the run was over after {arrived} % of its data. With it ");
        if let (Some((_, last)), Some((first, _))) = (with.traffic.span(Rail::Zero), with.traffic.span(Rail::One)) {
            let _ = write!(text, "nothing moved for {:.0} ms,\nthen the rest ", ms(first.saturating_sub(last)));
        }
        let [zero, one] = Rail::ALL.map(|rail| with.traffic.bytes(rail));
        let _ = write!(text, "went by rail 1: {} + {} = ", megabytes(zero), megabytes(one));
        let again = (zero + one).saturating_sub(total);
        let _ = match again {
            0 => writeln!(text, "{}, each byte on the wire once.", megabytes(zero + one)),
            _ => writeln!(
                text,
                "{}\nand {} that were under way into the dead port and went again.",
                megabytes(total),
                megabytes(again)
            ),
        };
        text
    }
}

/// Phases of the sender's record that are worth a line.
const PHASES: [(&str, &str); 5] = [
    ("committed", "both ends have agreed to leave rail 0"),
    ("fenced", "the old queue pair is fenced: nothing of it reaches memory any more"),
    ("report_in", "the receiver's report is in: what its NIC had executed"),
    ("resumed", "all that was replayed has completed"),
    ("confirmed", "both ends have confirmed"),
];

/// Who noticed the fault first, and by what.
fn noticed(sender: &Migration, receiver: Option<&Migration>) -> Option<(u64, String)> {
    let ends = [("sender", Some(sender)), ("receiver", receiver)];
    let seen = ends.into_iter().filter_map(|(name, end)| Some((end?.at("trigger")?, name, end?)));
    let (at, name, end) = seen.min_by_key(|(at, ..)| *at)?;
    Some((at, format!("the shim of the {name} sees it: {}", end.cause)))
}

/// What became of the requests that were under way. Counts are the shim's; bytes and offset are the wire's.
fn decided(run: &Run, migration: &Migration) -> String {
    let proof = migration.proofs.in_words();
    let again = migration.sent_again();
    let mut lines = vec![
        format!("proven executed: {}, completed without being sent again", writes(migration.proven)),
        format!("replayed: {}{}", writes(again), replayed_data(run, again)),
    ];
    if !proof.is_empty() {
        lines.push(format!("proof: {proof}"));
    }
    if migration.proofs.never_posted > 0 {
        lines.push(format!("held meanwhile and sent then: {}", writes(migration.proofs.never_posted)));
    }
    if migration.surfaced > 0 || migration.outcome != "confirmed" {
        lines.push(format!("given to the program as errors: {}; outcome: {}", migration.surfaced, migration.outcome));
    }
    if migration.records > 1 {
        lines.push(format!("this is the last of {} records: further faults overtook the others", migration.records));
    }
    lines.into_iter().map(|line| format!("  {line}\n")).collect()
}

fn replayed_data(run: &Run, again: u64) -> String {
    let sizes = run.traffic.messages(Rail::One);
    let size = u64::from(run.test.size);
    let bytes: u64 = sizes.iter().take(usize::try_from(again).unwrap_or(usize::MAX)).sum();
    let offset = size.saturating_sub(sizes.first().copied().unwrap_or(size));
    match (again, offset) {
        (0, _) => String::new(),
        (_, 0) => format!(", {} bytes, each from its beginning", grouped(bytes)),
        _ => format!(", {} bytes, the first one from byte {} of {} on", grouped(bytes), grouped(offset), grouped(size)),
    }
}

fn writes(count: u64) -> String {
    if count == 1 {
        "1 write".to_owned()
    } else {
        format!("{} writes", grouped(count))
    }
}

/// With a comma after every three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let comma = |at: usize| at > 0 && (digits.len() - at).is_multiple_of(3);
    digits.chars().enumerate().flat_map(|(at, digit)| comma(at).then_some(',').into_iter().chain([digit])).collect()
}

/// The bars of one rail, top row first; a rail that carried nothing takes one row.
fn rows_of(series: &[u64], peak: u64) -> Vec<String> {
    if series.iter().all(|bytes| *bytes == 0) {
        return vec!["·".repeat(series.len())];
    }
    let row = |index: usize| {
        let below = (index * 8) as u64;
        let cell = |bytes: &u64| {
            let level = (bytes * (ROWS * 8) as u64).div_ceil(peak);
            match EIGHTHS.get(usize::try_from(level.saturating_sub(below).min(8)).unwrap_or(8)) {
                _ if level == 0 && index == 0 => '·',
                Some(eighths) => *eighths,
                None => ' ',
            }
        };
        series.iter().map(cell).collect::<String>()
    };
    (0..ROWS).rev().map(row).collect()
}

fn rail_name(rail: Rail) -> &'static str {
    match rail {
        Rail::Zero => "rail 0",
        Rail::One => "rail 1",
        Rail::Two => "rail 2",
    }
}

/// Average while the rail carried something.
fn rate(run: &Run, rail: Rail) -> String {
    match run.traffic.span(rail) {
        Some((first, last)) if last > first => {
            format!("{:.0} MB/s", run.traffic.bytes(rail) as f64 * 1e3 / (last - first) as f64)
        }
        _ => "nothing".to_owned(),
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// How it ended and the line that tells most: perftest prints its error first and usage hints behind.
fn last_words(ended: &Ended) -> String {
    let how = ended.code.map_or_else(|| format!("signal {}", ended.signal.unwrap_or(0)), |code| format!("exit {code}"));
    let said = ended.err.lines().chain(ended.out.lines()).map(str::trim);
    let telling = said.filter(|line| !line.is_empty()).find(|line| {
        let line = line.to_lowercase();
        ["error", "fail", "couldn't", "unable"].iter().any(|word| line.contains(word))
    });
    let words = telling.map_or_else(|| ended.brief(), |line| format!("{how}: {line}"));
    words.chars().take(WIDTH - MARGIN - 2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_high_as_its_share_of_the_peak() {
        assert_eq!(rows_of(&[0, 16, 8, 1, 12], 16), [" █  ▄", "·██▁█"]);
        assert_eq!(rows_of(&[0, 0, 0], 16), ["···"]);
    }

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!([0, 999, 1000, 7_925_760].map(grouped), ["0", "999", "1,000", "7,925,760"]);
    }

    #[test]
    fn colours_are_only_where_they_are_wanted() {
        assert_eq!(Paint(false).on(Ink::Red, "x"), "x");
        assert_eq!(Paint(true).on(Ink::Rail(Rail::One), "x"), "\x1b[33mx\x1b[0m");
    }

    #[test]
    fn the_telling_line_of_a_program_is_its_error() {
        let err = " Completion with error at client\n Failed status 5: wr_id 0 syndrom 0x0\n".to_owned();
        let ended = Ended { code: Some(1), err, out: "-----\nRDMA_Write BW Test\n".into(), ..Ended::default() };
        assert_eq!(last_words(&ended), "exit 1: Completion with error at client");
    }
}
