//! Experiments that were promised: an app asked for one by name while no server could be reached, and was given an id
//! under which its traces came in.

use std::collections::BTreeMap;

use crate::tlv::{self, CRITICAL, Encoder, Malformed};

/// An experiment that an app was given a provisional id for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PromisedExperiment {
    /// The provisional id.
    pub id: String,
    /// The name that the app asked for.
    pub name: String,
    /// The MLflow workspace that it named, too.
    pub workspace: Option<String>,
    /// The ids that servers turned out to have it under, by backend.
    pub found: BTreeMap<String, String>,
}

const ID: u16 = 1;
const NAME: u16 = 2;
const WORKSPACE: u16 = 3;
const FOUND: u16 = 4;

impl PromisedExperiment {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        to.text(ID, Some(&self.id)).text(NAME, Some(&self.name)).text(WORKSPACE, self.workspace.as_deref());
        for (backend, id) in &self.found {
            to.text(FOUND, Some(&format!("{id}\0{backend}")));
        }
        to.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut read = Self::default();
        for item in tlv::items(bytes) {
            let (tag, value) = item?;
            match tag {
                ID => read.id = tlv::as_text(value)?,
                NAME => read.name = tlv::as_text(value)?,
                WORKSPACE => read.workspace = Some(tlv::as_text(value)?),
                FOUND => {
                    let text = tlv::as_text(value)?;
                    let (id, backend) = text.split_once('\0').ok_or(Malformed)?;
                    read.found.insert(backend.to_owned(), id.to_owned());
                }
                unknown if unknown & CRITICAL != 0 => return Err(Malformed),
                _ => {}
            }
        }
        if read.id.is_empty() { Err(Malformed) } else { Ok(read) }
    }
}
