//! `tracespool env`: the settings that an app on this host needs to write to the daemon.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use clap::{Args, ValueEnum};

use super::client::block_on;
use super::find::{Socket, find};
use crate::config::{self, Environment, Loaded, Overrides, Target};
use crate::exit::{Exit, Failure, Outcome};

#[derive(Debug, Args)]
pub(super) struct Env {
    /// What the app is traced with
    #[arg(long = "for", value_enum, default_value = "mlflow", value_name = "SDK")]
    sdk: Sdk,
    /// How the settings are written: for a shell (eval "$(tracespool env)"), or for a file that EnvironmentFile= names
    #[arg(long, value_enum, default_value = "sh")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sdk {
    /// The package mlflow
    Mlflow,
    /// The package mlflow-tracing
    MlflowLight,
    /// An OpenTelemetry SDK
    Otel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Sh,
    Systemd,
}

/// Where the daemon is, and what it asks of whoever comes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Door {
    address: SocketAddr,
    tls: bool,
    token: bool,
    /// The MLflow server that it ships to, for calls that are not traces.
    server: Option<String>,
}

impl Env {
    pub(super) fn run(self, overrides: &Overrides, environment: &Environment) -> Outcome {
        // Of a daemon with secrets in its file, which this user may not read, the addresses are enough.
        let loaded = config::load(overrides, environment).ok();
        let listen = match ask(overrides, environment) {
            Ok(listen) => listen,
            Err(failure) => {
                let Some(loaded) = &loaded else { return Err(failure) };
                super::remark(&format!("the addresses are those of the configuration: {}", failure.message));
                loaded.config.receive.listen.clone()
            }
        };
        let address = nearest(&listen)?;
        super::print(&page(&Door::new(address, loaded.as_ref()), self.sdk, self.format))
    }
}

/// The addresses of the daemon that runs.
fn ask(overrides: &Overrides, environment: &Environment) -> Result<Vec<SocketAddr>, Failure> {
    let found = find(Socket::Admin, overrides, environment)?;
    let status = block_on(super::status::fetch(&found.path))?;
    Ok(status.listen.iter().filter_map(|address| address.parse().ok()).collect())
}

/// The address at which an app on this host reaches the daemon best.
fn nearest(listen: &[SocketAddr]) -> Result<SocketAddr, Failure> {
    let rank = |address: &&SocketAddr| match address.ip().to_canonical() {
        ip if ip.is_loopback() => 0,
        ip if ip.is_unspecified() => 1,
        _ => 2,
    };
    let Some(address) = listen.iter().min_by_key(rank) else {
        return Err(Failure::new(Exit::Unavailable, "the daemon has no TCP listener (receive.listen); SDKs need one"));
    };
    if address.port() == 0 {
        let message = "the daemon takes a free port when it starts (receive.listen); start it, and ask again";
        return Err(Failure::new(Exit::Unavailable, message));
    }
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Ok(SocketAddr::new(ip, address.port()))
}

impl Door {
    fn new(address: SocketAddr, loaded: Option<&Loaded>) -> Self {
        let receive = loaded.map(|loaded| &loaded.config.receive);
        let server = loaded.and_then(|loaded| {
            let is_mlflow = |backend: &&config::Backend| matches!(backend.target, Target::Mlflow { .. });
            let place = loaded.place(loaded.config.backends.iter().find(is_mlflow)?);
            // What may be a secret is shown nowhere.
            (!place.contains("***")).then(|| place.trim_end_matches('/').to_owned())
        });
        Self {
            address,
            tls: receive.is_some_and(|receive| receive.tls.is_some()),
            token: receive.is_some_and(|receive| receive.token_file.is_some()),
            server,
        }
    }

    fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }
}

/// The settings of one SDK. Those for traces alone: the general ones would also send metrics, which are not kept.
fn page(door: &Door, sdk: Sdk, format: Format) -> String {
    let mut settings = vec![
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("{}/v1/traces", door.url())),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf".to_owned()),
    ];
    match (sdk, &door.server) {
        (Sdk::Otel, _) | (Sdk::Mlflow, None) => {}
        (Sdk::Mlflow | Sdk::MlflowLight, Some(server)) => settings.push(("MLFLOW_TRACKING_URI", server.clone())),
        // It exports nothing without an http address here, and asks nothing there.
        (Sdk::MlflowLight, None) => settings.push(("MLFLOW_TRACKING_URI", door.url())),
    }
    let mut page = String::new();
    // Writing to a String does not fail.
    for (name, value) in settings {
        let _ = match format {
            Format::Sh => writeln!(page, "export {name}='{}'", value.replace('\'', r"'\''")),
            Format::Systemd => writeln!(page, "{name}=\"{}\"", value.replace('\\', r"\\").replace('"', "\\\"")),
        };
    }
    if door.tls {
        page.push_str("# and, unless the system trusts it, OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE: the file of the\n");
        page.push_str("# authority that signed the daemon's certificate\n");
    }
    if door.token {
        page.push_str(
            "# and OTEL_EXPORTER_OTLP_TRACES_HEADERS=authorization=Bearer%20TOKEN, with the token that the\n",
        );
        page.push_str("# daemon expects\n");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nearest_of(listen: &[&str]) -> Result<String, String> {
        let listen: Vec<_> = listen.iter().map(|address| address.parse().expect("an address")).collect();
        nearest(&listen).map(|address| address.to_string()).map_err(|failure| failure.message)
    }

    #[test]
    fn the_nearest_address_is_taken() {
        for (listen, expected) in [
            (&["10.0.0.7:1", "127.0.0.1:2", "127.0.0.1:3"][..], "127.0.0.1:2"),
            (&["10.0.0.7:1", "0.0.0.0:2"], "127.0.0.1:2"),
            (&["[::]:4"], "[::1]:4"),
            (&["10.0.0.7:1"], "10.0.0.7:1"),
        ] {
            assert_eq!(nearest_of(listen).as_deref(), Ok(expected), "{listen:?}");
        }
        assert!(nearest_of(&[]).expect_err("none").contains("receive.listen"));
        assert!(nearest_of(&["127.0.0.1:0"]).expect_err("not yet").contains("start it"));
    }

    fn door() -> Door {
        Door { address: "127.0.0.1:4318".parse().expect("one"), tls: false, token: false, server: None }
    }

    #[test]
    fn each_sdk_gets_what_it_needs() {
        let names = |sdk, server: Option<&str>| -> Vec<String> {
            let door = Door { server: server.map(str::to_owned), ..door() };
            let page = page(&door, sdk, Format::Systemd);
            page.lines().map(|line| line.replace("OTEL_EXPORTER_OTLP_TRACES_", "")).collect()
        };
        let otlp = ["ENDPOINT=\"http://127.0.0.1:4318/v1/traces\"", "PROTOCOL=\"http/protobuf\""];
        assert_eq!(names(Sdk::Otel, Some("http://m")), otlp);
        assert_eq!(names(Sdk::Mlflow, None), otlp);
        let with_uri = |uri: &str| [&otlp[..], &[&format!("MLFLOW_TRACKING_URI=\"{uri}\"")]].concat().join("\n");
        assert_eq!(names(Sdk::Mlflow, Some("http://m")).join("\n"), with_uri("http://m"));
        assert_eq!(names(Sdk::MlflowLight, Some("http://m")).join("\n"), with_uri("http://m"));
        assert_eq!(names(Sdk::MlflowLight, None).join("\n"), with_uri("http://127.0.0.1:4318"));
    }

    #[test]
    fn guards_are_mentioned_and_quotes_are_quoted() {
        let guarded = Door { tls: true, token: true, server: Some("http://m/it's".into()), ..door() };
        let shell = page(&guarded, Sdk::Mlflow, Format::Sh);
        assert!(shell.starts_with("export OTEL_EXPORTER_OTLP_TRACES_ENDPOINT='https://127.0.0.1:4318/v1/traces'\n"));
        assert!(shell.contains(r"export MLFLOW_TRACKING_URI='http://m/it'\''s'"), "{shell}");
        assert!(shell.contains("Bearer%20TOKEN") && shell.contains("CERTIFICATE"), "{shell}");
        assert!(shell.lines().all(|line| line.starts_with("export ") || line.starts_with("# ")), "{shell}");
    }
}
