//! How the process ends: the codes that scripts and systemd rely on, and the one message that goes with them.

use std::fmt::Display;
use std::process::ExitCode;

/// The meaning of each code. They follow sysexits(3) and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The command line is wrong.
    Usage = 64,
    /// The input was bad.
    BadInput = 65,
    /// No such record or file.
    NotFound = 66,
    /// No daemon, or a backend not reachable.
    Unavailable = 69,
    /// A bug.
    Bug = 70,
    /// An address is in use.
    AddressInUse = 71,
    /// Storage failed or is damaged.
    Storage = 74,
    /// Another daemon holds the state directory, or waiting was given up.
    TryLater = 75,
    /// Not permitted.
    NotPermitted = 77,
    /// The configuration is wrong, or the state directory has a newer format.
    Configuration = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        // The discriminants are the codes.
        ExitCode::from(exit as u8)
    }
}

/// Why a command did not do what it was asked for. `main` prints it, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// What happened and what to do about it; empty when the output has said it all.
    pub message: String,
}

impl Failure {
    /// A failure with its message.
    pub fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string() }
    }
}

impl From<crate::config::Mistakes> for Failure {
    fn from(mistakes: crate::config::Mistakes) -> Self {
        Self::new(Exit::Configuration, mistakes)
    }
}

/// What a command comes to.
pub type Outcome = Result<(), Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are a promise to scripts and to the unit file; a slip here must not pass.
    #[test]
    fn the_codes_are_the_documented_ones() {
        let all = [
            (Exit::Done, 0),
            (Exit::Usage, 64),
            (Exit::BadInput, 65),
            (Exit::NotFound, 66),
            (Exit::Unavailable, 69),
            (Exit::Bug, 70),
            (Exit::AddressInUse, 71),
            (Exit::Storage, 74),
            (Exit::TryLater, 75),
            (Exit::NotPermitted, 77),
            (Exit::Configuration, 78),
        ];
        for (exit, code) in all {
            assert_eq!(exit as u8, code, "{exit:?}");
        }
    }
}
