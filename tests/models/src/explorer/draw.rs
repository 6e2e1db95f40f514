//! Runs as a person would draw them: a line for each step, a column for each machine with arrows between them, or a tree.

use std::fmt::Write;

use super::Model;

/// One line of a drawing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drawn {
    /// Of the world around the machines.
    Line(String),
    /// Of one machine.
    At(usize, String),
    /// A message from a machine to another, as it arrives.
    Across(usize, usize, String),
}

/// A node of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// What it is called.
    pub label: String,
    /// What hangs from it.
    pub children: Vec<Branch>,
}

const COLUMN: usize = 46;

/// A run of `model`, drawn.
pub fn run<M: Model>(model: &M, states: &[M::State], actions: &[M::Action]) -> String {
    let lanes = model.lanes();
    let mut drawing = heading(&lanes);
    if let Some(figure) = states.first().and_then(|state| model.figure(state)) {
        drawing += &indent(&figure);
    }
    for (nth, action) in actions.iter().enumerate() {
        for (part, drawn) in model.draw(&states[nth], action, &states[nth + 1]).iter().enumerate() {
            let number = if part == 0 { format!("{:>4}", nth + 1) } else { "    ".to_string() };
            let _ = writeln!(drawing, "{}", format!("{number}  {}", line(&lanes, drawn)).trim_end());
        }
        if let Some(figure) = model.figure(&states[nth + 1]) {
            drawing += &indent(&figure);
        }
    }
    drawing
}

/// A tree, one node a line.
#[must_use]
pub fn tree(root: &Branch) -> String {
    let mut drawing = format!("{}\n", root.label);
    for (nth, child) in root.children.iter().enumerate() {
        let is_last = nth + 1 == root.children.len();
        let (knee, rest) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        for (nth, line) in tree(child).lines().enumerate() {
            let _ = writeln!(drawing, "{}{line}", if nth == 0 { knee } else { rest });
        }
    }
    drawing
}

fn indent(figure: &str) -> String {
    figure.lines().map(|line| format!("        {line}\n")).collect()
}

fn heading(lanes: &[String]) -> String {
    if lanes.is_empty() {
        return String::new();
    }
    let columns: String = lanes.iter().map(|lane| format!("{lane:<COLUMN$}")).collect();
    format!("      {}\n", columns.trim_end())
}

fn line(lanes: &[String], drawn: &Drawn) -> String {
    match drawn {
        Drawn::Line(text) if lanes.is_empty() => text.clone(),
        Drawn::Line(text) => format!("-- {text}"),
        Drawn::At(lane, text) => format!("{}{text}", " ".repeat(lane * COLUMN)),
        Drawn::Across(from, to, text) => arrow(*from, *to, text),
    }
}

/// `text ------------>` where it goes to the right, `<------------ text` where it goes to the left.
fn arrow(from: usize, to: usize, text: &str) -> String {
    let (left, right) = (from.min(to), from.max(to));
    let room = (right - left) * COLUMN;
    let shaft = "-".repeat(room.saturating_sub(text.chars().count() + 4).max(2));
    let body = if from < to { format!("{text} {shaft}>") } else { format!("<{shaft} {text}") };
    format!("{}{body}", " ".repeat(left * COLUMN))
}
