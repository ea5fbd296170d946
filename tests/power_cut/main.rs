//! Power cuts under the real binary: what was acknowledged is delivered, at whatever moment the power goes.
//!
//! The daemon's state lies on a disk in memory (`disk`) that is mounted with FUSE (`mount`) and forgets at a power cut
//! what was not synced. Clients send while the power goes again and again: in the first start, under load, and while
//! the daemon recovers. The backends' files lie elsewhere.
//!
//! `TRACESPOOL_TEST_SEED` repeats the choices of a run; how threads meet differs all the same.

mod disk;
mod mount;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::BackgroundSession;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;

use disk::Disk;

/// Far longer than anything here takes; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(60);
const CLIENTS: usize = 4;
/// Cuts in the first start, spread over all of its changes.
const FIRST_STARTS: u64 = 8;
/// Cuts under load; each is followed by one while the daemon recovers.
const ROUNDS: u64 = 24;

/// In hex, as the file backend writes it.
type TraceId = String;

/// Delivery keeps up, so that segments come and go.
#[test]
fn what_was_acknowledged_is_delivered_after_power_cuts() {
    survives_power_cuts(&["prompt"]);
}

/// A backend that is away until the end: every record waits on the disk through all the cuts.
#[test]
fn a_backlog_survives_power_cuts() {
    survives_power_cuts(&["prompt", "late"]);
}

fn survives_power_cuts(backends: &[&str]) {
    let seed = std::env::var("TRACESPOOL_TEST_SEED")
        .map_or_else(|_| fastrand::u64(..1 << 32), |seed| seed.parse().expect("TRACESPOOL_TEST_SEED is a number"));
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut machine = Machine::new(backends, dice.fork());
    for late in backends.iter().filter(|name| **name == "late") {
        // A file stands where its directory should be.
        fs::write(machine.folder.path().join(late), "").expect("written");
    }

    // How many changes a first start makes, on a disk that is thrown away.
    let load = Load::start(&machine.socket(), &mut dice);
    machine.power_on();
    load.wait_for_more(1, &mut machine);
    let changes_of_a_start = machine.disk.changes();
    machine.power_cut(0);
    load.stop();

    // A first start that is cut short, and the life after it; each on a disk of its own.
    let width = changes_of_a_start.div_ceil(FIRST_STARTS);
    for stratum in 0..FIRST_STARTS {
        machine.begin_again(dice.fork());
        let load = Load::start(&machine.socket(), &mut dice);
        machine.power_cut_in_start(stratum * width + dice.u64(..width));
        machine.power_on();
        load.wait_for_more(3, &mut machine);
        machine.power_cut(dice.u64(..10));
        machine.power_on();
        load.wait_for_delivery(&mut machine, "prompt");
        machine.power_cut(0);
        load.stop();
    }

    // Many lives of one disk.
    machine.begin_again(dice.fork());
    let load = Load::start(&machine.socket(), &mut dice);
    for _ in 0..ROUNDS {
        machine.power_on();
        load.wait_for_more(dice.usize(1..100), &mut machine);
        machine.power_cut(dice.u64(..60));
        machine.power_cut_in_start(dice.u64(..changes_of_a_start));
    }

    machine.power_on();
    load.stop();
    let _ = fs::remove_file(machine.folder.path().join("late"));
    for name in backends {
        load.wait_for_delivery(&mut machine, name);
        let (sent, delivered) = (load.sent.lock().expect("no panic"), machine.delivered(name));
        assert!(delivered.is_subset(&sent), "{name} got what nobody sent");
    }
    machine.assert_accounts_balance();
    println!("{} cuts, {} acknowledged and delivered", machine.cuts, load.acknowledged.lock().expect("no panic").len());
}

/// A disk, and the daemon on it.
#[derive(Debug)]
struct Machine {
    folder: tempfile::TempDir,
    disk: Arc<Disk>,
    mounted: Option<BackgroundSession>,
    daemon: Option<Child>,
    cuts: u32,
}

impl Machine {
    fn new(backends: &[&str], coin: fastrand::Rng) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        fs::create_dir(at("mount")).expect("made");
        // Nothing is kept once it is delivered, so that segments are reclaimed and used again.
        let mut config = format!(
            "state_dir = '{}/state'\n\
             [receive]\nlisten = ['127.0.0.1:0']\nsocket = {{ path = '{}' }}\n\
             [spool]\nsegment_bytes = '128KiB'\nmin_free_disk = '1MiB'\nkeep_delivered = '0s'\n\
             [admin]\nsocket = '{}'\n\
             [delivery]\nbackoff_initial = '10ms'\nbackoff_max = '100ms'\nblocked_retry = '1s'\n",
            at("mount"),
            at("spool.sock"),
            at("admin.sock")
        );
        for name in backends {
            config += &format!("[[backend]]\nname = '{name}'\nkind = 'file'\npath = '{}/traces.jsonl'\n", at(name));
        }
        fs::write(at("config.toml"), config).expect("written");
        Self { folder, disk: Arc::new(Disk::new(coin)), mounted: None, daemon: None, cuts: 0 }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("spool.sock")
    }

    fn command(&self, command: &str) -> Command {
        let mut made = Command::new(env!("CARGO_BIN_EXE_tracespool"));
        made.args([command, "--config"]).arg(self.folder.path().join("config.toml"));
        made.env_clear().env("HOME", "/nonexistent").stdin(Stdio::null());
        made
    }

    /// An empty disk, and nothing delivered yet.
    fn begin_again(&mut self, coin: fastrand::Rng) {
        self.disk = Arc::new(Disk::new(coin));
        let _ = fs::remove_dir_all(self.folder.path().join("prompt"));
    }

    fn power_on(&mut self) {
        self.mounted = Some(mount::mount(&self.disk, &self.folder.path().join("mount")));
        let log = fs::OpenOptions::new().append(true).create(true).open(self.folder.path().join("log"));
        let log = log.expect("a log");
        self.daemon = Some(self.command("run").stdout(Stdio::null()).stderr(log).spawn().expect("started"));
    }

    /// The power goes so many changes of the disk from now; what it left is the disk then.
    fn power_cut(&mut self, changes: u64) {
        self.disk.cut_in(changes);
        self.end_with_the_power();
    }

    /// The power goes at this change of a start.
    fn power_cut_in_start(&mut self, changes: u64) {
        self.disk.cut_in(changes);
        self.power_on();
        self.end_with_the_power();
    }

    fn end_with_the_power(&mut self) {
        let went = self.disk.wait_for_cut(PATIENCE);
        assert!(went, "the daemon stands still\n{}", self.log());
        self.end();
        self.disk = Arc::new(self.disk.after());
        self.cuts += 1;
    }

    /// Kills the daemon and unmounts; nothing it does from here on reaches a disk.
    fn end(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().expect("killed");
            daemon.wait().expect("ended");
        }
        if let Some(mounted) = self.mounted.take() {
            match mounted.umount_and_join() {
                // The kernel ends the session of a file system that is no longer mounted in one of two ways.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                ended => ended.expect("unmounted"),
            }
        }
    }

    fn assert_alive(&mut self) {
        let ended = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().expect("asked"));
        assert!(ended.is_none(), "the daemon ended by itself: {ended:?}\n{}", self.log());
    }

    /// The traces in a backend's files.
    fn delivered(&self, name: &str) -> BTreeSet<TraceId> {
        let Ok(entries) = fs::read_dir(self.folder.path().join(name)) else { return BTreeSet::new() };
        let mut found = BTreeSet::new();
        for entry in entries {
            let text = fs::read_to_string(entry.expect("an entry").path()).expect("text");
            // Ids in hex do not occur elsewhere in what is sent.
            found.extend(text.split("\"traceId\":\"").skip(1).filter_map(|rest| rest.get(..32)).map(str::to_owned));
        }
        found
    }

    /// The accounts balance at every quiet moment: what is in the backend's file may not be in the books yet.
    fn assert_accounts_balance(&mut self) {
        let began = Instant::now();
        loop {
            let output = self.command("status").arg("--json").output().expect("started");
            let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
            let backends = status["backends"].as_array().expect("backends");
            let count = |backend: &serde_json::Value, path: &str| {
                backend.pointer(path).and_then(serde_json::Value::as_u64).expect("a number")
            };
            let is_quiet = backends.iter().all(|backend| count(backend, "/backlog/records") == 0);
            assert!(is_quiet || began.elapsed() < PATIENCE, "still not delivered: {backends:?}\n{}", self.log());
            if is_quiet {
                for backend in backends {
                    assert_eq!(count(backend, "/owed"), count(backend, "/delivered/spans"), "{backend}");
                    assert_eq!(count(backend, "/damaged"), 0, "a power cut is no damage: {backend}");
                }
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Machine {
    /// In order: a folder can't be removed while something is mounted in it, nor that unmounted while it is in use.
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if let Some(mounted) = self.mounted.take() {
            let _ = mounted.umount_and_join();
        }
    }
}

/// Clients that send until they are told to stop, and remember what was acknowledged.
#[derive(Debug)]
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<Mutex<BTreeSet<TraceId>>>,
    acknowledged: Arc<Mutex<BTreeSet<TraceId>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Load {
    fn start(socket: &Path, dice: &mut fastrand::Rng) -> Self {
        let load = Self {
            stop: Arc::default(),
            sent: Arc::default(),
            acknowledged: Arc::default(),
            threads: Mutex::default(),
        };
        for _ in 0..CLIENTS {
            let (stop, sent, acknowledged) = (load.stop.clone(), load.sent.clone(), load.acknowledged.clone());
            let (mut dice, socket) = (dice.fork(), socket.to_owned());
            let work = move || {
                while !stop.load(Ordering::Relaxed) {
                    // One connection, as long as it lasts. Between two: the daemon is down.
                    let _ = UnixStream::connect(&socket)
                        .and_then(|stream| send_all(&stream, &stop, &sent, &acknowledged, &mut dice));
                    std::thread::sleep(Duration::from_millis(5));
                }
            };
            load.threads.lock().expect("no panic").push(std::thread::spawn(work));
        }
        load
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().expect("no panic").len()
    }

    /// Waits until the daemon acknowledged `more` requests from now on.
    fn wait_for_more(&self, more: usize, machine: &mut Machine) {
        let before = self.count();
        self.wait(machine, |load, _| load.count() >= before + more, "requests are acknowledged");
    }

    fn wait_for_delivery(&self, machine: &mut Machine, name: &str) {
        let acknowledged = self.acknowledged.lock().expect("no panic").clone();
        let all = |_: &Self, machine: &Machine| acknowledged.is_subset(&machine.delivered(name));
        if !self.holds(machine, all) {
            let lost: Vec<_> = acknowledged.difference(&machine.delivered(name)).cloned().collect();
            panic!(
                "{} of {} acknowledged traces never came to {name}, among them {:?}\n{}",
                lost.len(),
                acknowledged.len(),
                &lost[..lost.len().min(3)],
                machine.log()
            );
        }
    }

    fn wait(&self, machine: &mut Machine, condition: impl Fn(&Self, &Machine) -> bool, what: &str) {
        assert!(self.holds(machine, condition), "still not: {what}\n{}", machine.log());
    }

    fn holds(&self, machine: &mut Machine, condition: impl Fn(&Self, &Machine) -> bool) -> bool {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if condition(self, machine) {
                return true;
            }
            machine.assert_alive();
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.lock().expect("no panic").drain(..) {
            thread.join().expect("a client that did not panic");
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sends requests on one connection until it breaks.
fn send_all(
    stream: &UnixStream,
    stop: &AtomicBool,
    sent: &Mutex<BTreeSet<TraceId>>,
    acknowledged: &Mutex<BTreeSet<TraceId>>,
    dice: &mut fastrand::Rng,
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut answers, mut requests) = (BufReader::new(stream), stream);
    while !stop.load(Ordering::Relaxed) {
        let id = dice.u128(1..);
        let name = format!("{id:032x}");
        // Mostly small, now and then larger than what is left of a segment, or than a whole one.
        let padding = match dice.u8(..20) {
            0 => dice.usize(..200_000),
            1..6 => dice.usize(..20_000),
            _ => dice.usize(..500),
        };
        let body = request(id, padding).encode_to_vec();
        sent.lock().expect("no panic").insert(name.clone());
        write!(
            requests,
            "POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )?;
        requests.write_all(&body)?;
        match read_answer(&mut answers)? {
            200 => drop(acknowledged.lock().expect("no panic").insert(name)),
            503 => std::thread::sleep(Duration::from_millis(5)),
            status => panic!("answered with {status}"),
        }
    }
    Ok(())
}

/// Reads one answer; returns its status.
fn read_answer(answers: &mut impl BufRead) -> io::Result<u16> {
    let (mut status, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        if answers.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end().to_ascii_lowercase();
        if status.is_none() {
            status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        } else if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().map_err(io::Error::other)?;
        } else if line.is_empty() {
            break;
        }
    }
    io::copy(&mut answers.take(length), &mut io::sink())?;
    status.ok_or_else(|| io::Error::other("no status"))
}

fn request(id: u128, padding: usize) -> ExportTraceServiceRequest {
    let value = AnyValue { value: Some(Value::StringValue("x".repeat(padding))) };
    let span = Span {
        trace_id: id.to_be_bytes().to_vec(),
        span_id: id.to_le_bytes()[..8].to_vec(),
        name: "power cut".to_owned(),
        start_time_unix_nano: 1,
        end_time_unix_nano: 2,
        attributes: vec![KeyValue { key: "padding".to_owned(), value: Some(value), ..KeyValue::default() }],
        ..Span::default()
    };
    let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }
}
