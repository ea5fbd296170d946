//! The configuration file as written: every key that may stand there, typed, with its place, nothing filled in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use spool::Durability;
use toml::de::DeTable;

use super::section::{At, Document, Found, Section};
use super::{
    AfterRetryTimeout, AfterTaking, Compression, Environment, Finding, LogFormat, Origin, OtherSignals, StartAt,
    WhenFull, remote,
};

/// Keys that the documentation of later versions names. Whoever writes one is told that it is not a typing error.
const NOT_YET: &[&str] = &[
    "delivery.order",
    "delivery.use_mlflow_limits",
    "delivery.requests_per_second",
    "backend.order",
    "backend.use_mlflow_limits",
    "backend.requests_per_second",
    "backend.match",
    "backend.table",
    "backend.experiment",
    "backend.client_id",
    "backend.client_secret_file",
    "admin.listen",
    "admin.token_file",
    "admin.tls",
    "admin.insecure",
    "admin.allowed_hosts",
];

/// The whole file.
#[derive(Debug, Default)]
pub(super) struct Config {
    pub state_dir: Option<Found<PathBuf>>,
    pub receive: Receive,
    pub spool: Spool,
    pub delivery: Delivery,
    pub dead_letters: DeadLetters,
    pub backends: Vec<Backend>,
    pub admin: Socket,
    pub log: Log,
}

#[derive(Debug, Default)]
pub(super) struct Receive {
    pub listen: Option<Found<Vec<Found<String>>>>,
    pub max_request_bytes: Option<Found<u64>>,
    pub max_in_flight_bytes: Option<Found<u64>>,
    pub insecure: Option<Found<bool>>,
    pub tls: Option<ServerTls>,
    pub token_file: Option<Found<PathBuf>>,
    /// It was there and could not be read: a mistake of its own, and no reason for others.
    pub guard_present: bool,
    pub keep_headers: Option<Found<Vec<Found<String>>>>,
    pub other_signals: Option<Found<OtherSignals>>,
    pub socket: Socket,
    pub mlflow: Mlflow,
    pub allow_uids: Option<Found<Vec<u32>>>,
    pub directory: Directory,
}

#[derive(Debug)]
pub(super) struct ServerTls {
    pub cert: Option<Found<PathBuf>>,
    pub key: Option<Found<PathBuf>>,
    pub client_ca: Option<Found<PathBuf>>,
}

#[derive(Debug, Default)]
pub(super) struct Mlflow {
    pub enabled: Option<Found<bool>>,
    pub experiment_id: Option<Found<String>>,
    pub forward: Option<Found<bool>>,
}

#[derive(Debug, Default)]
pub(super) struct Directory {
    pub path: Option<Found<PathBuf>>,
    pub rescan: Option<Found<Duration>>,
    pub after: Option<Found<AfterTaking>>,
    pub keep: Option<Found<Duration>>,
    pub keep_bytes: Option<Found<u64>>,
}

#[derive(Debug, Default)]
pub(super) struct Socket {
    pub path: Option<Found<PathBuf>>,
    pub mode: Option<Found<u32>>,
    pub group: Option<Found<String>>,
}

#[derive(Debug, Default)]
pub(super) struct Spool {
    pub max_bytes: Option<Found<u64>>,
    pub segment_bytes: Option<Found<u64>>,
    pub max_traces: Option<Found<u64>>,
    pub when_full: Option<Found<WhenFull>>,
    pub min_free_disk: Option<Found<u64>>,
    pub keep_delivered: Option<Found<Duration>>,
    pub keep_delivered_bytes: Option<Found<u64>>,
    pub durability: Option<Found<Durability>>,
}

#[derive(Debug, Default)]
pub(super) struct Delivery {
    pub workers: Option<Found<u64>>,
    pub timeout: Option<Found<Duration>>,
    pub batch_max_bytes: Option<Found<u64>>,
    pub backoff_initial: Option<Found<Duration>>,
    pub backoff_max: Option<Found<Duration>>,
    pub retry_timeout: Option<Found<Duration>>,
    pub after_retry_timeout: Option<Found<AfterRetryTimeout>>,
    pub blocked_retry: Option<Found<Duration>>,
}

#[derive(Debug, Default)]
pub(super) struct DeadLetters {
    pub max_bytes: Option<Found<u64>>,
    pub max_age: Option<Found<Duration>>,
}

#[derive(Debug)]
pub(super) struct Backend {
    /// Place of its head.
    pub at: At,
    pub name: Option<Found<String>>,
    pub kind: Option<Found<Kind>>,
    pub endpoint: Option<Found<String>>,
    pub traces_endpoint: Option<Found<String>>,
    pub headers: Vec<(String, Found<String>)>,
    pub token_file: Option<Found<PathBuf>>,
    pub username: Option<Found<String>>,
    pub password_file: Option<Found<PathBuf>>,
    pub tls: Option<Tls>,
    pub compression: Option<Found<Compression>>,
    pub experiment_id: Option<Found<String>>,
    pub start_at: Option<Found<StartAt>>,
    pub when_full: Option<Found<WhenFull>>,
    pub max_backlog_bytes: Option<Found<u64>>,
    pub path: Option<Found<PathBuf>>,
    pub rotate_bytes: Option<Found<u64>>,
    pub rotate_files: Option<Found<u64>>,
    pub delivery: Delivery,
    /// A key was there and could not be read, so that its absence above is not a mistake of its own.
    pub present: Vec<&'static str>,
}

/// The kinds of backends, as the file names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    OtlpGrpc,
    OtlpHttp,
    Mlflow,
    File,
}

#[derive(Debug)]
pub(super) struct Tls {
    pub at: At,
    pub ca: Option<Found<PathBuf>>,
    pub cert: Option<Found<PathBuf>>,
    pub key: Option<Found<PathBuf>>,
}

#[derive(Debug, Default)]
pub(super) struct Log {
    pub level: Option<Found<tracing::Level>>,
    pub format: Option<Found<LogFormat>>,
}

/// Reads the text of a file. When it is not TOML only that is reported: the rest would be guesswork.
pub(super) fn parse(path: &Path, text: &str, environment: &Environment) -> (Config, Vec<Finding>) {
    let document = Document::new(path, text, environment, NOT_YET);
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let finding = |error: &toml::de::Error| Finding {
            origin: document.origin(error.span().map_or(0, |span| span.start)),
            key: String::new(),
            message: format!("this is not TOML: {}", error.message()),
        };
        let mut findings: Vec<_> = errors.iter().map(finding).collect();
        findings.sort_by_key(place_of);
        // What follows on the same line is only the echo of the first.
        findings.dedup_by_key(|finding| place_of(finding).0);
        return (Config::default(), findings);
    }
    let config = read(&document.root(table.get_ref()));
    (config, document.into_findings())
}

fn place_of(finding: &Finding) -> (usize, usize) {
    match &finding.origin {
        Origin::File { line, column, .. } => (*line, *column),
        _ => (0, 0),
    }
}

fn read(root: &Section<'_, '_>) -> Config {
    let config = Config {
        state_dir: root.path("state_dir"),
        receive: receive(root.section("receive")),
        spool: spool(root.section("spool")),
        delivery: {
            let section = root.section("delivery");
            let delivery = delivery(&section);
            section.finish();
            delivery
        },
        dead_letters: dead_letters(root.section("dead_letters")),
        backends: root.sections("backend").into_iter().map(backend).collect(),
        admin: {
            let section = root.section("admin");
            let socket = socket(&section, section.path("socket"));
            section.finish();
            socket
        },
        log: log(root.section("log")),
    };
    root.finish();
    config
}

fn receive(section: Section<'_, '_>) -> Receive {
    let inner = section.section("socket");
    let receive = Receive {
        listen: section.strings("listen"),
        max_request_bytes: section.bytes("max_request_bytes"),
        max_in_flight_bytes: section.bytes("max_in_flight_bytes"),
        insecure: section.boolean("insecure"),
        tls: server_tls(&section),
        token_file: section.existing_file("token_file"),
        guard_present: section.has("tls") || section.has("token_file"),
        keep_headers: section.strings("keep_headers"),
        other_signals: choice(
            &section,
            "other_signals",
            &[("accept", OtherSignals::Accept), ("refuse", OtherSignals::Refuse)],
        ),
        allow_uids: inner.uids("allow_uids"),
        socket: socket(&inner, inner.socket_path("path")),
        mlflow: mlflow(section.section("mlflow")),
        directory: directory(section.section("directory")),
    };
    inner.finish();
    section.finish();
    receive
}

fn mlflow(section: Section<'_, '_>) -> Mlflow {
    let mlflow = Mlflow {
        enabled: section.boolean("enabled"),
        experiment_id: section.string("experiment_id"),
        forward: section.boolean("forward"),
    };
    section.finish();
    mlflow
}

fn directory(section: Section<'_, '_>) -> Directory {
    let directory = Directory {
        path: section.path("path"),
        rescan: section.time("rescan"),
        after: choice(&section, "after", &[("delete", AfterTaking::Delete), ("archive", AfterTaking::Archive)]),
        keep: section.time("keep"),
        keep_bytes: section.bytes("keep_bytes"),
    };
    section.finish();
    directory
}

fn server_tls(section: &Section<'_, '_>) -> Option<ServerTls> {
    if !section.has("tls") {
        return None;
    }
    let section = section.section("tls");
    let tls = ServerTls {
        cert: section.existing_file("cert"),
        key: section.existing_file("key"),
        client_ca: section.existing_file("client_ca"),
    };
    if !section.has("cert") || !section.has("key") {
        section.mistake(&section.at(), "needs cert and key");
    }
    section.finish();
    Some(tls)
}

fn socket(section: &Section<'_, '_>, path: Option<Found<PathBuf>>) -> Socket {
    Socket { path, mode: section.mode("mode"), group: section.string("group") }
}

fn spool(section: Section<'_, '_>) -> Spool {
    let spool = Spool {
        max_bytes: section.bytes("max_bytes"),
        segment_bytes: section.bytes("segment_bytes"),
        max_traces: section.integer("max_traces"),
        when_full: choice(
            &section,
            "when_full",
            &[
                ("refuse", WhenFull::Refuse),
                ("discard_oldest", WhenFull::DiscardOldest),
                ("discard_newest", WhenFull::DiscardNewest),
            ],
        ),
        min_free_disk: section.bytes("min_free_disk"),
        keep_delivered: section.time("keep_delivered"),
        keep_delivered_bytes: section.bytes("keep_delivered_bytes"),
        durability: choice(&section, "durability", &[("sync", Durability::Sync), ("relaxed", Durability::Relaxed)]),
    };
    section.finish();
    spool
}

fn delivery(section: &Section<'_, '_>) -> Delivery {
    Delivery {
        workers: section.integer("workers"),
        timeout: section.time("timeout"),
        batch_max_bytes: section.bytes("batch_max_bytes"),
        backoff_initial: section.time("backoff_initial"),
        backoff_max: section.time("backoff_max"),
        retry_timeout: section.time("retry_timeout"),
        after_retry_timeout: choice(
            section,
            "after_retry_timeout",
            &[("dead_letter", AfterRetryTimeout::DeadLetter), ("discard", AfterRetryTimeout::Discard)],
        ),
        blocked_retry: section.time("blocked_retry"),
    }
}

fn dead_letters(section: Section<'_, '_>) -> DeadLetters {
    let dead_letters = DeadLetters { max_bytes: section.bytes("max_bytes"), max_age: section.time("max_age") };
    section.finish();
    dead_letters
}

fn backend(mut section: Section<'_, '_>) -> Backend {
    let at = section.at();
    let name = section.string("name");
    // From here on places are named as the user named the backend.
    if let Some(name) = name.as_ref().filter(|name| !name.at.hidden && remote::is_good_name(&name.value)) {
        section.rename(format!("backend.{}", name.value));
    }
    let kind = kind(&section);
    let backend = Backend {
        at: At { key: section.at().key, ..at },
        name,
        kind,
        endpoint: section.string("endpoint"),
        traces_endpoint: section.string("traces_endpoint"),
        headers: section.map("headers"),
        token_file: section.existing_file("token_file"),
        username: section.string("username"),
        password_file: section.existing_file("password_file"),
        tls: tls(&section),
        compression: choice(
            &section,
            "compression",
            &[("none", Compression::None), ("gzip", Compression::Gzip), ("zstd", Compression::Zstd)],
        ),
        experiment_id: section.string("experiment_id"),
        start_at: choice(&section, "start_at", &[("oldest", StartAt::Oldest), ("now", StartAt::Now)]),
        when_full: choice(
            &section,
            "when_full",
            &[("refuse", WhenFull::Refuse), ("discard_oldest", WhenFull::DiscardOldest)],
        ),
        max_backlog_bytes: section.bytes("max_backlog_bytes"),
        path: section.path("path"),
        rotate_bytes: section.bytes("rotate_bytes"),
        rotate_files: section.integer("rotate_files"),
        delivery: delivery(&section),
        present: ["name", "kind", "endpoint", "traces_endpoint", "token_file", "username", "password_file", "path"]
            .into_iter()
            .filter(|key| section.has(key))
            .collect(),
    };
    section.finish();
    backend
}

fn kind(section: &Section<'_, '_>) -> Option<Found<Kind>> {
    let found = section.string("kind")?;
    if found.value == "databricks" {
        section.mistake(&found.at, "databricks is not available in this version");
        return None;
    }
    pick(
        section,
        found,
        &[("otlp_grpc", Kind::OtlpGrpc), ("otlp_http", Kind::OtlpHttp), ("mlflow", Kind::Mlflow), ("file", Kind::File)],
    )
}

fn tls(section: &Section<'_, '_>) -> Option<Tls> {
    if !section.has("tls") {
        return None;
    }
    let section = section.section("tls");
    let tls = Tls {
        at: section.at(),
        ca: section.existing_file("ca"),
        cert: section.existing_file("cert"),
        key: section.existing_file("key"),
    };
    if section.has("cert") != section.has("key") {
        section.mistake(&section.at(), "needs cert and key together");
    }
    section.finish();
    Some(tls)
}

fn log(section: Section<'_, '_>) -> Log {
    let log = Log {
        level: section.string("level").and_then(|found| match super::log_level(&found.value) {
            Ok(level) => Some(Found { value: level, at: found.at }),
            Err(reason) => {
                section.mistake(&found.at, reason);
                None
            }
        }),
        format: choice(
            &section,
            "format",
            &[("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)],
        ),
    };
    section.finish();
    log
}

/// One of a few words.
fn choice<T: Copy>(section: &Section<'_, '_>, key: &'static str, words: &[(&'static str, T)]) -> Option<Found<T>> {
    let found = section.string(key)?;
    pick(section, found, words)
}

fn pick<T: Copy>(section: &Section<'_, '_>, found: Found<String>, words: &[(&'static str, T)]) -> Option<Found<T>> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == found.value) {
        return Some(Found { value: *value, at: found.at });
    }
    let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
    let mut message = format!("must be one of {}", known.join(", "));
    if let Some(close) = super::section::closest(&found.value, &known) {
        message = format!("{message}; did you mean {close}?");
    }
    section.mistake(&found.at, message);
    None
}
