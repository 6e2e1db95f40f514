//! A directory in a Redis server: one key for each queue pair, which expires.
//!
//! Every call may wait for the network, for some seconds at most: it is made by the directory's own thread only.

use std::time::Duration;

use redis::{Client, Connection, RedisResult};

use super::entry::MAX_ENTRY;
use super::worker::{Store, EXPIRY};

/// An attempt to connect, and a question, take no longer.
const PATIENCE: Duration = Duration::from_secs(2);
/// In front of each key, so that other uses of the server are left alone.
const PREFIX: &str = "shift-verbs:";
/// Removes a key if it still says what this process wrote.
const REMOVE_OWN: &str = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0";

/// See the module.
pub(super) struct Server {
    url: String,
    connection: Option<Connection>,
}

impl Server {
    /// Nothing is connected yet.
    pub fn new(url: &str) -> Self {
        Self { url: url.to_owned(), connection: None }
    }

    /// A connection that failed once is not used again.
    fn ask<T>(&mut self, question: impl FnOnce(&mut Connection) -> RedisResult<T>) -> Result<T, String> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.url).map_err(|error| error.to_string())?,
        };
        let answer = question(&mut connection).map_err(|error| error.to_string())?;
        self.connection = Some(connection);
        Ok(answer)
    }
}

fn connect(url: &str) -> RedisResult<Connection> {
    let connection = Client::open(url)?.get_connection_with_timeout(PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    Ok(connection)
}

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

impl Store for Server {
    fn publish(&mut self, names: &[String], text: &str) -> Result<(), String> {
        let mut pipe = redis::pipe();
        for name in names {
            pipe.cmd("SET").arg(key(name)).arg(text).arg("EX").arg(EXPIRY.as_secs()).ignore();
        }
        self.ask(|connection| pipe.query(connection))
    }

    fn find(&mut self, names: &[String]) -> Result<Vec<Option<Vec<u8>>>, String> {
        // No more of a value than an entry has, and one byte.
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        for name in names {
            pipe.cmd("GETRANGE").arg(key(name)).arg(0).arg(MAX_ENTRY);
        }
        let values: Vec<RedisResult<Vec<u8>>> = self.ask(|connection| pipe.query(connection))?;
        let found = |value: RedisResult<Vec<u8>>| match value {
            Ok(value) => Ok(Some(value).filter(|it| !it.is_empty())),
            // Somebody keeps something else under that key.
            Err(error) if error.code() == Some("WRONGTYPE") => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        values.into_iter().map(found).collect()
    }

    fn withdraw(&mut self, names: &[String], text: &str) -> Result<(), String> {
        let mut pipe = redis::pipe();
        for name in names {
            pipe.cmd("EVAL").arg(REMOVE_OWN).arg(1).arg(key(name)).arg(text).ignore();
        }
        self.ask(|connection| pipe.query(connection))
    }

    /// The server lets keys expire by itself.
    fn sweep(&mut self) -> Result<(), String> {
        Ok(())
    }
}
