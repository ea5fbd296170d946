//! What comes from the environment: places, precedence, and backends in other programs' words.

use std::path::Path;

use tracespool::config::{
    Compression, Config, Credentials, Environment, Experiment, Loaded, Mistakes, Origin, Overrides, Remote, Target,
    doors, effective, load,
};

fn user(vars: &[(&str, &str)]) -> Environment {
    let mut environment = Environment { uid: 1000, pid: 1, directory: "/some/where".into(), ..Environment::default() };
    environment.vars.insert("HOME".into(), "/home/ada".into());
    environment.vars.extend(vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    environment
}

fn try_load(vars: &[(&str, &str)]) -> Result<Loaded, Mistakes> {
    load(&Overrides::default(), &user(vars))
}

fn loaded(vars: &[(&str, &str)]) -> Loaded {
    try_load(vars).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

fn config(vars: &[(&str, &str)]) -> Config {
    loaded(vars).config
}

/// The only backend's server.
fn remote(vars: &[(&str, &str)]) -> Remote {
    let config = config(vars);
    assert_eq!(config.backends.len(), 1, "{:?}", config.backends);
    config.backends[0].target.remote().expect("a server").clone()
}

fn warnings(vars: &[(&str, &str)]) -> String {
    loaded(vars).warnings.iter().map(|warning| format!("{warning}\n")).collect()
}

#[test]
fn an_ordinary_user_needs_nothing() {
    let config = config(&[]);
    assert_eq!(config.state_dir, Path::new("/home/ada/.local/state/tracespool"));
    assert_eq!(config.receive.socket.path, Path::new("/home/ada/.local/state/tracespool/spool.sock"));
    assert_eq!(config.admin.socket.path, Path::new("/home/ada/.local/state/tracespool/admin.sock"));
    let [backend] = &config.backends[..] else { panic!("{:?}", config.backends) };
    let Target::File(file) = &backend.target else { panic!("{backend:?}") };
    assert_eq!(backend.name, "file");
    assert_eq!(file.path, Path::new("/home/ada/.local/state/tracespool/traces.jsonl"));
}

#[test]
fn a_service_without_a_backend_has_none() {
    let environment = Environment { uid: 0, ..user(&[]) };
    let config = load(&Overrides::default(), &environment).expect("good").config;
    assert!(config.backends.is_empty());
    assert_eq!(config.admin.socket.path, Path::new("/run/tracespool/admin/admin.sock"));
}

#[test]
fn a_user_without_a_home_is_told_what_to_do() {
    let mistakes = load(&Overrides::default(), &Environment { uid: 1000, ..Environment::default() });
    assert!(mistakes.expect_err("no place").to_string().contains("--state-dir"));
    let overrides = Overrides { state_dir: Some("/x".into()), ..Overrides::default() };
    assert!(load(&overrides, &Environment { uid: 1000, ..Environment::default() }).is_ok());
}

/// Goal: several daemons live side by side, and a command with the same --state-dir finds the right one.
#[test]
fn another_state_directory_takes_the_sockets_with_it() {
    let runtime = ("XDG_RUNTIME_DIR", "/run/user/1000");
    let overrides = |dir: &str| Overrides { state_dir: Some(dir.into()), ..Overrides::default() };
    let usual = config(&[runtime]);
    assert_eq!(usual.receive.socket.path, Path::new("/run/user/1000/tracespool/spool.sock"));
    let moved = load(&overrides("other"), &user(&[runtime])).expect("good").config;
    assert_eq!(moved.state_dir, Path::new("/some/where/other"));
    assert_eq!(moved.receive.socket.path, Path::new("/some/where/other/spool.sock"));
    assert_eq!(moved.admin.socket.path, Path::new("/some/where/other/admin.sock"));
    let by_variable = config(&[runtime, ("TRACESPOOL_STATE_DIR", "/elsewhere")]);
    assert_eq!(by_variable.admin.socket.path, Path::new("/elsewhere/admin.sock"));
    // To name the usual one changes nothing.
    let named = load(&overrides("/home/ada/.local/state/tracespool"), &user(&[runtime])).expect("good").config;
    assert_eq!(named.admin.socket.path, usual.admin.socket.path);
    // Where systemd made a directory for the sockets, they stay in it.
    let unit = Environment { uid: 0, ..user(&[("RUNTIME_DIRECTORY", "/run/ts")]) };
    let unit = load(&overrides("/data"), &unit).expect("good").config;
    assert_eq!(unit.receive.socket.path, Path::new("/run/ts/spool.sock"));
    let root = Environment { uid: 0, ..user(&[]) };
    let root = load(&overrides("/data"), &root).expect("good").config;
    assert_eq!(root.receive.socket.path, Path::new("/data/spool.sock"));
}

#[test]
fn the_command_line_wins_over_variables_and_these_over_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let one = write("one.toml", "state_dir = \"/one\"\n[log]\nlevel = \"warn\"\n");
    let two = write("two.toml", "state_dir = \"/two\"\n");
    let variable = ("TRACESPOOL_CONFIG", one.to_str().expect("UTF-8"));
    assert_eq!(config(&[variable]).state_dir, Path::new("/one"));
    assert_eq!(config(&[variable]).log.level, tracing::Level::WARN);
    let by_option = Overrides { config: Some(two), ..Overrides::default() };
    assert_eq!(load(&by_option, &user(&[variable])).expect("good").config.state_dir, Path::new("/two"));
    let all = loaded(&[variable, ("TRACESPOOL_STATE_DIR", "/three"), ("TRACESPOOL_LOG", "trace")]);
    assert_eq!((all.config.state_dir.as_path(), all.config.log.level), (Path::new("/three"), tracing::Level::TRACE));
    assert_eq!(all.origins.of("log.level").origin, Origin::Environment("TRACESPOOL_LOG".into()));
    let mistakes = try_load(&[("TRACESPOOL_LOG", "loud"), ("TRACESPOOL_CONFIG", "/nowhere")]).expect_err("bad");
    assert_eq!(mistakes.0.len(), 2, "{mistakes}");
}

#[test]
fn a_default_file_is_read_when_it_exists() {
    let home = tempfile::tempdir().expect("a folder");
    let folder = home.path().join("tracespool");
    std::fs::create_dir(&folder).expect("created");
    std::fs::write(folder.join("tracespool.toml"), "[receive]\nlisten = []\n").expect("written");
    let loaded = loaded(&[("XDG_CONFIG_HOME", home.path().to_str().expect("UTF-8"))]);
    assert_eq!(loaded.file, Some(folder.join("tracespool.toml")));
    assert!(loaded.config.receive.listen.is_empty());
}

#[test]
fn doors_are_found_though_the_rest_is_wrong() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.toml");
    let find = |text: &str| {
        std::fs::write(&path, text).expect("written");
        doors(&Overrides { config: Some(path.clone()), ..Overrides::default() }, &user(&[]))
    };
    let found =
        find("state_dir = \"/s\"\n[admin]\nsocket = \"/a.sock\"\n[spool]\nmax_bytes = 7\nfoo = \"${env:NONE}\"");
    let found = found.expect("the doors are good");
    assert_eq!((found.admin.as_path(), found.spool.as_path()), (Path::new("/a.sock"), Path::new("/s/spool.sock")));
    assert!(find("[admin]\nsocket = 7").is_err());
    assert!(find("not TOML").is_err());
}

#[test]
fn long_socket_paths_are_refused_with_the_reason() {
    let long = format!("/{}", "x".repeat(110));
    let mistakes = try_load(&[("TRACESPOOL_STATE_DIR", &long)]).expect_err("too long").to_string();
    assert!(mistakes.contains("107") && mistakes.contains("receive.socket.path"), "{mistakes}");
    // 107 bytes are the most that fit.
    let most = format!("/{}", "x".repeat(107 - 1 - "/admin.sock".len()));
    assert!(try_load(&[("TRACESPOOL_STATE_DIR", &most)]).is_ok());
}

// ---- OpenTelemetry ----

const GENERIC: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";

/// C1, C2: which address is used, and how.
#[test]
fn the_address_for_traces_is_used_as_it_is_and_the_generic_one_is_a_base() {
    for (vars, address) in [
        (&[(GENERIC, "http://h:4318")][..], "http://h:4318/v1/traces"),
        (&[(GENERIC, "http://h:4318/")], "http://h:4318/v1/traces"),
        (&[(GENERIC, "http://h/api/otel/")], "http://h/api/otel/v1/traces"),
        (&[(TRACES, "http://h:4318")], "http://h:4318/"),
        (&[(TRACES, "http://h:4318/in")], "http://h:4318/in"),
        (&[(GENERIC, "http://g:1"), (TRACES, "http://t:2/in")], "http://t:2/in"),
        // C9: empty is unset.
        (&[(GENERIC, "http://g:1"), (TRACES, "")], "http://g:1/v1/traces"),
    ] {
        assert_eq!(remote(vars).endpoint.as_str(), address, "{vars:?}");
        assert!(matches!(config(vars).backends[0].target, Target::OtlpHttp(_)));
    }
    assert_eq!(config(&[(GENERIC, "http://h:4318")]).backends[0].name, "otlp");
}

/// C4, C5, C8: what is spoken.
#[test]
fn the_protocol_follows_the_variable_then_the_port() {
    for (vars, kind, address) in [
        (&[(GENERIC, "http://h:4317")][..], "otlp_grpc", "http://h:4317/"),
        (&[(TRACES, "http://h:4317/v1/traces")], "otlp_grpc", "http://h:4317/"),
        (&[(GENERIC, "http://h:4317"), (PROTOCOL, "http/protobuf")], "otlp_http", "http://h:4317/v1/traces"),
        (&[(GENERIC, "http://h:9"), (PROTOCOL, "GRPC")], "otlp_grpc", "http://h:9/"),
        (
            &[(GENERIC, "http://h:9"), (PROTOCOL, "grpc"), ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")],
            "otlp_http",
            "http://h:9/v1/traces",
        ),
        (&[(GENERIC, "h:4317")], "otlp_grpc", "https://h:4317/"),
        (&[(GENERIC, "h:4317"), ("OTEL_EXPORTER_OTLP_INSECURE", "True")], "otlp_grpc", "http://h:4317/"),
        // Only "true" is true, and a scheme beats the variable.
        (&[(GENERIC, "h:4317"), ("OTEL_EXPORTER_OTLP_INSECURE", "1")], "otlp_grpc", "https://h:4317/"),
        (&[(GENERIC, "https://h:4317"), ("OTEL_EXPORTER_OTLP_INSECURE", "true")], "otlp_grpc", "https://h:4317/"),
        (&[(GENERIC, "unix:///run/c.sock")], "otlp_grpc", "unix:///run/c.sock"),
        (&[(GENERIC, "http://h:4317"), (PROTOCOL, "smoke")], "otlp_grpc", "http://h:4317/"),
        (&[(GENERIC, "http://h:9"), (PROTOCOL, "http/json")], "otlp_http", "http://h:9/v1/traces"),
    ] {
        let config = config(vars);
        let target = &config.backends[0].target;
        assert_eq!(
            (target.kind(), target.remote().map(|remote| remote.endpoint.as_str())),
            (kind, Some(address)),
            "{vars:?}"
        );
    }
    assert!(warnings(&[(GENERIC, "http://h:9"), (PROTOCOL, "http/json")]).contains("http/protobuf is sent instead"));
    assert!(
        warnings(&[(GENERIC, "http://h:9"), (PROTOCOL, "smoke")]).contains("OTEL_EXPORTER_OTLP_PROTOCOL is ignored")
    );
}

/// C6: headers, also broken ones, and no value in any message.
#[test]
fn headers_are_decoded_and_broken_ones_cost_only_themselves() {
    let vars = [
        (GENERIC, "http://h:1"),
        ("OTEL_EXPORTER_OTLP_HEADERS", " api-key = a%20b ,s3cret, X=1%zz,content-type=s3cret,,x=2 "),
    ];
    let remote = remote(&vars);
    let headers: Vec<_> = remote.headers.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
    assert_eq!(headers, [("api-key", "a b"), ("x", "2")]);
    let warnings = warnings(&vars);
    assert!(warnings.contains("pair 2") && warnings.contains("number 4"), "{warnings}");
    assert!(!warnings.contains("s3cret"));
    assert!(!effective(&loaded(&vars)).contains("a b"));
    // The form for traces replaces the generic one as a whole.
    let both =
        [(GENERIC, "http://h:1"), ("OTEL_EXPORTER_OTLP_HEADERS", "a=1"), ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "b=2")];
    assert_eq!(self::remote(&both).headers.len(), 1);
}

/// C7, C8, C11.
#[test]
fn the_other_variables_of_opentelemetry() {
    let compression = |value| remote(&[(GENERIC, "http://h:1"), ("OTEL_EXPORTER_OTLP_COMPRESSION", value)]).compression;
    assert_eq!(compression("none"), Compression::None);
    assert_eq!(compression("GZIP"), Compression::Gzip);
    assert_eq!(compression("zstd"), Compression::Zstd);
    assert_eq!(compression("snappy"), Compression::Gzip);
    assert!(
        warnings(&[(GENERIC, "http://h:1"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "10")]).contains("disagree on its unit")
    );

    let folder = tempfile::tempdir().expect("a folder");
    let pem = folder.path().join("x.pem");
    std::fs::write(&pem, "pem").expect("written");
    let pem = pem.to_str().expect("UTF-8");
    let vars = [
        (GENERIC, "https://h:1"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", pem),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", pem),
        ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", pem),
    ];
    let tls = remote(&vars).tls;
    assert!(tls.ca.is_some() && tls.cert.is_some() && tls.key.is_some());
    for bad in [&[vars[0], ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem")][..], &vars[..3]] {
        assert!(try_load(bad).is_err(), "{bad:?}");
    }
    let mistakes = try_load(&[(GENERIC, "collector")]).expect_err("no address").to_string();
    assert!(mistakes.contains("environment: OTEL_EXPORTER_OTLP_ENDPOINT must be a complete address"), "{mistakes}");
}

// ---- MLflow ----

#[test]
fn the_variables_of_mlflow_make_a_backend() {
    let uri = ("MLFLOW_TRACKING_URI", "http://m:5000");
    let config =
        config(&[uri, ("MLFLOW_EXPERIMENT_NAME", "search"), ("MLFLOW_WORKSPACE", "w"), ("MLFLOW_TRACKING_TOKEN", "t")]);
    let [backend] = &config.backends[..] else { panic!("{:?}", config.backends) };
    let Target::Mlflow { remote, experiment, workspace } = &backend.target else { panic!("{backend:?}") };
    assert_eq!((backend.name.as_str(), remote.endpoint.as_str()), ("mlflow", "http://m:5000/"));
    assert_eq!((experiment, workspace.as_deref()), (&Experiment::Name("search".into()), Some("w")));
    assert!(matches!(&remote.credentials, Credentials::Bearer(token) if token.expose() == "t"));

    let experiment = |vars: &[(&str, &str)]| match &self::config(vars).backends[0].target {
        Target::Mlflow { experiment, .. } => experiment.clone(),
        target => panic!("{target:?}"),
    };
    assert_eq!(experiment(&[uri]), Experiment::Id("0".into()));
    assert_eq!(
        experiment(&[uri, ("MLFLOW_EXPERIMENT_ID", "7"), ("MLFLOW_EXPERIMENT_NAME", "x")]),
        Experiment::Id("7".into())
    );

    let password =
        [uri, ("MLFLOW_TRACKING_USERNAME", "ada"), ("MLFLOW_TRACKING_PASSWORD", "p"), ("MLFLOW_TRACKING_TOKEN", "t")];
    assert!(matches!(self::remote(&password).credentials, Credentials::Basic { .. }));
    assert!(matches!(self::remote(&[password[0], password[1], password[3]]).credentials, Credentials::Bearer(_)));
    let in_address = loaded(&[("MLFLOW_TRACKING_URI", "http://ada:s3cret@m:5000")]);
    let remote = in_address.config.backends[0].target.remote().expect("a server");
    assert!(
        matches!(&remote.credentials, Credentials::Basic { username, password } if username == "ada" && password.expose() == "s3cret")
    );
    assert!(!effective(&in_address).contains("s3cret") && !format!("{in_address:?}").contains("s3cret"));
}

#[test]
fn tracking_addresses_that_are_no_server_are_ignored_with_a_warning() {
    for uri in ["databricks", "databricks://profile", "sqlite:///x.db", "file:///mlruns", "./mlruns", "/mlruns"] {
        let vars = [("MLFLOW_TRACKING_URI", uri)];
        assert_eq!(config(&vars).backends[0].name, "file", "{uri}");
        assert!(warnings(&vars).contains("MLFLOW_TRACKING_URI is ignored"), "{uri}");
    }
    assert!(warnings(&[("MLFLOW_TRACKING_URI", "databricks")]).contains("not available in this version"));
}

#[test]
fn both_kinds_make_two_backends_and_own_listeners_none() {
    let both = config(&[(TRACES, "http://c:4317"), ("MLFLOW_TRACKING_URI", "http://m:5000")]);
    let names: Vec<_> = both.backends.iter().map(|backend| backend.name.as_str()).collect();
    assert_eq!(names, ["otlp", "mlflow"]);
    // A file with variables that the apps use, too.
    let shared = [(TRACES, "http://localhost:4317/v1/traces"), ("MLFLOW_TRACKING_URI", "http://m:5000")];
    assert_eq!(config(&shared).backends.len(), 1);
    assert!(warnings(&shared).contains("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is ignored: the address is one of"));
}

#[test]
fn a_file_with_backends_makes_the_variables_count_for_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.toml");
    std::fs::write(&path, "[[backend]]\nname = \"f\"\nkind = \"file\"\npath = \"/x\"\n").expect("written");
    let vars = [
        ("TRACESPOOL_CONFIG", path.to_str().expect("UTF-8")),
        (GENERIC, "nonsense"),
        ("MLFLOW_TRACKING_URI", "http://m"),
    ];
    let loaded = loaded(&vars);
    assert_eq!(loaded.config.backends.len(), 1);
    assert!(loaded.warnings.is_empty());
}
