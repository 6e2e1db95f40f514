//! `SHIFT_DIRECTORY`: which directory the processes of the job share.
//!
//! Owns the form of the value. A password in it is never shown: not in a log line, not in an error.

use std::fmt;
use std::path::PathBuf;

const WANTED: &str = "write redis://HOST[:PORT][/DB] or file:///FOLDER, the same in the whole job";
/// The port of a Redis server that is named without one.
const REDIS_PORT: u16 = 6379;

/// A directory that the processes of the job share.
#[derive(Clone, PartialEq, Eq)]
pub enum Place {
    /// A folder that all hosts see.
    Folder(PathBuf),
    /// A Redis server.
    Redis {
        /// With user and password.
        url: String,
        /// Without them.
        shown: String,
    },
}

impl Place {
    /// Parses the value of the variable.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(value: &str) -> Result<Self, String> {
        if value.chars().any(|c| c.is_control() || c == ' ') {
            return Err(WANTED.to_owned());
        }
        if let Some(path) = value.strip_prefix("file://") {
            let is_folder = path.starts_with('/') && path.len() > 1;
            return is_folder
                .then(|| Self::Folder(PathBuf::from(path)))
                .ok_or_else(|| format!("the folder is named from the root, as in file:///FOLDER; {WANTED}"));
        }
        if value.starts_with("rediss://") {
            return Err(format!("this library speaks no TLS; {WANTED}"));
        }
        let rest = value.strip_prefix("redis://").ok_or(WANTED)?;
        let (user, site) = rest.rsplit_once('@').map_or((None, rest), |(user, site)| (Some(user), site));
        let (host_port, db) = site.split_once('/').unwrap_or((site, ""));
        let (host, port) = split_port(host_port)?;
        let is_db = db.is_empty() || db.parse::<u16>().is_ok();
        if host.is_empty() || !is_db {
            return Err(WANTED.to_owned());
        }
        let db = if db.is_empty() { "0" } else { db };
        let site = format!("{host}:{port}/{db}");
        let url = user.map_or_else(|| format!("redis://{site}"), |user| format!("redis://{user}@{site}"));
        Ok(Self::Redis { url, shown: format!("redis://{site}") })
    }

    /// A value as it may be shown, whatever else is wrong with it.
    pub fn redacted(value: &str) -> String {
        match (value.split_once("://"), value.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, site))) => format!("{scheme}://***@{site}"),
            (None, Some((_, site))) => format!("***@{site}"),
            (_, None) => value.to_owned(),
        }
    }
}

/// Of `[::1]:6379` the colons in brackets are the address's.
fn split_port(host_port: &str) -> Result<(&str, u16), String> {
    let colon = host_port.rfind(':').filter(|at| host_port.rfind(']').is_none_or(|bracket| bracket < *at));
    let Some((host, port)) = colon.and_then(|at| host_port.split_at_checked(at)) else {
        return Ok((host_port, REDIS_PORT));
    };
    let port = port.trim_start_matches(':').parse().ok().filter(|port| *port > 0);
    port.map(|port| (host, port)).ok_or_else(|| WANTED.to_owned())
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "file://{}", path.display()),
            Self::Redis { shown, .. } => f.write_str(shown),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: &str) -> Result<String, String> {
        Place::parse(value).map(|place| place.to_string())
    }

    #[test]
    fn servers_and_folders_are_told_apart() {
        assert_eq!(shown("file:///var/job").as_deref(), Ok("file:///var/job"));
        assert_eq!(shown("redis://head").as_deref(), Ok("redis://head:6379/0"));
        assert_eq!(shown("redis://[fd00::7]:7000/3").as_deref(), Ok("redis://[fd00::7]:7000/3"));
        assert_eq!(shown("redis://[fd00::7]").as_deref(), Ok("redis://[fd00::7]:6379/0"));
    }

    #[test]
    fn a_password_goes_to_the_server_and_nowhere_else() {
        let place = Place::parse("redis://job:hush@head:7000/1");
        assert!(matches!(&place, Ok(Place::Redis { url, .. }) if url == "redis://job:hush@head:7000/1"));
        let words = place.map(|place| format!("{place} {place:?}")).unwrap_or_default();
        assert!(words.contains("redis://head:7000/1") && !words.contains("hush"), "{words}");
        assert_eq!(Place::redacted("redis://job:hush@head:x"), "redis://***@head:x");
        assert_eq!(Place::redacted("job:hush@head"), "***@head");
        assert_eq!(Place::redacted("file://x"), "file://x");
    }

    #[test]
    fn what_names_neither_is_refused_with_the_form_that_is_wanted() {
        for wrong in
            ["", "head:6379", "file://relative", "file:///", "redis://", "redis://:6379", "redis://h:0", "redis://h/x"]
        {
            assert!(shown(wrong).is_err_and(|words| words.contains("redis://HOST[:PORT][/DB]")), "{wrong}");
        }
        assert!(shown("rediss://head").is_err_and(|words| words.contains("no TLS")));
    }
}
