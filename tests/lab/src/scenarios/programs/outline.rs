//! What a program printed, without what differs between any two runs of it: times, rates, addresses, keys.

/// How much of the output two runs have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// Everything but numbers with a fraction and hexadecimal ones.
    Words,
    /// Everything but numbers, with the units behind them.
    Shape,
}

/// Units that a program chooses by the size of the number before them.
const UNITS: [&str; 12] =
    ["KB/sec", "MB/sec", "GB/sec", "Kb/sec", "Mb/sec", "Gb/sec", "bytes", "KiB", "ns", "us", "ms", "sec"];
/// Lines that depend on the machine's load alone: perftest's doubts about the processor's clock, and the shim's own.
const OF_NO_PROGRAM: [&str; 5] =
    ["CPU frequency", "CPU Freq", "Correlation coefficient", "measured timestamp frequency", "shift-verbs["];

/// The lines of `text` that two runs must have in common.
pub fn outline(text: &str, compared: Compared) -> Vec<String> {
    let lines = text.lines().filter(|line| !OF_NO_PROGRAM.iter().any(|words| line.contains(words)));
    let told = lines.map(|line| {
        let words = line.split_whitespace().filter_map(|word| masked(word, compared));
        words.collect::<Vec<_>>().join(" ")
    });
    told.filter(|line| !line.is_empty()).collect()
}

fn masked(word: &str, compared: Compared) -> Option<String> {
    if word.contains("0x") {
        return Some("0x~".to_owned());
    }
    let digits = word.trim_start_matches(['=', '(', '[', '-']);
    let number: String = digits.chars().take_while(|letter| letter.is_ascii_digit() || *letter == '.').collect();
    let is_number = number.starts_with(|first: char| first.is_ascii_digit()) && number.matches('.').count() < 2;
    // The average of nothing.
    let is_none = digits == "nan";
    match compared {
        Compared::Words if is_none || (is_number && number.contains('.')) => Some("~".to_owned()),
        Compared::Shape if is_none || is_number => Some("~".to_owned()),
        Compared::Shape if UNITS.contains(&word) => None,
        Compared::Words | Compared::Shape => Some(word.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_keys_may_differ_and_nothing_else() {
        let first = " remote address: QPN 0x0011 GID: 00:00\n 65536      2000             51.53              48.34\n8192 bytes in 0.05 seconds\n";
        let second = " remote address: QPN 0x0012 GID: 00:00\n65536 2000 50.1 4.0\n8192 bytes in 1.5 seconds\nshift-verbs[7] info: x\n";
        assert_eq!(outline(first, Compared::Words), outline(second, Compared::Words));
        assert_ne!(outline(first, Compared::Words), outline(&first.replace("2000", "1999"), Compared::Words));
        assert_ne!(outline(first, Compared::Words), outline("", Compared::Words));
        let (first, second) = ("rc_bw:\n  bw = 45 MB/sec\n", "rc_bw:\n  bw = 810 KB/sec\n");
        assert_eq!(outline(first, Compared::Shape), outline(second, Compared::Shape));
        assert_ne!(outline(first, Compared::Shape), outline("rc_bw:\n", Compared::Shape));
        assert_eq!(masked("10.77.1.1,", Compared::Words), Some("10.77.1.1,".to_owned()));
        assert_eq!(outline("0.5 -nan", Compared::Words), outline("-nan 1.25", Compared::Words));
    }
}
