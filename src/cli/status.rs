//! `tracespool status`: how the daemon and its backends are.

use std::path::Path;
use std::time::{Duration, SystemTime};

use clap::Args;

use super::client::{Client, block_on, within};
use super::find::{Found, NotFound, Socket, find, not_permitted};
use super::{offline, page};
use crate::config::{self, Environment, Overrides};
use crate::exit::{Exit, Failure, Outcome};

/// A daemon that is well answers in milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct Status {
    /// Prints the daemon's answer as it is, one JSON object
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(self, overrides: &Overrides, environment: &Environment) -> Outcome {
        match find(Socket::Admin, overrides, environment) {
            Ok(found) => self.online(&found),
            Err(NotFound::NoDaemon { candidates, socket }) => {
                let config = config::load(overrides, environment).ok().map(|loaded| loaded.config);
                let down = candidates
                    .iter()
                    .find_map(|doors| Some((doors, offline::status(&doors.state_dir, config.as_ref())?)));
                let failure = Failure::from(NotFound::NoDaemon { candidates: candidates.clone(), socket });
                if let Some((doors, status)) = down {
                    let text = if self.json {
                        serde_json::to_string(&status).map_err(|error| Failure::new(Exit::Bug, error))? + "\n"
                    } else {
                        page::status(&status, &doors.state_dir, SystemTime::now())
                    };
                    super::print(&text)?;
                }
                Err(failure)
            }
            Err(NotFound::Failure(failure)) => Err(failure),
        }
    }

    fn online(&self, found: &Found) -> Outcome {
        let body = block_on(async { fetch_text(&found.path).await })?;
        if self.json {
            super::remark(&format!("asked the daemon at {}", found.path.display()));
            return super::print(&(body.trim_end().to_owned() + "\n"));
        }
        super::print(&page::status(&read(&body, &found.path)?, &found.path, SystemTime::now()))
    }
}

/// Asks for the status once.
pub(super) async fn fetch(path: &Path) -> Result<crate::status::Status, Failure> {
    read(&fetch_text(path).await?, path)
}

fn read(body: &str, path: &Path) -> Result<crate::status::Status, Failure> {
    serde_json::from_str(body).map_err(|error| {
        let message = format!(
            "the daemon at {} answers something else than a status: {error}; is it of another version?",
            path.display()
        );
        Failure::new(Exit::Unavailable, message)
    })
}

async fn fetch_text(path: &Path) -> Result<String, Failure> {
    let unavailable =
        |reason: String| Failure::new(Exit::Unavailable, format!("asking the daemon at {}: {reason}", path.display()));
    let closed = |error: std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
    if std::os::unix::net::UnixStream::connect(path).is_err_and(closed) {
        return Err(not_permitted(path));
    }
    let mut client = Client::new(path.to_owned());
    let answer = within(PATIENCE, client.get("/status")).await.map_err(unavailable)?;
    if !answer.status.is_success() {
        return Err(unavailable(answer.reason()));
    }
    String::from_utf8(answer.body.to_vec()).map_err(|_| unavailable("it answers no text".into()))
}
