//! A segment of arbitrary bytes, with every checksum in it made right.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut file = bytes.to_vec();
    tracespool_fuzz::reseal(&mut file, false);
    // A file that is too short for a header has no number of its own.
    let segment = file
        .get(16..24)
        .filter(|_| file.len() >= 4096)
        .map_or(1, |id| u64::from_le_bytes(id.try_into().expect("eight bytes")));
    tracespool_fuzz::check(&tracespool_fuzz::disk(&[(format!("{segment:016x}.seg"), file)]));
});
