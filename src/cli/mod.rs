//! The command line: one file a command.

mod check;
mod client;
mod documents;
mod env;
mod feed;
mod find;
mod offline;
mod page;
mod run;
mod send;
mod status;
mod test_trace;
mod verify;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::{Environment, Overrides};
use crate::exit::{Exit, Failure, Outcome};

/// Takes traces from local apps, writes them to disk, acknowledges them, and ships every one to every backend.
#[derive(Debug, Parser)]
#[command(name = "tracespool", version, subcommand_required = true, arg_required_else_help = false)]
pub struct Cli {
    /// Configuration file [default: /etc/tracespool/tracespool.toml as root or a service, else
    /// ~/.config/tracespool/tracespool.toml]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// State directory; another one than the usual takes the sockets with it [default: /var/lib/tracespool as root or
    /// a service, else ~/.local/state/tracespool]
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon in the foreground
    Run(run::Run),
    /// Reads the configuration and says every mistake at once
    Check(check::Check),
    /// Prints the settings that an app on this host needs to write to the daemon
    Env(env::Env),
    /// Shows what waits, what was delivered, and what is wrong
    Status(status::Status),
    /// Hands traces from files to the running daemon
    Send(send::Send),
    /// Reads the whole spool and says what is damaged
    Verify(verify::Verify),
}

/// Reads the arguments. Help and version are printed here and end in an empty failure with code 0.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, Failure> {
    Cli::try_parse_from(arguments).map_err(|error| {
        // clap prints help to standard output and mistakes to standard error, in colour where that fits. A reader
        // that has gone away is none of our business.
        let _ = error.print();
        let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
        Failure::new(exit, "")
    })
}

impl Cli {
    /// Does what was asked for.
    pub fn run(self, environment: &Environment) -> Outcome {
        let overrides = Overrides { config: self.config, state_dir: self.state_dir };
        match self.command {
            Command::Run(command) => command.run(&overrides, environment),
            Command::Check(command) => command.run(&overrides, environment),
            Command::Env(command) => command.run(&overrides, environment),
            Command::Status(command) => command.run(&overrides, environment),
            Command::Send(command) => command.run(&overrides, environment),
            Command::Verify(command) => command.run(&overrides, environment),
        }
    }
}

/// Says what went wrong. `eprintln` would panic when standard error is closed.
pub fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "tracespool: {message}");
}

/// Says something that is no result, beside the results on standard output.
fn remark(message: &str) {
    let _ = writeln!(std::io::stderr(), "{message}");
}

/// Prints results. A reader that has seen enough (`tracespool status | head -1`) is success.
fn print(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Storage, format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Reads a duration on the command line as in the configuration file.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    crate::config::units::parse_time(text).map_err(|reason| format!("it {reason}"))
}
