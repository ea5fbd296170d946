//! The list of backends: those of the file, else those of the environment, else what an ordinary user gets.

use std::path::{Path, PathBuf};

use super::section::At;
use super::settle::Settle;
use super::{
    Backend, Delivery, Doors, FileTarget, Origin, Receive, StartAt, Target, WhenFull, address, file, load,
    mlflow_variables, otel_variables, remote,
};

/// Settles the backends of the file, or finds those that go without saying.
pub(super) fn build(
    written: Vec<file::Backend>,
    delivery: &Delivery,
    receive: &Receive,
    doors: &Doors,
    listen_at: Option<&At>,
    settle: &mut Settle<'_>,
) -> Vec<Backend> {
    if written.is_empty() {
        return unwritten_backends(delivery, receive, doors, settle);
    }
    let names = written.iter().filter_map(|backend| backend.name.clone());
    let names: Vec<_> = names.map(|name| (name.value, name.at, "in this file")).collect();
    settle.unique(names, "is the name of another backend");
    let paths = written.iter().filter_map(|backend| {
        let name = backend.name.as_ref().map_or_else(|| backend.at.key.clone(), |name| name.value.clone());
        backend.path.clone().map(|path| (normal(&path.value), path.at, name))
    });
    let paths: Vec<_> = paths.collect();
    settle.unique(paths, "is also written by the backend");
    let mut backends = Vec::new();
    for mut backend in written {
        let endpoint_at = backend.traces_endpoint.as_ref().or(backend.endpoint.as_ref()).map(|found| found.at.clone());
        let own = std::mem::take(&mut backend.delivery);
        let (when_full, max_backlog) = (backend.when_full.take(), backend.max_backlog_bytes.take());
        let delivery = load::build_delivery(own, delivery, settle);
        let Some((name, target, start_at)) = remote::from_file(backend, settle) else { continue };
        if let (Some(remote), Some(at)) = (target.remote(), &endpoint_at)
            && address::is_our_own(&remote.endpoint, &receive.listen, &receive.socket.path)
        {
            let place = match listen_at.map(|at| &at.origin) {
                Some(Origin::File { line, .. }) => format!(" (receive.listen, line {line})"),
                _ => String::new(),
            };
            settle
                .mistake(at, format!("is one of this daemon's own listeners{place}: traces would go round in a loop"));
        }
        let gives_way = settle.or(when_full, WhenFull::Refuse) == WhenFull::DiscardOldest;
        if let Some(found) = max_backlog.as_ref().filter(|_| !gives_way) {
            settle.mistake(
                &found.at,
                "needs when_full = \"discard_oldest\" beside it: what is above it is given up, the oldest first",
            );
        }
        let max_backlog_bytes = max_backlog.map(|found| settle.bytes(Some(found), load::LARGEST, 1..=load::LARGEST));
        backends.push(Backend { name, target, delivery, start_at, gives_way, max_backlog_bytes });
    }
    backends
}

/// The backends when the file names none: those of the variables, else for an ordinary user a file, so that traces
/// are seen somewhere at once. A service without a backend keeps what it gets until there is one.
fn unwritten_backends(delivery: &Delivery, receive: &Receive, doors: &Doors, settle: &mut Settle<'_>) -> Vec<Backend> {
    let mut backends = Vec::new();
    let named = [("otlp", otel_variables::target(settle)), ("mlflow", mlflow_variables::target(settle))];
    for (name, found) in named {
        let Some((variable, target)) = found else { continue };
        if let Some(remote) = target.remote()
            && address::is_our_own(&remote.endpoint, &receive.listen, &receive.socket.path)
        {
            settle.variable_warning(
                variable,
                "is ignored: the address is one of this daemon's own listeners, so it is meant for the apps",
            );
            continue;
        }
        backends.push(plain(name, target, delivery));
    }
    if backends.is_empty() && !settle.environment.is_service() {
        let target = FileTarget {
            path: {
                let hidden = settle.origins.of("state_dir").hidden;
                settle.origins.set("backend.file.path", Origin::Default, hidden);
                doors.state_dir.join("traces.jsonl")
            },
            rotate_bytes: remote::ROTATE_BYTES,
            rotate_files: remote::ROTATE_FILES,
        };
        backends.push(plain("file", Target::File(target), delivery));
    }
    backends
}

/// A backend of which nobody said more.
fn plain(name: &str, target: Target, delivery: &Delivery) -> Backend {
    Backend {
        name: name.into(),
        target,
        delivery: delivery.clone(),
        start_at: StartAt::default(),
        gives_way: false,
        max_backlog_bytes: None,
    }
}

/// A path without `.` and `..`, as far as that can be told without looking at the disk.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}
