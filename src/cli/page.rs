//! The status as a page for a person.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::status::{Backend, BackendState, Directory, DirectoryState, State, Status, Timestamp};

/// Writes the whole page. `source` is the socket or directory that was read.
pub(super) fn status(status: &Status, source: &Path, now: SystemTime) -> String {
    let mut page = String::new();
    // Writing to a String does not fail; the results say nothing.
    let _ = head(&mut page, status, source, now);
    let _ = spool(&mut page, status, now);
    // Only where there is something to say: most hosts use the doors.
    if let Some(it) =
        status.directory.as_ref().filter(|it| it.files + it.rejected_files + it.left > 0 || it.trouble.is_some())
    {
        let _ = directory(&mut page, it);
    }
    for each in &status.backends {
        let _ = backend(&mut page, each, now);
    }
    if status.backends.is_empty() {
        page.push_str("\nNo backend is configured: what comes in waits on disk until there is one.\n");
    }
    page
}

fn head(page: &mut String, status: &Status, source: &Path, now: SystemTime) -> std::fmt::Result {
    let state = match status.state {
        State::Starting => "starting: the doors are not open yet",
        State::Ready => "ready",
        State::Stopping => "stopping: takes nothing more",
        State::Failed => "failed: see its log",
        State::Down => "down: read from its files",
    };
    writeln!(page, "tracespool {}: {state}", status.version)?;
    row(page, "daemon", format_args!("{}{}", source.display(), pid(status)))?;
    if let Some(started) = status.started_at {
        row(page, "running for", format_args!("{} (since {started})", span(started.age(now))))?;
    }
    if !status.listen.is_empty() {
        row(page, "listens on", format_args!("{}", status.listen.join(", ")))?;
    }
    Ok(())
}

fn pid(status: &Status) -> String {
    if status.state == State::Down { String::new() } else { format!(", process {}", status.pid) }
}

fn directory(page: &mut String, directory: &Directory) -> std::fmt::Result {
    let how = match directory.state {
        DirectoryState::Watching => "",
        DirectoryState::Scanning => ", looked through from time to time",
        DirectoryState::Missing => ", not in use",
    };
    let taken = counted(directory.files, "file");
    row(page, "drop directory", format_args!("{}{how}: {taken} taken", directory.path))?;
    if let Some(trouble) = &directory.trouble {
        row(page, "", format_args!("{trouble}"))?;
    }
    if directory.waits_for_room {
        row(page, "", format_args!("waits for room in the spool"))?;
    }
    if directory.rejected_files > 0 {
        row(page, "", format_args!("{} set aside in rejected/", counted(directory.rejected_files, "file")))?;
    }
    for file in &directory.left_files {
        row(page, "", format_args!("{} is left: {}", file.name, file.reason))?;
    }
    Ok(())
}

fn spool(page: &mut String, status: &Status, now: SystemTime) -> std::fmt::Result {
    let spool = &status.spool;
    let received = &status.received;
    writeln!(page)?;
    row(
        page,
        "received",
        format_args!(
            "{}, {}, {}",
            counted(received.requests, "request"),
            counted(received.traces, "trace"),
            counted(received.spans, "span")
        ),
    )?;
    let refused = &received.refused;
    if refused.full + refused.invalid + refused.too_large > 0 {
        row(
            page,
            "refused",
            format_args!("{} full, {} invalid, {} too large", refused.full, refused.invalid, refused.too_large),
        )?;
    }
    row(page, "waiting", format_args!("{}", waiting(spool.records, spool.traces, spool.spans, spool.oldest_at, now)))?;
    let share = spool.bytes.saturating_mul(100).checked_div(spool.max_bytes).unwrap_or(0);
    row(page, "on disk", format_args!("{} of {} ({share}%)", size(spool.bytes), size(spool.max_bytes)))?;
    row(page, "disk free", format_args!("{}", size(spool.disk_free_bytes)))?;
    if let Some(seconds) = spool.seconds_until_full {
        row(page, "full in", format_args!("{} at the present rate", span(Duration::from_secs(seconds))))?;
    }
    if spool.kept.records > 0 {
        let back = spool.kept.oldest_at.map_or_else(String::new, |at| format!(", back to {} ago", span(at.age(now))));
        row(page, "for replay", format_args!("{}{back}", counted(spool.kept.records, "record")))?;
    }
    let dead = &spool.dead_letters;
    if dead.records > 0 {
        let held = format!("{} of {}", size(dead.bytes), size(dead.max_bytes));
        row(page, "dead letters", format_args!("{} ({held})", counted(dead.records, "record")))?;
    }
    if spool.damage.records + spool.damage.bytes > 0 {
        let lost = format!("{} in {}", counted(spool.damage.records, "record"), size(spool.damage.bytes));
        row(page, "DAMAGE", format_args!("{lost} can't be read; see: tracespool verify"))?;
    }
    Ok(())
}

fn backend(page: &mut String, backend: &Backend, now: SystemTime) -> std::fmt::Result {
    let state = match backend.state {
        BackendState::Up => "up",
        BackendState::Retrying => "retrying",
        BackendState::Blocked => "BLOCKED",
        BackendState::Paused => "paused",
        BackendState::Removed => "removed",
    };
    writeln!(page, "\n{} ({}): {state}", backend.name, backend.kind)?;
    let backlog = &backend.backlog;
    let text = waiting(backlog.records, backlog.traces, backlog.spans, backlog.oldest_at, now);
    let parked =
        if backlog.parked > 0 { format!(", {} set aside for another try", backlog.parked) } else { String::new() };
    row(page, "waiting", format_args!("{text}{parked}"))?;
    let delivered = &backend.delivered;
    row(
        page,
        "delivered",
        format_args!("{}, {}", counted(delivered.records, "record"), counted(delivered.spans, "span")),
    )?;
    for (label, spans) in [
        ("rejected", backend.rejected.spans),
        ("discarded", backend.discarded.total()),
        ("damaged", backend.damaged),
        ("inapplicable", backend.not_applicable),
    ] {
        if spans > 0 {
            row(page, label, format_args!("{}", counted(spans, "span")))?;
        }
    }
    if backend.dead.records > 0 {
        let dead = &backend.dead;
        row(
            page,
            "dead letters",
            format_args!("{}, {}", counted(dead.records, "record"), counted(dead.spans, "span")),
        )?;
    }
    if let Some(error) = &backend.last_error {
        let ago = span(error.at.age(now));
        row(page, "last error", format_args!("{ago} ago: {}: {}", one_line(&error.status), one_line(&error.message)))?;
    }
    if let Some(advice) = advice(backend) {
        row(page, "what to do", format_args!("{advice}"))?;
    }
    if let Some(next) = backend.next_attempt_at {
        let left = next.0.duration_since(now).unwrap_or_default();
        row(page, "next try", format_args!("in {}", span(left)))?;
    }
    Ok(())
}

/// What the operator can do about the state of a backend.
fn advice(backend: &Backend) -> Option<String> {
    let known = backend.last_error.as_ref().and_then(|error| error.advice.clone());
    match backend.state {
        BackendState::Up => None,
        BackendState::Retrying => {
            Some(known.unwrap_or_else(|| "nothing: it is tried again until it works, and everything is kept".into()))
        }
        BackendState::Blocked => Some(known.unwrap_or_else(|| {
            "see the last error; correct the backend or its configuration, everything is kept until then".into()
        })),
        BackendState::Paused => Some("nothing is sent until delivery is resumed; everything is kept".into()),
        BackendState::Removed => Some("put it back into the configuration to have its backlog delivered".into()),
    }
}

fn row(page: &mut String, label: &str, value: std::fmt::Arguments<'_>) -> std::fmt::Result {
    writeln!(page, "  {label:<12}  {value}")
}

fn waiting(records: u64, traces: u64, spans: u64, oldest: Option<Timestamp>, now: SystemTime) -> String {
    if records == 0 {
        return "nothing".into();
    }
    let age = oldest.map_or_else(String::new, |at| format!(", the oldest for {}", span(at.age(now))));
    format!("{}, {}, {}{age}", counted(records, "record"), counted(traces, "trace"), counted(spans, "span"))
}

pub(super) fn counted(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", grouped(count))
}

/// A number with its thousands apart.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

/// A time in its two largest units.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

/// Words of a backend must not draw on the terminal or break the page.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::SAMPLE;
    use crate::status::{Backlog, LastError};

    fn sample() -> Status {
        serde_json::from_str(SAMPLE).expect("the sample is read")
    }

    fn at(text: &str) -> Timestamp {
        Timestamp(humantime::parse_rfc3339(text).expect("a time"))
    }

    #[test]
    fn a_quiet_daemon_is_a_short_page() {
        let page = status(&sample(), Path::new("/run/admin.sock"), at("2026-01-02T03:00:00Z").0);
        let expected = "\
tracespool 0.1.0: ready
  daemon        /run/admin.sock, process 1
  running for   1d 3h (since 2026-01-01T00:00:00Z)
  listens on    127.0.0.1:4317

  received      0 requests, 0 traces, 0 spans
  waiting       nothing
  on disk       0 B of 0 B (0%)
  disk free     0 B

mlflow (mlflow): up
  waiting       nothing
  delivered     0 records, 0 spans
";
        assert_eq!(page, expected);
    }

    #[test]
    fn trouble_says_what_happened_and_what_to_do() {
        let mut sample = sample();
        let backend = &mut sample.backends[0];
        backend.state = BackendState::Blocked;
        backend.backlog = Backlog {
            records: 12_345,
            traces: 1,
            spans: 7,
            oldest_at: Some(at("2026-01-01T00:00:00Z")),
            ..Backlog::default()
        };
        backend.last_error = Some(LastError {
            at: at("2026-01-01T00:59:30Z"),
            status: "401".into(),
            message: "who\nare\u{1b}you".into(),
            advice: Some("check token_file".into()),
        });
        backend.next_attempt_at = Some(at("2026-01-01T01:01:00Z"));
        let page = status(&sample, Path::new("/run/admin.sock"), at("2026-01-01T01:00:00Z").0);
        for line in [
            "mlflow (mlflow): BLOCKED\n",
            "  waiting       12,345 records, 1 trace, 7 spans, the oldest for 1h 0m\n",
            "  last error    30s ago: 401: who are you\n",
            "  what to do    check token_file\n",
            "  next try      in 1m 0s\n",
        ] {
            assert!(page.contains(line), "{line}\n{page}");
        }
    }

    #[test]
    fn without_backends_the_page_says_that_records_wait() {
        let mut sample = sample();
        sample.backends.clear();
        assert!(status(&sample, Path::new("/"), SystemTime::now()).contains("No backend is configured"));
    }
}
