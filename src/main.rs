//! The one binary: the daemon and its command line.

use std::process::ExitCode;

use tracespool::cli;
use tracespool::config::Environment;

fn main() -> ExitCode {
    // The only places that look at the process's surroundings are here and in the two calls below.
    let environment = Environment::of_process();
    let outcome = cli::parse(std::env::args_os()).and_then(|cli| cli.run(&environment));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                cli::complain(&failure.message);
            }
            failure.exit.into()
        }
    }
}
