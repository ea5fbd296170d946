//! `tracespool check`: every mistake of the configuration at once, or every value in force.

use std::fmt::Write;

use clap::Args;

use crate::config::{self, Environment, Overrides};
use crate::exit::{Exit, Failure, Outcome};
use crate::receive;

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Prints every value in force and where it comes from; what may be a secret is shown as ***
    #[arg(long)]
    effective: bool,
}

impl Check {
    pub(super) fn run(self, overrides: &Overrides, environment: &Environment) -> Outcome {
        let loaded = config::load(overrides, environment)?;
        for warning in &loaded.warnings {
            super::remark(&format!("warning: {warning}"));
        }
        let problems: Vec<_> = receive::problems(&loaded.config.receive).iter().map(ToString::to_string).collect();
        if !problems.is_empty() {
            return Err(Failure::new(Exit::Configuration, problems.join("\n")));
        }
        let mut page = String::new();
        if self.effective {
            page = config::effective(&loaded);
        } else {
            // Writing to a String does not fail.
            let _ = match &loaded.file {
                Some(file) => writeln!(page, "{}: no mistakes", file.display()),
                None => writeln!(page, "no configuration file: defaults and environment"),
            };
            for backend in &loaded.config.backends {
                let _ = writeln!(
                    page,
                    "  ships to {} ({}): {}",
                    backend.name,
                    backend.target.kind(),
                    loaded.place(backend)
                );
            }
        }
        if loaded.config.backends.is_empty() {
            super::remark("warning: no backend is configured: records wait on disk until there is one");
        }
        super::print(&page)
    }
}
