//! What a scenario measured: names and values, in the order they were noted.

use serde::Serialize;
use serde_json::{Map, Value};

/// Figures of one scenario.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Figures(Map<String, Value>);

impl Figures {
    /// None yet.
    pub fn new() -> Figures {
        Figures::default()
    }

    /// With one more.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Figures {
        self.note(name, value);
        self
    }

    /// Notes one more.
    pub fn note(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// As JSON members.
    pub fn into_members(self) -> Map<String, Value> {
        self.0
    }
}
