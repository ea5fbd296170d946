//! Delivery: one lane per backend takes records out of the journal and pays the debt.
//!
//! A lane never looks at another one: each has its own reader, place, window, backoff and books over the one stored
//! copy. What it decides is in pure modules (`backoff`, `concurrency`, `suspect`); `lane` ties them to the
//! reader and the backend.

mod backoff;
mod concurrency;
mod lane;
mod parcel;
mod patience;
mod suspect;
mod turns;

pub use lane::{Lane, LaneParts};
