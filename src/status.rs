//! The answer of `GET /status`, as the daemon writes it and the command line reads it.
//!
//! Names and nesting are a promise to users. More keys may be added; readers ignore those they don't know.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The daemon at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Where in its life it is.
    pub state: State,
    /// When it started; nothing when it was read offline.
    pub started_at: Option<Timestamp>,
    /// The TCP addresses that were really taken.
    pub listen: Vec<String>,
    /// What lies on disk.
    pub spool: Spool,
    /// What came in.
    pub received: Received,
    /// The drop directory; nothing when it was read offline.
    #[serde(default)]
    pub directory: Option<Directory>,
    /// One entry a backend, those that were removed included.
    pub backends: Vec<Backend>,
    /// Replay jobs.
    pub replays: Vec<serde_json::Value>,
}

/// Where in its life the daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The doors are not open yet.
    Starting,
    /// The doors are open.
    Ready,
    /// The doors are closed; what is in hand is finished.
    Stopping,
    /// It will end with an error.
    Failed,
    /// There is no daemon; this was read from its files.
    Down,
}

/// What lies on disk. The counts are of what at least one backend still waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spool {
    /// Records waiting.
    pub records: u64,
    /// Traces in them.
    pub traces: u64,
    /// Spans in them.
    pub spans: u64,
    /// All bytes on disk, waiting or not.
    pub bytes: u64,
    /// The cap of `bytes`.
    pub max_bytes: u64,
    /// Receipt of the oldest record waiting.
    pub oldest_at: Option<Timestamp>,
    /// Free space of the file system.
    pub disk_free_bytes: u64,
    /// Seconds until `bytes` reaches `max_bytes` at the present rate.
    pub seconds_until_full: Option<u64>,
    /// Delivered, and kept for replay.
    pub kept: Kept,
    /// Given up, and kept for the operator.
    pub dead_letters: DeadLetters,
    /// Damage of the medium that was found.
    pub damage: Damage,
}

/// Delivered records that are kept for replay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Records.
    pub records: u64,
    /// Bytes.
    pub bytes: u64,
    /// Receipt of the oldest.
    pub oldest_at: Option<Timestamp>,
}

/// Records that were given up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetters {
    /// Records.
    pub records: u64,
    /// Bytes.
    pub bytes: u64,
    /// The cap of `bytes`.
    pub max_bytes: u64,
    /// Receipt of the oldest.
    pub oldest_at: Option<Timestamp>,
}

/// Damage of the medium.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Records lost to it.
    pub records: u64,
    /// Bytes lost to it.
    pub bytes: u64,
}

/// What came in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// Requests acknowledged.
    pub requests: u64,
    /// Traces in them.
    pub traces: u64,
    /// Spans in them.
    pub spans: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Requests refused, by reason.
    pub refused: Refused,
}

/// Requests refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// No room.
    pub full: u64,
    /// Not trace data.
    pub invalid: u64,
    /// Larger than a request may be.
    pub too_large: u64,
}

/// The drop directory. The counts are of this run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Where it is.
    pub path: String,
    /// How it is looked after.
    pub state: DirectoryState,
    /// What stands in the way: why it can't be used, or is not watched.
    pub trouble: Option<String>,
    /// Files whose content is on disk, and that are gone from there.
    pub files: u64,
    /// Records made of them.
    pub records: u64,
    /// Files of which all or a part went to `rejected/`.
    pub rejected_files: u64,
    /// Lines and resources that went there.
    pub rejected_pieces: u64,
    /// Files that are known to be complete and were not taken yet.
    pub waiting: u64,
    /// Whether it waits for room in the spool.
    pub waits_for_room: bool,
    /// Files that are left where they are.
    pub left: u64,
    /// The first of these.
    pub left_files: Vec<LeftFile>,
}

/// How the drop directory is looked after.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DirectoryState {
    /// The kernel tells what happens in it.
    Watching,
    /// It is only looked through from time to time.
    Scanning,
    /// It is not there, or can't be used.
    #[default]
    Missing,
}

/// A file that is left where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftFile {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// One backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// How it is.
    pub state: BackendState,
    /// All that it was ever to get, in spans (at least one a record).
    pub owed: u64,
    /// What it still is to get.
    pub backlog: Backlog,
    /// Requests under way.
    pub in_flight: u64,
    /// What it took.
    pub delivered: Volume,
    /// What it took the request for, and refused.
    pub rejected: Rejected,
    /// What was given up and is kept.
    pub dead: Volume,
    /// What a limit discarded.
    pub discarded: Discarded,
    /// What damage of the medium took.
    pub damaged: u64,
    /// What this kind of backend has no place for.
    pub not_applicable: u64,
    /// Requests sent.
    pub attempts: u64,
    /// The last trouble, also when it is over.
    pub last_error: Option<LastError>,
    /// When it will be tried again, if that is not at once.
    pub next_attempt_at: Option<Timestamp>,
}

/// How a backend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// It takes what it is sent.
    Up,
    /// Trouble that may pass by itself.
    Retrying,
    /// Trouble that the operator must end.
    Blocked,
    /// The operator stopped delivery.
    Paused,
    /// It is no longer in the configuration.
    Removed,
}

/// What a backend still is to get; parked records included.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backlog {
    /// Records.
    pub records: u64,
    /// Traces.
    pub traces: u64,
    /// Spans.
    pub spans: u64,
    /// Bytes.
    pub bytes: u64,
    /// Receipt of the oldest.
    pub oldest_at: Option<Timestamp>,
    /// Records that were refused alone and wait for another try.
    pub parked: u64,
}

/// Counts of one fate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Records.
    pub records: u64,
    /// Spans.
    pub spans: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Spans that a partial success refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Spans.
    pub spans: u64,
}

/// What limits discarded, by limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discarded {
    /// Waited longer than `retry_timeout`.
    pub retry_timeout: u64,
    /// Gave way to the queue cap.
    pub queue_cap: u64,
    /// Gave way to the cap of dead letters.
    pub dead_letter_cap: u64,
    /// A dead letter that became too old.
    pub dead_letter_age: u64,
    /// The operator's `purge`.
    pub purged: u64,
}

impl Discarded {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.retry_timeout + self.queue_cap + self.dead_letter_cap + self.dead_letter_age + self.purged
    }
}

/// The last trouble with a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// When it happened.
    pub at: Timestamp,
    /// HTTP status or gRPC code as text, or `connect`, `timeout`, `io`.
    pub status: String,
    /// The backend's or the connection's own words, shortened.
    pub message: String,
    /// What the operator can do about it.
    pub advice: Option<String>,
}

/// A moment, written in UTC as RFC 3339 says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub SystemTime);

impl Timestamp {
    /// This moment.
    pub fn now() -> Self {
        Self(SystemTime::now())
    }

    /// How long ago it was; nothing for one that is yet to come.
    pub fn age(self, now: SystemTime) -> Duration {
        now.duration_since(self.0).unwrap_or_default()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whole seconds are written without a fraction, others to the millisecond.
        let millis = self.0.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_millis());
        // A clock that stands before 1970 is shown as 1970: there is no honest answer, and none worth a panic.
        let time = self.0.max(SystemTime::UNIX_EPOCH);
        if millis == 0 {
            humantime::format_rfc3339_seconds(time).fmt(f)
        } else {
            humantime::format_rfc3339_millis(time).fmt(f)
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The object as the documentation shows it.
    pub(crate) const SAMPLE: &str = r#"
{"version":"0.1.0","pid":1,"state":"ready","started_at":"2026-01-01T00:00:00Z","listen":["127.0.0.1:4317"],
 "spool":{"records":0,"traces":0,"spans":0,"bytes":0,"max_bytes":0,"oldest_at":null,"disk_free_bytes":0,"seconds_until_full":null,
   "kept":{"records":0,"bytes":0,"oldest_at":null},"dead_letters":{"records":0,"bytes":0,"max_bytes":0,"oldest_at":null},"damage":{"records":0,"bytes":0}},
 "received":{"requests":0,"traces":0,"spans":0,"bytes":0,"refused":{"full":0,"invalid":0,"too_large":0}},
 "directory":{"path":"/d","state":"watching","trouble":null,"files":0,"records":0,"rejected_files":0,"rejected_pieces":0,"waiting":0,
   "waits_for_room":false,"left":0,"left_files":[]},
 "backends":[{"name":"mlflow","kind":"mlflow","state":"up","owed":0,
   "backlog":{"records":0,"traces":0,"spans":0,"bytes":0,"oldest_at":null,"parked":0},
   "in_flight":0,"delivered":{"records":0,"spans":0,"bytes":0},"rejected":{"spans":0},"dead":{"records":0,"spans":0,"bytes":0},
   "discarded":{"retry_timeout":0,"queue_cap":0,"dead_letter_cap":0,"dead_letter_age":0,"purged":0},"damaged":0,"not_applicable":0,
   "attempts":0,"last_error":null,"next_attempt_at":null}],
 "replays":[]}"#;

    /// Reading the documented object and writing it again gives the same object: no key is missing, misspelt, or
    /// written where none is documented.
    #[test]
    fn the_documented_object_is_exactly_what_is_written() {
        let status: Status = serde_json::from_str(SAMPLE).expect("the sample is read");
        let written = serde_json::to_value(&status).expect("written");
        let documented: serde_json::Value = serde_json::from_str(SAMPLE).expect("JSON");
        assert_eq!(written, documented);
    }

    #[test]
    fn keys_of_a_newer_daemon_are_ignored() {
        let mut newer: serde_json::Value = serde_json::from_str(SAMPLE).expect("JSON");
        newer["weather"] = "fine".into();
        newer["backends"][0]["backlog"]["weather"] = "fine".into();
        assert!(serde_json::from_value::<Status>(newer).is_ok());
    }

    #[test]
    fn times_keep_their_milliseconds_and_are_in_utc() {
        for text in ["\"2026-01-01T00:00:00Z\"", "\"2026-11-24T20:26:48.125Z\""] {
            let time: Timestamp = serde_json::from_str(text).expect("a time");
            assert_eq!(serde_json::to_string(&time).expect("written"), text);
        }
        assert!(serde_json::from_str::<Timestamp>("\"yesterday\"").is_err());
        let before = Timestamp(SystemTime::UNIX_EPOCH - Duration::from_millis(1_500));
        assert_eq!(before.to_string(), "1970-01-01T00:00:00Z");
    }
}
