//! Every value in force, as TOML, each with where it came from.

use std::fmt::{Display, Write};

use spool::Durability;

use super::units::{bytes, time};
use super::{
    AfterRetryTimeout, AfterTaking, Backend, Compression, Credentials, Experiment, Loaded, LogFormat, Origins,
    OtherSignals, Remote, Socket, StartAt, Target, WhenFull,
};

/// Column at which the origins begin, when the value leaves room.
const MARGIN: usize = 48;

/// Writes the whole configuration. What may be a secret is `***`.
pub fn effective(loaded: &Loaded) -> String {
    let config = &loaded.config;
    let mut page = Page { text: String::new(), origins: &loaded.origins, section: String::new() };
    page.line("state_dir", quoted(config.state_dir.display()));
    let receive = &config.receive;
    page.section("[receive]", "receive");
    page.line("listen", format!("[{}]", receive.listen.iter().map(quoted).collect::<Vec<_>>().join(", ")));
    page.line("max_request_bytes", quoted(bytes(receive.max_request_bytes)));
    page.line("max_in_flight_bytes", quoted(bytes(receive.max_in_flight_bytes)));
    page.line("insecure", receive.insecure.to_string());
    if let Some(tls) = &receive.tls {
        page.line("tls.cert", quoted(tls.cert.display()));
        page.line("tls.key", quoted(tls.key.display()));
        if let Some(client_ca) = &tls.client_ca {
            page.line("tls.client_ca", quoted(client_ca.display()));
        }
    }
    if let Some(token_file) = &receive.token_file {
        page.line("token_file", quoted(token_file.display()));
    }
    page.line("keep_headers", format!("[{}]", receive.keep_headers.iter().map(quoted).collect::<Vec<_>>().join(", ")));
    let other_signals = match receive.other_signals {
        OtherSignals::Accept => "accept",
        OtherSignals::Refuse => "refuse",
    };
    page.line("other_signals", quoted(other_signals));
    page.section("[receive.socket]", "receive.socket");
    page.socket("path", &receive.socket);
    if let Some(uids) = &receive.allow_uids {
        page.line("allow_uids", format!("[{}]", uids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")));
    }
    page.section("[receive.mlflow]", "receive.mlflow");
    page.line("enabled", receive.mlflow.enabled.to_string());
    page.line("experiment_id", quoted(&receive.mlflow.experiment_id));
    page.line("forward", receive.mlflow.forward.to_string());
    page.section("[receive.directory]", "receive.directory");
    page.line("path", quoted(receive.directory.path.display()));
    page.line("rescan", quoted(time(receive.directory.rescan)));
    let after = match receive.directory.after {
        AfterTaking::Delete => "delete",
        AfterTaking::Archive => "archive",
    };
    page.line("after", quoted(after));
    page.line("keep", quoted(time(receive.directory.keep)));
    page.line("keep_bytes", quoted(bytes(receive.directory.keep_bytes)));
    page.section("[spool]", "spool");
    page.line("max_bytes", quoted(bytes(config.spool.max_bytes)));
    page.line("segment_bytes", quoted(bytes(config.spool.segment_bytes)));
    if let Some(max_traces) = config.spool.max_traces {
        page.line("max_traces", max_traces.to_string());
    }
    let when_full = match config.spool.when_full {
        WhenFull::Refuse => "refuse",
        WhenFull::DiscardOldest => "discard_oldest",
        WhenFull::DiscardNewest => "discard_newest",
    };
    page.line("when_full", quoted(when_full));
    page.line("min_free_disk", quoted(bytes(config.spool.min_free_disk)));
    page.line("keep_delivered", quoted(time(config.spool.keep_delivered)));
    page.line("keep_delivered_bytes", quoted(bytes(config.spool.keep_delivered_bytes)));
    let durability = match config.spool.durability {
        Durability::Sync => "sync",
        Durability::Relaxed => "relaxed",
    };
    page.line("durability", quoted(durability));
    page.section("[dead_letters]", "dead_letters");
    page.line("max_bytes", quoted(bytes(config.dead_letters.max_bytes)));
    page.line("max_age", quoted(time(config.dead_letters.max_age)));
    for backend in &config.backends {
        page.backend(backend);
    }
    page.section("[admin]", "admin");
    page.socket("socket", &config.admin.socket);
    page.section("[log]", "log");
    page.line("level", quoted(config.log.level.as_str().to_ascii_lowercase()));
    let format = match config.log.format {
        LogFormat::Auto => "auto",
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    page.line("format", quoted(format));
    page.text
}

struct Page<'a> {
    text: String,
    origins: &'a Origins,
    section: String,
}

impl Page<'_> {
    fn section(&mut self, head: &str, key: &str) {
        key.clone_into(&mut self.section);
        // Writing to a String does not fail.
        let _ = writeln!(self.text, "\n{head}");
    }

    fn line(&mut self, key: &str, value: String) {
        self.line_as(key, value, &[]);
    }

    /// A line whose value may also have come from another key.
    fn line_as(&mut self, key: &str, value: String, also: &[String]) {
        let full = if self.section.is_empty() { key.to_owned() } else { format!("{}.{key}", self.section) };
        let mut source = self.origins.of(&full);
        for other in also {
            if source.origin == super::Origin::Default {
                source = self.origins.of(other);
            }
        }
        let value = if source.hidden { quoted("***") } else { value };
        let setting = format!("{key} = {value}");
        let _ = writeln!(self.text, "{setting:<MARGIN$}  # {}", source.origin);
    }

    fn socket(&mut self, path: &str, socket: &Socket) {
        self.line(path, quoted(socket.path.display()));
        if Socket::abstract_name(&socket.path).is_some() {
            return;
        }
        self.line("mode", quoted(format!("{:04o}", socket.mode)));
        if let Some(group) = &socket.group {
            self.line("group", quoted(group));
        }
    }

    fn backend(&mut self, backend: &Backend) {
        self.section("[[backend]]", &format!("backend.{}", backend.name));
        self.line("name", quoted(&backend.name));
        self.line("kind", quoted(backend.target.kind()));
        match &backend.target {
            Target::OtlpGrpc(remote) => self.remote("endpoint", remote),
            Target::OtlpHttp(remote) => self.remote("traces_endpoint", remote),
            Target::Mlflow { remote, experiment, workspace } => {
                self.remote("endpoint", remote);
                match experiment {
                    Experiment::Id(id) => self.line("experiment_id", quoted(id)),
                    Experiment::Name(name) => self.note("experiment_name", name),
                }
                if let Some(workspace) = workspace {
                    self.note("workspace", workspace);
                }
            }
            Target::File(file) => {
                self.line("path", quoted(file.path.display()));
                self.line("rotate_bytes", quoted(bytes(file.rotate_bytes)));
                self.line("rotate_files", file.rotate_files.to_string());
            }
        }
        match backend.start_at {
            StartAt::Oldest => self.line("start_at", quoted("oldest")),
            StartAt::Now => self.line("start_at", quoted("now")),
            StartAt::Auto => {
                self.text.push_str("# start_at: oldest for the first backend of a spool, now for later ones\n")
            }
        }
        if backend.gives_way {
            self.line("when_full", quoted("discard_oldest"));
        }
        if let Some(max) = backend.max_backlog_bytes {
            self.line("max_backlog_bytes", quoted(bytes(max)));
        }
        let delivery = &backend.delivery;
        let after = match delivery.after_retry_timeout {
            AfterRetryTimeout::DeadLetter => "dead_letter",
            AfterRetryTimeout::Discard => "discard",
        };
        for (key, value) in [
            ("workers", delivery.workers.to_string()),
            ("timeout", quoted(time(delivery.timeout))),
            ("batch_max_bytes", quoted(bytes(delivery.batch_max_bytes))),
            ("backoff_initial", quoted(time(delivery.backoff_initial))),
            ("backoff_max", quoted(time(delivery.backoff_max))),
            ("retry_timeout", quoted(time(delivery.retry_timeout))),
            ("after_retry_timeout", quoted(after)),
            ("blocked_retry", quoted(time(delivery.blocked_retry))),
        ] {
            self.line_as(key, value, &[format!("delivery.{key}")]);
        }
    }

    fn remote(&mut self, endpoint: &str, remote: &Remote) {
        let written = format!("{}.endpoint", self.section);
        self.line_as(endpoint, quoted(remote.shown()), &[written]);
        for (name, _) in &remote.headers {
            let source = self.origins.of(&format!("{}.headers.{name}", self.section));
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
            let setting = format!("headers.{} = \"***\"", if plain { name.clone() } else { quoted(name) });
            let _ = writeln!(self.text, "{setting:<MARGIN$}  # {}", source.origin);
        }
        match &remote.credentials {
            Credentials::None => {}
            Credentials::Bearer(_) => self.note("token", "***"),
            Credentials::BearerFile(path) => self.line("token_file", quoted(path.display())),
            Credentials::Basic { username, .. } => {
                self.note("username", username);
                self.note("password", "***");
            }
            Credentials::BasicFile { username, password_file } => {
                self.line("username", quoted(username));
                self.line("password_file", quoted(password_file.display()));
            }
        }
        for (key, path) in [("ca", &remote.tls.ca), ("cert", &remote.tls.cert), ("key", &remote.tls.key)] {
            if let Some(path) = path {
                self.line(&format!("tls.{key}"), quoted(path.display()));
            }
        }
        let compression = match remote.compression {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        };
        self.line("compression", quoted(compression));
    }

    /// Something that only the environment can say, so not a key.
    fn note(&mut self, what: &str, value: &str) {
        let source = self.origins.of(&format!("{}.{what}", self.section));
        let value = if source.hidden { "***" } else { value };
        let setting = format!("# {what}: {value}");
        let _ = writeln!(self.text, "{setting:<MARGIN$}  # {}", source.origin);
    }
}

/// A string as TOML writes it.
fn quoted(value: impl Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}
