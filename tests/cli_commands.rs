//! The command line as a user has it: the real binary, its output and its exit codes. The daemon is played by a
//! thread on a Unix socket, which answers as a test wants.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

/// What the stand-in was asked.
#[derive(Debug, Clone)]
struct Asked {
    line: String,
    kind: String,
    body: Vec<u8>,
}

/// A daemon that answers what it is told to.
struct Daemon {
    folder: tempfile::TempDir,
    asked: Arc<Mutex<Vec<Asked>>>,
}

type Answer = fn(&Asked, usize) -> (u16, Vec<u8>);

impl Daemon {
    /// Serves both sockets with `answer`, which also gets how many requests came before.
    fn new(answer: Answer) -> Self {
        let daemon = Self { folder: tempfile::tempdir().expect("a folder"), asked: Arc::default() };
        for socket in ["spool.sock", "admin.sock"] {
            let listener = UnixListener::bind(daemon.path(socket)).expect("bound");
            let asked = Arc::clone(&daemon.asked);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let Ok(stream) = stream else { return };
                    let asked = Arc::clone(&asked);
                    std::thread::spawn(move || serve(&stream, &asked, answer));
                }
            });
        }
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), content).expect("written");
        self.path(name).display().to_string()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let dir = self.folder.path().to_str().expect("UTF-8");
        tracespool(&[arguments, &["--state-dir", dir]].concat())
    }

    /// The posts that came in.
    fn posts(&self) -> Vec<Asked> {
        let asked = self.asked.lock().expect("no panic");
        let is_post = |asked: &&Asked| ["POST /v1/traces HTTP/1.1", "a line"].contains(&asked.line.as_str());
        asked.iter().filter(is_post).cloned().collect()
    }
}

fn serve(stream: &std::os::unix::net::UnixStream, asked: &Mutex<Vec<Asked>>, answer: Answer) -> Option<()> {
    let mut reader = BufReader::new(stream);
    if reader.fill_buf().ok()?.first() == Some(&b'{') {
        return serve_lines(reader, stream, asked, answer);
    }
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line == "\r\n" {
                break;
            }
            head.push(line.trim_end().to_owned());
        }
        let header = |name: &str| {
            head.iter()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix(name).map(str::to_owned))
                .unwrap_or_default()
        };
        let mut body = vec![0; header("content-length: ").parse().unwrap_or(0)];
        reader.read_exact(&mut body).ok()?;
        let request = Asked { line: head.first()?.clone(), kind: header("content-type: "), body };
        let before = {
            let mut asked = asked.lock().expect("no panic");
            asked.push(request.clone());
            asked.len() - 1
        };
        let (status, body) = answer(&request, before);
        write!(&mut &*stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len()).ok()?;
        (&mut &*stream).write_all(&body).ok()?;
    }
}

/// The same answers, as the lines of the spool socket have them.
fn serve_lines(
    mut reader: BufReader<&std::os::unix::net::UnixStream>,
    stream: &std::os::unix::net::UnixStream,
    asked: &Mutex<Vec<Asked>>,
    answer: Answer,
) -> Option<()> {
    loop {
        let mut body = Vec::new();
        if reader.read_until(b'\n', &mut body).ok()? == 0 {
            return None;
        }
        body.pop();
        let request = Asked { line: "a line".into(), kind: "a line".into(), body };
        let before = {
            let mut asked = asked.lock().expect("no panic");
            asked.push(request.clone());
            asked.len() - 1
        };
        let (status, body) = answer(&request, before);
        let body = String::from_utf8_lossy(&body);
        match status {
            200 => writeln!(&mut &*stream, "{{\"ok\":true,\"record\":{}}}", before + 1).ok()?,
            // The connection breaks before the answer.
            0 => return None,
            status => {
                let retry = status == 503;
                writeln!(&mut &*stream, "{{\"ok\":false,\"error\":\"{body}\",\"retry\":{retry}}}").ok()?;
            }
        }
    }
}

/// Runs the binary as a user without any settings.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tracespool"));
    command.args(arguments).env_clear().env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}

fn tracespool(arguments: &[&str]) -> Output {
    command(arguments).output().expect("started")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn assert_ends(output: &Output, code: i32, words: &str) {
    let all = format!("{}{}", stdout(output), stderr(output));
    assert_eq!(output.status.code(), Some(code), "{all}");
    assert!(all.contains(words), "{words:?} is not in:\n{all}");
}

const STATUS: &str = r#"{"version":"0.1.0","pid":7,"state":"ready","started_at":"2026-01-01T00:00:00Z","listen":[],
 "spool":{"records":0,"traces":0,"spans":0,"bytes":0,"max_bytes":0,"oldest_at":null,"disk_free_bytes":0,"seconds_until_full":null,
   "kept":{"records":0,"bytes":0,"oldest_at":null},"dead_letters":{"records":0,"bytes":0,"max_bytes":0,"oldest_at":null},"damage":{"records":0,"bytes":0}},
 "received":{"requests":0,"traces":0,"spans":0,"bytes":0,"refused":{"full":0,"invalid":0,"too_large":0}},
 "backends":[{"name":"mlflow","kind":"mlflow","state":"up","owed":0,
   "backlog":{"records":0,"traces":0,"spans":0,"bytes":0,"oldest_at":null,"parked":0},
   "in_flight":0,"delivered":{"records":0,"spans":0,"bytes":0},"rejected":{"spans":0},"dead":{"records":0,"spans":0,"bytes":0},
   "discarded":{"retry_timeout":0,"queue_cap":0,"dead_letter_cap":0,"dead_letter_age":0,"purged":0},"damaged":0,"not_applicable":0,
   "attempts":0,"last_error":null,"next_attempt_at":null}],
 "replays":[]}"#;

/// The status with something waiting since `since`.
fn waiting(since: &str) -> Vec<u8> {
    let waiting =
        format!(r#""backlog":{{"records":3,"traces":0,"spans":0,"bytes":0,"oldest_at":"{since}","parked":0}}"#);
    let idle = r#""backlog":{"records":0,"traces":0,"spans":0,"bytes":0,"oldest_at":null,"parked":0}"#;
    assert!(STATUS.contains(idle));
    STATUS.replace(idle, &waiting).into_bytes()
}

const DOCUMENT: &str = r#"{"resourceSpans":[]}"#;

fn takes_all(asked: &Asked, _: usize) -> (u16, Vec<u8>) {
    if asked.line.starts_with("GET /status ") { (200, STATUS.into()) } else { (200, Vec::new()) }
}

// ---- the command line itself ----

#[test]
fn usage_errors_end_in_64_and_help_in_0() {
    for arguments in [
        &[][..],
        &["frob"],
        &["send"],
        &["send", "--test", "file"],
        &["status", "--frob"],
        &["send", "--wait", "5", "-"],
    ] {
        let output = tracespool(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    assert_ends(&tracespool(&["--help"]), 0, "Usage: tracespool");
    assert_ends(&tracespool(&["help", "send"]), 0, "--wait");
    assert_ends(&tracespool(&["--version"]), 0, env!("CARGO_PKG_VERSION"));
}

/// A pipe whose reader has gone away before anything is written, so that nothing depends on who is faster.
fn broken_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

#[test]
fn a_reader_that_has_seen_enough_is_success() {
    for arguments in [&["check", "--effective"][..], &["--help"]] {
        let status = command(arguments).stdout(broken_pipe()).status().expect("started");
        assert_eq!(status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn a_broken_pipe_of_standard_error_is_no_panic() {
    for (arguments, code) in [(&["check", "--config", "/nowhere"][..], 78), (&["frob"], 64)] {
        let status = command(arguments).stderr(broken_pipe()).status().expect("started");
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
}

// ---- check and run ----

#[test]
fn check_says_every_mistake_on_standard_error_and_ends_in_78() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.toml");
    std::fs::write(&path, "[spool]\nmax_byte = \"1GiB\"\n[log]\nlevel = 5\n").expect("written");
    let file = path.to_str().expect("UTF-8");
    for arguments in [["check", "--config", file], ["run", "--config", file]] {
        let output = tracespool(&arguments);
        assert_eq!((output.status.code(), stdout(&output)), (Some(78), String::new()));
        let expected = format!(
            "tracespool: the configuration has 2 mistakes:\n  \
             {file}:2:1: spool.max_byte is unknown; did you mean max_bytes?\n  \
             {file}:4:1: log.level must be a string, and is a number\n"
        );
        assert_eq!(stderr(&output), expected);
    }
}

#[test]
fn check_shows_every_value_and_its_origin_but_no_secret() {
    let output = command(&["check", "--effective", "--state-dir", "/data"])
        .env("MLFLOW_TRACKING_URI", "http://m:5000?key=s3cret")
        .env("MLFLOW_TRACKING_TOKEN", "s3cret")
        .env("TRACESPOOL_LOG", "debug")
        .output()
        .expect("started");
    assert_ends(&output, 0, "# default");
    let page = stdout(&output);
    for (setting, origin) in [
        ("state_dir = \"/data\"", "command line --state-dir"),
        ("level = \"debug\"", "environment TRACESPOOL_LOG"),
        ("endpoint = \"http://m:5000/?***\"", "environment MLFLOW_TRACKING_URI"),
        ("# token: ***", "environment MLFLOW_TRACKING_TOKEN"),
        ("workers = 10", "default"),
    ] {
        let line = page.lines().find(|line| line.starts_with(setting)).unwrap_or_else(|| panic!("{setting}\n{page}"));
        assert!(line.ends_with(&format!("# {origin}")), "{line}");
    }
    assert!(!page.contains("s3cret"));
}

// ---- status ----

#[test]
fn status_is_a_page_or_the_object_as_it_came() {
    let daemon = Daemon::new(takes_all);
    let page = daemon.run(&["status"]);
    assert_ends(&page, 0, "tracespool 0.1.0: ready\n");
    assert_ends(&page, 0, daemon.path("admin.sock").to_str().expect("UTF-8"));
    let json = daemon.run(&["status", "--json"]);
    assert_eq!((json.status.code(), stdout(&json)), (Some(0), format!("{STATUS}\n")));
    assert!(stderr(&json).contains("admin.sock"));
}

#[test]
fn without_a_daemon_commands_end_in_69_and_say_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().to_str().expect("UTF-8");
    assert_ends(&tracespool(&["status", "--state-dir", dir]), 69, "start one with: tracespool run");
    assert_ends(&tracespool(&["send", "--test", "--state-dir", dir]), 69, "no daemon is running");
    // A socket that nobody listens on is no daemon either.
    drop(UnixListener::bind(folder.path().join("admin.sock")).expect("bound"));
    assert_ends(&tracespool(&["status", "--state-dir", dir]), 69, "no daemon is running");
}

#[test]
fn a_daemon_that_answers_nonsense_is_named() {
    let daemon = Daemon::new(|_, _| (200, b"{}".to_vec()));
    assert_ends(&daemon.run(&["status"]), 69, "answers something else than a status");
    let daemon = Daemon::new(|_, _| (500, br#"{"code":13,"message":"broken"}"#.to_vec()));
    assert_ends(&daemon.run(&["status", "--json"]), 69, "broken (500)");
}

// ---- env ----

#[test]
fn env_has_the_ports_of_the_daemon_that_runs() {
    let daemon = Daemon::new(|_, _| {
        (200, STATUS.replace(r#""listen":[]"#, r#""listen":["10.0.0.1:1","127.0.0.1:4711"]"#).into())
    });
    let output = daemon.run(&["env", "--for", "otel", "--format", "systemd"]);
    assert_ends(&output, 0, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=\"http://127.0.0.1:4711/v1/traces\"");
    // Without one, those of its configuration.
    let folder = tempfile::tempdir().expect("a folder");
    let output = tracespool(&["env", "--state-dir", folder.path().to_str().expect("UTF-8")]);
    assert_ends(&output, 0, "export OTEL_EXPORTER_OTLP_TRACES_ENDPOINT='http://127.0.0.1:4317/v1/traces'");
    assert!(stderr(&output).contains("no daemon is running"), "{}", stderr(&output));
    assert!(!stdout(&output).contains("no daemon"));
}

// ---- send ----

#[test]
fn send_posts_every_document_of_every_file() {
    let daemon = Daemon::new(takes_all);
    let lines = daemon.file("lines.jsonl", format!("{DOCUMENT}\n\n{DOCUMENT}\n"));
    let proto = daemon.file("one.pb", [0x0a, 0x02, 0x12, 0x00]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"{\n \"resourceSpans\": []\n}").expect("compressed");
    let packed = daemon.file("one.json.gz", gzip.finish().expect("compressed"));
    let output = daemon.run(&["send", &lines, &proto, &packed]);
    assert_ends(&output, 0, "4 documents are on disk as records from 1 to 4 (1 without spans), acknowledged");
    let posts: Vec<_> = daemon.posts().into_iter().map(|post| (post.kind, post.body)).collect();
    let json = "a line".to_owned();
    let expected = [
        (json.clone(), DOCUMENT.as_bytes().to_vec()),
        (json.clone(), DOCUMENT.as_bytes().to_vec()),
        ("application/x-protobuf".to_owned(), vec![0x0a, 0x02, 0x12, 0x00]),
        (json, b"{  \"resourceSpans\": [] }".to_vec()),
    ];
    assert_eq!(posts, expected);
}

#[test]
fn send_reads_standard_input() {
    let daemon = Daemon::new(takes_all);
    let dir = daemon.folder.path().to_str().expect("UTF-8");
    let mut child = command(&["send", "-", "--state-dir", dir])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    child.stdin.take().expect("piped").write_all(format!("{DOCUMENT}\nx\n").as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ended");
    assert_ends(
        &output,
        65,
        "standard input:2: is not an object, as OTLP JSON or a trace of MLflow\n1 document is on disk as record 1,",
    );
    assert_eq!(daemon.posts().len(), 1);
}

#[test]
fn send_tells_bad_input_from_missing_files() {
    let daemon = Daemon::new(|_, before| match before {
        1 => (400, b"span 2 has no trace id".to_vec()),
        _ => (200, Vec::new()),
    });
    assert_ends(&daemon.run(&["send", "/nowhere.jsonl"]), 66, "/nowhere.jsonl");
    let lines = daemon.file("lines.jsonl", format!("{DOCUMENT}\n{DOCUMENT}\n{DOCUMENT}\n"));
    let output = daemon.run(&["send", &lines]);
    assert_ends(&output, 65, &format!("{lines}:2: the daemon refuses it: span 2 has no trace id\n"));
    // The others are as good as ever, and only this one is to be corrected and sent again.
    assert_ends(&output, 65, "the daemon refused 1 document\n2 documents are on disk as records from 1 to 3,");
    assert_eq!(daemon.posts().len(), 3);
    let refusing = Daemon::new(|_, _| (400, br#"{"code":3,"message":"bad"}"#.to_vec()));
    let proto = refusing.file("one.pb", [0x0a, 0x02, 0x12, 0x00]);
    assert_ends(&refusing.run(&["send", &proto]), 65, "one.pb: the daemon refuses it: bad (400)");
    let folder = daemon.folder.path().to_str().expect("UTF-8").to_owned();
    assert_ends(&daemon.run(&["send", &folder]), 65, "directory");
}

#[test]
fn send_offers_again_while_there_is_no_room() {
    let daemon = Daemon::new(|_, before| if before < 2 { (503, Vec::new()) } else { (200, Vec::new()) });
    let file = daemon.file("one.json", DOCUMENT);
    assert_ends(&daemon.run(&["send", &file]), 0, "1 document is on disk");
    assert_eq!(daemon.posts().len(), 3);
    let full = Daemon::new(|_, _| (503, b"full".to_vec()));
    let file = full.file("one.json", DOCUMENT);
    assert_ends(&full.run(&["send", "--timeout", "300ms", &file]), 75, "one.json:1: not taken within 300ms: full");
    assert!(full.posts().len() > 1);
    let full = Daemon::new(|_, _| (503, b"\x08\x0e\x12\x04full".to_vec()));
    let file = full.file("one.pb", [0x0a, 0x02, 0x12, 0x00]);
    assert_ends(&full.run(&["send", "--timeout", "300ms", &file]), 75, "one.pb: not taken within 300ms: full (503)");
    assert!(full.posts().len() > 1);
}

/// Goal: of many lines under way, each that had no luck is offered again, and no other.
#[test]
fn send_offers_again_only_what_was_not_taken() {
    let daemon = Daemon::new(|_, before| match before {
        3 | 7 => (503, b"full".to_vec()),
        _ => (200, Vec::new()),
    });
    let lines: String = (0..20).map(|at| format!("{{\"resourceSpans\":[],\"n\":{at}}}\n")).collect();
    let file = daemon.file("lines.jsonl", lines);
    assert_ends(&daemon.run(&["send", &file]), 0, "20 documents are on disk");
    let sent: Vec<_> = daemon.posts().into_iter().map(|post| post.body).collect();
    assert_eq!(sent.len(), 22);
    assert_eq!((&sent[20], &sent[21]), (&sent[3], &sent[7]));
}

/// Goal: what a connection took with it unanswered is offered again on the next.
#[test]
fn send_goes_on_after_a_connection_that_broke() {
    let daemon = Daemon::new(|_, before| if before == 2 { (0, Vec::new()) } else { (200, Vec::new()) });
    let file = daemon.file("lines.jsonl", format!("{DOCUMENT}\n").repeat(5));
    assert_ends(&daemon.run(&["send", &file]), 0, "5 documents are on disk");
    assert!(daemon.posts().len() >= 6);
    let broken = Daemon::new(|_, _| (0, Vec::new()));
    let file = broken.file("one.json", DOCUMENT);
    assert_ends(&broken.run(&["send", "--timeout", "300ms", &file]), 69, "not taken within 300ms: the daemon closed");
}

#[test]
fn send_test_names_its_trace() {
    let daemon = Daemon::new(takes_all);
    let output = daemon.run(&["send", "--test", "--wait", "5s"]);
    assert_ends(&output, 0, "mlflow: delivered");
    let said = stdout(&output);
    let id = said.strip_prefix("trace ").and_then(|rest| rest.split(' ').next()).expect("an id");
    assert_eq!(id.len(), 32);
    let body = daemon.posts()[0].body.clone();
    let bytes: Vec<u8> = (0..16).map(|at| u8::from_str_radix(&id[2 * at..2 * at + 2], 16).expect("hex")).collect();
    assert!(body.windows(16).any(|window| window == bytes));
    for words in ["tracespool.test", "tracespool-test"] {
        assert!(body.windows(words.len()).any(|window| window == words.as_bytes()));
    }
}

#[test]
fn wait_ends_when_only_newer_records_wait_and_gives_up_in_time() {
    // Busy, but with nothing older than what was sent.
    let busy = Daemon::new(|asked, _| match asked.line.starts_with("GET") {
        true => (200, waiting("2999-01-01T00:00:00Z")),
        false => (200, Vec::new()),
    });
    assert_ends(&busy.run(&["send", "--test", "--wait", "5s"]), 0, "mlflow: delivered");
    let stuck = Daemon::new(|asked, _| match asked.line.starts_with("GET") {
        true => (200, waiting("2026-01-01T00:00:00Z")),
        false => (200, Vec::new()),
    });
    let output = stuck.run(&["send", "--test", "--wait", "300ms"]);
    assert_ends(&output, 75, "not delivered within 300ms: mlflow is up with 3 records waiting");
    assert!(stdout(&output).contains("is on disk"));
}

#[test]
fn wait_does_not_call_delivered_what_was_given_up() {
    let daemon = Daemon::new(|asked, before| match asked.line.starts_with("GET") {
        true if before > 1 => (200, STATUS.replace(r#""rejected":{"spans":0}"#, r#""rejected":{"spans":2}"#).into()),
        true => (200, STATUS.into()),
        false => (200, Vec::new()),
    });
    assert_ends(&daemon.run(&["send", "--test", "--wait", "5s"]), 75, "mlflow: 2 spans were refused or given up");
}

/// Who may not open a socket is told who may. Root may open everything, so this runs as nobody where it can.
#[test]
fn not_permitted_names_who_may() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let daemon = Daemon::new(takes_all);
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("changed");
    };
    set(daemon.folder.path(), 0o755);
    let dir = daemon.folder.path().to_str().expect("UTF-8");
    let is_root = rustix::process::geteuid().is_root();
    // The binary itself may lie where nobody can reach it.
    let copy = daemon.path("tracespool");
    std::fs::copy(env!("CARGO_BIN_EXE_tracespool"), &copy).expect("copied");
    set(&copy, 0o755);
    for (mode, words) in [(0o660, "members of group"), (0o600, "only user")] {
        set(&daemon.path("admin.sock"), mode);
        let mut command = Command::new(&copy);
        command.args(["status", "--state-dir", dir]).env_clear().current_dir("/");
        if is_root {
            command.uid(65_534).gid(65_534);
        } else {
            // Somebody else's socket is needed, and there is no way to make one.
            return;
        }
        match command.output() {
            Ok(output) => assert_ends(&output, 77, words),
            // In some sandboxes root may not become somebody else.
            Err(_) => return,
        }
    }
}
