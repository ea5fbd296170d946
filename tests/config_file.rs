//! The configuration file: what is read from it, and how mistakes are reported.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tracespool::config::{
    AfterRetryTimeout, Compression, Config, Credentials, Environment, Experiment, Loaded, Mistakes, OtherSignals,
    Overrides, StartAt, Target, WhenFull, effective, load,
};

/// A folder with a configuration file in it.
struct Fixture {
    folder: tempfile::TempDir,
    environment: Environment,
}

impl Fixture {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("tracespool.toml"), text).expect("written");
        let mut environment = Environment { uid: 1000, directory: "/".into(), ..Environment::default() };
        environment.vars.insert("HOME".into(), "/home/ada".into());
        Self { folder, environment }
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.vars.insert(name.into(), value.into());
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        std::fs::write(self.path(name), content).expect("written");
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn load(&self) -> Result<Loaded, Mistakes> {
        let overrides = Overrides { config: Some(self.path("tracespool.toml")), ..Overrides::default() };
        load(&overrides, &self.environment)
    }

    fn config(&self) -> Config {
        self.load().unwrap_or_else(|mistakes| panic!("{mistakes}")).config
    }

    /// The mistakes as they are printed, without the path of the file.
    fn mistakes(&self) -> Vec<String> {
        let mistakes = self.load().expect_err("there are mistakes");
        let prefix = format!("{}:", self.path("tracespool.toml").display());
        mistakes.0.iter().map(|finding| finding.to_string().replace(&prefix, "")).collect()
    }
}

#[track_caller]
fn assert_one_mistake(text: &str, beginning: &str) {
    let mistakes = Fixture::new(text).mistakes();
    assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
    assert!(mistakes[0].starts_with(beginning), "{:?} does not begin with {beginning:?}", mistakes[0]);
}

#[test]
fn every_key_is_taken() {
    let fixture = Fixture::new(
        r#"
state_dir = "/data"
[receive]
listen = ["0.0.0.0:1", "[::1]:0"]
max_request_bytes = "1MiB"
max_in_flight_bytes = "3MiB"
insecure = true
tls = { cert = "ca.pem", key = "key.pem", client_ca = "ca.pem" }
token_file = "password"
keep_headers = ["X-Team"]
other_signals = "refuse"
[receive.socket]
path = "/data/in.sock"
mode = "0666"
group = "apps"
allow_uids = [1000, 0]
[spool]
max_bytes = "1GiB"
segment_bytes = "1MiB"
max_traces = 5
when_full = "discard_newest"
min_free_disk = "2GiB"
keep_delivered = "1h"
keep_delivered_bytes = "3MiB"
[delivery]
workers = 3
timeout = "5s"
after_retry_timeout = "discard"
[dead_letters]
max_bytes = "4MiB"
max_age = "2d"
[[backend]]
name = "m"
kind = "mlflow"
endpoint = "https://mlflow.example.com/base"
headers = { X-Team = "search" }
username = "ada"
password_file = "password"
tls = { ca = "ca.pem" }
compression = "none"
experiment_id = "7"
start_at = "now"
when_full = "discard_oldest"
max_backlog_bytes = "9MiB"
timeout = "6s"
after_retry_timeout = "dead_letter"
batch_max_bytes = "1MiB"
backoff_initial = "2s"
backoff_max = "3s"
retry_timeout = "4h"
blocked_retry = "5m"
[[backend]]
name = "h"
kind = "otlp_http"
endpoint = "http://h:1/otel/"
token_file = "token"
[[backend]]
name = "w"
kind = "otlp_http"
traces_endpoint = "http://h:1/ingest?x=1"
[[backend]]
name = "f"
kind = "file"
path = "out/../traces.jsonl"
rotate_bytes = "5MiB"
rotate_files = 2
[admin]
socket = "/data/admin.sock"
mode = 0o660
group = "ops"
[log]
level = "debug"
format = "json"
"#,
    )
    .file("password", "p")
    .file("token", "t")
    .file("ca.pem", "c")
    .file("key.pem", "k");
    let config = fixture.config();
    assert_eq!(config.state_dir, Path::new("/data"));
    assert_eq!(config.receive.listen, ["0.0.0.0:1".parse().expect("one"), "[::1]:0".parse().expect("one")]);
    assert_eq!((config.receive.max_request_bytes, config.receive.max_in_flight_bytes), (1 << 20, 3 << 20));
    assert!(config.receive.insecure);
    let tls = config.receive.tls.as_ref().expect("TLS");
    assert_eq!((&tls.cert, &tls.key), (&fixture.path("ca.pem"), &fixture.path("key.pem")));
    assert_eq!(
        (&tls.client_ca, &config.receive.token_file),
        (&Some(fixture.path("ca.pem")), &Some(fixture.path("password")))
    );
    assert_eq!(
        (config.receive.keep_headers.as_slice(), config.receive.other_signals),
        (&["x-team".to_owned()][..], OtherSignals::Refuse)
    );
    assert_eq!(config.receive.allow_uids.as_deref(), Some(&[1000, 0][..]));
    let socket = &config.receive.socket;
    assert_eq!(
        (socket.path.as_path(), socket.mode, socket.group.as_deref()),
        (Path::new("/data/in.sock"), 0o666, Some("apps"))
    );
    let spool = &config.spool;
    assert_eq!((spool.max_bytes, spool.segment_bytes, spool.min_free_disk), (1 << 30, 1 << 20, 2 << 30));
    assert_eq!((spool.max_traces, spool.when_full), (Some(5), WhenFull::DiscardNewest));
    assert_eq!((spool.keep_delivered, spool.keep_delivered_bytes), (Duration::from_secs(3600), 3 << 20));
    assert_eq!((config.dead_letters.max_bytes, config.dead_letters.max_age), (4 << 20, Duration::from_secs(172_800)));
    assert_eq!((config.admin.socket.mode, config.admin.socket.group.as_deref()), (0o660, Some("ops")));
    assert_eq!(config.log.level, tracing::Level::DEBUG);

    let [mlflow, http, whole, file] = &config.backends[..] else { panic!("{:?}", config.backends) };
    let Target::Mlflow { remote, experiment, workspace: None } = &mlflow.target else { panic!("{mlflow:?}") };
    assert_eq!(remote.endpoint.as_str(), "https://mlflow.example.com/base");
    assert_eq!((remote.headers[0].0.as_str(), remote.headers[0].1.expose()), ("x-team", "search"));
    assert_eq!(remote.compression, Compression::None);
    assert_eq!(remote.tls.ca, Some(fixture.path("ca.pem")));
    let Credentials::BasicFile { username, password_file } = &remote.credentials else { panic!("{remote:?}") };
    assert_eq!((username.as_str(), password_file), ("ada", &fixture.path("password")));
    assert_eq!((experiment, mlflow.start_at), (&Experiment::Id("7".into()), StartAt::Now));
    // Its own keys win over [delivery], and that over the defaults.
    assert_eq!((mlflow.gives_way, mlflow.max_backlog_bytes), (true, Some(9 << 20)));
    assert_eq!((http.gives_way, http.max_backlog_bytes), (false, None));
    assert_eq!(mlflow.delivery.after_retry_timeout, AfterRetryTimeout::DeadLetter);
    assert_eq!(http.delivery.after_retry_timeout, AfterRetryTimeout::Discard);
    let delivery = &mlflow.delivery;
    assert_eq!((delivery.workers, delivery.timeout, delivery.batch_max_bytes), (3, Duration::from_secs(6), 1 << 20));
    assert_eq!((http.delivery.workers, http.delivery.timeout), (3, Duration::from_secs(5)));
    assert_eq!(http.delivery.retry_timeout, Duration::from_secs(604_800));

    let Target::OtlpHttp(remote) = &http.target else { panic!("{http:?}") };
    assert_eq!(remote.endpoint.as_str(), "http://h:1/otel/v1/traces");
    assert!(matches!(&remote.credentials, Credentials::BearerFile(path) if *path == fixture.path("token")));
    assert_eq!(http.start_at, StartAt::Auto);
    let Target::OtlpHttp(remote) = &whole.target else { panic!("{whole:?}") };
    assert_eq!(remote.endpoint.as_str(), "http://h:1/ingest?x=1");
    let Target::File(target) = &file.target else { panic!("{file:?}") };
    assert_eq!(
        (target.path.clone(), target.rotate_bytes, target.rotate_files),
        (fixture.path("out/../traces.jsonl"), 5 << 20, 2)
    );
}

/// Goal: nobody corrects a file one mistake a start. Every line has one; all are said, in the order of the file.
#[test]
fn all_mistakes_are_said_at_once_with_line_column_and_key() {
    let mistakes = Fixture::new(
        r#"stat_dir = "/x"
[receive]
  listen = ["0.0.0.0:4317", "localhost:1"]
max_request_bytes = "2GiB"
[spool]
when_full = "discard_odest"
durability = "relaxd"
keep_delivered = 5
[delivery]
workers = 0
[[backend]]
name = "a b"
kind = "mlflow"
endpoint = "http://h"
[[backend]]
name = "x"
kind = "mlflw"
[log]
level = "loud"
"#,
    )
    .mistakes();
    let beginnings = [
        "1:1: stat_dir is unknown; did you mean state_dir?",
        "3:13: receive.listen can be reached from other machines",
        "3:29: receive.listen must be an IP address",
        "4:1: receive.max_request_bytes must be from 1KiB to 1GiB",
        "6:1: spool.when_full must be one of refuse, discard_oldest, discard_newest; did you mean discard_oldest?",
        "7:1: spool.durability must be one of sync, relaxed; did you mean relaxed?",
        "8:1: spool.keep_delivered must be a time such as \"30s\", and is a number",
        "10:1: delivery.workers must be from 1 to 1000",
        "12:1: backend[1].name must be 1 to 64 letters",
        "17:1: backend.x.kind must be one of otlp_grpc, otlp_http, mlflow, file; did you mean mlflow?",
        "19:1: log.level must be one of",
    ];
    assert_eq!(mistakes.len(), beginnings.len(), "{mistakes:#?}");
    for (mistake, beginning) in mistakes.iter().zip(beginnings) {
        assert!(mistake.starts_with(beginning), "{mistake:?} does not begin with {beginning:?}");
    }
}

#[test]
fn limits_that_do_not_fit_together_are_mistakes() {
    assert_one_mistake("[spool]\nmax_bytes = \"100MiB\"", "2:1: spool.max_bytes does not fit");
    assert_one_mistake("[spool]\nsegment_bytes = \"32KiB\"", "2:1: spool.segment_bytes must be from 64KiB");
    assert_one_mistake("[spool]\nsegment_bytes = \"2GiB\"", "2:1: spool.segment_bytes must be from");
    assert_one_mistake("[receive]\nmax_in_flight_bytes = \"1MiB\"", "2:1: receive.max_in_flight_bytes does not fit");
    assert_one_mistake("[receive]\nmax_in_flight_bytes = \"191MiB\"", "2:1: receive.max_in_flight_bytes does not fit");
    assert!(Fixture::new("[receive]\nmax_in_flight_bytes = \"192MiB\"").load().is_ok());
    assert_one_mistake("[delivery]\nbackoff_initial = \"1m\"", "2:1: delivery.backoff_initial does not fit");
    assert_one_mistake(
        "[receive]\nlisten = [\"0.0.0.0:1\", \"127.0.0.1:1\"]\ninsecure = true",
        "2:24: receive.listen is already",
    );
    assert_one_mistake("[spool]\nmax_traces = 0", "2:1: spool.max_traces must be at least 1");
    assert_one_mistake(
        "[[backend]]\nname = \"f\"\nkind = \"file\"\npath = \"f\"\nmax_backlog_bytes = \"1MiB\"",
        "5:1: backend.f.max_backlog_bytes needs when_full",
    );
    assert!(Fixture::new("[spool]\nmax_bytes = \"256KiB\"\nsegment_bytes = \"64KiB\"").load().is_ok());
    assert!(Fixture::new("[receive]\nlisten = [\"127.0.0.1:0\", \"127.0.0.1:0\"]").load().is_ok());
}

/// Goal: what opens a listener to other machines is said, and each of the three ways to say it counts.
#[test]
fn a_listener_for_other_machines_is_guarded() {
    let listen = |rest: &str| Fixture::new(&format!("[receive]\nlisten = [\"0.0.0.0:1\"]\n{rest}")).file("f", "x");
    let mistakes = listen("").mistakes();
    assert!(mistakes[0].starts_with("2:11: receive.listen can be reached from other machines"), "{mistakes:?}");
    for guard in ["insecure = true", "token_file = \"f\"", "tls = { cert = \"f\", key = \"f\" }"] {
        assert!(listen(guard).config().receive.is_guarded(), "{guard}");
    }
    assert!(!Fixture::new("").config().receive.is_guarded());
    assert_one_mistake("[receive]\ntls = { cert = \"tracespool.toml\" }", "2:7: receive.tls needs cert and key");
}

#[test]
fn headers_that_may_be_credentials_are_not_kept() {
    assert_one_mistake(
        "[receive]\nkeep_headers = [\"x-team\", \"Authorization\"]",
        "2:27: receive.keep_headers names a header that may",
    );
    assert_one_mistake(
        "[receive]\nkeep_headers = [\"x-team\", \"X-Team\"]",
        "2:27: receive.keep_headers names a header twice",
    );
}

#[test]
fn the_spool_socket_may_be_abstract() {
    let config = Fixture::new("[receive.socket]\npath = \"@tracespool\"").config();
    assert_eq!(config.receive.socket.path, Path::new("@tracespool"));
    assert_one_mistake("[receive.socket]\npath = \"@\"", "2:1: receive.socket.path has no name");
    assert_one_mistake("[receive.socket]\npath = \"@t\"\nmode = \"0600\"", "3:1: receive.socket.mode means nothing");
    assert_one_mistake("[receive.socket]\nallow_uids = []", "2:1: receive.socket.allow_uids is empty");
    assert_one_mistake("[receive.socket]\nallow_uids = [-1]", "2:1: receive.socket.allow_uids must be a list");
}

#[test]
fn backends_that_do_not_make_sense_are_mistakes() {
    let backend = |rest: &str| format!("[[backend]]\nname = \"b\"\n{rest}");
    for (rest, beginning) in [
        ("endpoint = \"http://h\"", "1:1: backend.b has no kind"),
        ("kind = \"mlflow\"", "1:1: backend.b has no endpoint"),
        ("kind = \"mlflow\"\nendpoint = \"h:5000\"", "4:1: backend.b.endpoint must be a complete address"),
        (
            "kind = \"databricks\"\nendpoint = \"https://h\"",
            "3:1: backend.b.kind databricks is not available in this version",
        ),
        ("kind = \"mlflow\"\nendpoint = \"http://h\"\nexperiment_id = \"\"", "5:1: backend.b.experiment_id must be"),
        ("kind = \"mlflow\"\nendpoint = \"http://h\"\npath = \"/x\"", "5:1: backend.b.path does not belong"),
        (
            "kind = \"mlflow\"\nendpoint = \"http://h\"\nusername = \"u\"",
            "1:1: backend.b needs username and password_file",
        ),
        (
            "kind = \"mlflow\"\nendpoint = \"http://h\"\nheaders = { Host = \"x\" }",
            "5:20: backend.b.headers.Host is set by tracespool",
        ),
        (
            "kind = \"mlflow\"\nendpoint = \"http://h\"\ntls = { cert = \"/dev/null\" }",
            "5:7: backend.b.tls needs cert and key",
        ),
        (
            "kind = \"mlflow\"\nendpoint = \"http://h\"\ntoken_file = \"none\"",
            "5:1: backend.b.token_file refers to a file that does not exist",
        ),
        (
            "kind = \"otlp_http\"\nendpoint = \"http://h\"\ntraces_endpoint = \"http://h\"",
            "5:1: backend.b.traces_endpoint stands beside",
        ),
        ("kind = \"file\"", "1:1: backend.b has no path"),
        ("kind = \"file\"\npath = \"~/x\"", "4:1: backend.b.path begins with \"~\""),
        (
            "kind = \"file\"\npath = \"/x\"\norder = \"fresh_first\"",
            "5:1: backend.b.order is not available in this version",
        ),
    ] {
        assert_one_mistake(&backend(rest), beginning);
    }
    let two =
        |one: &str, other: &str| format!("[[backend]]\nkind = \"file\"\n{one}\n[[backend]]\nkind = \"file\"\n{other}");
    assert_one_mistake(
        &two("name = \"a\"\npath = \"x\"", "name = \"a\"\npath = \"y\""),
        "7:1: backend[2].name is the name of another backend",
    );
    assert_one_mistake(
        &two("name = \"a\"\npath = \"x\"", "name = \"b\"\npath = \"./y/../x\""),
        "8:1: backend.b.path is also written by the backend a",
    );
}

#[test]
fn a_backend_that_is_our_own_listener_is_a_mistake() {
    for (endpoint, kind) in [("http://localhost:4318", "otlp_http"), ("http://127.0.0.1:4317", "otlp_grpc")] {
        let text = format!("[[backend]]\nname = \"b\"\nkind = \"{kind}\"\nendpoint = \"{endpoint}\"");
        assert_one_mistake(&text, "4:1: backend.b.endpoint is one of this daemon's own listeners");
    }
}

/// Goal: a password in a place where it should not be is refused, and does not reach the log by the refusal.
#[test]
fn secrets_in_wrong_places_are_not_repeated() {
    for endpoint in ["http://ada:s3cret@h:5000", "ada:s3cret@h", "http://ada:s3cret@h:port"] {
        let text = format!("[[backend]]\nname = \"b\"\nkind = \"mlflow\"\nendpoint = \"{endpoint}\"");
        let mistakes = Fixture::new(&text).mistakes();
        assert_eq!(mistakes.len(), 1);
        assert!(!mistakes[0].contains("s3cret"), "{}", mistakes[0]);
    }
    let expanded =
        Fixture::new("[spool]\nmax_bytes = \"${env:S}\"\nwhen_full = \"${env:S}\"\n[log]\nlevel = \"${env:S}\"")
            .variable("S", "s3cret")
            .mistakes();
    assert_eq!(expanded.len(), 3);
    let misplaced = Fixture::new(
        "[[backend]]\nname = \"b\"\nkind = \"mlflow\"\nendpoint = \"http://h\"\ntoken_file = \"${env:S}\"\n\
         [[backend]]\nname = \"${env:S}\"\nkind = \"file\"\npath = \"/x\"",
    )
    .variable("S", "s3cret")
    .mistakes();
    assert_eq!(misplaced.len(), 2);
    assert!(!misplaced.concat().contains("s3cret"), "{misplaced:?}");
    assert!(!expanded.concat().contains("s3cret"), "{expanded:?}");
}

#[test]
fn references_are_replaced_and_hidden() {
    let fixture = Fixture::new(
        "state_dir = \"${env:BASE}/state\"\n[[backend]]\nname = \"b\"\nkind = \"otlp_http\"\n\
         endpoint = \"https://h/${file:key}\"\nheaders = { A = \"open\" }",
    )
    .variable("BASE", "/base")
    .file("key", "k3y\n");
    let loaded = fixture.load().expect("good");
    assert_eq!(loaded.config.state_dir, Path::new("/base/state"));
    let remote = loaded.config.backends[0].target.remote().expect("a server");
    assert_eq!(remote.endpoint.as_str(), "https://h/k3y/v1/traces");
    let page = effective(&loaded);
    let header = page.lines().find(|line| line.starts_with("headers.a = ")).expect("the header");
    assert!(header.ends_with("tracespool.toml:6"), "{header}");
    assert!(!page.contains("k3y") && !page.contains("/base") && !page.contains("open"), "{page}");
    assert_eq!(loaded.place(&loaded.config.backends[0]), "***");
    let missing = Fixture::new("state_dir = \"${env:BASE}\"").mistakes();
    assert!(missing[0].starts_with("1:1: state_dir refers to the environment variable BASE"), "{missing:?}");
}

#[test]
fn what_is_not_toml_or_not_text_says_where() {
    let mistakes = Fixture::new("a = 1\n[spool\nb = = 2\n").mistakes();
    assert!(mistakes[0].starts_with("2:7: this is not TOML"), "{mistakes:?}");
    assert!(mistakes.iter().any(|mistake| mistake.starts_with("3:")), "{mistakes:?}");
    let fixture = Fixture::new("");
    std::fs::write(fixture.path("tracespool.toml"), b"a = 1\nb = \"\xff\"\n").expect("written");
    assert_eq!(fixture.mistakes(), ["2:1: this line is not UTF-8 text"]);
    // Columns are counted in characters, as editors do.
    assert_one_mistake("spool = { \"max_bytes\" = \"1GiB\", \"é\" = 1 }", "1:33: spool.é is unknown");
    assert_one_mistake(
        "receive = { socket = { group = \"é\", mod = \"0660\" } }",
        "1:37: receive.socket.mod is unknown",
    );
}

#[test]
fn tables_of_the_wrong_form_are_mistakes() {
    assert_one_mistake("spool = 5", "1:1: spool must be a table: [spool]");
    assert_one_mistake("[backend]\nname = \"x\"", "1:2: backend must be a list of tables: write [[backend]]");
    assert_one_mistake("[receive]\nlisten = \"127.0.0.1:1\"", "2:1: receive.listen must be a list of strings");
}
