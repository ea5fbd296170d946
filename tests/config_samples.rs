//! The files that are shipped as documentation are loaded, and say what the program does.

use std::path::{Path, PathBuf};

use tracespool::config::{Environment, Loaded, Overrides, effective, load};

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

/// Root on a machine without any settings, so that the defaults are those of a service.
fn service() -> Environment {
    Environment { uid: 0, directory: "/".into(), ..Environment::default() }
}

/// The same with a backend that has nothing but defaults, so that these show, too.
fn service_with_backend() -> Environment {
    let mut environment = service();
    environment.vars.insert("MLFLOW_TRACKING_URI".into(), "http://mlflow.example.com:5000".into());
    environment
}

fn load_file(path: &Path, environment: &Environment) -> Loaded {
    let overrides = Overrides { config: Some(path.to_owned()), ..Overrides::default() };
    load(&overrides, environment).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

/// The configuration in force without the comments that say where it came from.
fn values(loaded: &Loaded) -> String {
    let lines: Vec<_> = effective(loaded)
        .lines()
        .map(|line| line.split("  #").next().unwrap_or_default().trim_end().to_owned())
        .collect();
    lines.join("\n")
}

/// A commented key with its value is read as if it were set; prose is not.
fn uncomment(text: &str) -> String {
    let is_setting = |line: &str| {
        line.strip_prefix('#').is_some_and(|rest| {
            rest.split_once(" = ").is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        })
    };
    let lines: Vec<_> =
        text.lines().map(|line| if is_setting(line) { line.trim_start_matches('#') } else { line }).collect();
    lines.join("\n")
}

/// Goal: the sample cannot drift from the code. Method: load it as it is, and with every shown default set; both must
/// come to the same values as no file at all.
#[test]
fn the_sample_shows_the_defaults() {
    let environment = service_with_backend();
    let nothing = load(&Overrides::default(), &environment).expect("defaults are good");
    let as_it_is = load_file(&shipped("tracespool.toml"), &environment);
    assert_eq!(values(&as_it_is), values(&nothing));

    let text = std::fs::read_to_string(shipped("tracespool.toml")).expect("the sample");
    // Groups have no default that could be shown; the backend is an example.
    let (before, rest) = text.split_once("#[[backend]]").expect("the backend's part");
    let (_, after) = rest.split_once("[admin]").expect("the part behind it");
    let settings = uncomment(&format!("{before}[admin]{after}").replace("#group", "# group"));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("set.toml");
    std::fs::write(&path, &settings).expect("written");
    let all_set = load_file(&path, &environment);
    assert_eq!(values(&all_set), values(&nothing));
    // No key is missing from the sample: what is still at its default belongs to the backend alone.
    let at_default = |line: &&str| line.ends_with("# default");
    let missing: Vec<_> = effective(&all_set)
        .lines()
        .filter(at_default)
        .map(|line| line.split(" = ").next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(missing, ["name", "compression", "experiment_id"]);
}

/// Every key of a backend in the sample is one that the program knows, with the default it really has.
#[test]
fn the_backend_of_the_sample_is_read() {
    let text = std::fs::read_to_string(shipped("tracespool.toml")).expect("the sample");
    let start = text.find("#[[backend]]").expect("the backend's part");
    let end = text.find("[admin]").expect("the part behind it");
    let example = text[start..end].replace("#[[", "[[");
    for (kind, keys) in [
        ("mlflow", &["endpoint", "experiment_id", "token_file"][..]),
        (
            "otlp_http",
            &[
                "traces_endpoint",
                "headers",
                "username",
                "password_file",
                "tls",
                "compression",
                "start_at",
                "when_full",
                "max_backlog_bytes",
            ],
        ),
        ("file", &["path", "rotate_bytes", "rotate_files"]),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "x").expect("written");
        let mut written = String::from("[[backend]]\nname = \"x\"\n");
        written += &format!("kind = \"{kind}\"\n");
        for key in keys {
            let line = example.lines().find(|line| line.starts_with(&format!("#{key} = "))).expect(key);
            let line = line.trim_start_matches('#');
            // Files that are only examples are replaced by one that exists.
            let line = ["/etc/tracespool/token", "/etc/tracespool/password", "ca.pem", "client.pem", "client.key"]
                .iter()
                .fold(line.to_owned(), |line, name| line.replace(name, secret.to_str().expect("UTF-8")));
            written += &format!("{line}\n");
        }
        let path = folder.path().join("backend.toml");
        std::fs::write(&path, written).expect("written");
        assert_eq!(load_file(&path, &service()).config.backends.len(), 1);
    }
}

#[test]
fn every_example_is_good() {
    let mut environment = service();
    environment.vars.insert("VENDOR_API_KEY".into(), "k3y".into());
    // The credentials that a unit would bring.
    let credentials = tempfile::tempdir().expect("a folder");
    std::fs::write(credentials.path().join("mlflow-password"), "x\n").expect("written");
    let directory = credentials.path().to_str().expect("UTF-8");
    environment.vars.insert("CREDENTIALS_DIRECTORY".into(), directory.into());
    let mut count = 0;
    for entry in std::fs::read_dir(shipped("examples")).expect("the examples") {
        let path = entry.expect("an entry").path();
        let loaded = load_file(&path, &environment);
        assert!(!loaded.config.backends.is_empty(), "{}", path.display());
        assert!(loaded.warnings.is_empty(), "{}: {:?}", path.display(), loaded.warnings);
        assert!(!effective(&loaded).contains("k3y"), "{}", path.display());
        count += 1;
    }
    assert!(count >= 5, "only {count} examples found");
}

/// The reference names every key with its default; a key that is added without a line there fails here.
#[test]
fn the_reference_has_every_key_with_its_default() {
    let reference = std::fs::read_to_string(shipped("REFERENCE.md")).expect("the reference");
    let nothing = load(&Overrides::default(), &service_with_backend()).expect("defaults are good");
    let mut section = String::new();
    let mut count = 0;
    for line in values(&nothing).lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_matches(['[', ']']).to_owned();
            continue;
        }
        let Some((key, value)) = line.split_once(" = ") else { continue };
        count += 1;
        let full = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
        // What a backend has may be described as its own or among the defaults of all.
        let candidates = match section.as_str() {
            "backend" => vec![format!("delivery.{key}"), key.to_owned()],
            _ => vec![full.clone()],
        };
        let describes = |row: &&str| candidates.iter().any(|key| row.starts_with(&format!("| `{key}` |")));
        let row = reference.lines().find(describes).unwrap_or_else(|| panic!("{full} is not in the reference"));
        if value.starts_with("\"/") || ["backend.name", "backend.kind", "backend.endpoint"].contains(&full.as_str()) {
            continue;
        }
        // Some times read nicer there in another unit.
        let value = value.replace("\"1d\"", "\"24h\"").replace("\"1m\"", "\"60s\"");
        assert!(row.contains(&format!("| `{value}` |")), "{full} = {value}: {row}");
    }
    assert!(count >= 30, "only {count} keys found");
}

/// What `check --effective` prints is a configuration, and the same one.
#[test]
fn the_effective_configuration_can_be_loaded_again() {
    let first = load_file(&shipped("examples/two-backends.toml"), &service());
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("effective.toml");
    std::fs::write(&path, effective(&first)).expect("written");
    assert_eq!(values(&load_file(&path, &service())), values(&first));
}
