//! From the file, the environment and the command line to the configuration in force.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use spool::Durability;

use super::paths::{self, Places};
use super::section::{At, Found};
use super::settle::Settle;
use super::{
    Admin, AfterRetryTimeout, Backend, Config, DeadLetters, Delivery, Directory, Environment, Finding, Log, LogFormat,
    Mistakes, MlflowCalls, Origin, Origins, Receive, ServerTls, Socket, Spool, Target, WhenFull, backends, file,
    kept_headers,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const DAY: Duration = Duration::from_secs(86_400);
const YEARS: Duration = Duration::from_secs(86_400 * 3_650);
/// Everything that is counted in bytes on disk stays below this, so that sums cannot overflow.
pub(super) const LARGEST: u64 = 1 << 50;

/// What the command line says about the configuration.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--state-dir`.
    pub state_dir: Option<PathBuf>,
}

/// A configuration without mistakes, and what there is to say about it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration in force.
    pub config: Config,
    /// What the operator should know, though it stops nothing.
    pub warnings: Vec<Finding>,
    /// Where each value came from.
    pub origins: Origins,
    /// The file that was read, if there is one.
    pub file: Option<PathBuf>,
}

impl Loaded {
    /// Where a backend is, fit for the log: neither a key in the address's query, nor anything of an address that was
    /// put together from references.
    pub fn place(&self, backend: &Backend) -> String {
        let keys = ["endpoint", "traces_endpoint", "path"];
        if keys.iter().any(|key| self.origins.of(&format!("backend.{}.{key}", backend.name)).hidden) {
            return "***".into();
        }
        match (&backend.target, backend.target.remote()) {
            (Target::File(file), _) => file.path.display().to_string(),
            (_, Some(remote)) => remote.shown(),
            (_, None) => String::new(),
        }
    }
}

/// Where a daemon with this configuration is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doors {
    /// Its state directory.
    pub state_dir: PathBuf,
    /// Its spool socket.
    pub spool: PathBuf,
    /// Its admin socket.
    pub admin: PathBuf,
}

/// Loads the configuration in force, or says everything that is wrong with it.
pub fn load(overrides: &Overrides, environment: &Environment) -> Result<Loaded, Mistakes> {
    let places = Places::of(environment);
    let (written, path, mut mistakes) = read_file(overrides, environment, &places);
    let mut settle = Settle::new(environment);
    let config = build(written, overrides, &places, &mut settle);
    mistakes.append(&mut settle.mistakes);
    if mistakes.is_empty() {
        return Ok(Loaded { config, warnings: settle.warnings, origins: settle.origins, file: path });
    }
    // In the order of the file; what does not stand in it comes last.
    mistakes.sort_by_key(|finding| match &finding.origin {
        Origin::File { line, column, .. } => (*line, *column),
        _ => (usize::MAX, 0),
    });
    mistakes.dedup();
    Err(Mistakes(mistakes))
}

/// Finds the doors that this configuration names, whatever else is wrong with it: a command that asks a running
/// daemon needs no more, and may be run by somebody who can't read the daemon's secrets.
pub fn doors(overrides: &Overrides, environment: &Environment) -> Result<Doors, Mistakes> {
    let places = Places::of(environment);
    let (written, _, mistakes) = read_file(overrides, environment, &places);
    let fatal = |finding: &Finding| {
        finding.key.is_empty() || ["state_dir", "receive.socket.path", "admin.socket"].contains(&finding.key.as_str())
    };
    let mut mistakes: Vec<_> = mistakes.into_iter().filter(fatal).collect();
    let mut settle = Settle::new(environment);
    let doors = settle_doors(
        written.state_dir,
        written.receive.socket.path,
        written.admin.path,
        overrides,
        &places,
        &mut settle,
    );
    mistakes.append(&mut settle.mistakes);
    if mistakes.is_empty() { Ok(doors) } else { Err(Mistakes(mistakes)) }
}

/// Reads the file: the one that was named, or the default one if it exists.
fn read_file(
    overrides: &Overrides,
    environment: &Environment,
    places: &Places,
) -> (file::Config, Option<PathBuf>, Vec<Finding>) {
    let named = match (&overrides.config, environment.get("TRACESPOOL_CONFIG")) {
        (Some(path), _) => Some((environment.absolute(path), Origin::CommandLine("--config"))),
        (None, Some(path)) => {
            let origin = Origin::Environment("TRACESPOOL_CONFIG".into());
            Some((environment.absolute(Path::new(path)), origin))
        }
        (None, None) => None,
    };
    let (path, origin) = match (named, &places.file) {
        (Some((path, origin)), _) => (path, Some(origin)),
        (None, Some(path)) => (path.clone(), None),
        (None, None) => return (file::Config::default(), None, Vec::new()),
    };
    match std::fs::read(&path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => {
                let (config, findings) = file::parse(&path, &text, environment);
                (config, Some(path), findings)
            }
            Err(error) => {
                let text = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned();
                let line = text.matches('\n').count() + 1;
                let finding = Finding {
                    origin: Origin::File { path: path.clone(), line, column: 1 },
                    key: String::new(),
                    message: "this line is not UTF-8 text".into(),
                };
                (file::Config::default(), Some(path), vec![finding])
            }
        },
        // Only a file that somebody asked for must exist.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && origin.is_none() => {
            (file::Config::default(), None, Vec::new())
        }
        Err(error) => {
            let finding = Finding {
                origin: origin.unwrap_or_default(),
                key: String::new(),
                message: format!("cannot read the configuration file {}: {error}", path.display()),
            };
            (file::Config::default(), Some(path), vec![finding])
        }
    }
}

fn build(written: file::Config, overrides: &Overrides, places: &Places, settle: &mut Settle<'_>) -> Config {
    let file::Config { state_dir, mut receive, spool, delivery, dead_letters, backends, admin, log } = written;
    let listen_at = receive.listen.as_ref().map(|found| found.at.clone());
    let doors = settle_doors(state_dir, receive.socket.path.clone(), admin.path, overrides, places, settle);
    let directory = build_directory(std::mem::take(&mut receive.directory), &doors, places, settle);
    let receive = build_receive(receive, &doors.spool, directory, settle);
    let admin = Admin { socket: build_socket(&doors.admin, admin.mode, admin.group, 0o600, settle) };
    let spool = build_spool(spool, settle);
    let dead_letters = DeadLetters {
        max_bytes: settle.bytes(dead_letters.max_bytes, 2 * GIB, 0..=LARGEST),
        max_age: settle.time(dead_letters.max_age, 30 * DAY, Duration::ZERO..=YEARS),
    };
    let delivery = build_delivery(delivery, &default_delivery(), settle);
    let log = build_log(log, settle);
    let backends = backends::build(backends, &delivery, &receive, &doors, listen_at.as_ref(), settle);
    Config { state_dir: doors.state_dir, receive, spool, dead_letters, backends, admin, log }
}

/// Decides where state and sockets are.
///
/// An explicit state directory that differs from the one that would be used anyway takes the sockets with it, so that
/// several daemons live side by side. The file's own socket paths, and a runtime directory of systemd, stay as they
/// are.
fn settle_doors(
    state_dir: Option<Found<PathBuf>>,
    spool: Option<Found<PathBuf>>,
    admin: Option<Found<PathBuf>>,
    overrides: &Overrides,
    places: &Places,
    settle: &mut Settle<'_>,
) -> Doors {
    let environment = settle.environment;
    let explicit = match (&overrides.state_dir, environment.get("TRACESPOOL_STATE_DIR")) {
        (Some(path), _) => Some((environment.absolute(path), Origin::CommandLine("--state-dir"))),
        (None, Some(path)) => {
            let origin = Origin::Environment("TRACESPOOL_STATE_DIR".into());
            Some((environment.absolute(Path::new(path)), origin))
        }
        (None, None) => None,
    };
    let usual = settle.optional(state_dir).or_else(|| places.state_dir.clone());
    let moved = explicit.as_ref().is_some_and(|(path, _)| Some(path) != usual.as_ref());
    let state_dir = match (explicit, usual) {
        (Some((path, origin)), _) => {
            settle.origins.set("state_dir", origin, false);
            path
        }
        (None, Some(path)) => path,
        (None, None) => {
            settle.mistakes.push(Finding {
                origin: Origin::Default,
                key: "state_dir".into(),
                message: "has no default, because HOME is not set; give --state-dir DIR or set it in the file".into(),
            });
            PathBuf::from("/")
        }
    };
    let inside = paths::together(&state_dir);
    let (default_spool, default_admin) = match &places.sockets {
        Some(sockets) if !moved || places.sockets_are_given => sockets.clone(),
        _ => {
            // What is derived from something hidden gives it away.
            if settle.origins.of("state_dir").hidden {
                settle.origins.set("receive.socket.path", Origin::Default, true);
                settle.origins.set("admin.socket", Origin::Default, true);
            }
            inside
        }
    };
    let spool = socket_path(spool, default_spool, "receive.socket.path", settle);
    let admin = socket_path(admin, default_admin, "admin.socket", settle);
    if spool == admin {
        settle.mistakes.push(Finding {
            origin: settle.origins.of("admin.socket").origin,
            key: "admin.socket".into(),
            message: "is the same as receive.socket.path; each needs a path of its own".into(),
        });
    }
    Doors { state_dir, spool, admin }
}

fn socket_path(found: Option<Found<PathBuf>>, default: PathBuf, key: &str, settle: &mut Settle<'_>) -> PathBuf {
    let path = settle.or(found, default);
    let length = path.as_os_str().len();
    if length > paths::LONGEST_SOCKET_PATH {
        let source = settle.origins.of(key);
        let shown = if source.hidden { "***".into() } else { path.display().to_string() };
        settle.mistakes.push(Finding {
            origin: source.origin,
            key: key.into(),
            message: format!(
                "is {length} bytes long, and a Unix socket path can have {} at most: {shown}; set {key} to a shorter one",
                paths::LONGEST_SOCKET_PATH
            ),
        });
    }
    path
}

fn build_socket(
    path: &Path,
    mode: Option<Found<u32>>,
    group: Option<Found<String>>,
    default_mode: u32,
    settle: &mut Settle<'_>,
) -> Socket {
    if Socket::abstract_name(path).is_some() {
        let written = [mode.as_ref().map(|found| &found.at), group.as_ref().map(|found| &found.at)];
        for at in written.into_iter().flatten() {
            let message =
                "means nothing for an abstract socket, which everybody on this machine can open; use allow_uids";
            settle.mistake(at, message);
        }
    }
    Socket { path: path.to_owned(), mode: settle.or(mode, default_mode), group: settle.optional(group) }
}

/// Of a request, at one moment, this many copies may be in memory: compressed and not, or JSON and wire. The share that
/// is held for small requests comes on top.
const COPIES: u64 = 3;

fn build_receive(written: file::Receive, socket: &Path, directory: Directory, settle: &mut Settle<'_>) -> Receive {
    let insecure = settle.or(written.insecure, false);
    let tls = written.tls.and_then(|tls| {
        let (cert, key) = (settle.optional(tls.cert), settle.optional(tls.key));
        let client_ca = settle.optional(tls.client_ca);
        // What is missing was said when the file was read.
        Some(ServerTls { cert: cert?, key: key?, client_ca })
    });
    let token_file = settle.optional(written.token_file);
    let request_at = written.max_request_bytes.as_ref().map(|found| found.at.clone());
    let in_flight_at = written.max_in_flight_bytes.as_ref().map(|found| found.at.clone());
    let max_request_bytes = settle.bytes(written.max_request_bytes, 64 * MIB, KIB..=GIB);
    let max_in_flight_bytes = settle.bytes(written.max_in_flight_bytes, 256 * MIB, KIB..=LARGEST);
    if max_in_flight_bytes < COPIES * max_request_bytes {
        let at = in_flight_at.or(request_at).unwrap_or_else(|| unwritten("receive.max_in_flight_bytes"));
        settle.mistake(
            &at,
            format!(
                "does not fit: max_in_flight_bytes ({}) must be at least three times max_request_bytes ({}), because \
                 a compressed request, or one in JSON, is in memory twice for a moment, and small requests have a \
                 share of their own",
                super::units::bytes(max_in_flight_bytes),
                super::units::bytes(max_request_bytes)
            ),
        );
    }
    let listen = match written.listen {
        None => vec![SocketAddr::from(([127, 0, 0, 1], 4317)), SocketAddr::from(([127, 0, 0, 1], 4318))],
        Some(found) => {
            let hidden = found.at.hidden || found.value.iter().any(|entry| entry.at.hidden);
            settle.origins.set(found.at.key.clone(), found.at.origin.clone(), hidden);
            build_listen(found.value, insecure || written.guard_present, settle)
        }
    };
    let keep_headers = written.keep_headers.map_or_else(Vec::new, |found| kept_headers::build(found, settle));
    let allow_uids = settle.optional(written.allow_uids);
    let mlflow = build_mlflow(written.mlflow, settle);
    Receive {
        listen,
        max_request_bytes,
        max_in_flight_bytes,
        insecure,
        tls,
        token_file,
        keep_headers,
        other_signals: settle.or(written.other_signals, super::OtherSignals::default()),
        socket: build_socket(socket, written.socket.mode, written.socket.group, 0o660, settle),
        allow_uids,
        mlflow,
        directory,
    }
}

/// Who moves the state directory with an option or a variable runs one daemon more, which has a drop directory of its
/// own.
fn build_directory(written: file::Directory, doors: &Doors, places: &Places, settle: &mut Settle<'_>) -> Directory {
    let named = matches!(settle.origins.of("state_dir").origin, Origin::CommandLine(_) | Origin::Environment(_));
    let moved = named && places.state_dir.as_ref() != Some(&doors.state_dir);
    let default = places.drop.clone().filter(|_| !moved).unwrap_or_else(|| {
        // What is derived from something hidden gives it away.
        if settle.origins.of("state_dir").hidden {
            settle.origins.set("receive.directory.path", Origin::Default, true);
        }
        doors.state_dir.join(paths::DROP_DIRECTORY)
    });
    let default = Directory::at(default);
    Directory {
        path: settle.or(written.path, default.path),
        rescan: settle.time(written.rescan, default.rescan, Duration::from_secs(1)..=DAY),
        after: settle.or(written.after, default.after),
        keep: settle.time(written.keep, default.keep, Duration::ZERO..=YEARS),
        keep_bytes: settle.bytes(written.keep_bytes, default.keep_bytes, 0..=LARGEST),
    }
}

fn build_mlflow(written: file::Mlflow, settle: &mut Settle<'_>) -> MlflowCalls {
    let default = MlflowCalls::default();
    let at = written.experiment_id.as_ref().map(|found| found.at.clone());
    let calls = MlflowCalls {
        enabled: settle.or(written.enabled, default.enabled),
        experiment_id: settle.or(written.experiment_id, default.experiment_id),
        forward: settle.or(written.forward, default.forward),
    };
    if (calls.experiment_id.is_empty() || !calls.experiment_id.bytes().all(|byte| byte.is_ascii_digit()))
        && let Some(at) = at
    {
        settle.mistake(&at, "must be the number of an experiment such as \"0\"");
    }
    calls
}

fn build_listen(entries: Vec<Found<String>>, guarded: bool, settle: &mut Settle<'_>) -> Vec<SocketAddr> {
    let mut listen: Vec<SocketAddr> = Vec::new();
    for Found { value, at } in entries {
        let Ok(door) = value.trim().parse::<SocketAddr>() else {
            settle.mistake(&at, "must be an IP address and a port such as \"127.0.0.1:4317\" or \"[::1]:4317\"");
            continue;
        };
        if !door.ip().to_canonical().is_loopback() && !guarded {
            settle.mistake(
                &at,
                "can be reached from other machines, and everybody there could write; use a loopback address, or set \
                 tls or token_file in [receive], or say insecure = true there",
            );
        }
        let overlaps = |other: &SocketAddr| {
            let same_family = other.is_ipv4() == door.is_ipv4();
            let covered = other.ip().is_unspecified() || door.ip().is_unspecified();
            other.port() == door.port() && door.port() != 0 && same_family && (covered || other.ip() == door.ip())
        };
        if listen.iter().any(overlaps) {
            settle.mistake(&at, "is already covered by an address before it; remove one of them");
        }
        listen.push(door);
    }
    listen
}

fn build_spool(written: file::Spool, settle: &mut Settle<'_>) -> Spool {
    let max_at = written.max_bytes.as_ref().map(|found| found.at.clone());
    let segment_at = written.segment_bytes.as_ref().map(|found| found.at.clone());
    let spool = Spool {
        max_bytes: settle.bytes(written.max_bytes, 10 * GIB, 256 * KIB..=LARGEST),
        // Small segments are for trying out; below this the head of a segment would be most of it.
        segment_bytes: settle.bytes(written.segment_bytes, 64 * MIB, 64 * KIB..=GIB),
        max_traces: settle.at_least_one(written.max_traces),
        when_full: settle.or(written.when_full, WhenFull::Refuse),
        min_free_disk: settle.bytes(written.min_free_disk, GIB, 0..=LARGEST),
        keep_delivered: settle.time(written.keep_delivered, DAY, Duration::ZERO..=YEARS),
        keep_delivered_bytes: settle.bytes(written.keep_delivered_bytes, GIB, 0..=LARGEST),
        durability: settle.or(written.durability, Durability::Sync),
    };
    if spool.max_bytes < 4 * spool.segment_bytes {
        let at = max_at.or(segment_at).unwrap_or_else(|| unwritten("spool.max_bytes"));
        settle.mistake(
            &at,
            format!(
                "does not fit: max_bytes ({}) must be at least four times segment_bytes ({}), because space comes back \
                 a segment at a time",
                super::units::bytes(spool.max_bytes),
                super::units::bytes(spool.segment_bytes)
            ),
        );
    }
    spool
}

/// How lanes send when nobody says otherwise.
fn default_delivery() -> Delivery {
    Delivery {
        workers: 10,
        timeout: Duration::from_secs(30),
        batch_max_bytes: 3 * MIB,
        backoff_initial: Duration::from_secs(1),
        backoff_max: Duration::from_secs(30),
        retry_timeout: 7 * DAY,
        after_retry_timeout: AfterRetryTimeout::DeadLetter,
        blocked_retry: Duration::from_secs(60),
    }
}

pub(super) fn build_delivery(written: file::Delivery, default: &Delivery, settle: &mut Settle<'_>) -> Delivery {
    let ms = Duration::from_millis;
    let hour = Duration::from_secs(3_600);
    let initial_at = written.backoff_initial.as_ref().map(|found| found.at.clone());
    let max_at = written.backoff_max.as_ref().map(|found| found.at.clone());
    let delivery = Delivery {
        workers: settle.number(written.workers, default.workers, 1..=1_000),
        timeout: settle.time(written.timeout, default.timeout, ms(10)..=hour),
        batch_max_bytes: settle.bytes(written.batch_max_bytes, default.batch_max_bytes, KIB..=GIB),
        backoff_initial: settle.time(written.backoff_initial, default.backoff_initial, ms(1)..=hour),
        backoff_max: settle.time(written.backoff_max, default.backoff_max, ms(1)..=24 * hour),
        retry_timeout: settle.time(written.retry_timeout, default.retry_timeout, ms(1)..=YEARS),
        after_retry_timeout: settle.or(written.after_retry_timeout, default.after_retry_timeout),
        blocked_retry: settle.time(written.blocked_retry, default.blocked_retry, ms(10)..=24 * hour),
    };
    if delivery.backoff_initial > delivery.backoff_max
        && let Some(at) = initial_at.or(max_at)
    {
        settle.mistake(
            &at,
            format!(
                "does not fit: backoff_initial ({}) must not be longer than backoff_max ({})",
                super::units::time(delivery.backoff_initial),
                super::units::time(delivery.backoff_max)
            ),
        );
    }
    delivery
}

fn build_log(written: file::Log, settle: &mut Settle<'_>) -> Log {
    let mut level = settle.or(written.level, tracing::Level::INFO);
    if let Some(text) = settle.environment.get("TRACESPOOL_LOG") {
        match super::log_level(text) {
            Ok(wanted) => {
                settle.origins.set("log.level", Origin::Environment("TRACESPOOL_LOG".into()), false);
                level = wanted;
            }
            Err(reason) => settle.variable_mistake("TRACESPOOL_LOG", reason),
        }
    }
    Log { level, format: settle.or(written.format, LogFormat::Auto) }
}

fn unwritten(key: &str) -> At {
    At { key: key.into(), origin: Origin::Default, hidden: false }
}
